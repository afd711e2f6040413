"""The FCOS example's training: losses, going on after an interruption, several processes, commands."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("tensorboard")
pytest.importorskip("torchvision")

from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

import evaluate
import mgassign
import train
from fcos_example import EXAMPLE, metrics_of, options
from losses import LOSSES, Criterion
from mgassign import IGNORE, Assignment, PointGrid, TaskAligned, mutual_guidance_assign, task_aligned_assign
from model import FCOS, Predictions
from table import FREE_OPTIONS
from trainer import Trainer, learning_rate


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


def test_task_aligned_points_learn_by_the_same_losses():
    """The losses are those of points that were chosen outside, whatever the assigner."""
    torch.manual_seed(0)
    grid = PointGrid.for_image((64, 64), strides=(8, 16))
    boxes, labels = torch.tensor([[[3.0, 5, 40, 50], [30, 2, 60, 30], [0, 0, 0, 0]]]), torch.tensor([[1, 0, -1]])
    shape = 1, grid.num_points
    predictions = Predictions(torch.randn(*shape, 3), grid.decode(torch.rand(*shape, 4) * 16 + 4), torch.randn(shape))
    scene = grid, predictions.boxes, predictions.logits, boxes, labels
    owner = task_aligned_assign(*scene, TaskAligned.ULTRALYTICS_8_3, activation="sigmoid").owner
    assert set(owner.unique().tolist()) == {-1, 0, 1}
    given = Assignment(owner, owner, owner, torch.zeros(3), torch.zeros_like(predictions.quality))
    expected = Criterion(grid, "mutual", assign=lambda *_: given)(predictions, boxes, labels)
    for found, wanted in zip(Criterion(grid, "task-aligned")(predictions, boxes, labels), expected, strict=True):
        assert torch.equal(found, wanted)


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


def test_what_makes_no_other_experiment_changes_nothing_of_a_training(data, tmp_path):
    weights = []
    for often in ("1", "4"):
        more = [part for option in FREE_OPTIONS for part in (option, often)]
        assert train.main([str(tmp_path / often), *options(data, "--val", f"{data}:val", *more)]) == 0
        weights.append(torch.load(tmp_path / often / "last.pt")["model"])
    assert (tmp_path / "1" / "epoch-1.pt").exists()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


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


def test_the_learning_rate_warms_up_and_falls_like_half_a_cosine():
    rates = [learning_rate(step, 100, 0.002) for step in range(100)]
    assert rates[:10] == pytest.approx([0.0002 * (i + 1) for i in range(9)] + [rates[9]])
    assert [rates[i] for i in (25, 50, 99)] == pytest.approx(
        [0.001 * (1 + math.cos(math.pi * share)) for share in (0.25, 0.5, 0.99)]
    )
    assert learning_rate(499, 10**6, 1.0) == pytest.approx(1, abs=1e-5)  # 500 steps of warm-up at most
    assert learning_rate(249, 10**6, 1.0) == pytest.approx(0.5)
    assert learning_rate(0, 3, 1.0) == 1  # and one at least


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_how_a_step_is_taken(data, tmp_path, monkeypatch, amp, dtype):
    step, rates, norms, dtypes = Trainer.train_step, [], [], set()

    def watched(self, *arguments):
        layer = next(module for module in self.model.modules() if isinstance(module, torch.nn.Conv2d))
        hook = layer.register_forward_hook(lambda layer, inputs, found: dtypes.add(found.dtype))
        result = step(self, *arguments)
        hook.remove()
        rates.append({group["lr"] for group in self.optimizer.param_groups})
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        decays = {id(p): group["weight_decay"] for group in self.optimizer.param_groups for p in group["params"]}
        assert {id(p): 0.3 if p.dim() > 1 else 0.0 for p in self.model.parameters()} == decays
        return result

    monkeypatch.setattr(Trainer, "train_step", watched)
    more = options(data, "--lr", "0.002", "--weight-decay", "0.3", "--box-weight", "1e5", "--amp", amp)
    assert train.main([str(tmp_path / "run"), *more]) == 0
    assert rates == [{learning_rate(i, 4, 0.002)} for i in range(4)]
    assert norms == pytest.approx([10] * 4, rel=1e-3)  # what they are clipped to
    assert dtypes == {dtype}


def test_the_backbone_may_have_a_share_of_the_rate(data, tmp_path, monkeypatch):
    step, rates = Trainer.train_step, []

    def watched(self, *arguments):
        result = step(self, *arguments)
        rates.append({id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]})
        blocks = {id(p) for p in self.model.backbone.blocks.parameters()}
        for parameter in self.model.parameters():
            share = 0.25 if id(parameter) in blocks else 1.0
            assert rates[-1].pop(id(parameter)) == pytest.approx(share * learning_rate(len(rates) - 1, 4, 0.002))
        return result

    monkeypatch.setattr(Trainer, "train_step", watched)
    more = options(data, "--lr", "0.002", "--backbone-lr", "0.25")
    assert train.main([str(tmp_path / "run"), *more]) == 0
    assert rates == [{}] * 4


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
