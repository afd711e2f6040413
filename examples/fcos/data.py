"""Images and objects from folders in PASCAL VOC's layout, checked, decoded once where wanted, and put into batches."""

from __future__ import annotations

import os
import re
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from augment import draw_change
from mgassign import IGNORE
from runs import UserError, naming

# Of what Pillow reads, images: EPS, say, is a program that it would have another one run.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Record(NamedTuple):
    """An image and its objects, as the files have them."""

    image: Path
    size: tuple[int, int]
    """Width and height in pixels."""
    boxes: Tensor
    """float32 [G, 4], xyxy in pixels of the image: VOC counts pixels from 1 and includes the last one."""
    labels: Tensor
    """int64 [G]."""
    difficult: Tensor
    """bool [G]: trained on like the others, left out of scoring."""

    def boxes_at(self, size: int) -> Tensor:
        """The boxes in the image resized to size x size, cut off at its borders."""
        return (self.boxes * (size / torch.tensor(self.size)).repeat(2)).clamp(0, size)


class Batch(NamedTuple):
    """What a training step needs, objects padded."""

    indices: Tensor
    """int64 [B], of the images in their set."""
    images: Tensor | None
    """uint8 [B, 3, size, size], or None where they are cached."""
    windows: Tensor
    colors: Tensor
    boxes: Tensor
    """float32 [B, G, 4] xyxy in pixels after the change; G may be 0."""
    labels: Tensor
    """int64 [B, G], -1 for padding, -2 for objects to be ignored."""


def read_split(source: str, classes: Sequence[str] | None) -> tuple[list[Record], list[str]]:
    """Reads the annotations of ``FOLDER:SPLIT``, which is to say of ``FOLDER/ImageSets/Main/SPLIT.txt``.

    Args:
        source: ``FOLDER:SPLIT``.
        classes: The names of the classes; None: those of ``FOLDER/classes.txt``, or else those that occur, sorted.

    Returns:
        The records and the names of the classes.

    Raises:
        UserError: if a file is missing or broken; the message names it.
    """
    folder, _, split = source.rpartition(":")
    if not folder or not split:
        raise UserError(f"{source}: expected FOLDER:SPLIT, say VOC2007:trainval")
    root = Path(folder)
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    names = _read_lines(listing, "images")
    # VOC's lists of one class have 1, 0 or -1 after each image: whether it shows the class. But "photo 1" may be a name.
    is_name = [os.path.isfile(root / "Annotations" / f"{name}.xml") for name in names]
    names = [name if whole else re.sub(r"\s+(-1|0|1)$", "", name) for name, whole in zip(names, is_name, strict=True)]
    annotations = [_read_annotation(root / "Annotations" / f"{name}.xml") for name in names]
    if classes is None:
        listed = root / "classes.txt"
        found = {str(name) for objects in annotations for name, *_ in objects}
        classes = _read_lines(listed, "classes") if listed.is_file() else sorted(found)
    if not classes:
        raise UserError(f"{listing}: no image of this split has an object")
    numbers = {name: number for number, name in enumerate(classes)}
    records = []
    for name, objects in zip(names, annotations, strict=True):
        path = root / "Annotations" / f"{name}.xml"
        unknown = [found for found, *_ in objects if found not in numbers]
        if unknown:
            raise UserError(f"{path}: unknown class {unknown[0]!r}; known are {', '.join(classes)}")
        image = root / "JPEGImages" / f"{name}.jpg"
        boxes = torch.tensor([box for _, box, _ in objects], dtype=torch.float32).reshape(-1, 4)
        size = _image_size(image)
        outside = (boxes < -1).any(-1) | (boxes > torch.tensor(size * 2) + 1).any(-1)
        if outside.any():
            box = [round(side, 2) for side in boxes[outside][0].tolist()]
            raise UserError(f"{path}: the box {box} does not lie in {image}, which is {size[0]} x {size[1]} pixels")
        labels = torch.tensor([numbers[found] for found, *_ in objects], dtype=torch.int64)
        difficult = torch.tensor([hard for *_, hard in objects], dtype=torch.bool)
        records.append(Record(image, size, boxes, labels, difficult))
    return records, list(classes)


def read_splits(sources: Sequence[str], classes: Sequence[str] | None = None) -> tuple[list[Record], list[str]]:
    """Several splits as one; the first one's classes count for all."""
    records: list[Record] = []
    for source in sources:
        more, classes = read_split(source, classes)
        records += more
    return records, list(classes or ())


def check_scorable(records: Sequence[Record], sources: Sequence[str]) -> None:
    """Before a model is scored on a set.

    Raises:
        UserError: if no image has an object that counts: there would be no score.
    """
    if not any((~record.difficult).any() for record in records):
        raise UserError(f"{' '.join(sources)}: no image has an object to score a model by")


def _read_lines(path: Path, what: str) -> list[str]:
    """The lines that are not empty, a byte order mark left out."""
    with naming(path, "cannot read the list"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: names no {what}")
    return lines


def _read_annotation(path: Path) -> list[tuple[str, list[float], bool]]:
    objects = []
    with naming(path, "cannot read the annotation"):
        for number, found in enumerate(ElementTree.parse(path).iter("object"), 1):
            name = found.findtext("name", "").strip()
            x1, y1, x2, y2 = (float(found.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            if not name:
                raise ValueError(f"object {number} has no name")
            # Written so that NaN fails too.
            if not (-np.inf < x1 - 1 < x2 < np.inf and -np.inf < y1 - 1 < y2 < np.inf):
                raise ValueError(f"object {number}, {name}: a box needs width and height, got {x1, y1, x2, y2}")
            objects.append((name, [x1 - 1, y1 - 1, x2, y2], found.findtext("difficult", "0").strip() == "1"))
    return objects


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image of which only the header has been read."""
    with naming(path, "cannot read the image"), Image.open(path, formats=FORMATS) as image:
        if image.mode in ("I", "F"):  # what is black in them, what white?
            raise ValueError(f"expected 8 or 16 bits a channel, got pixels of Pillow's mode {image.mode}")
        yield image


def _image_size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.size


def open_image(path: Path) -> Image.Image:
    """Decodes an image, to 8 bits a channel.

    Raises:
        UserError: if that fails, or pixels are no whole numbers of 1 to 16 bits; the message names the file.
    """
    with _opened(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would make white of all above 255
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return image.convert("RGB")


def load_image(path: Path, size: int) -> Tensor:
    """An image as uint8 [3, size, size], whatever its shape."""
    resized = open_image(path).resize((size, size), Image.Resampling.BILINEAR)  # antialiased where it shrinks
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def load_images(records: Sequence[Record], size: int, device: torch.device | str = "cpu") -> Tensor:
    """All images of a set at once, uint8 [N, 3, size, size]."""
    pixels = torch.empty(len(records), 3, size, size, dtype=torch.uint8, device=device)
    with ThreadPoolExecutor() as threads:
        loaded = threads.map(lambda record: load_image(record.image, size), records)
        for i, image in enumerate(tqdm(loaded, "decoding", len(records), disable=None, leave=False)):
            pixels[i] = image
    return pixels


def check_images(records: Sequence[Record]) -> None:
    """Decodes every image.

    Raises:
        UserError: at the first one that is broken.
    """
    with ThreadPoolExecutor() as threads:
        checked = threads.map(lambda record: open_image(record.image), records)
        for _ in tqdm(checked, "checking images", len(records), disable=None, leave=False):
            pass


def _leave_signals_to_the_parent(_: int) -> None:
    # SIGTERM and Ctrl-C often go to the whole group; training would end with an error if its workers left first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainingSet(Dataset[Batch]):
    """Training's batches. What happens to an image depends on the epoch's seed and the image alone.

    So neither the number of processes and workers nor an interruption changes what is trained on.

    Args:
        decode: Whether batches bring the images along; not where they are cached.
        augment: What :func:`augment.draw_change` may do to them.
        ignore_difficult: Whether difficult objects are regions in which nothing is learned.
    """

    def __init__(
        self, records: Sequence[Record], size: int, decode: bool, augment: str = "full", ignore_difficult: bool = False
    ) -> None:
        self.records, self.size, self.decode, self.augment = records, size, decode, augment
        self.ignore_difficult = ignore_difficult

    def __getitem__(self, key: tuple[list[int], int]) -> Batch:
        indices, seed = key
        changes, boxes, labels = [], [], []
        with torch.random.fork_rng(devices=[]):
            for i in indices:
                torch.default_generator.manual_seed(seed * 1_000_003 + i)
                record = self.records[i]
                labels_of = record.labels.masked_fill(record.difficult & self.ignore_difficult, IGNORE)
                change, of_boxes, of_labels = draw_change(
                    record.boxes_at(self.size), labels_of, self.size, self.augment
                )
                changes.append(change)
                boxes.append(of_boxes)
                labels.append(of_labels)
        padded_boxes = torch.zeros(len(indices), max(map(len, boxes)), 4)
        padded_labels = torch.full(padded_boxes.shape[:2], -1)
        for i, (of_boxes, of_labels) in enumerate(zip(boxes, labels, strict=True)):
            padded_boxes[i, : len(of_boxes)] = of_boxes
            padded_labels[i, : len(of_labels)] = of_labels
        images = [load_image(self.records[i].image, self.size) for i in indices] if self.decode else None
        return Batch(
            torch.tensor(indices),
            torch.stack(images) if images else None,
            torch.stack([change.window for change in changes]),
            torch.stack([change.colors for change in changes]),
            padded_boxes,
            padded_labels,
        )

    def epoch(
        self,
        epoch: int,
        *,
        seed: int,
        batch: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> DataLoader[Batch]:
        """One process's share of an epoch's batches, from ``first_step`` on. Images that fill no batch are left out.

        Args:
            batch: Images of a step, of all processes together.
        """
        epoch_seed = seed * 100_003 + epoch
        order = torch.randperm(len(self.records), generator=torch.Generator().manual_seed(epoch_seed)).tolist()
        steps = range(first_step, len(order) // batch)
        keys = [(order[step * batch : (step + 1) * batch][rank::world], epoch_seed) for step in steps]
        return DataLoader(
            self,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
        )
