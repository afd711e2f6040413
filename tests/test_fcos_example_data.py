"""The FCOS example's data: reading folders in VOC's layout, telling what is broken, changing images and boxes alike."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("torchvision")

from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

import drawn
from augment import IoUCrop, apply_changes, draw_change
from data import TrainingSet, check_images, check_scorable, load_image, load_images, read_split, read_splits
from drawn import CLASSES, draw_scene, draw_set
from fcos_example import EXAMPLE
from runs import MOST_SEEDS, UserError

BLACK = torch.zeros(3, 1, 1)


@pytest.fixture
def folder(tmp_path):
    """A drawn set that a test may spoil."""
    draw_set(tmp_path / "set", {"train": 4, "test": 2}, size=64)
    return tmp_path / "set"


def annotate(folder, *objects: str, name: str = "train_0000") -> None:
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")


def an_object(x1="3.5", y1="4", x2="20.25", y2="30", name="ellipse", difficult="0") -> str:
    box = f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}</object>"


def test_coordinates_are_decimal_and_continuous(folder):
    annotate(folder, an_object(), an_object(difficult="1"))
    records, classes = read_split(f"{folder}:train", None)
    assert records[0].boxes.tolist() == [[2.5, 3, 20.25, 30]] * 2
    assert records[0].difficult.tolist() == [False, True]
    assert classes == list(CLASSES)
    assert records[0].boxes_at(128)[0].tolist() == [5, 6, 40.5, 60]


def test_several_folders_are_one_set(folder):
    records, classes = read_splits([f"{folder}:train", f"{folder}:test"])
    assert (len(records), classes) == (6, list(CLASSES))


def test_classes_come_from_the_annotations_without_a_list(folder):
    (folder / "classes.txt").unlink()
    annotate(folder, an_object(name="zebra"))
    assert read_split(f"{folder}:train", None)[1][-1] == "zebra"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: annotate(f, "<object>"), r"train_0000\.xml: cannot read the annotation: mismatched tag"),
        (
            lambda f: (f / "Annotations/train_0000.xml").write_text('<?xml version="1.0" encoding="foo"?><a/>'),
            r"train_0000\.xml: cannot read the annotation: unknown encoding",
        ),
        (lambda f: annotate(f, an_object(x1="one")), r"train_0000\.xml: .*could not convert string to float: 'one'"),
        (lambda f: annotate(f, an_object(x1="nan")), r"train_0000\.xml: .*object 1, ellipse: a box needs width"),
        (lambda f: annotate(f, an_object(x2="2")), r"train_0000\.xml: .*object 1, ellipse: a box needs width"),
        (
            lambda f: annotate(f, an_object(x2="70")),
            r"train_0000\.xml: the box .*70.0, 30.0\] does not lie in .* 64 x 64",
        ),
        (lambda f: annotate(f, an_object(name="")), r"train_0000\.xml: .*object 1 has no name"),
        (lambda f: annotate(f, an_object(name="dog")), r"train_0000\.xml: unknown class 'dog'; known are ellipse, rec"),
        (lambda f: (f / "Annotations/train_0001.xml").unlink(), r"train_0001\.xml: .*No such file"),
        (lambda f: (f / "JPEGImages/train_0001.jpg").unlink(), r"train_0001\.jpg: .*No such file"),
        (lambda f: (f / "JPEGImages/train_0001.jpg").write_text("x"), r"train_0001\.jpg: .*cannot identify image file"),
        (lambda f: (f / "ImageSets/Main/train.txt").write_text("\n"), r"train\.txt: names no images"),
        (lambda f: (f / "classes.txt").write_text("\n"), r"classes\.txt: names no classes"),
        (lambda f: (f / "ImageSets/Main/train.txt").unlink(), r"train\.txt: cannot read the list: No such"),
    ],
)
def test_what_is_broken_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        read_split(f"{folder}:train", None)


def test_a_source_without_split_is_told():
    with pytest.raises(UserError, match="VOC2007: expected FOLDER:SPLIT"):
        read_split("VOC2007", None)


def test_a_truncated_image_is_found_before_training(folder):
    path = folder / "JPEGImages" / "train_0002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    records, _ = read_split(f"{folder}:train", None)  # its header is there
    with pytest.raises(UserError, match=r"train_0002\.jpg: cannot read the image: .*truncated"):
        check_images(records)
    with pytest.raises(UserError, match=r"train_0002\.jpg: cannot read"):
        load_images(records, 64)


def test_drawn_scenes_are_what_their_annotations_say(folder):
    hard = 0
    for seed in range(60):
        image, objects = draw_scene(64, torch.Generator().manual_seed(seed))
        again, same = draw_scene(64, torch.Generator().manual_seed(seed))
        assert (image.tobytes(), objects) == (again.tobytes(), same)
        assert all(0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64 for _, (x1, y1, x2, y2), _ in objects)
        hard += sum(difficult for *_, difficult in objects)
    assert hard > 0
    with pytest.raises(UserError, match="exists already"):
        draw_set(folder, {"train": 1}, size=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "31"], "--size: expected 32 to 2048, got 31"),
        (["--size", "1000000"], "--size: expected 32 to 2048, got 1000000"),
        (["--seed", "-1"], "--seed: expected 0 to 99999999, got -1"),
        (["--seed", str(2**62)], f"--seed: expected 0 to 99999999, got {2**62}"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        drawn.main([str(tmp_path / "set"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    # The least and the greatest that there may be.
    draw_set(tmp_path / "set", {"train": 1}, drawn.LEAST_SIZE, MOST_SEEDS - 1)


def test_sets_that_killed_processes_left_half_drawn_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".set.{platform.node()}.{dead.pid}"
    (left / "JPEGImages").mkdir(parents=True)
    (left / "JPEGImages" / "train_0000.jpg").touch()
    draw_set(tmp_path / "set", {"train": 1}, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(UserError, match=r"cannot write .*: File name too long"):
        draw_set(tmp_path / ("x" * 300), {"train": 1}, size=64)


def test_the_default_set_is_drawn_once(tmp_path, monkeypatch):
    sets = []

    def draw_slowly(folder, *_, **__):
        time.sleep(0.2)
        folder.mkdir()
        sets.append(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawn, "draw_set", draw_slowly)
    with ThreadPoolExecutor() as pool:
        found = [of.result() for of in [pool.submit(drawn.default_set) for _ in range(3)]]
    assert found == [Path("runs/drawn")] * 3
    assert sets == [Path("runs/drawn")]


@pytest.mark.parametrize("how", ["full", "flip"])
def test_boxes_move_with_the_pixels(how):
    """A white rectangle on black: wherever it goes, its box goes with it."""
    size, torch_state = 96, torch.get_rng_state()
    images = torch.zeros(40, 3, size, size, dtype=torch.uint8)
    images[:, :, 30:60, 20:70] = 255
    torch.manual_seed(0)
    changes, boxes = [], []
    for _ in images:
        change, left, labels = draw_change(torch.tensor([[20.0, 30, 70, 60]]), torch.tensor([1]), size, how)
        assert labels.tolist() == [1] * len(left)
        changes.append(change)
        boxes.append(left)
    torch.set_rng_state(torch_state)
    windows = torch.stack([change.window for change in changes])
    changed = apply_changes(images, windows, torch.eye(3, 4).expand(40, 3, 4), BLACK)
    compared = 0
    for image, box in zip(changed, boxes, strict=True):
        white = (image[0] > 0.5).nonzero()
        if len(box):
            expected = torch.cat([white.amin(0).flip(0), white.amax(0).flip(0) + 1])
            torch.testing.assert_close(box[0], expected.float(), rtol=0, atol=1.5)
            compared += 1
    assert compared >= 35
    assert len({tuple(window.tolist()) for window in windows}) >= (2 if how == "flip" else 20)


def test_crops_are_drawn_as_torchvision_draws_them():
    boxes = torch.tensor([[5.0, 5, 50, 40], [30, 20, 90, 95], [60, 8, 70, 20]])
    objects = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(96, 96))

    def draw(crop: v2.RandomIoUCrop, count: int) -> torch.Tensor:
        rows = []
        for _ in range(count):
            drawn = crop.make_params([objects])
            if not drawn:
                rows.append([1.0, 96, 1, 0, 0, 3])
                continue
            window = torch.tensor([drawn["left"], drawn["top"], drawn["width"], drawn["height"]])
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((window[:2] < centers) & (centers < window[:2] + window[2:])).all(-1)
            assert inside.tolist() == drawn["is_within_crop_area"].tolist()
            left, top, width, height = window.tolist()
            rows.append([0.0, width, width / height, left, top, int(inside.sum())])
        return torch.tensor(rows)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, torchvisions = draw(IoUCrop(), 2000), draw(v2.RandomIoUCrop(), 1000)
    error = (ours.var(0) / len(ours) + torchvisions.var(0) / len(torchvisions)).sqrt()
    assert ((ours.mean(0) - torchvisions.mean(0)).abs() < 4 * error).all()
    assert ((ours.std(0) / torchvisions.std(0) - 1).abs() < 0.1).all()


def test_colors_change_and_stay_colors():
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    images = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    colors = torch.stack([draw_change(torch.empty(0, 4), torch.empty(0), 8)[0].colors for _ in images])
    torch.set_rng_state(torch_state)
    whole = torch.tensor([0.0, 0, 1, 1]).expand(16, 4)
    changed = apply_changes(images, whole, colors, BLACK)
    assert 0 <= changed.min() < changed.max() <= 1
    assert ((changed - images / 255).abs().amax((1, 2, 3)) > 0.05).sum() >= 12
    unchanged = apply_changes(images, whole, torch.eye(3, 4).expand(16, 3, 4), BLACK)
    torch.testing.assert_close(unchanged, images / 255, rtol=0, atol=1e-5)


def test_batches_depend_on_epoch_and_image_alone(folder):
    records, _ = read_split(f"{folder}:train", None)
    dataset = TrainingSet(records, 64, decode=True)
    first, second = list(dataset.epoch(3, seed=1, batch=2))
    (resumed,) = list(dataset.epoch(3, seed=1, batch=2, first_step=1))
    (of_rank_1, _) = list(dataset.epoch(3, seed=1, batch=2, rank=1, world=2, workers=1))
    assert resumed.indices.tolist() == second.indices.tolist()
    assert resumed.windows.tolist() == second.windows.tolist()
    assert of_rank_1.indices.tolist() == first.indices[1:].tolist()
    assert torch.equal(of_rank_1.windows[0], first.windows[1])
    assert torch.equal(of_rank_1.images[0], first.images[1])
    (other, _) = list(dataset.epoch(4, seed=1, batch=2))
    assert other.windows.tolist() != first.windows.tolist()
    cached = load_images(records, 64)
    assert torch.equal(cached[first.indices], first.images)
    (without, _) = list(TrainingSet(records, 64, decode=False).epoch(3, seed=1, batch=2))
    assert without.images is None
    assert torch.equal(without.windows, first.windows)


def test_workers_outlive_a_signal_to_the_group(folder):
    """SIGTERM comes to the workers as well; the batches they are asked for come all the same."""
    records, _ = read_split(f"{folder}:train", None)
    batches = iter(TrainingSet(records, 64, decode=True).epoch(0, seed=0, batch=1, workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert len(list(batches)) == 3


def in_png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def spoil_image(kind: str):
    """What writes a file that is no image for training, and what is said of it."""

    def text_bomb(path):
        Image.new("RGB", (64, 64)).save(path, "PNG")
        whole = path.read_bytes()
        bomb = in_png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**21))
        path.write_bytes(whole[:33] + bomb + whole[33:])  # after the header

    def postscript(path):
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")

    def floats(path):
        Image.fromarray(np.random.default_rng(0).random((64, 64), dtype=np.float32)).save(path, "TIFF")

    return {
        "too large": (text_bomb, "ecompressed data too large"),
        "EPS": (postscript, "cannot identify image file"),
        "float": (floats, "expected 8 or 16 bits a channel, got pixels of Pillow's mode F"),
    }[kind]


@pytest.mark.parametrize("kind", ["too large", "EPS", "float"])
def test_images_that_are_none_are_told(folder, kind):
    spoil, message = spoil_image(kind)
    path = folder / "JPEGImages" / "train_0001.jpg"
    spoil(path)
    with pytest.raises(UserError, match=rf"train_0001\.jpg: cannot read the image: .*{message}"):
        read_split(f"{folder}:train", None)  # the header tells


def test_sixteen_bits_are_scaled_to_eight(folder):
    gray = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = folder / "JPEGImages" / "train_0001.jpg"
    for kind in ("PNG", "TIFF"):
        Image.fromarray(gray).save(path, kind)
        image = load_image(path, 64)
        assert image.shape == (3, 64, 64)
        assert (image[0].numpy() == gray // 257).all()


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    pytest.importorskip("matplotlib")
    return importlib.import_module("demo")


def test_the_demo_scales_sixteen_bits_to_eight(demo, folder):
    gray = np.full((640, 640), 25_700, np.uint16)
    path, annotation = folder / "gray.png", folder / "Annotations" / "train_0000.xml"
    Image.fromarray(gray).save(path)
    assert demo.read_scene(path, annotation).image.getextrema() == ((100, 100),) * 3


def break_png(image: Path, xml: Path) -> None:
    Image.new("RGB", (64, 64)).save(image, format="PNG")
    content = bytearray(image.read_bytes())
    content[content.index(b"IDAT") - 4 : content.index(b"IDAT")] = b"\0\0\0\1"  # its length
    image.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda image, xml: xml.write_text('<?xml version="1.0" encoding="foo"?><a/>'),
            r"the annotation .*train_0000\.xml: unknown encoding",
        ),
        (lambda image, xml: xml.write_text("<object>"), r"the annotation .*train_0000\.xml: no element found"),
        (break_png, r"the image .*train_0000\.jpg: broken PNG file"),
        (lambda image, xml: image.write_text("x"), r"the image .*train_0000\.jpg: cannot identify image file"),
        (
            lambda image, xml: spoil_image("float")[0](image),
            r"the image .*train_0000\.jpg: expected 8 or 16 bits a channel",
        ),
        (
            lambda image, xml: spoil_image("too large")[0](image),
            r"the image .*train_0000\.jpg: .*ecompressed data too large",
        ),
    ],
)
def test_the_demo_names_what_is_broken(demo, folder, spoil, message):
    image, annotation = folder / "JPEGImages" / "train_0000.jpg", folder / "Annotations" / "train_0000.xml"
    spoil(image, annotation)
    with pytest.raises(demo.InputError, match=f"cannot read {message}"):
        demo.read_scene(image, annotation)


def test_lists_are_read_as_editors_write_them(folder):
    listing = folder / "ImageSets" / "Main" / "train.txt"
    for part in ("Annotations/{}.xml", "JPEGImages/{}.jpg"):
        (folder / part.format("train_0002")).rename(folder / part.format("train of 1"))
    # A byte order mark, a name with spaces that ends as the lines of VOC's lists of one class do, two such lines.
    listing.write_text("\ufefftrain_0000\r\ntrain of 1\r\ntrain_0001 -1\ntrain_0003  1\n")
    (folder / "classes.txt").write_text("\ufeff" + "\n".join([*CLASSES, "traffic light"]) + "\n")
    records, classes = read_split(f"{folder}:train", None)
    assert [record.image.stem for record in records] == ["train_0000", "train of 1", "train_0001", "train_0003"]
    assert classes == [*CLASSES, "traffic light"]
    xml = folder / "Annotations" / "train_0000.xml"
    xml.write_text("\ufeff" + xml.read_text())
    assert len(read_split(f"{folder}:train", None)[0]) == 4
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"train\.txt: cannot read the list: .*utf-8"):
        read_split(f"{folder}:train", None)


def test_difficult_objects_may_be_regions(folder):
    annotate(folder, an_object(), an_object(difficult="1"))
    records = read_split(f"{folder}:train", None)[0][:1]
    for ignored, labels in ((False, [0, 0]), (True, [0, -2])):
        (batch,) = TrainingSet(records, 64, False, "flip", ignored).epoch(0, seed=0, batch=1)
        assert batch.labels.tolist() == [labels]


def test_a_batch_without_objects_has_room_for_none(folder):
    annotate(folder)
    records = read_split(f"{folder}:train", None)[0][:1]
    (batch,) = TrainingSet(records, 64, False).epoch(0, seed=0, batch=1)
    assert batch.boxes.shape == (1, 0, 4)
    assert batch.labels.shape == (1, 0)
    with pytest.raises(UserError, match="val VOC:test: no image has an object to score a model by"):
        check_scorable(records, ["val", "VOC:test"])
    annotate(folder, an_object(difficult="1"))
    with pytest.raises(UserError, match="no image has an object"):
        check_scorable(read_split(f"{folder}:train", None)[0][:1], ["x"])
