"""What only a GPU can show: streams, graphs, no waiting for the device, memory, and the CPU's results at full size."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

import bench_cuda
import mgassign
from kernels import needs_gpu
from mgassign import PointGrid, fcos_assign, mutual_guidance_assign
from scenes import STRIDES, Scene, scene, scene_of
from test_library import calls

pytestmark = needs_gpu


def on_gpu(of: Scene) -> Scene:
    return dataclasses.replace(
        of,
        pred_boxes=of.pred_boxes.cuda(),
        pred_logits=of.pred_logits.cuda(),
        gt_boxes=[boxes.cuda() for boxes in of.gt_boxes],
        gt_labels=[labels.cuda() for labels in of.gt_labels],
    )


def padded(of: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(of.gt_boxes, batch_first=True), pad(of.gt_labels, batch_first=True, padding_value=-1)


def check_equal(found, expected) -> None:
    for result, wanted in zip(found, expected, strict=True):
        assert torch.equal(result.cpu(), wanted.cpu()), f"{int((result.cpu() != wanted.cpu()).sum())} differ"


SCENES = {
    "training": {"size": (800, 1024), "strides": STRIDES, "objects": (20, 60, 0, 7), "num_classes": 80},
    "crowded": {"size": (800, 1024), "strides": STRIDES, "objects": (300, 300)},
    "5,000 objects": {"size": (800, 1024), "strides": STRIDES, "objects": (5000,)},
    "one large image": {"size": (4000, 6000), "strides": (8, 16, 32), "objects": (100,)},
}


@pytest.mark.parametrize("settings", [{}, {"center_radius": 0.0, "level_gate": False, "min_points": 3}], ids=str)
@pytest.mark.parametrize("shape", SCENES.values(), ids=SCENES.keys())
def test_equals_the_cpu_run_after_run(shape, settings):
    of = scene(seed=1, **shape)
    expected, device = of.assign(**settings), on_gpu(of)
    for _ in range(3):
        check_equal(device.assign(**settings), expected)
    radius = settings.get("center_radius", 1.5)
    check_equal(fcos_assign(of.grid, device.gt_boxes, radius), fcos_assign(of.grid, of.gt_boxes, radius))


def test_real_boxes(coco_boxes_file):
    with np.load(coco_boxes_file) as data:
        starts, all_boxes, sizes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float(), data["image_wh"]
    grid = PointGrid.for_image((800, 1024), STRIDES)
    for first in range(0, 4800, 160):
        images = range(first, first + 160, 10)
        boxes = [
            all_boxes[starts[i] : starts[i + 1]] * (torch.tensor([1024, 800] * 2) / torch.tensor([*sizes[i]] * 2))
            for i in images
        ]
        of = scene_of(grid, boxes, 80, torch.Generator().manual_seed(first))
        check_equal(on_gpu(of).assign(), of.assign())


def test_nothing_waits_for_the_device():
    of = on_gpu(scene(objects=(5, 3), seed=2))
    boxes, labels = padded(of)
    jagged = [torch.nested.as_nested_tensor(of.gt_boxes, layout=torch.jagged),
              torch.nested.as_nested_tensor(of.gt_labels, layout=torch.jagged)]  # fmt: skip
    scores, k, areas = torch.rand(50, 4, device="cuda"), torch.ones(4, device="cuda").long(), torch.rand(4).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        of.assign()
        mutual_guidance_assign(of.grid, of.pred_boxes, of.pred_logits, boxes, labels)
        mutual_guidance_assign(of.grid, of.pred_boxes, of.pred_logits, *jagged)
        fcos_assign(of.grid, boxes)
        mgassign.box_iou(of.pred_boxes[0], of.gt_boxes[0])
        mgassign.topk_per_object(scores, k, areas)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used():
    of = scene((800, 1024), STRIDES, objects=(9, 4), seed=3)
    expected, late = of.assign(), on_gpu(of)
    boxes, logits = torch.zeros_like(late.pred_boxes), torch.zeros_like(late.pred_logits)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some tens of milliseconds: a launch elsewhere would see the zeros
        boxes.copy_(late.pred_boxes)
        logits.copy_(late.pred_logits)
        found = mutual_guidance_assign(of.grid, boxes, logits, late.gt_boxes, late.gt_labels)
    stream.synchronize()
    check_equal(found, expected)


def test_a_graph_replays_with_changed_inputs():
    first, second = (on_gpu(scene(objects=(6, 6), seed=seed)) for seed in (4, 5))
    boxes, labels = padded(first)
    inputs = [first.pred_boxes.clone(), first.pred_logits.clone(), boxes.clone(), labels.clone()]

    def step():
        return (*mutual_guidance_assign(first.grid, *inputs), *fcos_assign(first.grid, inputs[2]))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for of in (second, first):
        for held, new in zip(inputs, (of.pred_boxes, of.pred_logits, *padded(of)), strict=True):
            held.copy_(new)
        graph.replay()
        of_cpu = [value.cpu() for value in inputs]
        expected = (*mutual_guidance_assign(first.grid, *of_cpu), *fcos_assign(first.grid, of_cpu[2]))
        check_equal(found, expected)


def moved(value):
    return value.detach().cuda().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_opcheck(requires_grad):
    for name, args, kwargs in calls(requires_grad):
        torch.library.opcheck(getattr(torch.ops.mgassign, name).default, tuple(map(moved, args)), kwargs)


def test_compiles_and_autocast_changes_nothing():
    of = scene(objects=(5, 2), seed=6)
    device, expected = on_gpu(of), of.assign()
    torch.compiler.reset()
    compiled = torch.compile(mutual_guidance_assign, fullgraph=True, backend="aot_eager")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        check_equal(device.assign(), expected)
        check_equal(
            compiled(of.grid, device.pred_boxes, device.pred_logits, device.gt_boxes, device.gt_labels), expected
        )
    torch.compiler.reset()


@pytest.mark.parametrize("objects", [20, 300])
def test_extra_memory(objects):
    of = on_gpu(scene((800, 1024), STRIDES, objects=(objects,) * 4, num_classes=2, seed=7))
    boxes, labels = padded(of)
    assign = functools.partial(mutual_guidance_assign, of.grid, of.pred_boxes, of.pred_logits, boxes, labels)
    found = assign()
    extra = bench_cuda.extra_bytes(assign)
    assert extra <= 40 * found.cls.numel()


def test_tensors_of_two_devices_are_refused():
    of = scene(objects=(3, 2), seed=8)
    grid, boxes, labels = of.grid.arguments, torch.cat(of.gt_boxes), torch.cat(of.gt_labels)
    with pytest.raises(ValueError, match="expected all tensors on one device, got cpu and device 0"):
        torch.ops.mgassign.mutual_guidance_assign(
            of.pred_boxes.cuda(), of.pred_logits, boxes, labels, None, [3, 2], *grid, 1.5, 2.0, True, 0, 1
        )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_the_current_one():
    of = scene(objects=(3, 2), seed=9)
    with torch.cuda.device(1):
        other = on_gpu(of)
    with torch.cuda.device(0):
        check_equal(other.assign(), of.assign())
        assert torch.cuda.current_device() == 0
