"""The FCOS example's training: losses, going on after an interruption, several processes, commands."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("tensorboard")
pytest.importorskip("torchvision")

from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

import compare
import evaluate
import figures
import mgassign
import profile_step
import train
from drawn import draw_set
from losses import LOSSES, Criterion
from mgassign import IGNORE, Assignment, PointGrid, mutual_guidance_assign
from model import FCOS, Predictions
from runs import SETTINGS, RunFolder, UserError, command, hold, one_at_a_time, write_json, write_tensors, write_text
from trainer import Trainer

TINY = ["--size", "64", "--width", "32", "--head-convs", "1", "--norm", "group", "--log-every", "1", "--device", "cpu"]
EXAMPLE = Path(train.__file__).parent
CHECKPOINT = {"model": {}, "model_settings": {}, "classes": ["a"], "config": dict.fromkeys(SETTINGS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "drawn"
    draw_set(folder, {"train": 9, "val": 3, "test": 4}, size=64)
    return folder


def options(data: Path, *more: str) -> list[str]:
    return ["--train", f"{data}:train", *TINY, "--batch", "4", "--epochs", "2", *more]


def metrics_of(run: Path) -> list[dict]:
    """The lines but for the time, which differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16", "lite0"])
def test_the_network_has_the_points_of_its_grid(backbone):
    model = FCOS(5, backbone, size=96, width=32, head_convs=1)
    with torch.no_grad():
        predictions = model(torch.rand(2, 3, 96, 96))
    points = 12 * 12 + 6 * 6 + 3 * 3 + 2 * 2
    assert predictions.logits.shape == (2, points, 5)
    assert predictions.boxes.shape == (2, points, 4)
    assert predictions.quality.shape == (2, points)
    # The prior: a hundredth of a chance for every class at every point.
    torch.testing.assert_close(predictions.logits.sigmoid().mean(), torch.tensor(0.01), rtol=0.2, atol=0)
    # Each point's box holds the point.
    locations = model.grid.points()
    assert (predictions.boxes[..., :2] < locations).all()
    assert (predictions.boxes[..., 2:] > locations).all()


@pytest.mark.parametrize(
    ("assigner", "for_class", "for_box"),
    [
        ("original", "original", "original"),
        ("l2c", "cls", "original"),
        ("c2l", "original", "loc"),
        ("mutual", "cls", "loc"),
    ],
)
def test_losses_are_those_of_the_positives(assigner, for_class, for_box):
    grid = PointGrid.for_image((16, 16), strides=(8, 16))  # points (4, 4), (12, 4), (4, 12), (12, 12), (8, 8)
    owners = {
        "cls": torch.tensor([[-1, -1, -1, -1, 0], [1, 0, -1, -1, -1]]),
        "loc": torch.tensor([[0, -1, 0, 0, -1], [-1, -1, -1, 1, -1]]),
        "original": torch.tensor([[0, 0, -1, -1, -1], [-1, 0, 1, 1, -1]]),
    }
    boxes = torch.tensor([[[2.0, 1, 14, 15], [0, 0, 0, 0]], [[1.0, 1, 15, 15], [3, 2, 13, 16]]])
    labels = torch.tensor([[2, -1], [0, 1]])
    torch.manual_seed(0)
    predictions = Predictions(torch.randn(2, 5, 3), grid.decode(torch.rand(2, 5, 4) * 8 + 1), torch.randn(2, 5))

    def assign(*arguments: object, **settings: object) -> Assignment:
        assert settings == {"min_points": 3}
        return Assignment(**owners, num_points=torch.zeros(3), iou=torch.zeros(2, 5))

    result = Criterion(grid, assigner, assign=assign, min_points=3)(predictions, boxes, labels)

    target, box, centerness, weights = torch.zeros(2, 5, 3), 0.0, 0.0, 0.0
    for image in range(2):
        for j in range(5):
            if (g := owners[for_class][image, j]) >= 0:
                target[image, j, labels[image, g]] = 1
            if (g := owners[for_box][image, j]) >= 0:
                (x, y), (x1, y1, x2, y2) = grid.points()[j], boxes[image, g]
                left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
                c = (min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)).sqrt()
                box += c * generalized_box_iou_loss(predictions.boxes[image, j], boxes[image, g])
                probability = predictions.quality[image, j].sigmoid()
                centerness -= c * probability.log() + (1 - c) * (1 - probability).log()
                weights += c
    expected = torch.stack([sigmoid_focal_loss(predictions.logits, target, 0.25, 2, "sum"), box, centerness])
    torch.testing.assert_close(result.sums, expected)
    class_points, box_points = ((owners[name] >= 0).sum() for name in (for_class, for_box))
    torch.testing.assert_close(result.counts, torch.stack([class_points, weights, box_points]).float())


@pytest.mark.parametrize("quality", ["iou", "none"])
def test_the_third_branch_learns_what_it_is_told(quality):
    grid = PointGrid.for_image((16, 16), strides=(8, 16))
    owners = {
        "cls": torch.tensor([[0, -1, 1, -1, -1]]),
        "loc": torch.tensor([[-1, 1, 1, 0, -1]]),
        "original": torch.full((1, 5), -1),
    }
    boxes, labels = torch.tensor([[[0.0, 0, 8, 8], [4, 4, 16, 16]]]), torch.tensor([[2, 0]])
    raw = torch.randn(1, 5, requires_grad=True)
    predicted = torch.tensor([[[0.0, 0, 8, 4], [0, 0, 9, 9], [4, 4, 10, 16], [0, 0, 9, 9], [0, 0, 9, 9]]])
    predictions = Predictions(torch.randn(1, 5, 3), predicted.requires_grad_(), raw)

    def assign(*arguments: object) -> Assignment:
        return Assignment(**owners, num_points=torch.zeros(2), iou=torch.zeros(1, 5))

    sums, counts = Criterion(grid, "mutual", quality, assign)(predictions, boxes, labels)
    p = raw.detach().sigmoid()
    # Both points that learn a class have half of their object.
    expected = -sum(0.5 * p[0, j].log() + 0.5 * (1 - p[0, j]).log() for j in (0, 2)) if quality == "iou" else 0.0
    assert float(sums[2].detach()) == pytest.approx(float(expected), rel=1e-6)
    assert counts[2] == (2 if quality == "iou" else 0)
    # What a box is worth is the branch's to learn, not the box's.
    sums[2].backward()
    assert not predicted.grad.any()
    assert raw.grad[0].nonzero().flatten().tolist() == ([0, 2] if quality == "iou" else [])


@pytest.mark.parametrize(("reading", "kept", "score"), [("class x quality", 1, 0.8 * 0.6), ("class alone", 0, 0.9)])
def test_detections_are_scored_by_class_times_quality_or_class_alone(reading, kept, score):
    # Two boxes that overlap, of which NMS leaves the one of higher score; the last box scores too little for FCOS's limit.
    boxes = torch.tensor([[8.0, 8, 48, 48], [8, 8, 40, 48], [90, 90, 99, 99]])
    probabilities = torch.tensor([[0.9, 0.001], [0.8, 0.001], [0.001, 0.04]])
    quality = torch.tensor([0.2, 0.6, 0.9])
    predictions = Predictions(probabilities.logit()[None], boxes[None], quality.logit()[None])
    (found,) = evaluate.select(predictions, 96, reading, evaluate.LIMITS["fcos"])
    assert found.boxes.tolist() == [boxes[kept].tolist()]
    torch.testing.assert_close(found.scores, torch.tensor([score]))
    assert found.labels.tolist() == [0]
    (found,) = evaluate.select(predictions, 96, reading, evaluate.LIMITS["authors"])
    assert found.labels.tolist() == [0, 1]
    (found,) = evaluate.select(predictions, 96, reading, evaluate.Limits(0.0, 1))
    assert len(found.boxes) == 1


@pytest.mark.parametrize("places", [0, 1])
def test_images_without_objects_train_the_background(places):
    model = FCOS(3, size=64, width=32, head_convs=1)
    sums, counts = Criterion(model.grid, "mutual")(
        model(torch.rand(2, 3, 64, 64)), torch.zeros(2, places, 4), torch.full((2, places), -1)
    )
    assert counts.tolist() == [0, 0, 0]
    assert sums[1:].tolist() == [0, 0]
    sums.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("stop_at", [1, 2])  # within an epoch of two steps, and at the end of one
def test_interrupted_and_resumed_equals_uninterrupted(data, tmp_path, monkeypatch, stop_at):
    more = options(data, "--val", f"{data}:val", "--eval-every", "1", "--cache", "ram")
    assert train.main([str(tmp_path / "whole"), *more]) == 0

    step = Trainer.train_step

    def step_and_signal(self, *arguments):
        result = step(self, *arguments)
        if self.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    assert train.main([str(tmp_path / "parts"), *more]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    begun = torch.load(tmp_path / "parts" / "last.pt")
    assert begun["step"] == stop_at
    # Metrics of steps after the checkpoint, as a killed process leaves them, are forgotten.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": stop_at + 1, "epoch": 9, "loss": 0}) + "\n")
    # How it is computed may change, what is computed not.
    assert train.main([str(tmp_path / "parts"), *more, "--resume", "--cache", "none"]) == 0

    whole, parts = (torch.load(tmp_path / run / "last.pt") for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    assert whole["best"] == parts["best"]
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for number, moments in whole["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, parts["optimizer"]["state"][number][name])
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")
    assert (tmp_path / "parts" / "best.pt").exists()
    assert list((tmp_path / "parts").glob("events.out.tfevents.*"))


def test_the_original_strategy_may_come_first(data, tmp_path):
    for name, more in {"original": [], "mutual": [], "both": ["--original-epochs", "1"]}.items():
        assigner = "original" if name == "original" else "mutual"
        assert train.main([str(tmp_path / name), *options(data, "--assigner", assigner, *more)]) == 0
    original, mutual, both = (metrics_of(tmp_path / name) for name in ("original", "mutual", "both"))
    assert both[:2] == original[:2]  # an epoch has two steps
    assert both[0] != mutual[0]
    assert both[2] != original[2]


def test_the_loss_of_boxes_is_weighted(data, tmp_path):
    for weight in ("1", "3"):
        more = options(data, "--box-weight", weight, "--original-epochs", "2")
        assert train.main([str(tmp_path / weight), *more]) == 0
    one, three = (metrics_of(tmp_path / weight) for weight in ("1", "3"))
    for lines, weight in ((one, 1), (three, 3)):
        for line in lines:
            assert line["loss"] == pytest.approx(line["class"] + weight * line["box"] + line["quality"], rel=1e-5)
    # The weight changes what is learned, not what the first prediction costs.
    assert [three[0][name] for name in LOSSES] == [one[0][name] for name in LOSSES]
    assert three[1]["box"] != one[1]["box"]


def test_two_processes_train_like_one(data, tmp_path):
    """torchrun on CPU: the losses of two processes with half a batch each are those of one with all of it."""
    more = options(data, "--assigner", "mutual")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(mgassign.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [*torchrun, str(EXAMPLE / "train.py"), str(tmp_path / "two"), *more], env=environment, check=True, timeout=120
    )
    assert train.main([str(tmp_path / "one"), *more]) == 0
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == len(two) == 4
    for of_one, of_two in zip(one, two, strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-3)
    # Before the first update nothing but the order of the sums differs.
    assert two[0] == pytest.approx(one[0], rel=1e-5)


def test_table_figures_and_scores_from_finished_runs(data, tmp_path, monkeypatch, capsys):
    trained = []

    def train_here(run: Path, more: list[str]) -> None:
        trained.append(run.name)
        assert train.main([str(run), "--resume", *more]) == 0

    monkeypatch.setattr(compare, "train_one", train_here)
    out = tmp_path / "table"
    arguments = [str(out), "--train", f"{data}:train", "--test", f"{data}:test", "--device", "cpu"]
    passed_on = ["--", *TINY, "--batch", "4", "--epochs", "1"]
    assert compare.main([*arguments, "--seeds", "0", "1", *passed_on]) == 0
    assert trained == [f"resnet18-{a}-{s}" for s in (0, 1) for a in ("original", "mutual")]
    results = json.loads((out / "results.json").read_text())
    assert [(m["arm"], m["seed"]) for m in results["models"]] == [
        ("mutual", 0),
        ("mutual", 1),
        ("original", 0),
        ("original", 1),
    ]
    assert results["models"][0]["images"] == 4
    assert (out / "table.md").read_text().count("| Mutual Guidance | 2 |") == 2

    # A finished run is not trained again.
    before = (out / "resnet18-mutual-0" / "last.pt").stat().st_mtime_ns
    assert compare.main([*arguments, "--seeds", "0", *passed_on]) == 0
    assert (out / "resnet18-mutual-0" / "last.pt").stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out

    checkpoints = [str(out / f"resnet18-{name}-0" / "last.pt") for name in ("original", "mutual")]
    assert evaluate.main([checkpoints[1], "--data", f"{data}:test", "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    for reading in evaluate.READINGS:
        assert scores[reading]["voc"]["AP"] == results["models"][0][reading]["AP"]
    assert "ellipse" in capsys.readouterr().out

    pictures = ["--data", f"{data}:test", "--images", "2", "--output", str(tmp_path / "figures"), "--min-score", "0"]
    assert figures.main(["--original", checkpoints[0], "--mutual", checkpoints[1], *pictures]) == 0
    for name in ("figure1.png", "figure2.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_reference_in_the_place_of_mgassign_gives_the_same_losses(data, tmp_path, monkeypatch):
    losses = {}
    step = Trainer.train_step

    def note(self, *arguments):
        result = step(self, *arguments)
        losses.setdefault(self.criterion.assign.__name__, []).append(torch.stack([*result.values()]))
        return result

    monkeypatch.setattr(Trainer, "train_step", note)
    arguments = ["--data", f"{data}:train", "--steps", "1", "--json", str(tmp_path / "share.json")]
    assert profile_step.main([*arguments, "--", *TINY, "--batch", "4"]) == 0
    torch.testing.assert_close(
        torch.stack(losses["mutual_guidance_assign"]), torch.stack(losses["assign_by_reference"])
    )
    shares = json.loads((tmp_path / "share.json").read_text())
    assert 0 < shares["mgassign"]["share_percent"] < shares["reference"]["share_percent"] < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "nowhere:train"], "nowhere/ImageSets/Main/train.txt: cannot read the list: No such"),
        (["--train", "nowhere"], "nowhere: expected FOLDER:SPLIT"),
        (["--batch", "10"], "--batch 10: there are only 9 images to train on"),
        (["--device", "cuda"], "--device cuda: torch .* sees no CUDA device"),
    ],
)
def test_mistakes_are_told_in_a_line(data, tmp_path, capsys, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert command(train.main, [str(tmp_path / "run"), *options(data), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "--size: expected a multiple of 32, got 100"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--box-weight", "nan"], "--box-weight: expected more than 0, got nan"),
        (["--original-epochs", "-1"], "--original-epochs: expected at least 0, got -1"),
        (["--assigner", "best"], "--assigner: invalid choice: 'best'"),
        (["--tune-from", "3"], "--tune-from: needs --pretrained and --norm batch"),
        (["--tune-from", "3", "--pretrained", "--norm", "group"], "--tune-from: needs --pretrained and --norm batch"),
        (["--cache", "features"], "--cache features: needs frozen blocks (--tune-from) and --augment flip"),
    ],
)
def test_wrong_options_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        train.main(["run", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_overwritten_nor_changed(data, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train.main([run, *options(data, "--epochs", "1")]) == 0
    assert command(train.main, [run, *options(data, "--epochs", "1")]) == 2
    assert "holds a run already; --resume goes on with it" in capsys.readouterr().err
    assert command(train.main, [run, *options(data, "--epochs", "3"), "--resume"]) == 2
    assert "was begun with --epochs 1, not 3" in capsys.readouterr().err
    (tmp_path / "run" / "last.pt").write_bytes(b"half a file")
    assert command(train.main, [run, *options(data, "--epochs", "1"), "--resume"]) == 2
    assert "last.pt: not a checkpoint of train.py" in capsys.readouterr().err
    assert command(evaluate.main, [str(tmp_path / "no.pt"), "--data", f"{data}:test", "--device", "cpu"]) == 2
    assert "no.pt: not a checkpoint of train.py: No such file" in capsys.readouterr().err


def test_weights_that_cannot_be_downloaded_are_told(data, tmp_path, monkeypatch, capsys):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--pretrained")]) == 2
    assert "--pretrained: cannot have torchvision's weights: <urlopen error no network>" in capsys.readouterr().err


def test_coco_without_pycocotools_says_what_to_install(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train.main([str(run), *options(data, "--epochs", "1")]) == 0
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    arguments = [str(run / "last.pt"), "--data", f"{data}:test", "--device", "cpu", "--coco"]
    assert command(evaluate.main, arguments) == 2
    assert "pip install pycocotools" in capsys.readouterr().err


def test_half_a_line_of_metrics_is_forgotten_and_a_broken_one_told(data, tmp_path, capsys):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--resume")]
    assert train.main(more) == 0
    whole = metrics_of(run)
    checkpoint = torch.load(run / "last.pt")
    torch.save(checkpoint | {"step": 2}, run / "last.pt")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-20])  # the process was killed in the middle of its last line
    assert train.main(more) == 0
    assert metrics_of(run)[:2] == whole[:2]
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4]
    torch.save(checkpoint | {"step": 2}, run / "last.pt")
    (run / "metrics.jsonl").write_text("[]\n" + text)
    assert command(train.main, more) == 2
    assert "metrics.jsonl: line 1 is no metrics of a step" in capsys.readouterr().err


def test_a_run_is_trained_by_one_process_at_a_time(data, tmp_path, capsys):
    run = tmp_path / "new"
    # Its child, as one that prepares batches, lives on for a while when it is killed.
    holder = """if True:
        import os, sys, time
        from pathlib import Path
        from runs import hold
        with hold(Path(sys.argv[1])):
            child = os.fork()
            if child:
                print(child, flush=True)
            time.sleep(60)"""
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)], cwd=EXAMPLE, stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        assert command(train.main, [str(run), *options(data)]) == 2
        assert f"{run}: process {process.pid} of {platform.node()} is training in it" in capsys.readouterr().err
        assert not (run / "config.json").exists()
        process.kill()
        process.wait()
        try:
            with hold(run):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_where_a_file_system_has_no_locks_training_goes_on(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    monkeypatch.setattr(fcntl, "flock", none)
    with hold(tmp_path), one_at_a_time(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(str(os.getpid()))


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "last.pt"
    write_text(path, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as good as a full disk: torch.save meets it alike
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: File too large$"):
            write_tensors(path, torch.zeros(100_000))
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: File too large$"):
            write_text(path, "x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_is_full_for_tensorboard_or_metrics_is_told(data, tmp_path, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # TensorBoard's, without the file's name

    monkeypatch.setattr(train.SummaryWriter, "add_scalar", full)
    assert command(train.main, [str(tmp_path / "run"), *options(data)]) == 2
    assert f"{tmp_path}/run: cannot write TensorBoard's events: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "one" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        RunFolder(tmp_path / "one").add_metrics(step=1)


def test_resuming_removes_what_was_left_half_written_on_any_machine(data, tmp_path):
    run = tmp_path / "run"
    assert train.main([str(run), *options(data, "--epochs", "1")]) == 0
    before = sorted(path.name for path in run.iterdir())
    for name in (".last.pt.gone.123", f".best.pt.{platform.node()}.{os.getpid()}", ".last.pt.77"):
        (run / name).touch()
    assert train.main([str(run), *options(data, "--epochs", "1"), "--resume"]) == 0
    assert sorted(path.name for path in run.iterdir()) == before


def test_runs_from_before_an_option_existed_go_on(data, tmp_path, capsys):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--epochs", "1", "--resume")]
    assert train.main(more) == 0
    state = torch.load(run / "last.pt")
    for name in ("difficult", "images", "images_seed"):
        del state["config"][name]
    torch.save(state, run / "last.pt")
    assert train.main(more) == 0
    assert command(train.main, [*more, "--difficult", "ignore"]) == 2
    assert "was begun with --difficult learn, not ignore" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["model", "optimizer", "step", "config"])
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(data, tmp_path, capsys, part):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--epochs", "1", "--resume")]
    assert train.main(more) == 0
    state = torch.load(run / "last.pt")
    torch.save(state | {part: ["none"]}, run / "last.pt")
    assert command(train.main, more) == 2
    assert f"{run}/last.pt: not a checkpoint of t" in capsys.readouterr().err


def test_files_of_processes_that_were_killed_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed, living, elsewhere = (
        tmp_path / f".last.pt.{host}.{pid}"
        for host, pid in ((platform.node(), dead.pid), (platform.node(), 1), ("x", 9))
    )
    for file in (killed, living, elsewhere):
        file.touch()
    write_text(tmp_path / "last.pt", "")
    assert not killed.exists()
    assert living.exists()
    assert elsewhere.exists()


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "scores.json", {"AP": math.nan, "per": [1.0, (math.inf, 2)]})
    assert json.loads((tmp_path / "scores.json").read_text()) == {"AP": None, "per": [1.0, [None, 2]]}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "it has no model, model_settings"),
        (CHECKPOINT | {"config": {}}, "it has no config.quality, config.amp"),
        ({name: part for name, part in CHECKPOINT.items() if name != "model_settings"}, "it has no model_settings"),
        (CHECKPOINT | {"config": None}, "not a checkpoint of train.py"),
        (CHECKPOINT, "its weights are not those of the network"),
        (CHECKPOINT | {"model_settings": {"depth": 1}}, "its weights are not those"),
    ],
)
def test_checkpoints_that_are_none_are_told(data, tmp_path, capsys, state, message):
    path = tmp_path / "last.pt"
    torch.save(state, path)
    assert command(evaluate.main, [str(path), "--data", f"{data}:test"]) == 2
    assert re.search(rf"{path}: .*{message}", capsys.readouterr().err)


def test_names_that_are_too_long_are_told(data, tmp_path, capsys):
    assert command(train.main, [str(tmp_path / ("x" * 300)), *options(data)]) == 2
    assert "File name too long" in capsys.readouterr().err
    assert command(train.main, [str(tmp_path / "run"), *TINY, "--train", f"{data}:{'x' * 300}"]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_fewer_images_are_among_more(data, tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(train, "run_epochs", lambda args, world, records, *_: seen.update({args.images: records}) or 0)
    for count in ("4", "6", "8"):
        assert train.main([str(tmp_path / count), *options(data, "--images", count)]) == 0
    names = {count: {record.image.name for record in records} for count, records in seen.items()}
    assert [len(names[count]) for count in (4, 6, 8)] == [4, 6, 8]
    assert names[4] < names[6] < names[8]
    train.main([str(tmp_path / "other"), *options(data, "--images", "4", "--images-seed", "1")])
    assert {record.image.name for record in seen[4]} != names[4]
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--images", "99")]) == 2
    assert "--images 99: there are only 9" in capsys.readouterr().err


def test_a_set_without_objects_cannot_choose_the_best(data, tmp_path, capsys):
    empty = tmp_path / "empty"
    shutil.copytree(data, empty)
    for path in (empty / "Annotations").glob("val_*.xml"):
        path.write_text("<annotation></annotation>")
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--val", f"{empty}:val")]) == 2
    assert f"{empty}:val: no image has an object to score a model by" in capsys.readouterr().err
    assert command(compare.main, [str(tmp_path / "x"), "--train", f"{data}:train", "--test", f"{empty}:val"]) == 2
    assert "no image has an object" in capsys.readouterr().err


@pytest.mark.parametrize("assigner", ["original", "mutual"])
def test_nothing_is_learned_in_a_region(assigner):
    """Logits inside a region have no gradient, whatever the class; elsewhere they learn as without it."""
    torch.manual_seed(0)
    model = FCOS(3, size=64, width=32, head_convs=1)
    boxes = torch.tensor([[[4.0, 4, 30, 30], [34, 34, 62, 62]]])
    with torch.no_grad():
        predictions = model(torch.rand(1, 3, 64, 64))
    grads = {}
    for label in (-1, -2):
        logits = predictions.logits.clone().requires_grad_()
        given = predictions._replace(logits=logits)
        Criterion(model.grid, assigner)(given, boxes, torch.tensor([[1, label]])).sums[0].backward()
        grads[label] = logits.grad[0].abs().sum(-1)
    found = mutual_guidance_assign(model.grid, predictions.boxes, predictions.logits, boxes, torch.tensor([[1, -2]]))
    ignored = (found.original if assigner == "original" else found.cls)[0] == IGNORE
    assert 0 < ignored.sum() < len(ignored)
    assert not grads[-2][ignored].any()
    torch.testing.assert_close(grads[-2][~ignored], grads[-1][~ignored])
