"""Bad input: the argument's name, what was expected, what came. Nothing is written, nothing crashes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mgassign import (
    PointGrid,
    _library,
    amplified_centerness,
    anchor_mutual_guidance_assign,
    atss_assign,
    box_iou,
    fcos_assign,
    max_iou_assign,
    mutual_guidance_assign,
    sim_ota_assign,
    soft_label_assign,
    task_aligned_assign,
    topk_per_object,
)
from test_packaging import python

try:
    from torchvision.tv_tensors import BoundingBoxes
except ImportError:  # of the newest torch there is none yet

    class BoundingBoxes(torch.Tensor):
        """As much of torchvision's as tells that boxes are not xyxy."""

        def __new__(cls, data, *, format, canvas_size):
            boxes = data.as_subclass(cls)
            boxes.format = SimpleNamespace(name=format)
            return boxes


GRID = PointGrid.for_image((64, 64), strides=(8,))
GOOD = {
    "grid": GRID,
    "pred_boxes": torch.rand(2, 64, 4),
    "pred_logits": torch.rand(2, 64, 3),
    "gt_boxes": [torch.rand(2, 4), torch.rand(1, 4)],
    "gt_labels": [torch.tensor([0, 2]), torch.tensor([1])],
}
BOXES, LABELS = GOOD["gt_boxes"], GOOD["gt_labels"]


def strided_nested(tensors):
    return torch.nested.nested_tensor(tensors, layout=torch.strided)


def jagged(tensors):
    return torch.nested.nested_tensor(tensors, layout=torch.jagged)


# Each: what is changed in a good call, the error, what its message says.
ASSIGN_ERRORS = {
    "no grid": ({"grid": (8, 16)}, TypeError, "grid: expected a PointGrid, got tuple"),
    "predictions are a list": ({"pred_boxes": [[0.0] * 4]}, TypeError, "pred_boxes: expected a tensor, got list"),
    "integer predictions": (
        {"pred_boxes": torch.zeros(2, 64, 4, dtype=torch.int64)}, TypeError,
        "pred_boxes: expected a floating-point tensor, got torch.int64",
    ),
    "logits of eight bits": (
        {"pred_logits": torch.zeros(2, 64, 3, dtype=torch.float8_e4m3fn)}, TypeError,
        "pred_logits: expected a tensor of float32, float16, bfloat16, float64, got torch.float8_e4m3fn",
    ),
    "complex logits": (
        {"pred_logits": torch.zeros(2, 64, 3, dtype=torch.complex64)}, TypeError,
        "pred_logits: expected a floating-point tensor, got torch.complex64",
    ),
    "too few points": (
        {"pred_boxes": torch.rand(2, 63, 4)}, ValueError, "pred_boxes: expected shape [2, 64, 4] (images of gt_boxes, points of the grid), got [2, 63, 4]",
    ),
    "another batch size": (
        {"pred_logits": torch.rand(3, 64, 3)}, ValueError, "pred_logits: expected shape [2, 64, C] (images of gt_boxes, points of the grid), got [3, 64, 3]",
    ),
    "no batch dimension": (
        {"pred_logits": torch.rand(64, 3)}, ValueError, "pred_logits: expected shape [2, 64, C] (images of gt_boxes, points of the grid), got [64, 3]",
    ),
    "another device": (
        {"pred_logits": torch.rand(2, 64, 3, device="meta")}, ValueError,
        "pred_logits: expected device cpu like the other tensors, got meta",
    ),
    "boxes of another device": (
        {"gt_boxes": [BOXES[0], BOXES[1].to("meta")]}, ValueError, "gt_boxes[1]: expected device cpu",
    ),
    "boxes are numbers": ({"gt_boxes": 3.0}, TypeError, "gt_boxes: expected a list of tensors or a tensor, got float"),
    "a box list holds a list": (
        {"gt_boxes": [BOXES[0], [[0, 0, 1, 1]]]}, TypeError, "gt_boxes[1]: expected a tensor, got list",
    ),
    "boxes of five columns": (
        {"gt_boxes": [torch.rand(2, 5), BOXES[1]]}, ValueError, "gt_boxes[0]: expected shape [G, 4], got [2, 5]",
    ),
    "integer boxes": (
        {"gt_boxes": [BOXES[0].long(), BOXES[1]]}, TypeError, "gt_boxes[0]: expected a floating-point tensor, got torch.int64",
    ),
    "padded boxes without a batch": ({"gt_boxes": BOXES[0]}, ValueError, "gt_boxes: expected shape [B, G, 4], got [2, 4]"),
    "float labels": (
        {"gt_labels": [LABELS[0].float(), LABELS[1]]}, TypeError, "gt_labels[0]: expected an integer tensor, got torch.float32",
    ),
    "a label too few": (
        {"gt_labels": [LABELS[0][:1], LABELS[1]]}, ValueError,
        "gt_labels: expected as many as boxes in each image, [2, 1], got [1, 1]",
    ),
    "an image of labels too few": (
        {"gt_labels": LABELS[:1]}, ValueError, "gt_labels: expected as many as boxes in each image, [2, 1], got [2]",
    ),
    "labels of another form": (
        {"gt_labels": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "gt_labels: expected the form of gt_boxes, a list, got padded",
    ),
    "labels padded otherwise": (
        {"gt_boxes": torch.rand(2, 3, 4), "gt_labels": torch.zeros(2, 2, dtype=torch.int64)}, ValueError,
        "gt_labels: expected one per box, shape [2, 3], got [2, 2]",
    ),
    "an image too few": (
        {"gt_boxes": BOXES[:1], "gt_labels": LABELS[:1]}, ValueError, "pred_boxes: expected shape [1, 64, 4] (images of gt_boxes, points of the grid), got [2, 64, 4]",
    ),
    "nested, but not jagged": (
        {"gt_boxes": strided_nested(BOXES)}, ValueError, "gt_boxes: expected a nested tensor of layout torch.jagged",
    ),
    "label too large": (
        {"gt_labels": [LABELS[0], torch.tensor([3])]}, ValueError,
        "gt_labels: expected a label in [0, 3), -1 (padding) or -2 (a region) for object 0 of image 1, got 3",
    ),
    "negative label": (
        {"gt_labels": [torch.tensor([0, -3]), LABELS[1]]}, ValueError,
        "gt_labels: expected a label in [0, 3), -1 (padding) or -2 (a region) for object 1 of image 0, got -3",
    ),
    "padded label below -2": (
        {"gt_boxes": torch.rand(2, 1, 4), "gt_labels": torch.tensor([[-1], [-3]])}, ValueError,
        "gt_labels: expected a label in [0, 3), -1 (padding) or -2 (a region) for object 0 of image 1, got -3",
    ),
    "jagged labels that fall otherwise": (
        {"gt_boxes": jagged([torch.rand(2, 4), torch.rand(1, 4)]), "gt_labels": jagged([LABELS[1], LABELS[0]])}, ValueError,
        "gt_labels: expected as many as boxes in each image, [2, 1], got [1, 2]",
    ),
    "ragged in the coordinates": (
        {"gt_boxes": jagged([torch.rand(2, 4), torch.rand(1, 4)]).transpose(1, 2)}, ValueError,
        "gt_boxes: expected shape [B, G, 4], got [2, 4, j",
    ),
    "sparse predictions": (
        {"pred_boxes": torch.rand(2, 64, 4).to_sparse()}, TypeError, "pred_boxes: expected a dense tensor, got torch.sparse_coo",
    ),
    "sparse boxes": (
        {"gt_boxes": torch.rand(2, 1, 4).to_sparse()}, TypeError, "gt_boxes: expected a dense tensor, got torch.sparse_coo",
    ),
    "a list of sparse boxes": (
        {"gt_boxes": [of_image.to_sparse() for of_image in BOXES]}, TypeError,
        "gt_boxes[0]: expected a dense tensor, got torch.sparse_coo",
    ),
    "a list of nested boxes": (
        {"gt_boxes": [torch.nested.nested_tensor([boxes]) for boxes in BOXES]}, TypeError,
        "gt_boxes[0]: expected a dense tensor, got a nested one of layout torch.strided",
    ),
    "a list of dense and sparse boxes": (
        {"gt_boxes": [BOXES[0], BOXES[1].to_sparse()]}, TypeError,
        "gt_boxes[1]: expected a dense tensor, got torch.sparse_coo",
    ),
    "boxes that say they are xywh": (
        {"gt_boxes": [BoundingBoxes(torch.rand(2, 4), format="XYWH", canvas_size=(64, 64)), BOXES[1]]}, ValueError,
        "gt_boxes[0]: expected boxes of format XYXY, got XYWH",
    ),
    "boxes that say they are centres": (
        {"gt_boxes": BoundingBoxes(torch.rand(2, 4), format="CXCYWH", canvas_size=(64, 64))}, ValueError,
        "gt_boxes: expected boxes of format XYXY, got CXCYWH",
    ),
    "sigma of 1": ({"sigma": 1.0}, ValueError, "sigma: expected a finite number above 1, got 1.0"),
    "sigma that rounds to 1": ({"sigma": 1 + 1e-12}, ValueError, "sigma: expected a finite number above 1"),
    "sigma NaN": ({"sigma": math.nan}, ValueError, "sigma: expected a finite number above 1, got nan"),
    "sigma a string": ({"sigma": "2"}, TypeError, "sigma: expected a number, got str"),
    "negative radius": ({"center_radius": -1.5}, ValueError, "center_radius: expected a finite number of at least 0, got -1.5"),
    "infinite radius": ({"center_radius": math.inf}, ValueError, "center_radius: expected a finite number of at least 0"),
    "level_gate a number": ({"level_gate": 1}, TypeError, "level_gate: expected a bool, got int"),
    "negative min_points": ({"min_points": -1}, ValueError, "min_points: expected at least 0, less than 2^31, got -1"),
    "min_points a float": ({"min_points": 1.0}, TypeError, "min_points: expected an int, got float"),
    "min_points beyond int32": ({"min_points": 2**64}, ValueError, "min_points: expected at least 0, less than 2^31, got 18446744073709551616"),
    "sigma beyond float": ({"sigma": 10**400}, ValueError, "sigma: expected a finite number above 1, got 1000"),
    "sigma beyond float32": ({"sigma": 1e39}, ValueError, "sigma: expected a finite number above 1, got 1e+39"),
    "radius beyond float": ({"center_radius": 10**400}, ValueError, "center_radius: expected a finite number of at least 0, got 1000"),
    "inside a number": ({"inside": 1}, TypeError, "inside: expected a bool, got int"),
    "ignore_share of 0": ({"ignore_share": 0}, ValueError, "ignore_share: expected a finite number above 0, at most 1, got 0"),
    "ignore_share above 1": ({"ignore_share": 1.5}, ValueError, "ignore_share: expected a finite number above 0, at most 1, got 1.5"),
    "ignore_share NaN": ({"ignore_share": math.nan}, ValueError, "ignore_share: expected a finite number above 0, at most 1, got nan"),
    "ignore_share that rounds to 0": ({"ignore_share": 1e-60}, ValueError, "ignore_share: expected a number above 0, at most 1"),
    "negative num_points": ({"num_points": -1}, ValueError, "num_points: expected at least 0, less than 2^31, got -1"),
    "num_points of bools": (
        {"num_points": torch.ones(3, dtype=torch.bool)}, TypeError,
        "num_points: expected a tensor of int64, int32, int16, int8, uint8, got torch.bool",
    ),
    "num_points a float": ({"num_points": 1.5}, TypeError, "num_points: expected an int, a list of tensors or a tensor, got float"),
    "num_points a bool": ({"num_points": True}, TypeError, "num_points: expected an int, a list of tensors or a tensor, got bool"),
    "num_points of no dimension": (
        {"num_points": torch.tensor(2)}, TypeError, "num_points: expected an int, a list of tensors or a tensor, got one of no dimension",
    ),
    "num_points of floats": ({"num_points": torch.ones(3)}, TypeError, "num_points: expected an integer tensor, got torch.float32"),
    "num_points too few": ({"num_points": torch.ones(2).long()}, ValueError, "num_points: expected shape [3], got [2]"),
    "num_points of another form": (
        {"num_points": torch.ones(2, 2).long()}, ValueError, "num_points: expected the form of gt_boxes, a list, got padded",
    ),
    "num_points that fall otherwise": (
        {"num_points": LABELS[::-1]}, ValueError, "num_points: expected as many as boxes in each image, [2, 1], got [1, 2]",
    ),
    "num_points elsewhere": ({"num_points": torch.ones(3, device="meta").long()}, ValueError, "num_points: expected device cpu"),
    "unknown activation": (
        {"activation": "softmax"}, ValueError, "activation: expected one of 'none', 'sigmoid', got 'softmax'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), ASSIGN_ERRORS.values(), ids=ASSIGN_ERRORS.keys())
def test_mutual_guidance_assign(change, error, message):
    with pytest.raises(error) as raised:
        mutual_guidance_assign(**{**GOOD, **change})
    assert str(raised.value).startswith(message)
    mutual_guidance_assign(**GOOD)  # and the next good call is none the worse


OTHER_ERRORS = {
    "box_iou, shape": (lambda: box_iou(torch.rand(3, 5), torch.rand(2, 4)), ValueError, "boxes: expected shape [P, 4], got [3, 5]"),
    "box_iou, type": (lambda: box_iou(torch.rand(3, 4), None), TypeError, "gt_boxes: expected a tensor, got NoneType"),
    "amplified_centerness, shape": (
        lambda: amplified_centerness(GRID, torch.rand(2, 4), torch.rand(64, 3)), ValueError,
        "probs: expected shape [64, 2], got [64, 3]",
    ),
    "amplified_centerness, sigma": (
        lambda: amplified_centerness(GRID, torch.rand(2, 4), torch.rand(64, 2), sigma=0.5), ValueError,
        "sigma: expected a finite number above 1, got 0.5",
    ),
    "topk, k": (
        lambda: topk_per_object(torch.rand(5, 2), torch.tensor([1]), torch.rand(2)), ValueError, "k: expected shape [2], got [1]",
    ),
    "topk, dtype of k": (
        lambda: topk_per_object(torch.rand(5, 2), torch.rand(2), torch.rand(2)), TypeError, "k: expected an integer tensor",
    ),
    "topk, areas": (
        lambda: topk_per_object(torch.rand(5, 2), torch.tensor([1, 1]), torch.rand(3)), ValueError,
        "areas: expected shape [2], got [3]",
    ),
    "fcos_assign, radius": (
        lambda: fcos_assign(GRID, [torch.rand(1, 4)], -1), ValueError, "center_radius: expected a finite number of at least 0, got -1",
    ),
    "fcos_assign, boxes": (
        lambda: fcos_assign(GRID, [torch.rand(4)]), ValueError, "gt_boxes[0]: expected shape [G, 4], got [4]",
    ),
    "grid, sizes": (lambda: PointGrid.from_features([(4, 4)], strides=(8, 16)), ValueError, "sizes: expected one (height, width) per stride (2)"),
    "grid, negative size": (lambda: PointGrid.from_features([(4, -4)], strides=(8,)), ValueError, "sizes[0]: expected whole numbers of at least 0, got (4, -4)"),
    "grid, size of one": (lambda: PointGrid.from_features([(4, 4), (4,)], strides=(8, 16)), ValueError, "sizes[1]: expected (height, width), got (4,)"),
    "fcos_assign, xywh": (
        lambda: fcos_assign(GRID, [BoundingBoxes(torch.rand(2, 4), format="XYWH", canvas_size=(64, 64))]), ValueError,
        "gt_boxes[0]: expected boxes of format XYXY, got XYWH",
    ),
    "box_iou, xywh": (
        lambda: box_iou(torch.rand(3, 4), BoundingBoxes(torch.rand(2, 4), format="XYWH", canvas_size=(64, 64))), ValueError,
        "gt_boxes: expected boxes of format XYXY, got XYWH",
    ),
    "box_iou, sparse": (
        lambda: box_iou(torch.rand(3, 4).to_sparse(), torch.rand(2, 4)), TypeError,
        "boxes: expected a dense tensor, got torch.sparse_coo",
    ),
    "grid, feature maps for sizes": (
        lambda: PointGrid.from_features([torch.rand(2, 8, 4, 4)], strides=(8,)), ValueError,
        "sizes[0]: expected (height, width), got Tensor of shape [2, 8, 4, 4]",
    ),
    "encode, xywh": (
        lambda: GRID.encode(BoundingBoxes(torch.rand(64, 4), format="XYWH", canvas_size=(64, 64))), ValueError,
        "boxes: expected boxes of format XYXY, got XYWH",
    ),
    "decode": (lambda: GRID.decode(torch.rand(2, 63, 4)), ValueError, "ltrb: expected shape [..., 64, 4], got [2, 63, 4]"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), OTHER_ERRORS.values(), ids=OTHER_ERRORS.keys())
def test_other_functions(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value).startswith(message)


def many_images(points: int, images: int = 2**42):
    """Predictions at so many points, and no objects; none of it takes memory. What is made of them is larger than the 2^47
    bytes that a process may address: a machine that promises more memory than it has refuses it, too."""
    boxes, scores, objects, labels = (torch.zeros(1, *end) for end in ((1, 4), (1, 1), (0, 4), (0,)))
    return (
        boxes.expand(images, points, 4),
        scores.expand(images, points, 1),
        objects.expand(images, 0, 4),
        labels.long().expand(images, 0),
    )


OUT_OF_MEMORY = {
    "box_iou": lambda: box_iou(torch.rand(1, 4).expand(2**46, 4), torch.rand(1, 4)),
    "fcos_assign": lambda: fcos_assign(GRID, torch.rand(1, 0, 4).expand(2**40, 0, 4)),
    "mutual_guidance_assign": lambda: mutual_guidance_assign(
        GRID, *many_images(64)
    ),
    "task_aligned_assign": lambda: task_aligned_assign(GRID, *many_images(64)),
    "max_iou_assign": lambda: max_iou_assign(torch.rand(64, 4), torch.rand(1, 0, 4).expand(2**40, 0, 4)),
    "anchor_mutual_guidance_assign": lambda: anchor_mutual_guidance_assign(torch.rand(64, 4), *many_images(64)),
    "more classes than a container holds": lambda: sim_ota_assign(
        PointGrid.for_image((8, 8), strides=(8,)), torch.tensor([[[0.0, 0, 8, 8]]]), torch.zeros(1).expand(1, 1, 2**61),
        [torch.tensor([[0.0, 0, 8, 8]])], [torch.tensor([0])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_where_memory_runs_out_torch_says_so(call):
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        call()


def test_workspaces_that_find_no_memory_say_so_too():
    # Results fit into memory here, the scratch space beside them does not: under a limit of address space.
    code = """
import resource, torch
from mgassign import PointGrid, mutual_guidance_assign, topk_per_object
grid = PointGrid.for_image((4096, 4096), strides=(1,))
def used(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
def refuses(extra, call):
    resource.setrlimit(resource.RLIMIT_AS, (used() + extra, resource.RLIM_INFINITY))
    try: call()
    except RuntimeError as error: assert "DefaultCPUAllocator: can't allocate memory" in str(error), error
    else: raise SystemExit("there was memory")
    finally: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
torch.set_num_threads(1)
boxes = torch.zeros(1, 1, 4).expand(1, grid.num_points, 4)
logits = torch.zeros(1, 1, 1).expand(1, grid.num_points, 1)
objects = torch.tensor([[[8.0, 8, 60, 60]]]), torch.tensor([[0]])
MiB = 2**20
refuses(470 * MiB, lambda: mutual_guidance_assign(grid, boxes, logits, *objects))
scores = torch.zeros(1, 1).expand(grid.num_points, 1)
refuses(160 * MiB, lambda: topk_per_object(scores, torch.tensor([1]), torch.ones(1)))
refuses(230 * MiB, lambda: topk_per_object(scores, torch.tensor([1]), torch.ones(1)))
mutual_guidance_assign(grid, boxes, logits, *objects)
"""
    python("-c", code, check=True)


def test_another_thread_that_writes_to_a_tensor_meanwhile_ends_nothing():
    # What comes out is anybody's guess; where something is looked up or written to must not be.
    code = """
import threading, time, torch
from mgassign import *
torch.manual_seed(0)
torch.set_num_threads(1)
def boxes_at(corners, side): return torch.cat([corners, corners + side], -1)
grid = PointGrid.for_image((256, 256), (8, 16, 32))
boxes, logits = grid.decode(torch.rand(1, grid.num_points, 4) * 40), torch.randn(1, grid.num_points, 3)
gt_boxes, gt_labels = boxes_at(torch.rand(1, 300, 2) * 200, 50), torch.zeros(1, 300, dtype=torch.int64)
scene = grid, boxes, logits, gt_boxes, gt_labels
corners = torch.rand(600, 2) * 100
anchors, few = boxes_at(corners, 20), [boxes_at(corners[:20], 25)]
predicted, scores, none = anchors[None].clone(), torch.randn(1, 600, 2), [torch.zeros(20, dtype=torch.int64)]
elsewhere = [anchors.clone(), anchors + 0.37]
calls = [
    (gt_labels, [10**13, 0], lambda: mutual_guidance_assign(*scene)),
    (gt_labels, [10**13, 0], lambda: task_aligned_assign(*scene)),
    (gt_labels, [10**13, 0], lambda: sim_ota_assign(*scene)),
    (gt_labels, [10**13, 0], lambda: anchor_mutual_guidance_assign(anchors, predicted, scores, gt_boxes, gt_labels)),
    (predicted, elsewhere, lambda: anchor_mutual_guidance_assign(anchors, predicted, scores, few, none)),
    (anchors, elsewhere, lambda: max_iou_assign(anchors, few, low_quality="first")),
]
for tensor, contents, call in calls:
    array, stop = tensor.numpy(), threading.Event()
    contents = [getattr(content, "numpy", lambda: content)() for content in contents]
    def write():
        while not stop.is_set():
            for content in contents: array[...] = content
    writer = threading.Thread(target=write)
    writer.start()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try: call()
        except ValueError: pass
    stop.set()
    writer.join()
"""
    python("-c", code, check=True)


def test_sizes_without_content_return_at_once():
    assert box_iou(torch.rand(1, 4).expand(2**40, 4), torch.rand(0, 4)).shape == (2**40, 0)
    empty = PointGrid.from_features([(0, 2**31 - 1)], strides=(8,))
    assert fcos_assign(empty, torch.rand(1, 0, 4).expand(2**33, 0, 4)).original.shape == (2**33, 0)
    no_points = many_images(0, 2**33)
    for found in (
        mutual_guidance_assign(empty, *no_points),
        task_aligned_assign(empty, *no_points),
        sim_ota_assign(empty, *no_points),
        soft_label_assign(empty, *no_points),
        atss_assign(empty, no_points[2]),
        max_iou_assign(torch.rand(0, 4), no_points[2]),
        anchor_mutual_guidance_assign(torch.rand(0, 4), *no_points),
    ):
        assert found[0].shape == (2**33, 0)
    found = mutual_guidance_assign(
        empty, torch.empty(2, 0, 4), torch.empty(2, 0, 1), torch.rand(2, 1, 4), torch.zeros(2, 1).long()
    )
    assert found.num_points.tolist() == [0, 0]


def test_other_devices_are_told_in_one_sentence():
    # No backend but these two has kernels; a device that this build of torch does not know stands for all of them.
    def refuse(*arguments):
        raise NotImplementedError("thirty lines of torch's own")

    with pytest.raises(NotImplementedError) as raised:
        _library.call(refuse, torch.empty(2, device="meta"))
    assert str(raised.value) == "mgassign: expected tensors on cpu or cuda, got meta"
    # What a mode or a subclass of tensors has not implemented is told as it says.
    with pytest.raises(NotImplementedError, match="thirty lines of torch's own"):
        _library.call(refuse, torch.empty(2))


@pytest.mark.skipif(_library.cuda_library is not None, reason="CUDA kernels are there")
def test_cuda_without_kernels_says_why():
    with pytest.raises(RuntimeError, match="mgassign: no CUDA kernels: "):
        _library._refuse_cuda()
