"""What a frozen network makes of a set's images, computed once and kept in a file: ``--cache features``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from backbone import Backbone
from data import Record, load_image
from runs import UserError, naming, write_tensors

AT_A_TIME = 16


class Features:
    """The outputs of ``Backbone.freeze`` for all images of a set, float16, read from a file as they are needed.

    Args:
        layers: Each [N, ...], or [2 N, ...] with every image's mirror image in the second half.
        count: N.
    """

    def __init__(self, layers: list[Tensor], count: int) -> None:
        self.layers, self.count = layers, count

    def of(self, indices: Tensor, mirrored: Tensor | None = None) -> list[Tensor]:
        """Of a batch of images, float32.

        Args:
            indices: int64 [B].
            mirrored: bool [B], which of them; None: none.
        """
        rows = indices if mirrored is None else indices + self.count * mirrored
        return [layer[rows].float() for layer in self.layers]


def load_features(
    folder: Path, backbone: Backbone, records: Sequence[Record], size: int, *, mirrored: bool
) -> Features:
    """Reads the features from ``folder``; computes them first where they are not there.

    The file's name is made of all that decides what is in it: the frozen weights, the images, their size. So any number of
    trainings share it, and none ever reads another's.

    Args:
        backbone: What to compute them with, where it is.
        mirrored: Whether to compute those of the mirror images too.

    Raises:
        UserError: if nothing is frozen, or an image or the file cannot be read or written.
    """
    if not backbone.tune_from:
        raise UserError("--cache features: keeps what frozen blocks compute, and --tune-from 0 freezes none")
    name = hashlib.sha256(repr((size, mirrored, backbone.tune_from, backbone.taps)).encode())
    for key, value in backbone.blocks[: backbone.tune_from].state_dict().items():
        name.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    for record in records:
        stat = record.image.stat()
        name.update(repr((str(record.image.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    path = folder / f"{name.hexdigest()[:16]}.pt"
    if not path.exists():
        layers = _compute(backbone, records, size, mirrored)
        write_tensors(path, layers)
    with naming(path, "not a file of features, delete it"):
        return Features(torch.load(path, mmap=True, weights_only=True), len(records))


@torch.inference_mode()
def _compute(backbone: Backbone, records: Sequence[Record], size: int, mirrored: bool) -> list[Tensor]:
    layers: list[Tensor] = []
    total = len(records) * (1 + mirrored)
    for start in tqdm(range(0, len(records), AT_A_TIME), "computing features", disable=None, leave=False):
        part = records[start : start + AT_A_TIME]
        images = torch.stack([load_image(record.image, size) for record in part]).to(backbone.mean.device).float() / 255
        for first, pixels in ((start, images), (start + len(records), images.flip(3)))[: 1 + mirrored]:
            kept = backbone.freeze(pixels.contiguous(memory_format=torch.channels_last))
            layers = layers or [torch.empty(total, *x.shape[1:], dtype=torch.float16) for x in kept]
            for layer, x in zip(layers, kept, strict=True):
                layer[first : first + len(part)] = x
    return layers
