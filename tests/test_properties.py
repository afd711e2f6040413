"""What must hold for any scene: the invariants of Mutual Guidance, 200 examples each (--deep: 5,000)."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from agreement import check_agreement, check_loc, score_bounds
from mgassign import PointGrid, fcos_assign, mutual_guidance_assign, reference
from mgassign.reference.mutual_guidance import competing_boxes
from scenes import STRIDES, Scene, boxes, scene_of, scenes


def distinct(scene: Scene) -> bool:
    """No two objects of equal area: no tie that the order of the objects decides."""
    return all(len(reference.box_areas(of_image).unique()) == len(of_image) for of_image in scene.gt_boxes)


settings_of_any_kind = st.fixed_dictionaries(
    {
        "center_radius": st.sampled_from([0.0, 1.5]),
        "sigma": st.sampled_from([1.25, 2.0]),
        "level_gate": st.booleans(),
        "min_points": st.sampled_from([0, 7]),
        "num_points": st.sampled_from([None, 1, 9]),
        "inside": st.booleans(),
        "ignore_share": st.sampled_from([0.5, 1.0, 0.05]),
    }
)


@given(scenes(), settings_of_any_kind)
def test_agrees_with_the_reference(scene, settings):
    check_agreement(scene.assign(**settings), scene, **settings)


@given(scenes(), st.sampled_from([0, 12]))
def test_no_object_gets_more_than_its_number_and_fewer_only_for_want_of_points(scene, min_points):
    found = scene.assign(min_points=min_points)
    numbers = found.num_points.split([len(labels) for labels in scene.gt_labels])
    for b, (objects, labels) in enumerate(zip(scene.gt_boxes, scene.gt_labels, strict=True)):
        if len(objects) == 0:
            continue
        probs = torch.sigmoid(scene.pred_logits[b].float()[:, labels])
        for owner, scores in [
            (found.cls[b], reference.box_iou(scene.pred_boxes[b], objects)),
            (found.loc[b], reference.amplified_centerness(scene.grid, objects, probs)),
        ]:
            best, stands_for = scores.max(1)
            # A point whose best score is reached twice may stand for either: it is no want of points for sure.
            sure = (best > 0) & ((scores > best[:, None] * (1 - 1e-5)).sum(1) == 1)
            for g, allowed in enumerate(numbers[b].tolist()):
                assert (owner == g).sum() <= allowed
                assert (owner == g).sum() >= min(allowed, int((sure & (stands_for == g)).sum()))


@given(scenes(min_objects=1), st.integers(0, 2**31))
def test_the_original_strategy_does_not_depend_on_predictions(scene, seed):
    other = scene_of(scene.grid, scene.gt_boxes, 3, torch.Generator().manual_seed(seed))
    found, otherwise = scene.assign(), replace(other, gt_labels=scene.gt_labels).assign()
    assert torch.equal(found.original, otherwise.original)
    assert torch.equal(found.num_points, otherwise.num_points)
    alone = fcos_assign(scene.grid, list(map(competing_boxes, scene.gt_boxes, scene.gt_labels)))
    assert torch.equal(found.original.clamp(min=-1), alone.original)  # which knows no regions
    assert torch.equal(found.num_points, alone.num_points)


@given(scenes(min_objects=1, max_images=1).filter(distinct), st.randoms(use_true_random=False))
def test_permuting_the_objects_permutes_the_owners(scene, random):
    order = list(range(len(scene.gt_labels[0])))
    random.shuffle(order)
    shuffled = replace(scene, gt_boxes=[scene.gt_boxes[0][order]], gt_labels=[scene.gt_labels[0][order]])
    found, permuted = scene.assign(), shuffled.assign()
    old_index = torch.tensor([*order, -2, -1])  # the last two entries: nobody's point stays as it is
    for owner, of_shuffled in zip(found[:3], permuted[:3], strict=True):
        assert torch.equal(old_index[of_shuffled], owner)
    assert torch.equal(found.num_points[order], permuted.num_points)


@given(scenes(), st.floats(-6, 6))
def test_equal_scores_leave_plain_centerness(scene, logit):
    found = replace(scene, pred_logits=torch.full_like(scene.pred_logits, logit)).assign()
    numbers = found.num_points.split([len(labels) for labels in scene.gt_labels])
    for b, objects in enumerate(map(competing_boxes, scene.gt_boxes, scene.gt_labels)):
        no_score = torch.zeros(scene.grid.num_points, len(objects))
        # sigma 2 takes at most a square root, which at most doubles the relative room of a rounding error.
        bounds = score_bounds(scene.grid, objects, no_score, sigma=2.0, level_gate=True, slack=2.0)
        check_loc(found.loc[b], numbers[b], *bounds)


@given(scenes(min_objects=1, max_images=1), st.integers(0, 2**31), st.data())
def test_raising_a_score_never_loses_the_point(scene, seed, data):
    # A class of its own for each object: raising one score raises no rival's.
    count = len(scene.gt_labels[0])
    logits = torch.randn(1, scene.grid.num_points, count, generator=torch.Generator().manual_seed(seed))
    scene = replace(scene, pred_logits=logits, gt_labels=[torch.arange(count)])
    loc = scene.assign().loc[0]
    positives = torch.nonzero(loc >= 0).flatten().tolist()
    if positives:
        point = data.draw(st.sampled_from(positives))
        logits[0, point, loc[point]] += data.draw(st.floats(0, 20))
        assert scene.assign().loc[0, point] == loc[point]


@given(scenes(min_objects=1, max_images=1).filter(distinct), st.data())
def test_points_that_predict_an_object_exactly_are_its_positives(scene, data):
    scene = scene.to(torch.float32)
    numbers = scene.assign().num_points.tolist()
    with_points = [g for g, number in enumerate(numbers) if number > 0]
    assume(with_points)
    g = data.draw(st.sampled_from(with_points))
    chosen = data.draw(st.permutations(range(scene.grid.num_points)))[: numbers[g]]
    # Every other prediction is worse: a shifted box at most.
    pred_boxes = scene.pred_boxes.clone()
    same = (pred_boxes[0] == scene.gt_boxes[0][g]).all(1)
    pred_boxes[0, same] += 1
    pred_boxes[0, chosen] = scene.gt_boxes[0][g]
    found = replace(scene, pred_boxes=pred_boxes).assign()
    assert torch.nonzero(found.cls[0] == g).flatten().tolist() == sorted(chosen)


@given(scenes(), st.booleans())
def test_localization_stays_inside_the_box_and_on_its_level(scene, level_gate):
    found = scene.assign(level_gate=level_gate)
    for b, objects in enumerate(scene.gt_boxes):
        positive = torch.nonzero(found.loc[b] >= 0).flatten()
        owner = found.loc[b, positive]
        inside = torch.stack(reference.distances(scene.grid, objects)).amin(0) > 0
        assert inside[positive, owner].all()
        if level_gate:
            assert reference.on_own_level(scene.grid, objects)[positive, owner].all()


@given(st.lists(boxes(), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_coarser_level_that_serves_no_object_changes_nothing(objects, seed):
    four = PointGrid.for_image((320, 320), STRIDES[:4])
    five = PointGrid.for_image((320, 320), STRIDES)
    generator = torch.Generator().manual_seed(seed)
    scene = scene_of(four, [torch.tensor(objects).clamp(-16, 320)], 3, generator)
    more = five.num_points - four.num_points
    # The fifth level predicts boxes far away; no object here is large enough for it.
    wider = replace(
        scene,
        grid=five,
        pred_boxes=torch.cat([scene.pred_boxes, torch.tensor([9000.0, 9000, 9001, 9001]).expand(1, more, 4)], 1),
        pred_logits=torch.cat([scene.pred_logits, torch.zeros(1, more, 3)], 1),
    )
    found, of_wider = scene.assign(), wider.assign()
    for owner, of_five in zip(found[:3], of_wider[:3], strict=True):
        assert torch.equal(of_five[:, : four.num_points], owner)
        assert (of_five[:, four.num_points :] == -1).all()
    assert torch.equal(found.num_points, of_wider.num_points)


@given(scenes(max_images=3))
def test_a_batch_is_its_images_one_by_one(scene):
    found = scene.assign()
    numbers = found.num_points.split([len(labels) for labels in scene.gt_labels])
    for b in range(len(scene.gt_boxes)):
        one = slice(b, b + 1)
        alone = mutual_guidance_assign(
            scene.grid, scene.pred_boxes[one], scene.pred_logits[one], scene.gt_boxes[one], scene.gt_labels[one]
        )
        for owner, of_alone in zip(found[:3], alone[:3], strict=True):
            assert torch.equal(owner[b], of_alone[0])
        assert torch.equal(numbers[b], alone.num_points)


@given(scenes(max_images=1), st.integers(0, 3), st.integers(0, 3))
def test_translation_by_the_coarsest_stride_moves_the_result_along(scene, right, down):
    scene, grid = scene.to(torch.float32), scene.grid
    # Only where points lie a stride apart does a multiple of the coarsest one move every level onto itself.
    assume(grid.spacings == tuple((s, s) for s in grid.strides))
    coarsest = max(grid.strides)
    shift = torch.tensor([right * coarsest, down * coarsest] * 2, dtype=torch.float32)
    wider = PointGrid(
        heights=tuple(h + down * coarsest // s for h, s in zip(grid.heights, grid.strides, strict=True)),
        widths=tuple(w + right * coarsest // s for w, s in zip(grid.widths, grid.strides, strict=True)),
        strides=grid.strides,
        spacings=grid.spacings,
        offsets=grid.offsets,
        ranges=grid.ranges,
    )
    # Eighths: sums and differences are exact, so that no score changes in rounding.
    pred_boxes = (scene.pred_boxes * 8).round() / 8
    # Objects that reach beyond the upper left edge would meet the new points there.
    gt_boxes = [of_image[(of_image[:, :2] >= 0).all(1)] for of_image in scene.gt_boxes]
    labels = [
        label[(of_image[:, :2] >= 0).all(1)] for label, of_image in zip(scene.gt_labels, scene.gt_boxes, strict=True)
    ]
    here = replace(scene, pred_boxes=pred_boxes, gt_boxes=gt_boxes, gt_labels=labels)

    inside = []  # of the wider grid, the points the narrow one has
    for h, w, tall, wide, s in zip(grid.heights, grid.widths, wider.heights, wider.widths, grid.strides, strict=True):
        mask = torch.zeros(tall, wide, dtype=torch.bool)
        mask[tall - h :, wide - w :] = True
        inside.append(mask.flatten())
        assert (tall - h, wide - w) == (down * coarsest // s, right * coarsest // s)
    kept = torch.cat(inside)
    moved_boxes = torch.full((1, wider.num_points, 4), torch.nan)
    moved_boxes[0, kept] = pred_boxes[0] + shift
    moved_logits = torch.full((1, wider.num_points, 3), -torch.inf)
    moved_logits[0, kept] = scene.pred_logits[0]
    there = Scene(wider, moved_boxes, moved_logits, [gt_boxes[0] + shift], labels)

    found, moved = here.assign(), there.assign()
    for owner, of_moved in zip(found[:3], moved[:3], strict=True):
        assert torch.equal(of_moved[0, kept], owner[0])
        assert (of_moved[0, ~kept] == -1).all()
