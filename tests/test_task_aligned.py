"""Task-aligned assignment: by hand, against the reference, odd input, and what must hold for any scene."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from agreement import check_nobody
from mgassign import PointGrid, TaskAligned, TaskAlignedAssignment, reference, task_aligned_assign
from scenes import GRIDS, STRIDES, Scene, equal, random_boxes, scene, scene_of, scenes
from task_aligned_agreement import answers

inf, nan = torch.inf, torch.nan

PRESETS = {
    "ULTRALYTICS": TaskAligned.ULTRALYTICS,
    "YOLO26": TaskAligned.YOLO26,
    "YOLOV10": TaskAligned.YOLOV10,
    "ULTRALYTICS_8_4_0": TaskAligned.ULTRALYTICS_8_4_0,
    "ULTRALYTICS_8_3": TaskAligned.ULTRALYTICS_8_3,
    "TOOD": TaskAligned.TOOD,
}
SETTINGS = {
    **PRESETS,
    "other powers": TaskAligned(alpha=0.75, beta=2.5),
    "class alone, nearly": TaskAligned(alpha=3.0, beta=0.01),
    "overlap alone": TaskAligned(alpha=0.0, beta=1.0, overlap="iou"),
    "short sides of a range": TaskAligned(least_side=24.0, raise_below=10.0),
    "contest of those that chose": TaskAligned(k=20, contest="chosen", margin=2.5),
    "three kept": TaskAligned(k=12, keep=3),
    "kept of those anywhere": replace(TaskAligned.TOOD, keep=2, contest="inside"),
}


def assign(of: Scene, settings: TaskAligned = TaskAligned.ULTRALYTICS, **more) -> TaskAlignedAssignment:
    arguments = {"activation": "sigmoid", **more}
    return task_aligned_assign(of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, settings, **arguments)


def check(of: Scene, settings: TaskAligned, **more) -> int:
    """Asserts that the operator and the reference agree; returns how many owners differ, by rounding."""
    found = assign(of, settings, **more)
    differing = 0
    for b, objects in enumerate(zip(of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, strict=True)):
        owner, target, iou = reference.task_aligned_assign(of.grid, *objects, settings, activation="sigmoid", **more)
        check_nobody(found.owner[b], owner)
        same = found.owner[b] == owner
        torch.testing.assert_close(found.iou[b][same], iou[same], rtol=0, atol=2e-6)
        if same.all():
            torch.testing.assert_close(found.target[b], target, rtol=1e-5 * settings.beta + 1e-5, atol=1e-6)
            continue
        differing += int((~same).sum())
        boxes, logits, gt_boxes, gt_labels = objects
        k = max(more.get("num_points", settings.k), more.get("min_points", 0))
        allowed = answers(of.grid, boxes, logits.float().sigmoid(), gt_boxes, gt_labels, settings, k)
        assert (allowed.allow(found.owner[b]) & allowed.allow(owner))[~same].all()
    return differing


def test_by_hand():
    # Stride 8, points 4, 12, 20, 28 along each axis; the object holds the four in the middle. All predict the object
    # itself but one, which is half of it; the scores are 1/4 but one.
    grid = PointGrid.for_image((32, 32), strides=(8,))
    box = torch.tensor([8.0, 8, 24, 24])
    boxes = box.expand(1, 16, 4).clone()
    boxes[0, 6] = torch.tensor([8.0, 8, 24, 16])
    scores = torch.full((1, 16, 2), 0.25)
    scores[0, 10, 1] = 1.0
    iou_alone = TaskAligned(k=3, overlap="iou", alpha=0.5, beta=1.0)
    found = task_aligned_assign(grid, boxes, scores, [box[None]], [torch.tensor([1])], iou_alone)
    # Scores: point 5 1/2 * 1, 6 1/2 * 1/2, 9 1/2 * 1, 10 1 * 1.
    assert (found.owner[0] == 0).nonzero().flatten().tolist() == [5, 9, 10]
    torch.testing.assert_close(found.target[0, [5, 9, 10]], torch.tensor([0.5, 0.5, 1.0]))
    assert found.iou[0].sum() == 3
    for k, expected in {1: [10], 2: [5, 10], 4: [5, 6, 9, 10]}.items():  # ties: the lower point index
        found = task_aligned_assign(grid, boxes, scores, [box[None]], [torch.tensor([1])], iou_alone, num_points=k)
        assert (found.owner[0] == 0).nonzero().flatten().tolist() == expected


def test_a_contested_point_goes_to_the_highest_overlap_even_of_who_did_not_choose_it():
    # One point, three objects around it: the third fits best, but has no score.
    grid = PointGrid.from_features([(1, 1)], strides=(8,))
    objects = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 6]])
    arguments = (
        grid,
        torch.tensor([[[0.0, 0, 8, 6]]]),
        torch.tensor([[[0.5, 0.0]]]),
        [objects],
        [torch.tensor([0, 0, 1])],
    )
    found = task_aligned_assign(*arguments)
    assert found.owner.tolist() == [[2]]
    assert found.target.item() == 0
    chosen = task_aligned_assign(*arguments, TaskAligned(contest="chosen"))
    assert chosen.owner.tolist() == [[1]]
    # Uncontested, it stays with the one that chose it.
    alone = task_aligned_assign(*arguments[:3], [objects[1:]], [torch.tensor([0, 1])])
    assert alone.owner.tolist() == [[0]]


@pytest.mark.parametrize("side", [3.8e-23, 1.2e-22, 1e-20, 1e-15])
def test_a_contest_of_overlaps_that_are_subnormal(side):
    grid = PointGrid.from_features([(1, 1)], strides=(8,), offset=0)
    half = torch.tensor([[1e-3], [9e-4]]).sqrt() / 2
    arguments = (torch.tensor([[0, 0, side, side]]), torch.ones(1, 1), torch.cat([-half, -half, half, half], 1))
    settings = TaskAligned(alpha=1.0, beta=1.0, k=1, overlap="iou")
    owner, *_ = reference.task_aligned_assign(grid, *arguments, torch.tensor([0, 0]), settings)
    assert owner.tolist() == [1]
    found = task_aligned_assign(grid, *(one[None] for one in arguments), torch.zeros(1, 2).long(), settings)
    assert found.owner.tolist() == [[1]]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_agrees_with_the_reference(settings):
    differing = 0
    for seed, grid in enumerate(GRIDS):
        generator = torch.Generator().manual_seed(seed)
        boxes = [random_boxes(count, (96, 128), generator) for count in (0, 1, 7, 40)]
        differing += check(scene_of(grid, boxes, 4, generator), settings)
    differing += check(scene(objects=(0, 1, 7, 60), seed=9), settings)
    differing += check(scene((256, 192), objects=(30, 2), seed=10), settings, min_points=15)
    assert differing <= 10


FOUR = PointGrid.for_image((16, 16), strides=(8,))
WIDE = [0.0, 0, 16, 16]
UNLIKELY = TaskAligned(k=2, overlap="iou")
# Objects, labels, predicted boxes of the four points, settings, and each point's owner. Every score is 1/2.
CASES = {
    "no object": ([], [], [WIDE] * 4, {}, [-1] * 4),
    "equal scores: the lower points": ([WIDE], [0], [WIDE] * 4, {}, [0, 0, -1, -1]),
    "equal objects: the lower index": ([WIDE, WIDE], [0, 0], [WIDE] * 4, {}, [0, 0, -1, -1]),
    "equal objects of two classes": ([WIDE, WIDE], [1, 0], [WIDE] * 4, {}, [0, 0, -1, -1]),
    "fewer points than k": ([WIDE], [0], [WIDE] * 4, {"k": 9}, [0] * 4),
    "predictions that overlap nothing": ([WIDE], [0], [[50.0, 50, 60, 60]] * 4, {}, [-1] * 4),
    "a box without area": ([[4.0, 0, 4, 16]], [0], [WIDE] * 4, {"least_side": 16.0}, [-1] * 4),
    "an inverted box": ([[16.0, 16, 0, 0]], [0], [WIDE] * 4, {"least_side": 16.0}, [-1] * 4),
    "a box that is NaN": ([[nan, 0, 16, 16], WIDE], [0, 0], [WIDE] * 4, {}, [1, 1, -1, -1]),
    "a box that is infinite": ([[-inf, 0, 16, 16], WIDE], [0, 0], [WIDE] * 4, {}, [1, 1, -1, -1]),
    "padding": ([WIDE, WIDE], [-1, 0], [WIDE] * 4, {}, [1, 1, -1, -1]),
    "a region": ([WIDE, WIDE], [-2, 0], [WIDE] * 4, {}, [1, 1, -2, -2]),
    "a region of some points": ([[0.0, 0, 16, 8]], [-2], [WIDE] * 4, {}, [-2, -2, -1, -1]),
    "a region does not contest": ([WIDE, [0.0, 0, 16, 15]], [-2, 0], [WIDE] * 4, {}, [1, 1, -2, -2]),
    "predictions NaN": ([WIDE], [0], [[nan, 0, 16, 16], [0, 0, inf, 16], WIDE, WIDE], {}, [-1, -1, 0, 0]),
    "predictions that are none": ([WIDE], [0], [[16.0, 16, 0, 0], [0, 0, 0, 16], WIDE, WIDE], {}, [-1, -1, 0, 0]),
    "points on the side are outside": ([[4.0, 0, 16, 16]], [0], [WIDE] * 4, {}, [-1, 0, -1, 0]),
    "points by the margin": ([[3.5, 0, 16, 16]], [0], [WIDE] * 4, {"k": 4, "margin": 0.5}, [-1, 0, -1, 0]),
    "points within the margin": ([[3.5, 0, 16, 16]], [0], [WIDE] * 4, {"k": 4, "margin": 0.25}, [0] * 4),
    "an object between the points": ([[6.0, 6, 10, 10]], [0], [WIDE] * 4, {"k": 4}, [-1] * 4),
    "the same, with short sides raised": ([[6.0, 6, 10, 10]], [0], [WIDE] * 4, {"k": 4, "least_side": 9.0}, [0] * 4),
    "one side raised": ([[6.0, 0, 10, 6]], [0], [WIDE] * 4, {"k": 4, "least_side": 9.0, "raise_below": 5.0}, [0, 0, -1, -1]),
    "chosen outside, and lost": (
        [[0.0, 0, 8, 8]], [0], [[0.0, 0, 8, 7], [0, 0, 8, 8], [0, 0, 8, 8], WIDE], {"candidates": "anywhere"}, [-1] * 4,
    ),
    "one kept of two": ([WIDE], [0], [[0.0, 0, 16, 15], WIDE, WIDE, WIDE], {"keep": 1}, [-1, 0, -1, -1]),
    "huge objects": ([[-3e38, -3e38, 3e38, 3e38]], [0], [WIDE] * 4, {}, [-1] * 4),
    "tiny objects": ([[3.9999, 3.9999, 4.0001, 4.0001]], [0], [[3.9999, 3.9999, 4.0001, 4.0001]] * 4, {}, [0, -1, -1, -1]),
}  # fmt: skip


@pytest.mark.parametrize(("objects", "labels", "boxes", "changed", "expected"), CASES.values(), ids=CASES.keys())
def test_case(objects, labels, boxes, changed, expected):
    gt_boxes, gt_labels = torch.tensor(objects).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)
    pred_boxes, scores = torch.tensor(boxes)[None], torch.full((1, 4, 2), 0.5)
    for overlap in ("iou", "ciou"):
        settings = replace(UNLIKELY, overlap=overlap, **changed)
        found = task_aligned_assign(FOUR, pred_boxes, scores, [gt_boxes], [gt_labels], settings)
        assert found.owner[0].tolist() == expected
        assert ((found.target[0] > 0) == (found.owner[0] >= 0)).all()
        of_reference = reference.task_aligned_assign(FOUR, pred_boxes[0], scores[0], gt_boxes, gt_labels, settings)
        assert of_reference[0].tolist() == expected


@pytest.mark.parametrize(("images", "points", "objects"), [(0, 4, 0), (2, 0, 3), (2, 4, 0), (0, 0, 0)])
def test_nothing_to_assign(images, points, objects):
    grid = FOUR if points else PointGrid.from_features([(0, 4)], strides=(8,))
    boxes, labels = torch.tensor(WIDE).expand(images, objects, 4), torch.zeros(images, objects, dtype=torch.int64)
    found = task_aligned_assign(grid, torch.rand(images, points, 4), torch.rand(images, points, 2), boxes, labels)
    assert all(result.shape == (images, points) for result in found)
    assert (found.owner == -1).all()


def test_labels_are_looked_at_where_there_are_no_points():
    grid = PointGrid.from_features([(0, 4)], strides=(8,))
    with pytest.raises(ValueError, match="gt_labels: expected"):
        task_aligned_assign(grid, torch.rand(1, 0, 4), torch.rand(1, 0, 2), torch.rand(1, 1, 4), torch.tensor([[2]]))


@pytest.mark.parametrize(
    ("score", "probability"),
    [(nan, 0.0), (inf, 1.0), (-inf, 0.0), (2.0, 1.0), (-1.0, 0.0), (0.0, 0.0), (1e-45, 1e-45)],
    ids=str,
)
def test_scores_that_are_no_probabilities(score, probability):
    def found(value):
        scores = torch.full((1, 4, 1), 0.25)
        scores[0, 2] = value
        return task_aligned_assign(
            FOUR, torch.tensor([[WIDE] * 4]), scores, [torch.tensor([WIDE])], [torch.tensor([0])], UNLIKELY
        )

    assert equal(found(score), found(probability))


def test_logits_mean_the_probabilities_they_stand_for():
    of = scene(objects=(5, 20), seed=3)
    probabilities = replace(of, pred_logits=of.pred_logits.sigmoid())
    found, expected = assign(of), assign(probabilities, activation="none")
    assert (found.owner != expected.owner).sum() <= 2  # torch rounds its sigmoid otherwise
    same = found.owner == expected.owner
    assert torch.equal(found.iou[same], expected.iou[same])
    torch.testing.assert_close(found.target[same], expected.target[same], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_mean_the_same_values(dtype):
    of = scene(objects=(5, 20), seed=4).to(dtype)
    assert equal(assign(of), assign(of.to(torch.float32)))


def test_strides_do_not_matter():
    of = scene(objects=(5, 20), seed=5)
    turned = replace(
        of,
        pred_boxes=of.pred_boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        pred_logits=of.pred_logits.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert equal(assign(turned), assign(of))


@pytest.mark.parametrize("settings", PRESETS.values(), ids=PRESETS.keys())
def test_the_three_forms_of_objects(settings):
    of = scene(objects=(4, 0, 9), seed=6)
    expected = assign(of, settings)
    for form in ("padded", "jagged"):
        assert equal(assign(of.in_form(form), settings), expected)


def test_numbers_of_points():
    of = scene(objects=(4, 9), seed=7)
    counts = torch.tensor([0, 3, -5, 2, *[1] * 8, 40])
    found = assign(of, num_points=counts, settings=TaskAligned(contest="chosen"))
    for b, of_image in enumerate(counts.split([4, 9])):
        for g, count in enumerate(of_image.tolist()):
            assert (found.owner[b] == g).sum() <= min(max(count, 0), 10)
    assert equal(found, assign(of, num_points=list(counts.split([4, 9])), settings=TaskAligned(contest="chosen")))
    assert equal(assign(of, num_points=3), assign(of, TaskAligned(k=3, least_side=16.0)))
    assert equal(assign(of, num_points=torch.zeros(13).long(), min_points=3), assign(of, num_points=3))
    assert equal(assign(of, min_points=20), assign(of, num_points=20))
    assert (assign(of, num_points=0).owner == -1).all()


def test_an_object_may_choose_128_points():
    of = scene((320, 320), objects=(20,), seed=8)
    most = TaskAligned(k=128)
    assert check(of, most) <= 5
    assert (assign(of, most).owner >= 0).sum() > 500


def test_rows_of_thousands_of_points_of_which_all_overlap():
    generator = torch.Generator().manual_seed(5)
    grid = PointGrid.for_image((24, 40_000), (8,))
    box = torch.tensor([0.0, 0.0, 40_000.0, 24.0])
    pred_boxes = box + torch.rand(1, grid.num_points, 4, generator=generator)
    of = Scene(
        grid, pred_boxes, torch.randn(1, grid.num_points, 1, generator=generator), [box[None]], [torch.tensor([0])]
    )
    assert check(of, TaskAligned(k=50)) == 0
    assert (assign(of, TaskAligned(k=50)).owner >= 0).sum() == 50


def test_any_number_of_threads_gives_the_same():
    of, before = scene((512, 512), objects=(70, 3, 200), seed=11), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([result for settings in SETTINGS.values() for result in assign(of, settings)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert equal(results[0], others)


@pytest.mark.usefixtures("fresh_compiler")
def test_exports():
    of = scene((64, 96), STRIDES[:2], objects=(3, 3), seed=12)

    class Model(torch.nn.Module):
        def forward(self, pred_boxes, pred_logits, gt_boxes, gt_labels):
            return task_aligned_assign(
                of.grid, pred_boxes, pred_logits, gt_boxes, gt_labels, TaskAligned.TOOD, activation="sigmoid"
            )

    boxes, labels = torch.stack(of.gt_boxes), torch.stack(of.gt_labels)
    objects = torch.export.Dim("objects", min=2, max=1000)
    exported = torch.export.export(
        Model(), (of.pred_boxes, of.pred_logits, boxes, labels), dynamic_shapes=(None, None, {1: objects}, {1: objects})
    )
    more = scene((64, 96), STRIDES[:2], objects=(9, 9), seed=13)
    found = exported.module()(
        more.pred_boxes, more.pred_logits, torch.stack(more.gt_boxes), torch.stack(more.gt_labels)
    )
    assert equal(found, assign(more, TaskAligned.TOOD))


def test_gradients_autocast_and_inference_change_nothing():
    of = scene(objects=(5, 3), seed=14)
    expected = assign(of)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(assign(of), expected)
    with torch.inference_mode():
        assert equal(assign(of), expected)
    of = replace(of, pred_boxes=of.pred_boxes.requires_grad_(), pred_logits=of.pred_logits.requires_grad_())
    found = assign(of)
    assert equal(found, expected)
    assert not any(result.requires_grad for result in found)


GOOD = {
    "grid": FOUR,
    "pred_boxes": torch.rand(1, 4, 4),
    "pred_scores": torch.rand(1, 4, 2),
    "gt_boxes": [torch.tensor([WIDE])],
    "gt_labels": [torch.tensor([0])],
}
ERRORS = {
    "no grid": ({"grid": 8}, TypeError, "grid: expected a PointGrid, got int"),
    "too few points": ({"pred_boxes": torch.rand(1, 3, 4)}, ValueError, "pred_boxes: expected shape [1, 4, 4] (images of gt_boxes, points of the grid), got [1, 3, 4]"),
    "scores of other images": (
        {"pred_scores": torch.rand(2, 4, 2)}, ValueError, "pred_scores: expected shape [1, 4, C] (images of gt_boxes, points of the grid), got [2, 4, 2]",
    ),
    "integer scores": (
        {"pred_scores": torch.ones(1, 4, 2).long()}, TypeError, "pred_scores: expected a floating-point tensor, got torch.int64",
    ),
    "scores elsewhere": (
        {"pred_scores": torch.rand(1, 4, 2, device="meta")}, ValueError, "pred_scores: expected device cpu like the other tensors",
    ),
    "a label of no class": (
        {"gt_labels": [torch.tensor([2])]}, ValueError, "gt_labels: expected a label in [0, 2), -1 (padding) or -2",
    ),
    "no settings": ({"settings": "ULTRALYTICS"}, TypeError, "settings: expected TaskAligned, got str"),
    "number below 0": ({"num_points": -1}, ValueError, "num_points: expected 0 to 128, got -1"),
    "too many": ({"num_points": 129}, ValueError, "num_points: expected 0 to 128, got 129"),
    "too many at least": ({"min_points": 129}, ValueError, "min_points: expected 0 to 128, got 129"),
    "numbers of other objects": (
        {"num_points": torch.tensor([1, 2])}, ValueError, "num_points: expected shape [1], got [2]",
    ),
    "unknown activation": ({"activation": "softmax"}, ValueError, "activation: expected one of 'none', 'sigmoid', got 'softmax'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(change, error, message):
    with pytest.raises(error) as raised:
        task_aligned_assign(**{**GOOD, **change})
    assert str(raised.value).startswith(message)
    task_aligned_assign(**GOOD)  # and the next good call is none the worse


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected 1 to 128, got 0"),
        ({"k": 129}, ValueError, "k: expected 1 to 128, got 129"),
        ({"k": 2.0}, TypeError, "k: expected an int, got float"),
        ({"keep": 0}, ValueError, "keep: expected 1 to 128, got 0"),
        ({"alpha": -1}, ValueError, "alpha: expected a finite number of at least 0, got -1"),
        ({"beta": 0}, ValueError, "beta: expected a finite number above 0, got 0"),
        ({"beta": nan}, ValueError, "beta: expected a finite number above 0, got nan"),
        ({"epsilon": 0.0}, ValueError, "epsilon: expected a finite number above 0, got 0.0"),
        ({"overlap": "giou"}, ValueError, "overlap: expected one of 'ciou', 'iou', got 'giou'"),
        ({"candidates": "all"}, ValueError, "candidates: expected one of 'inside', 'anywhere', got 'all'"),
        ({"contest": "first"}, ValueError, "contest: expected one of 'inside', 'chosen', got 'first'"),
        ({"least_side": -1.0}, ValueError, "least_side: expected a finite number of at least 0, got -1.0"),
        ({"raise_below": inf}, ValueError, "raise_below: expected a finite number of at least 0, got inf"),
        ({"raise_below": 8.5, "least_side": 8.0}, ValueError, "raise_below: expected at most least_side, 8.0, got 8.5"),
        ({"raise_below": 1.0}, ValueError, "raise_below: expected at most least_side, 0.0, got 1.0"),
    ],
    ids=str,
)
def test_settings_that_are_none(change, error, message):
    with pytest.raises(error) as raised:
        TaskAligned(**change)
    assert str(raised.value) == message


SOME = st.sampled_from([*SETTINGS.values()])


@given(scenes(), SOME, st.sampled_from([{}, {"min_points": 12}, {"num_points": 3}]))
def test_any_scene_agrees_with_the_reference(scene, settings, counts):
    check(scene, settings, **counts)


@given(scenes(min_objects=1), SOME)
def test_what_an_object_holds(scene, settings):
    found = assign(scene, replace(settings, contest="chosen"))
    for b, objects in enumerate(scene.gt_boxes):
        holds = reference.task_aligned.holding(scene.grid, objects, scene.gt_labels[b], settings)
        for g in range(len(objects)):
            own = found.owner[b] == g
            assert own.sum() <= (settings.keep or settings.k)
            assert holds[own, g].all()
            if own.any():  # its best point is to learn its best overlap, less what epsilon takes
                target, u = found.target[b, own], found.iou[b, own].double()
                score = scene.pred_logits[b, own, scene.gt_labels[b][g]].double().sigmoid()
                m = (score**settings.alpha * u**settings.beta).max()
                least = u.max() * m / (m + settings.epsilon)
                assert least * (1 - 1e-5) - 1e-30 <= target.max() <= u.max() * (1 + 1e-6)
                assert (target >= 0).all()
    nobody = found.owner < 0
    assert (found.target[nobody] == 0).all()
    assert (found.iou[nobody] == 0).all()


@given(scenes(min_objects=2, max_images=1), SOME, st.data())
def test_permuting_the_objects_permutes_the_owners(scene, settings, data):
    objects = list(range(len(scene.gt_labels[0])))
    order = data.draw(st.permutations(objects))
    assume(order != objects)
    found = assign(scene, settings)
    u = reference.task_aligned_overlap(
        scene.pred_boxes[0], scene.gt_boxes[0][scene.gt_labels[0] >= 0], settings.overlap
    )
    permuted = assign(
        replace(scene, gt_boxes=[scene.gt_boxes[0][order]], gt_labels=[scene.gt_labels[0][order]]), settings
    )
    # But for contests that the index decides.
    highest = torch.cat([u, torch.full((len(u), 2), -1.0)], 1).topk(2, dim=1).values
    if not ((highest[:, 0] - highest[:, 1] < 1e-6) & (highest[:, 0] > 0)).any():
        assert torch.equal(torch.tensor([*order, -2, -1])[permuted.owner], found.owner)
        assert equal(found._replace(owner=permuted.owner), permuted)


@given(scenes(max_images=3), SOME)
def test_a_batch_is_its_images_one_by_one(scene, settings):
    found = assign(scene, settings)
    for b in range(len(scene.gt_boxes)):
        one = slice(b, b + 1)
        alone = replace(
            scene, pred_boxes=scene.pred_boxes[one], pred_logits=scene.pred_logits[one],
            gt_boxes=scene.gt_boxes[one], gt_labels=scene.gt_labels[one],
        )  # fmt: skip
        assert equal(TaskAlignedAssignment(*(result[one] for result in found)), assign(alone, settings))


@given(scenes(min_objects=1, max_images=1), st.integers(0, 2**31), st.data())
def test_raising_a_score_never_loses_the_point(scene, seed, data):
    # A class of its own for each object: raising one score raises no rival's.
    count = len(scene.gt_labels[0])
    logits = torch.randn(1, scene.grid.num_points, count, generator=torch.Generator().manual_seed(seed))
    scene = replace(scene, pred_logits=logits, gt_labels=[torch.arange(count)])
    owner = assign(scene).owner[0]
    positives = torch.nonzero(owner >= 0).flatten().tolist()
    if positives:
        point = data.draw(st.sampled_from(positives))
        logits[0, point, owner[point]] += data.draw(st.floats(0, 20))
        assert assign(scene).owner[0, point] == owner[point]
