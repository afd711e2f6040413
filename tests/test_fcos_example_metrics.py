"""The FCOS example's average precision: cases worked by hand, and pycocotools where the two must agree."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("torchvision")

import metrics
from compare import summarize, t_quantile
from metrics import Detections, Truth, coco_ap, voc_ap


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


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_students_t(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, abs=6e-4)


def test_paired_differences():
    """Both strategies vary with the seed, their difference does not: the interval knows."""
    scores = {
        "original": {s: dict.fromkeys(("AP", "AP50", "AP75"), v) for s, v in enumerate((10.0, 20.0, 30.0))},
        "mutual": {s: dict.fromkeys(("AP", "AP50", "AP75"), v) for s, v in enumerate((11.0, 22.0, 33.0))},
    }
    entry = summarize(scores)["mutual"]["AP"]
    assert (entry["mean"], entry["sd"], entry["difference"]) == pytest.approx((22, 11, 2))
    assert entry["half_interval"] == pytest.approx(4.303 * 1 / 3**0.5, abs=1e-3)  # differences 1, 2, 3
