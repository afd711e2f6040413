"""The settings of the assigners that have many, with the presets of the projects they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from . import _checks

__all__ = ["SimOTA", "SoftLabel", "TaskAligned"]

#: The most points that an object may choose: the lists of choices are kept in a GPU block's shared memory.
MOST_CHOSEN = 128


def _as_python_floats(settings: object) -> None:
    """NumPy's are floats, too, but not to what torch.load trusts."""
    for name, value in vars(settings).items():
        if isinstance(value, float):
            object.__setattr__(settings, name, float(value))


@dataclass(frozen=True)
class TaskAligned:
    """Settings of :func:`mgassign.task_aligned_assign`.

    A point's score for an object is ``s ** alpha * u ** beta``: s the probability of the object's class, u the overlap
    of predicted box and object.

    Attributes:
        k: How many points each object chooses, at most: those of highest score above 0.
        keep: How many of the points it holds after the contest stay with an object, at most; None: all of them.
        alpha, beta: How much class and overlap count.
        overlap: ``"ciou"``, the complete IoU held to [0, 1], or ``"iou"``.
        candidates: Which points an object may choose. ``"inside"``: those inside its window. ``"anywhere"``: all of
            them, but those chosen outside its window are lost.
        margin: A point must lie farther inside its window than this, in pixels; 0: strictly inside.
        least_side: The window is the object's box with sides raised to this, in pixels; 0: the box itself.
        raise_below: Sides shorter than this are raised, in pixels, at most ``least_side``; None: as much.
        contest: Who gets a point that several objects chose: the highest overlap, ``"inside"`` of all objects in whose
            window it lies, or ``"chosen"`` of those that chose it. Equal overlaps: the lower index.
        epsilon: Added to the highest score where targets are divided by it.

    Presets, each compared with the package: ``ULTRALYTICS`` (8.4.139 and newer: YOLOv8, YOLO11, YOLO12 and the many of
    YOLO26), ``YOLO26`` (its one-to-one head: 7 chosen, 1 kept), ``YOLOV10`` (its one-to-one head),
    ``ULTRALYTICS_8_4_0`` (8.4.0 to 8.4.100), ``ULTRALYTICS_8_3`` (8.3), ``TOOD`` (mmdet 3.3, whose points begin at the
    image's corner: ``offset=0`` of a grid). Versions between have not been compared. They are of boxes; YOLO26's masks and
    poses and rotated boxes have assigners of their own.
    In those of ultralytics 8.4 ``least_side`` is the stride of the second level, and ``raise_below`` of
    ``ULTRALYTICS_8_4_0`` that of the first; ``dataclasses.replace`` makes others.
    """

    k: int = 10
    keep: int | None = None
    alpha: float = 0.5
    beta: float = 6.0
    overlap: Literal["ciou", "iou"] = "ciou"
    candidates: Literal["inside", "anywhere"] = "inside"
    margin: float = 1e-9
    least_side: float = 0.0
    raise_below: float | None = None
    contest: Literal["inside", "chosen"] = "inside"
    epsilon: float = 1e-9

    ULTRALYTICS: ClassVar[TaskAligned]
    YOLO26: ClassVar[TaskAligned]
    YOLOV10: ClassVar[TaskAligned]
    ULTRALYTICS_8_4_0: ClassVar[TaskAligned]
    ULTRALYTICS_8_3: ClassVar[TaskAligned]
    TOOD: ClassVar[TaskAligned]

    def __post_init__(self) -> None:
        _checks.count("k", self.k, at_least=1, at_most=MOST_CHOSEN)
        if self.keep is not None:
            _checks.count("keep", self.keep, at_least=1, at_most=MOST_CHOSEN)
        _checks.number("alpha", self.alpha, at_least=0)
        _checks.number("beta", self.beta, above=0)
        _checks.number("epsilon", self.epsilon, above=0)
        _checks.choice("overlap", self.overlap, ("ciou", "iou"))
        _checks.choice("candidates", self.candidates, ("inside", "anywhere"))
        _checks.choice("contest", self.contest, ("inside", "chosen"))
        for name in ("margin", "least_side"):
            _checks.number(name, getattr(self, name), at_least=0)
        if self.raise_below is not None:
            _checks.number("raise_below", self.raise_below, at_least=0)
            if self.raise_below > self.least_side:
                raise ValueError(f"raise_below: expected at most least_side, {self.least_side}, got {self.raise_below}")
        _as_python_floats(self)


TaskAligned.ULTRALYTICS = TaskAligned(least_side=16.0)
TaskAligned.YOLO26 = TaskAligned(least_side=16.0, k=7, keep=1)
TaskAligned.YOLOV10 = TaskAligned(least_side=16.0, k=1)
TaskAligned.ULTRALYTICS_8_4_0 = TaskAligned(least_side=16.0, raise_below=8.0)
TaskAligned.ULTRALYTICS_8_3 = TaskAligned()
TaskAligned.TOOD = TaskAligned(
    k=13, alpha=1.0, overlap="iou", candidates="anywhere", margin=0.01, contest="chosen", epsilon=1e-7
)


@dataclass(frozen=True)
class SimOTA:
    """Settings of :func:`mgassign.sim_ota_assign`.

    A point costs an object ``class_weight * c + overlap_weight * -log(u + epsilon)``, and ``penalty`` more where it is
    not central: c the binary cross entropy of the point's probabilities, summed over classes, u the overlap of
    predicted box and object.

    Attributes:
        best_overlaps: An object chooses as many points as this many of its highest overlaps add up to, at least 1.
        center_radius: A central point lies nearer than this to an object's centre, along each axis, in strides.
        inside: Whether a point has to lie inside the object's box, too, to be central. Then all points inside a box or
            near a centre may be chosen, otherwise those near a centre alone.
        penalty: What a point costs more that is not central.
        overlap_weight, class_weight: How much overlap and class count.
        epsilon: Added to the overlap before its logarithm is taken.

    Presets, each compared with the package: ``YOLOX`` (its main branch), ``YOLOX_0_3`` (the release 0.3.0), ``MMDET``
    (mmdet 3.3, whose YOLOX hands over the product of class's and objectness' probabilities, without a root: give that,
    and no ``pred_objectness``). mmdet takes unions below a millionth of a square pixel to be that large; here they are what
    they are.
    """

    best_overlaps: int = 10
    center_radius: float = 1.5
    inside: bool = False
    penalty: float = 1e6
    overlap_weight: float = 3.0
    class_weight: float = 1.0
    epsilon: float = 1e-8

    YOLOX: ClassVar[SimOTA]
    YOLOX_0_3: ClassVar[SimOTA]
    MMDET: ClassVar[SimOTA]

    def __post_init__(self) -> None:
        _checks.count("best_overlaps", self.best_overlaps, at_least=1, at_most=MOST_CHOSEN)
        _checks.flag("inside", self.inside)
        for name in ("center_radius", "overlap_weight", "epsilon"):
            _checks.number(name, getattr(self, name), above=0)
        for name in ("penalty", "class_weight"):
            _checks.number(name, getattr(self, name), at_least=0)
        _as_python_floats(self)


SimOTA.YOLOX = SimOTA()
SimOTA.YOLOX_0_3 = SimOTA(center_radius=2.5, inside=True, penalty=1e5)
SimOTA.MMDET = SimOTA(center_radius=2.5, inside=True, penalty=1e5, epsilon=1e-7)


@dataclass(frozen=True)
class SoftLabel:
    """Settings of :func:`mgassign.soft_label_assign`.

    A point costs an object ``c + overlap_weight * -log(u + epsilon) + 10 ** (d - center_radius)``: c the quality focal
    loss of the point's scores, summed over classes, if the object's class is to learn u, the overlap of predicted box
    and object; d the distance of the point from the object's centre, in strides.

    Attributes:
        best_overlaps: An object chooses as many points as this many of its highest overlaps add up to, at least 1.
        center_radius: The distance from an object's centre at which a point costs 1 more, in strides.
        overlap_weight: How much the overlap counts.
        epsilon: Added to the overlap before its logarithm is taken.

    Preset, compared with the package: ``MMDET`` (RTMDet of mmdet 3.3 for boxes, whose points begin at the image's corner:
    ``offset=0`` of a grid; for masks it takes their centre of mass), but for unions as in :class:`SimOTA`'s.
    """

    best_overlaps: int = 13
    center_radius: float = 3.0
    overlap_weight: float = 3.0
    epsilon: float = 1e-7

    MMDET: ClassVar[SoftLabel]

    def __post_init__(self) -> None:
        _checks.count("best_overlaps", self.best_overlaps, at_least=1, at_most=MOST_CHOSEN)
        for name in ("overlap_weight", "epsilon"):
            _checks.number(name, getattr(self, name), above=0)
        _checks.number("center_radius", self.center_radius, at_least=0)
        _as_python_floats(self)


SoftLabel.MMDET = SoftLabel()
