"""The FCOS example's average precision: cases worked by hand, and pycocotools where the two must agree."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("torchvision")

import metrics
import table
from metrics import Detections, Truth, ap_of, bootstrap, coco_ap, match, voc_ap
from runs import UserError, command
from table import add_result, markdown, read_results, summarize


def truth(*boxes: list[float], labels: list[int] | None = None, difficult: list[int] | None = None) -> Truth:
    count = len(boxes)
    return Truth(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels or [0] * count, dtype=torch.int64),
        torch.tensor(difficult or [0] * count, dtype=torch.bool),
    )


def found(*scored: tuple[float, list[float]], labels: list[int] | None = None) -> Detections:
    return Detections(
        torch.tensor([box for _, box in scored], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for score, _ in scored], dtype=torch.float32),
        torch.tensor(labels or [0] * len(scored), dtype=torch.int64),
    )


A, B, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]


@pytest.mark.parametrize(
    ("truths", "detections", "ap50"),
    [
        pytest.param([truth(A)], [found((0.9, A))], 1, id="found"),
        pytest.param([truth(A)], [found()], 0, id="nothing found"),
        # Recall 1/2 with precision 1 serves the recalls 0 to .5, recall 1 with precision 2/3 the other five.
        pytest.param([truth(A, B)], [found((0.9, A), (0.8, FAR), (0.7, B))], (6 + 5 * 2 / 3) / 11, id="one false"),
        pytest.param([truth(A, B)], [found((0.9, A))], 6 / 11, id="one missed"),
        pytest.param([truth(A)], [found((0.9, FAR), (0.8, A))], 1 / 2, id="false one first"),
        pytest.param([truth(A, B)], [found((0.9, A), (0.8, A), (0.7, B))], (6 + 5 * 2 / 3) / 11, id="found twice"),
        pytest.param([truth(A), truth(A)], [found((0.9, A)), found((0.8, A))], 1, id="two images"),
        pytest.param([truth(A), truth(B)], [found((0.9, B)), found((0.8, A))], 0, id="the other image's object"),
        pytest.param([truth(A, B, difficult=[0, 1])], [found((0.9, A))], 1, id="difficult missed"),
        pytest.param(
            [truth(A, B, difficult=[0, 1])], [found((0.9, B), (0.8, B), (0.7, A))], 1, id="difficult found twice"
        ),
        # Overlap of 10 x 5 in 10 x 10: exactly 1/2 is enough.
        pytest.param([truth(A)], [found((0.9, [0.0, 0, 10, 5]))], 1, id="exactly the threshold"),
        # Seven objects of ten: the recall .7 is reached, though .1 * 7 is not 7 / 10 in floating point.
        pytest.param(
            [truth(*([20.0 * i, 0, 20.0 * i + 10, 10] for i in range(10)))],
            [found(*((1 - i / 10, [20.0 * i, 0, 20.0 * i + 10, 10]) for i in range(7)))],
            8 / 11,
            id="recall in tenths",
        ),
    ],
)
def test_voc_ap_by_hand(truths, detections, ap50):
    assert voc_ap(truths, detections, 1).ap50 == pytest.approx(ap50, abs=1e-12)


def test_thresholds_and_classes_are_averaged():
    # IoU 0.72: right at .50 to .70, wrong from .75 on.
    truths = [truth(A, B, labels=[0, 2])]
    detections = [found((0.9, [0.0, 0, 10, 7.2]), (0.8, B), labels=[0, 2])]
    scores = voc_ap(truths, detections, 3)
    assert scores.per_class[:, 0].isnan().tolist() == [False, True, False]  # class 1 has no objects
    assert (scores.ap50, scores.ap75, scores.ap) == pytest.approx((1, 0.5, 0.75))


def test_the_two_rules_differ_where_an_object_is_taken():
    """VOC binds a detection to the object it overlaps most; COCO lets it have the second best."""
    pytest.importorskip("pycocotools")
    near = [0.0, 0, 10, 9]
    truths, detections = [truth(A, near)], [found((0.9, A), (0.8, [0.0, 0, 10, 9.6]))]
    assert voc_ap(truths, detections, 1).ap50 == pytest.approx(6 / 11)
    assert coco_ap(truths, detections, 1).ap50 == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_pycocotools(seed):
    """Where no detection has a choice of objects, at the same recalls, the two metrics are one."""
    pytest.importorskip("pycocotools")
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    truths, detections = [], []
    for _ in range(20):
        count = int(torch.randint(0, 8, (), generator=generator))
        corners = torch.stack([100 * torch.arange(count), torch.zeros(count)], dim=1) + 20 * uniform(count, 2)
        boxes = torch.cat([corners, corners + 20 + 40 * uniform(count, 2)], dim=1)
        labels, difficult = (3 * uniform(count)).long(), uniform(count) < 0.2
        truths.append(Truth(boxes, labels, difficult))
        # Each object is found well, badly, or not at all; easy ones perhaps twice (a second detection of a
        # difficult one is nobody's fault for VOC, and wrong for COCO); some are found where there is nothing.
        again = torch.cat([torch.arange(count), (~difficult).nonzero().flatten()])
        again = again[uniform(len(again)) < 0.7]
        moved = boxes[again] + 12 * (uniform(len(again), 4) - 0.5)
        nothing = 500 + 50 * uniform(3, 4).cumsum(1)[:, [0, 1, 2, 3]]
        nothing[:, 2:] += nothing[:, :2]
        chosen = torch.cat([labels[again], (3 * uniform(3)).long()])
        detections.append(Detections(torch.cat([moved, nothing]), uniform(len(again) + 3), chosen))
    ours, theirs = voc_ap(truths, detections, 3), coco_ap(truths, detections, 3, recalls=metrics.RECALLS)
    assert 0.1 < ours.ap < 0.9
    torch.testing.assert_close(ours.per_class, theirs.per_class, rtol=0, atol=1e-9)


def test_perfect_detections_have_a_coco_ap_of_one():
    pytest.importorskip("pycocotools")
    truths = [truth(A, B, labels=[0, 1], difficult=[0, 0])]
    assert coco_ap(truths, [found((0.9, A), (0.8, B), labels=[0, 1])], 3).ap == pytest.approx(1)


def some_truths_and_detections(seed: int, images: int = 12) -> tuple[list[Truth], list[Detections]]:
    generator = torch.Generator().manual_seed(seed)
    truths, detections = [], []
    for _ in range(images):
        corners = 60 * torch.rand(5, 2, generator=generator)
        boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(5, 2, generator=generator)], dim=1)
        labels = torch.randint(3, (5,), generator=generator)
        truths.append(Truth(boxes, labels, torch.rand(5, generator=generator) < 0.2))
        moved = (boxes + 6 * torch.rand(5, 4, generator=generator)).repeat(2, 1)
        detections.append(Detections(moved, torch.rand(10, generator=generator), labels.repeat(2)))
    return truths, detections


def test_an_image_that_counts_twice_is_as_two():
    truths, detections = some_truths_and_detections(0)
    weights = [2, 0, 1, 3, *[1] * 8]
    several = [i for i, weight in enumerate(weights) for _ in range(weight)]
    weighted = ap_of(match(truths, detections, 3), torch.tensor(weights).numpy())
    repeated = voc_ap([truths[i] for i in several], [detections[i] for i in several], 3)
    torch.testing.assert_close(weighted.per_class, repeated.per_class, rtol=0, atol=0)
    assert weighted.ap != voc_ap(truths, detections, 3).ap


def test_bootstrap_draws_sets_of_images():
    truths, detections = some_truths_and_detections(1, images=40)
    matches = match(truths, detections, 3)
    drawn = torch.tensor([of.ap for of in bootstrap(matches, 100)], dtype=torch.float64)
    assert drawn.tolist() == [of.ap for of in bootstrap(matches, 100)]
    assert abs(float(drawn.mean()) - ap_of(matches).ap) < 2 * float(drawn.std())
    # As the deviation of a mean does, it falls with the root of the number of images.
    fewer = torch.tensor([of.ap for of in bootstrap(match(truths[:10], detections[:10], 3), 100)])
    assert 1.3 < float(fewer.std() / drawn.std()) < 3


def a_model(arm: str, seed: int, ap: float, **of_reading: object) -> dict[str, object]:
    scores = dict.fromkeys(("AP", "AP50", "AP75"), ap) | of_reading
    return {"backbone": "lite0", "arm": arm, "seed": seed, "class alone": scores}


def test_paired_differences():
    """Both strategies vary with the seed, their difference does not: the interval knows."""
    pytest.importorskip("scipy")
    original = [a_model("original", s, v) for s, v in enumerate((10.0, 20.0, 30.0, 90.0))]
    mutual = [a_model("mutual", s, v) for s, v in enumerate((11.0, 22.0, 33.0))]
    summary = summarize([*original, *mutual], "class alone")
    entry = summary["lite0", "mutual"]["AP"]
    assert (entry["mean"], entry["sd"], entry["difference"]) == pytest.approx((22, 11, 2))
    assert summary["lite0", "mutual"]["pairs"] == 3  # the original's fourth seed has no partner
    # Differences 1, 2, 3; Student's t of 2 degrees of freedom is 4.303.
    assert entry["half_interval"] == pytest.approx(4.303 * 1 / 3**0.5, abs=1e-3)
    assert "difference" not in summary["lite0", "original"]["AP"]
    # By a reading that no model has there is no table.
    assert summarize([*original, *mutual], "class x quality") == {}


def test_arms_are_compared_with_the_original_of_the_same_options():
    pytest.importorskip("scipy")
    arms = {"original": 1.0, "mutual": 2.0, "original --quality iou": 10.0, "mutual --quality iou": 13.0, "l2c -x": 5.0}
    summary = summarize([a_model(arm, 0, ap) for arm, ap in arms.items()], "class alone")
    assert [arm for _, arm in summary] == [
        "original",
        "mutual",
        "original --quality iou",
        "mutual --quality iou",
        "l2c -x",
    ]
    assert summary["lite0", "mutual"]["AP"]["difference"] == 1
    assert summary["lite0", "mutual --quality iou"]["AP"]["difference"] == 3
    assert "difference" not in summary["lite0", "l2c -x"]["AP"]


@pytest.mark.parametrize("options", ["--no-level-gate", "--min-points 8", "--min-points=8 --original-epochs 1"])
def test_what_the_original_strategy_does_not_know_makes_no_other_original(options):
    pytest.importorskip("scipy")
    arms = {
        "original": 1.0,
        f"mutual {options}": 4.0,
        "original --quality iou": 10.0,
        f"mutual {options} --quality iou": 15.0,
    }
    summary = summarize([a_model(arm, 0, ap) for arm, ap in arms.items()], "class alone")
    assert summary["lite0", f"mutual {options}"]["AP"]["difference"] == 3
    assert summary["lite0", f"mutual {options} --quality iou"]["AP"]["difference"] == 5


def test_the_interval_over_images_is_of_differences():
    """Sets of images are easy or hard for both models alike; where they differ by a constant, the interval is a point."""
    pytest.importorskip("scipy")
    drawn = [float(i) for i in range(100)]
    models = [
        a_model(arm, seed, 50.0, bootstrap={"AP": [value + gain for value in drawn], "AP75": drawn})
        for seed in range(2)
        for arm, gain in (("original", 0), ("mutual", 1 + seed))
    ]
    entry = summarize(models, "class alone")["lite0", "mutual"]
    assert entry["AP"]["images_interval"] == pytest.approx([1.5, 1.5])
    assert entry["AP75"]["images_interval"] == pytest.approx([0, 0])
    assert "+1.5 to +1.5" in markdown(models)
    # Sets of images without an object say nothing, and where there are no others there is no interval.
    models = [
        a_model(arm, 0, 50.0, bootstrap={"AP": [None, 1.0], "AP75": [None, None]}) for arm in ("original", "mutual")
    ]
    entry = summarize(models, "class alone")["lite0", "mutual"]
    assert entry["AP"]["images_interval"] == [0, 0]
    assert "images_interval" not in entry["AP75"]


def test_differences_are_drawn_side_by_side(tmp_path, capsys):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    for name, seeds in (("one", (0,)), ("several", (0, 1, 2))):  # of one seed there is no interval
        for seed in seeds:
            for arm, ap in (("original", 40.0), ("mutual", 41.0 + seed), ("l2c", 90.0)):
                add_result(tmp_path / name / "results.json", {}, a_model(arm, seed, ap))
    files = [tmp_path / name / "results.json" for name in ("one", "several")]
    assert table.main([*map(str, files), "--figure", str(tmp_path / "differences.svg")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| Mutual Guidance | ") == 2
    assert [line.split(":")[0] for line in printed.splitlines() if line.endswith(": {}")] == ["one", "several"]
    assert "<svg" in (tmp_path / "differences.svg").read_text()
    panels = table.figure_of([(file.parent.name, read_results(file)["models"]) for file in files]).axes
    assert len(panels) == 2
    for ax in panels:
        assert [label.get_text() for label in ax.get_xticklabels()] == ["one", "several"]
        circles = [line.get_ydata() for line in ax.lines if line.get_marker() == "o"]
        assert [list(of_seeds) for of_seeds in circles] == [[1.0], [1.0, 2.0, 3.0]]  # of Mutual Guidance alone

    with pytest.raises(SystemExit):
        table.main([str(files[0]), "--figure", "differences.doc"])
    assert "--figure: expected a name that ends with .png or .svg, got differences.doc" in capsys.readouterr().err


def test_results_are_added_to(tmp_path):
    path = tmp_path / "results.json"
    add_result(path, {"test": ["x"]}, a_model("mutual", 1, 2.0))
    add_result(path, {"test": ["x"]}, a_model("mutual", 0, 1.0))
    models = add_result(path, {"test": ["x"]}, a_model("mutual", 1, 3.0))
    assert models == read_results(path)["models"] == [a_model("mutual", 0, 1.0), a_model("mutual", 1, 3.0)]
    assert len(path.read_text().splitlines()) == 5  # a line for each model
    with pytest.raises(UserError, match=r"results\.json: holds results of another experiment"):
        add_result(path, {"test": ["y"]}, a_model("mutual", 1, 3.0))


def test_results_are_the_same_experiments_wherever_its_images_lie(tmp_path):
    def setup(folder: str, *more: str, epochs: str = "8") -> dict[str, object]:
        return {
            "test": [f"{folder}:test"],
            "options of train.py": ["--epochs", epochs, "--val", f"{folder}:val", *more],
        }

    path = tmp_path / "results.json"
    first = setup("voc", "--eval-every", "8", "--amp", "bf16")
    add_result(path, first, a_model("mutual", 0, 1.0))
    add_result(path, setup("runs/voc", "--amp", "bf16", "--keep-every", "2"), a_model("mutual", 1, 2.0))
    add_result(path, setup("runs/voc", "--eval-every=4", "--amp=bf16"), a_model("mutual", 1, 2.0))
    assert read_results(path)["setup"] == first
    for other in (setup("coco", "--amp", "bf16"), setup("voc"), setup("voc", "--amp", "bf16", epochs="9")):
        with pytest.raises(UserError, match=r"results\.json: holds results of another experiment"):
            add_result(path, other, a_model("mutual", 2, 3.0))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ('{"models"', "Expecting ':'"),
        ('{"models": []}', "no setup"),
        ('{"setup": [], "models": []}', "no setup"),
        ('{"setup": {}}', "models"),
        ([a_model("original", 0, 1.0), {"arm": "original"}], "model 2 has no backbone, seed"),
        ([a_model("best", 0, 1.0)], "model 1, lite0 best 0, is of an unknown arm; known are original, "),
        ([a_model("", 0, 1.0)], "is of an unknown arm"),
        ([a_model("mutual", 0, 1.0, AP50=None, AP75=None)], "mutual 0, has no AP50, AP75 by class alone"),
        ([a_model("mutual", 0, 1.0) | {"seed": None}], "model 1 has no seed"),
        ([a_model("mutual", 0, 1.0) | {"backbone": ["lite0"]}], "model 1 has no backbone"),
        ([a_model("mutual", 0, float("inf"))], "mutual 0, has no AP, AP50, AP75 by class alone"),
        ([a_model("mutual", 0, 1.0, bootstrap=None)], "'NoneType'"),
        ([a_model("mutual", 0, 1.0, bootstrap={"AP": 1})], "something other than numbers as bootstrap of AP by class"),
        ([a_model("mutual", 0, 1.0, bootstrap={"AP": ["1"]})], "something other than numbers as bootstrap of AP by"),
        (
            [a_model("mutual", s, 1.0, bootstrap={"AP": [1.0] * n}) for s, n in ((0, 3), (1, 2))],
            "bootstraps of different lengths: 2, 3",
        ),
        (
            [a_model("mutual", s, 1.0) | {"images": n} for s, n in ((0, 4), (1, 5))],
            "models scored on different images: 4, 5",
        ),
        (
            [a_model("mutual", s, 1.0) | {"images": 4, "image names": names} for s, names in enumerate("ba")],
            "models scored on different image names: a, b",
        ),
        ([a_model("mutual", 0, 1.0)] * 2, "lite0 mutual 0 is there 2 times"),
        ([{"backbone": "lite0", "arm": "mutual", "seed": 0}], "has none of the readings class x quality, class alone"),
    ],
)
def test_results_that_are_none_are_told(tmp_path, capsys, results, message):
    path = tmp_path / "results.json"
    path.write_text(results if isinstance(results, str) else json.dumps({"setup": {}, "models": results}))
    assert command(table.main, [str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: not a file of results: " in line
    assert message in line
