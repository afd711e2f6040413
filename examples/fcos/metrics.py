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

import numpy as np
import torch
from numpy.typing import NDArray
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


class Matches(NamedTuple):
    """The detections of a class in all images, best first, and what became of them at each of THRESHOLDS."""

    images: NDArray[np.int64]
    """[n]: where each was found."""
    right: NDArray[np.bool_]
    """[T, n]."""
    counted: NDArray[np.bool_]
    """[T, n]: all but those of difficult objects."""
    objects: NDArray[np.int64]
    """[images]: how many there are to find."""


def match(truths: Sequence[Truth], detections: Sequence[Detections], num_classes: int) -> list[Matches]:
    """For each class which detections are right.

    VOC's rule: a detection claims the object it overlaps most. If that is enough and the object is not taken
    yet by a better detection, it is right.
    """
    return [_match_class(truths, detections, c) for c in range(num_classes)]


def _match_class(truths: Sequence[Truth], detections: Sequence[Detections], c: int) -> Matches:
    parts, objects, first = [], [], 0
    for image, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        of_class, found_of_class = truth.labels == c, found.labels == c
        overlaps = box_iou(found.boxes[found_of_class].double(), truth.boxes[of_class].double())
        hard = truth.difficult[of_class]
        objects.append(int((~hard).sum()))
        overlap, claimed = overlaps.max(1) if len(hard) else (overlaps.new_zeros(len(overlaps)), None)
        parts.append(
            (
                np.full(len(overlaps), image),
                found.scores[found_of_class].numpy(),
                overlap.numpy(),
                np.full(len(overlaps), first) if claimed is None else first + claimed.numpy(),
                np.zeros(len(overlaps), bool) if claimed is None else hard[claimed].numpy(),
            )
        )
        first += len(hard)
    images, scores, overlap, claimed_object, is_hard = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    images, overlap, claimed_object, is_hard = images[order], overlap[order], claimed_object[order], is_hard[order]
    enough = overlap >= np.array(THRESHOLDS)[:, None]
    right = np.zeros_like(enough)
    for row, candidate in zip(right, enough & ~is_hard, strict=True):
        places = candidate.nonzero()[0]
        row[places[np.unique(claimed_object[places], return_index=True)[1]]] = True
    return Matches(images, right, ~(enough & is_hard), np.array(objects))


def ap_of(matches: Sequence[Matches], weights: NDArray[np.int64] | None = None) -> Scores:
    """The paper's metric of matched detections.

    Args:
        weights: [images], how often each image counts; once each where None.
    """
    per_class = torch.full((len(matches), len(THRESHOLDS)), torch.nan, dtype=torch.float64)
    for c, (images, right, counted, objects) in enumerate(matches):
        weight = np.ones_like(objects) if weights is None else weights
        present = (weight * objects).sum()
        if present:
            rights, counts = ((kind * weight[images]).cumsum(1) for kind in (right, counted))
            of_thresholds = [_eleven_point(*of, present) for of in zip(rights, counts, strict=True)]
            per_class[c] = torch.tensor(of_thresholds, dtype=torch.float64)
    return _scores(per_class)


def _eleven_point(rights: NDArray[np.int64], counts: NDArray[np.int64], objects: np.int64) -> float:
    """Precision, the best at any recall from here on, averaged over the recalls 0, .1, ... 1."""
    precision = rights / np.maximum(counts, 1)
    best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best_from_here[np.searchsorted(rights / objects, RECALLS.numpy())].mean())


def voc_ap(truths: Sequence[Truth], detections: Sequence[Detections], num_classes: int) -> Scores:
    """The paper's metric, of all images."""
    return ap_of(match(truths, detections, num_classes))


def bootstrap(matches: Sequence[Matches], replicates: int, seed: int = 0) -> list[Scores]:
    """The scores of sets of as many images, drawn with replacement: the same ones for every model and any machine."""
    count, generator = len(matches[0].objects), torch.Generator().manual_seed(seed)
    drawn = (torch.randint(count, (count,), generator=generator) for _ in range(replicates))
    return [ap_of(matches, torch.bincount(images, minlength=count).numpy()) for images in drawn]


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
