"""The functions under torch.compile, torch.export and AOTInductor."""

from __future__ import annotations

import inspect
import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

import mgassign
from mgassign import (
    PointGrid,
    TaskAligned,
    amplified_centerness,
    anchor_mutual_guidance_assign,
    atss_assign,
    box_iou,
    dense_scores,
    fcos_assign,
    max_iou_assign,
    mutual_guidance_assign,
    sim_ota_assign,
    soft_label_assign,
    take,
    task_aligned_assign,
    topk_per_object,
)
from scenes import FORMS, STRIDES, equal, scene, scene_of

GRID = PointGrid.for_image((64, 96), STRIDES[:2])


def batches(form: str, counts_of_batches):
    """Batches of so many objects in their images, in one of the three forms: what the operator takes."""
    for seed, counts in enumerate(counts_of_batches):
        generator = torch.Generator().manual_seed(seed)
        of = scene_of(GRID, [torch.rand(n, 4, generator=generator).cumsum(1) * 30 for n in counts], 3, generator)
        of = of.in_form(form)
        yield of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels


class Counter:
    """A compiler that counts how often it is asked."""

    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, module, inputs):
        self.compilations += 1
        return module.forward


def guide(pred_boxes, pred_logits, gt_boxes, gt_labels):
    found = mutual_guidance_assign(GRID, pred_boxes, pred_logits, gt_boxes, gt_labels, min_points=1)
    return *found, (found.cls >= 0).sum()


def align(pred_boxes, pred_logits, gt_boxes, gt_labels):
    return task_aligned_assign(
        GRID, pred_boxes, pred_logits, gt_boxes, gt_labels, TaskAligned.YOLO26, activation="sigmoid"
    )


ANCHORS = GRID.points().repeat(1, 2) + torch.tensor([-12.0, -9.0, 12.0, 9.0])


def match(gt_boxes, gt_labels):
    return max_iou_assign(ANCHORS, gt_boxes, gt_labels=gt_labels)


def dense(pred_boxes, pred_logits, gt_boxes, gt_labels):
    owner, iou = match(gt_boxes, gt_labels)
    return (dense_scores(owner, iou, gt_labels, 3),)


# Every function that takes objects.
TAKE_OBJECTS = {
    "mutual_guidance_assign": guide,
    "fcos_assign": lambda boxes, logits, gt_boxes, gt_labels: fcos_assign(GRID, gt_boxes, center_radius=2.0),
    "task_aligned_assign": align,
    "sim_ota_assign": lambda *batch: sim_ota_assign(GRID, *batch),
    "soft_label_assign": lambda *batch: soft_label_assign(GRID, *batch),
    "atss_assign": lambda boxes, logits, gt_boxes, gt_labels: atss_assign(GRID, gt_boxes, gt_labels=gt_labels),
    "max_iou_assign": lambda boxes, logits, *objects: match(*objects),
    "anchor_mutual_guidance_assign": lambda *batch: anchor_mutual_guidance_assign(ANCHORS, *batch),
    "take": lambda boxes, logits, *objects: (take(match(*objects).owner, objects[0], fill=-1),),
    "dense_scores": dense,
}
every_function = pytest.mark.parametrize("step", TAKE_OBJECTS.values(), ids=TAKE_OBJECTS.keys())


FEW_OBJECTS = [[(0, 1, 2, 3, 5, 8)[i] for i in torch.randint(6, (4,), generator=torch.Generator().manual_seed(seed))]
               for seed in range(24)]  # fmt: skip


def test_there_is_something_to_take():
    for form in FORMS:
        owners = [match(*objects).owner.flatten() for _, _, *objects in batches(form, FEW_OBJECTS)]
        assert {-2, -1, 0, 1, 2} <= set(torch.cat(owners).tolist())


@every_function
@pytest.mark.parametrize("form", ["padded", "jagged"])
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_breaks_for_any_number_of_objects(dynamic, form, step):
    assert any(0 in counts for counts in FEW_OBJECTS)
    assert any(1 in counts for counts in FEW_OBJECTS)
    counter = Counter()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    for batch in batches(form, FEW_OBJECTS):
        assert equal(compiled(*batch), step(*batch))
    assert counter.compilations <= 3


@every_function
@pytest.mark.parametrize("form", ["padded", "jagged"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_a_few_times_for_any_number_of_images(form, step):
    counter = Counter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for batch in batches(form, [counts[: 1 + i % 6] + [2] * (i % 6 - 3) for i, counts in enumerate(FEW_OBJECTS)]):
        assert equal(compiled(*batch), step(*batch))
    assert counter.compilations <= 4  # one image is a case of its own


@every_function
@pytest.mark.usefixtures("fresh_compiler")
def test_lists_compile_with_a_graph_break_and_are_refused_without(step):
    counter = Counter()
    compiled = torch.compile(step, backend=counter)
    for batch in batches("list", FEW_OBJECTS):
        assert equal(compiled(*batch), step(*batch))
    assert counter.compilations <= 3
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=Counter())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="give padded or jagged tensors"):
        compiled(*next(batches("list", FEW_OBJECTS)))


def seemingly_on_a_gpu(value):
    """The like of a tensor, or of a list of them, without values: who waits for them learns that there are none."""
    if isinstance(value, list):
        return [seemingly_on_a_gpu(of_image) for of_image in value]
    if value.is_nested:
        parts = seemingly_on_a_gpu([value.values(), value.offsets()])
        return torch.nested.nested_tensor_from_jagged(*parts)
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


@every_function
@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_nothing_waits_for_a_gpu(form, step, monkeypatch):
    (batch,) = batches(form, [(5, 0, 3)])
    no_values = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    with FakeTensorMode(shape_env=no_values, allow_non_fake_inputs=True):
        monkeypatch.setitem(globals(), "ANCHORS", seemingly_on_a_gpu(ANCHORS))
        assert all(result.device.type == "cuda" for result in step(*map(seemingly_on_a_gpu, batch)))


@pytest.mark.usefixtures("fresh_compiler")
def test_building_blocks_compile():
    grid = PointGrid.for_image((64, 96), STRIDES[:2])

    def blocks(pred_boxes, gt_boxes, probs, k):
        areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(1)
        cls = topk_per_object(box_iou(pred_boxes, gt_boxes), k, areas)
        return cls, topk_per_object(amplified_centerness(grid, gt_boxes, probs), k, areas)

    compiled = torch.compile(blocks, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 8):
        of = scene((64, 96), STRIDES[:2], objects=(count,), seed=count)
        arguments = (
            of.pred_boxes[0],
            of.gt_boxes[0],
            of.pred_logits[0][:, of.gt_labels[0]].sigmoid(),
            torch.full((count,), 4),
        )
        assert equal(compiled(*arguments), blocks(*arguments))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_grid_made_while_compiling():
    @torch.compile(fullgraph=True, backend="eager")
    def step(features, pred_boxes, pred_logits, gt_boxes, gt_labels):
        grid = PointGrid.from_features([f.shape[-2:] for f in features], STRIDES[:2])
        return mutual_guidance_assign(grid, pred_boxes, pred_logits, gt_boxes, gt_labels)

    for size in [(64, 96), (96, 32), (160, 128)]:
        of = scene(size, STRIDES[:2], objects=(4, 2), seed=3)
        features = [torch.empty(2, 1, h, w) for h, w in zip(of.grid.heights, of.grid.widths, strict=True)]
        jagged = of.in_form("jagged")
        assert equal(step(features, of.pred_boxes, of.pred_logits, jagged.gt_boxes, jagged.gt_labels), of.assign())


@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_compiles_it_amid_other_work():
    of = scene((64, 96), STRIDES[:2], objects=(4, 4), seed=3)
    gt_boxes, gt_labels = torch.stack(of.gt_boxes), torch.stack(of.gt_labels)

    @torch.compile(fullgraph=True)
    def loss(ltrb, logits):
        found = mutual_guidance_assign(of.grid, of.grid.decode(ltrb), logits, gt_boxes, gt_labels)
        return (logits.sigmoid() * (found.cls >= 0)[..., None]).sum() + ltrb[found.loc >= 0].sum()

    def eager(ltrb, logits):
        return inspect.unwrap(loss)(ltrb, logits)

    ltrb = torch.rand(2, of.grid.num_points, 4, requires_grad=True)
    logits = of.pred_logits.clone().requires_grad_()
    torch.testing.assert_close(loss(ltrb, logits), eager(ltrb, logits))
    (gradient,) = torch.autograd.grad(loss(ltrb, logits), logits)
    (expected,) = torch.autograd.grad(eager(ltrb, logits), logits)
    torch.testing.assert_close(gradient, expected)


def test_exports_with_a_changing_number_of_objects():
    grid = PointGrid.for_image((64, 96), STRIDES[:2])

    class Assigner(torch.nn.Module):
        def forward(self, pred_boxes, pred_logits, gt_boxes, gt_labels):
            return tuple(mutual_guidance_assign(grid, pred_boxes, pred_logits, [gt_boxes], [gt_labels]))

    def arguments(count: int):
        of = scene((64, 96), STRIDES[:2], objects=(count,), seed=count)
        return of.pred_boxes, of.pred_logits, of.gt_boxes[0], of.gt_labels[0]

    objects = torch.export.Dim("objects", min=2, max=100)
    program = torch.export.export(Assigner(), arguments(5), dynamic_shapes=(None, None, {0: objects}, {0: objects}))
    for count in (2, 5, 40):
        assert equal(program.module()(*arguments(count)), Assigner()(*arguments(count)))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_counts_of_shapes(strict):
    """Numbers of points that a model takes from a shape are symbols where it is traced."""
    of = scene((64, 96), STRIDES[:2], objects=(5,), seed=1).in_form("padded")

    class Assigner(torch.nn.Module):
        def forward(self, queries, images):
            grid = PointGrid.for_image(images.shape[-2:], (8, 22.4))  # a stride that is not whole
            count = queries.shape[0]
            original = fcos_assign(grid, of.gt_boxes).original
            guided = of.assign(num_points=count), of.assign(min_points=count)
            aligned = task_aligned_assign(
                of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, num_points=count
            )
            nearest = atss_assign(of.grid, of.gt_boxes, topk=count)
            scores = dense_scores(aligned.owner, aligned.target, of.gt_labels, num_classes=count)
            return original, *guided[0], *guided[1], *aligned, *nearest, scores

    count = torch.export.Dim("count", min=5, max=64)
    sides = {2: torch.export.Dim("height", min=2, max=999), 3: torch.export.Dim("width", min=2, max=999)}
    program = torch.export.export(
        Assigner(), (torch.zeros(7, 2), torch.zeros(1, 3, 64, 96)), dynamic_shapes=({0: count}, sides), strict=strict
    ).module()
    for arguments in ((7, (64, 96)), (9, (224, 99)), (20, (128, 224))):
        given = torch.zeros(arguments[0], 2), torch.zeros(1, 3, *arguments[1])
        assert equal(program(*given), Assigner()(*given))


def test_anchors_targets_and_scores_export():
    of = scene((64, 96), STRIDES[:2], objects=(5,), seed=1)
    anchors = of.grid.decode(torch.full((of.grid.num_points, 4), 2.0))

    class Assigner(torch.nn.Module):
        def forward(self, pred_boxes, pred_logits, gt_boxes, gt_labels):
            matched = max_iou_assign(anchors, gt_boxes)
            guided = anchor_mutual_guidance_assign(anchors, pred_boxes, pred_logits, gt_boxes, gt_labels)
            taken = take(matched.owner, gt_boxes), take(guided.cls, gt_labels, fill=-1)
            return *matched, *guided, *taken, dense_scores(matched.owner, matched.iou, gt_labels, num_classes=5)

    def arguments(count: int):
        objects = scene((64, 96), STRIDES[:2], objects=(count,), seed=count)
        return of.pred_boxes, of.pred_logits, objects.gt_boxes[0][None], objects.gt_labels[0][None]

    objects = torch.export.Dim("objects", min=2, max=100)
    program = torch.export.export(Assigner(), arguments(5), dynamic_shapes=(None, None, {1: objects}, {1: objects}))
    for count in (2, 5, 40):
        assert equal(program.module()(*arguments(count)), Assigner()(*arguments(count)))


@pytest.mark.usefixtures("fresh_compiler")
def test_an_exported_program_that_returns_an_assignment_is_saved():
    class Assigner(torch.nn.Module):
        def forward(self, gt_boxes):
            return fcos_assign(PointGrid.for_image((64, 96)), gt_boxes)

    boxes, file = torch.tensor([[[8.0, 8, 40, 48]]]), io.BytesIO()
    torch.export.save(torch.export.export(Assigner(), (boxes,)), file)
    file.seek(0)
    found = torch.export.load(file).module()(boxes)
    assert type(found) is type(Assigner()(boxes))
    assert equal(found, Assigner()(boxes))


@pytest.mark.parametrize(
    "result", [getattr(mgassign, name) for name in mgassign.__all__ if name.endswith("Assignment")]
)
def test_every_result_can_be_part_of_a_saved_program(result):
    values, form = pytree.tree_flatten(result(*range(len(result._fields))))
    loaded = pytree.treespec_loads(pytree.treespec_dumps(form))
    assert type(pytree.tree_unflatten(values, loaded)) is result


def test_what_exports_runs_packaged(tmp_path):
    class Assigner(torch.nn.Module):
        def forward(self, pred_boxes, pred_logits, gt_boxes, gt_labels):
            grid = PointGrid.for_image((64, 96))  # the default grid, whose last range has no end
            found = mutual_guidance_assign(grid, pred_boxes, pred_logits, gt_boxes, gt_labels)
            blocks = amplified_centerness(grid, gt_boxes[0], pred_logits[0].sigmoid().expand(-1, 3))
            return *found, *fcos_assign(grid, gt_boxes), blocks, box_iou(pred_boxes[0], gt_boxes[0])

    generator = torch.Generator().manual_seed(0)
    points = PointGrid.for_image((64, 96)).num_points
    arguments = (
        torch.rand(2, points, 4, generator=generator).cumsum(2) * 30,
        torch.randn(2, points, 1, generator=generator),
        torch.rand(2, 3, 4, generator=generator).cumsum(2) * 30,
        torch.tensor([[0, 0, -1], [0, -2, 0]]),
    )
    program = torch.export.export(Assigner(), arguments)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "assigner.pt2"))
    assert equal(torch._inductor.aoti_load_package(package)(*arguments), Assigner()(*arguments))
