"""What only a GPU can show: streams, graphs, no waiting for the device, memory, and the CPU's results at full size."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import bench_cuda
import mgassign
import test_compile
from kernels import CHECKED, needs_gpu
from mgassign import PointGrid, fcos_assign, mutual_guidance_assign
from scenes import STRIDES, Scene, equal, scene, scene_of
from test_cuda_kernels import arguments_of
from test_library import calls

pytestmark = needs_gpu


def moved(value):
    """A tensor, or a list of them, on the GPU; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return [moved(of_image) for of_image in value]
    return value.detach().cuda().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def on_gpu(of: Scene) -> Scene:
    return Scene(of.grid, *map(moved, (of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels)))


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


@pytest.fixture
def step_on_gpu(step, monkeypatch):
    """A function of test_compile.py, with what it takes beside a batch on the GPU."""
    monkeypatch.setattr(test_compile, "ANCHORS", test_compile.ANCHORS.cuda())
    return step


def batch_of(counts: tuple[int, ...], form: str = "padded", seed: int = 0):
    """One with so many objects in its images, on the CPU."""
    *_, batch = test_compile.batches(form, [counts] * (seed + 1))
    return batch


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@test_compile.every_function
@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_nothing_waits_for_the_device(form, step_on_gpu):
    batch = moved(batch_of((5, 0, 3), form))
    with no_waiting():
        step_on_gpu(*batch)


def test_building_blocks_do_not_wait_for_the_device():
    of = on_gpu(scene(objects=(5, 3), seed=2))
    boxes, k = of.gt_boxes[0], torch.ones(5, device="cuda").long()
    probs = torch.rand(of.grid.num_points, 5, device="cuda")
    with no_waiting():
        mgassign.box_iou(of.pred_boxes[0], boxes)
        mgassign.topk_per_object(mgassign.amplified_centerness(of.grid, boxes, probs), k, boxes[:, 2])


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


@test_compile.every_function
def test_a_graph_replays_with_changed_inputs(step_on_gpu):
    first, second = (batch_of((6, 6), seed=seed) for seed in (4, 5))
    inputs = moved(first)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step_on_gpu(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step_on_gpu(*inputs)
    results = []
    for batch in (second, first):
        for held, new in zip(inputs, batch, strict=True):
            held.copy_(new)
        graph.replay()
        results.append([result.clone() for result in found])
        check_equal(found, step_on_gpu(*moved(batch)))
    assert not equal(*results)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_opcheck(requires_grad):
    for name, args, kwargs in calls(requires_grad):
        on_device = tuple(map(moved, args)), {key: moved(value) for key, value in kwargs.items()}
        torch.library.opcheck(getattr(torch.ops.mgassign, name).default, *on_device)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_and_autocast_changes_nothing():
    of = scene(objects=(5, 2), seed=6)
    device, objects = on_gpu(of), padded(of)
    expected = of.assign(), mutual_guidance_assign(of.grid, of.pred_boxes, of.pred_logits, *objects)
    compiled = torch.compile(mutual_guidance_assign, fullgraph=True, backend="aot_eager")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        check_equal(device.assign(), expected[0])
        check_equal(compiled(of.grid, device.pred_boxes, device.pred_logits, *moved(objects)), expected[1])


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
    arguments = arguments_of(of)
    arguments[0] = of.pred_boxes.cuda()
    with pytest.raises(CHECKED, match="expected all tensors on one device, got cpu and device 0"):
        torch.ops.mgassign.mutual_guidance_assign(*arguments)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_the_current_one():
    of = scene(objects=(3, 2), seed=9)
    with torch.cuda.device(1):
        other = on_gpu(of)
    with torch.cuda.device(0):
        check_equal(other.assign(), of.assign())
        assert torch.cuda.current_device() == 0
