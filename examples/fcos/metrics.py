"""Average precision two ways: the paper's, and COCO's.

**The paper's**: VOC 2007's 11-point AP of each class, averaged over the IoU thresholds .50, .55, ... .95 and over the
classes. This is what the authors' code computes for its "AP"; AP50 and AP75 are the same at one threshold. It is not COCO's
AP, which samples precision at 101 recalls and matches detections to objects by another rule. Objects marked difficult
count neither as found nor as missed, and neither do detections of them.

**COCO's**: by pycocotools, difficult objects ignored there too.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from runs import UserError

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = torch.arange(11, dtype=torch.float64) / 10


class Truth(NamedTuple):
    """An image's objects, boxes xyxy in pixels."""

    boxes: Tensor
    labels: Tensor
    difficult: Tensor


class Detections(NamedTuple):
    """What was found in an image, boxes xyxy in pixels."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Scores(NamedTuple):
    """Average precisions in [0, 1]; NaN for a class without objects, which no mean counts."""

    ap: float
    ap50: float
    ap75: float
    per_class: Tensor
    """float64 [C, T], at each of THRESHOLDS."""


def _scores(per_class: Tensor) -> Scores:
    mean = per_class.nanmean(0)
    return Scores(float(mean.mean()), float(mean[0]), float(mean[THRESHOLDS.index(0.75)]), per_class)


def voc_ap(truths: Sequence[Truth], detections: Sequence[Detections], num_classes: int) -> Scores:
    """The paper's metric, of all images."""
    per_class = torch.full((num_classes, len(THRESHOLDS)), torch.nan, dtype=torch.float64)
    for c in range(num_classes):
        objects = sum(int(((t.labels == c) & ~t.difficult).sum()) for t in truths)
        if objects:
            per_class[c] = torch.stack([_eleven_point(hits, objects) for hits in _hits_of_class(truths, detections, c)])
    return _scores(per_class)


def _hits_of_class(truths: Sequence[Truth], detections: Sequence[Detections], c: int) -> list[Tensor]:
    """For each threshold whether each detection of a class is right, best first; those that do not count are left out.

    VOC's rule: a detection claims the object it overlaps most. If that is enough and the object is not taken
    yet by a better detection, it is right.
    """
    scores, claims = [], []
    for image, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        of_class, found_of_class = truth.labels == c, found.labels == c
        overlaps = box_iou(found.boxes[found_of_class].double(), truth.boxes[of_class].double())
        if overlaps.shape[1]:
            overlap, claimed = overlaps.max(1)
            hard = truth.difficult[of_class][claimed]
        else:
            overlap = overlaps.new_zeros(len(overlaps))
            claimed, hard = overlap.long(), overlap.bool()
        scores.append(found.scores[found_of_class])
        claims += [(image, *claim) for claim in zip(claimed.tolist(), overlap.tolist(), hard.tolist(), strict=True)]
    order = torch.argsort(torch.cat(scores), descending=True, stable=True).tolist()
    of_thresholds = []
    for threshold in THRESHOLDS:
        taken, hits = set(), []
        for image, claimed, overlap, hard in (claims[i] for i in order):
            enough = overlap >= threshold
            if enough and hard:
                continue
            hits.append(enough and (image, claimed) not in taken)
            if enough:
                taken.add((image, claimed))
        of_thresholds.append(torch.tensor(hits, dtype=torch.float64))
    return of_thresholds


def _eleven_point(hits: Tensor, objects: int) -> Tensor:
    """Precision, the best at any recall from here on, averaged over the recalls 0, .1, ... 1."""
    right = hits.cumsum(0)
    recall, precision = right / objects, right / torch.arange(1, len(hits) + 1)
    reached = recall >= RECALLS[:, None]
    return torch.where(reached, precision, 0.0).amax(1).mean() if len(hits) else right.sum()


def coco_ap(
    truths: Sequence[Truth], detections: Sequence[Detections], num_classes: int, recalls: Tensor | None = None
) -> Scores:
    """COCO's metric, of all images; at other ``recalls`` than COCO's 101 where given.

    Raises:
        UserError: if pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("COCO's AP needs pycocotools: pip install pycocotools (or leave --coco out)") from error

    def xywh(boxes: Tensor) -> list[list[float]]:
        corners = boxes.double()
        result: list[list[float]] = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        return result

    def entries(image: int, boxes: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        return [
            {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(xywh(boxes), labels.tolist(), strict=True)
        ]

    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, (truth, detected) in enumerate(zip(truths, detections, strict=True)):
        for entry, hard in zip(entries(image, truth.boxes, truth.labels), truth.difficult.tolist(), strict=True):
            # An area outside of every range makes pycocotools ignore an object. Marking it a crowd
            # would do so too, and change how its overlap is computed.
            objects.append(entry | {"id": len(objects) + 1} | ({"area": -1} if hard else {}))
        scores = detected.scores.tolist()
        found += [
            entry | {"score": score, "id": len(found) + i}
            for i, (entry, score) in enumerate(
                zip(entries(image, detected.boxes, detected.labels), scores, strict=True), 1
            )
        ]

    def index(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        images, categories = [{"id": i} for i in range(len(truths))], [{"id": c} for c in range(num_classes)]
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(index(objects), index(found), "bbox")
        if recalls is not None:
            evaluation.params.recThrs = recalls.numpy()
        evaluation.evaluate()
        evaluation.accumulate()
    # [threshold, recall, class, area range, most detections]: all areas, 100 detections; -1 without objects.
    precision = torch.from_numpy(evaluation.eval["precision"])[:, :, :, 0, -1]
    return _scores(torch.where(precision < 0, torch.nan, precision).mean(1).T)
