"""take, dense_scores and centerness: from owners to what a loss wants."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mgassign import amplified_centerness, centerness, dense_scores, reference, take, task_aligned_assign
from scenes import FORMS, in_form, scene


def one_by_one(owner: torch.Tensor, of_images: list[torch.Tensor], fill) -> torch.Tensor:
    tail = of_images[0].shape[1:]
    result = torch.full((*owner.shape, *tail), fill, dtype=of_images[0].dtype)
    for b, of_image in enumerate(of_images):
        for point, mine in enumerate(owner[b].tolist()):
            if mine >= 0:
                result[b, point] = of_image[mine]
    return result


counts_of_images = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@given(st.data(), counts_of_images, st.sampled_from([(), (4,), (2, 3)]), st.sampled_from(FORMS))
def test_take_is_one_by_one(data, counts, tail, form):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    owner = torch.stack([torch.randint(-2, count, (7,), generator=generator) for count in counts])
    of_images = [torch.randint(0, 100, (count, *tail), generator=generator) for count in counts]
    found = take(owner, in_form(form, of_images), fill=-5)
    assert torch.equal(found, one_by_one(owner, of_images, -5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        (torch.bool, True),
        (torch.uint8, 255),
        (torch.int32, -1),
        (torch.bfloat16, 0.5),
        (torch.float64, float("inf")),
        (torch.complex64, 0),
    ],
)
def test_take_keeps_the_dtype(form, dtype, fill):
    of_images = [torch.tensor([1, 0]).to(dtype), torch.tensor([], dtype=dtype)]
    owner = torch.tensor([[1, 0, -1], [-2, -1, -1]])
    found = take(owner, in_form(form, of_images), fill)
    assert found.dtype == dtype
    assert torch.equal(found, one_by_one(owner, of_images, fill))


@pytest.mark.parametrize("form", FORMS)
def test_take_without_objects_images_or_points(form):
    nothing = [torch.empty(0, 4), torch.empty(0, 4)]
    assert take(torch.full((2, 3), -1), in_form(form, nothing), 7).tolist() == [[[7.0] * 4] * 3] * 2
    assert take(torch.empty(2, 0, dtype=torch.int64), in_form(form, nothing)).shape == (2, 0, 4)
    some = [torch.ones(2, 4), torch.ones(1, 4)]
    assert take(torch.empty(2, 0, dtype=torch.int64), in_form(form, some)).shape == (2, 0, 4)


def test_take_of_no_images():
    none = torch.empty(0, 5, dtype=torch.int64)
    assert take(none, [], float("inf")).shape == (0, 5)
    assert take(none, torch.empty(0, 3, 4)).shape == (0, 5, 4)


@pytest.mark.parametrize("form", FORMS)
def test_take_of_any_strides(form):
    of_images = [torch.rand(4, 6).T[::2], torch.rand(4, 6).T[1:2]]
    owner = torch.tensor([[2, 0], [-1, 0]]).T.contiguous().T
    assert torch.equal(take(owner, in_form(form, of_images)), one_by_one(owner, of_images, 0))


@pytest.mark.parametrize("form", ["list", "padded"])
def test_take_is_differentiable(form):
    of_images = [torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)]
    objects = of_images if form == "list" else torch.stack(of_images)
    take(torch.tensor([[0, 0, -1], [1, -2, -1]]), objects).sum().backward()
    assert of_images[0].grad.tolist() == [[2] * 3, [0] * 3]
    assert of_images[1].grad.tolist() == [[0] * 3, [1] * 3]


def test_take_of_a_jagged_tensor_with_holes_between_padded_images():
    padded = torch.arange(24.0).reshape(2, 4, 3)
    objects = torch.nested.narrow(padded, 1, torch.tensor([0, 1]), torch.tensor([2, 3]), layout=torch.jagged)
    assert torch.equal(take(torch.tensor([[1, -1], [2, 0]]), objects)[:, 0], torch.stack([padded[0, 1], padded[1, 3]]))
    with pytest.raises(ValueError, match=r"owner\[0\]: expected objects below 2, got 2"):
        take(torch.tensor([[2], [0]]), objects)


def test_take_of_a_jagged_tensor_with_holes():
    values, offsets, lengths = torch.arange(5), torch.tensor([0, 3, 5]), torch.tensor([2, 1])
    objects = torch.nested.nested_tensor_from_jagged(values, offsets, lengths)
    assert take(torch.tensor([[1, -1], [0, -1]]), objects).tolist() == [[1, 0], [3, 0]]


owner = torch.tensor([[0, 1], [-1, 0]])
labels = [torch.tensor([1, 2]), torch.tensor([3])]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], labels), TypeError, "owner: expected a tensor, got list"),
        ((owner.float(), labels), TypeError, "owner: expected an int64 tensor, got torch.float32"),
        ((owner.int(), labels), TypeError, "owner: expected an int64 tensor, got torch.int32"),
        ((owner[0], labels), ValueError, r"owner: expected shape \[B, P\], got \[2\]"),
        ((owner, 3), TypeError, "objects: expected a list of tensors or a tensor, got int"),
        ((owner, labels[:1]), ValueError, r"objects: expected one tensor per image \(2\), got 1"),
        ((owner, torch.zeros(3, 2)), ValueError, r"objects: expected shape \[2, G\], got \[3, 2\]"),
        ((owner, torch.zeros(3)), ValueError, r"objects: expected shape \[2, G\], got \[3\]"),
        ((owner, in_form("jagged", labels[:1])), ValueError, r"objects: expected one part per image \(2\), got 1"),
        ((owner, [labels[0], [3]]), TypeError, r"objects\[1\]: expected a tensor, got list"),
        ((owner, [labels[0], torch.zeros(1)]), TypeError, r"objects\[1\]: expected torch.int64 like the first"),
        (
            (owner, [x.to_sparse() for x in labels]),
            TypeError,
            r"objects\[0\]: expected a dense tensor, got torch.sparse",
        ),
        ((owner, torch.ones(2, 2).to_sparse()), TypeError, "objects: expected a dense tensor, got torch.sparse"),
        ((owner, [labels[0], torch.tensor(3)]), ValueError, r"objects\[1\]: expected shape \[G, ...\], got \[\]"),
        ((owner, [torch.zeros(2, 4), torch.zeros(1)]), ValueError, r"objects\[1\]: expected shape \[G, 4\], got \[1\]"),
        ((owner, [labels[0], labels[1].to("meta")]), ValueError, r"objects\[1\]: expected device cpu like owner"),
        ((owner, torch.zeros(2, 2, device="meta")), ValueError, "objects: expected device cpu like owner, got meta"),
        ((owner, [labels[1], labels[1]]), ValueError, r"owner\[0\]: expected objects below 1, got 1"),
        ((owner, torch.zeros(2, 1)), ValueError, r"owner\[0\]: expected objects below 1, got 1"),
        ((owner, in_form("jagged", [labels[0], labels[0][:0]])), ValueError, r"owner\[1\]: expected objects below 0"),
        ((owner, labels, "0"), TypeError, "fill: expected a number, got str"),
        ((owner, labels, torch.tensor(0)), TypeError, "fill: expected a number, got Tensor"),
        ((owner, labels, 0.5), ValueError, "fill: expected a number that torch.int64 holds, got 0.5"),
        ((owner, labels, float("nan")), ValueError, "fill: expected a number that torch.int64 holds, got nan"),
        ((owner, [x.to(torch.uint8) for x in labels], -1), ValueError, "fill: .* torch.uint8 holds, got -1"),
        ((owner, [x.bool() for x in labels], 2), ValueError, "fill: .* torch.bool holds, got 2"),
        ((owner, [x.half() for x in labels], 1e6), ValueError, "fill: .* torch.float16 holds, got 1000000.0"),
        ((owner, [x.float() for x in labels], -(2**2000)), ValueError, "fill: .* torch.float32 holds, got -1148"),
        ((owner[:0], [], "0"), TypeError, "fill: expected a number, got str"),
        ((in_form("jagged", labels), labels), TypeError, "owner: expected a dense tensor, got a nested one of layout"),
        ((torch.nested.nested_tensor(labels), labels), TypeError, "owner: expected a dense tensor, got a nested one"),
        (
            (owner, in_form("jagged", [torch.zeros(2, 3), torch.zeros(1, 3)]).transpose(1, 2)),
            ValueError,
            r"objects.values\(\): expected shape",
        ),
    ],
)
def test_take_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        take(*arguments)


@pytest.mark.parametrize("form", ["padded", "jagged"])  # lists: test_library.py
def test_take_and_centerness_compile_whole(form):
    def targets(owner, boxes):
        return centerness(take(owner, boxes, 0.25))

    compiled = torch.compile(targets, fullgraph=True, backend="eager")
    for sizes in ((2, 1), (3, 3), (0, 2)):
        of_images = [torch.rand(size, 4) for size in sizes]
        owner = torch.stack([torch.randint(-2, size, (9,)) for size in sizes])
        boxes = in_form(form, of_images)
        assert torch.equal(compiled(owner, boxes), targets(owner, boxes))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("form", ["list", "padded"])
def test_shapes_follow_from_shapes(form, device):
    """With tensors that hold no data, so that nothing can have been read: nothing waits for a GPU."""
    if device == "cuda" and torch.version.cuda is None:
        pytest.skip("this torch knows no CUDA tensors")
    with FakeTensorMode():
        objects = [torch.empty(3, 4, device=device), torch.empty(0, 4, device=device)]
        if form == "padded":
            objects = torch.empty(2, 3, 4, device=device)
        owner = torch.empty(2, 80, dtype=torch.int64, device=device)
        boxes = take(owner, objects)
        assert (boxes.shape, boxes.device.type) == ((2, 80, 4), device)
        assert centerness(boxes).shape == (2, 80)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_under_vmap():
    owner, labels = torch.tensor([[[0, -1, 1]], [[1, 0, -2]]]), torch.tensor([[[3, 4]], [[5, 6]]])
    taken = torch.vmap(lambda of, values: take(of, values, fill=-1))(owner, labels)
    assert taken.tolist() == [[[3, -1, 4]], [[6, 5, -1]]]
    arguments = owner, owner + 2.0, labels
    for dims in product((0, None), repeat=3):
        mapped = [of if dim == 0 else of[0] for of, dim in zip(arguments, dims, strict=True)]
        if 0 not in dims:
            continue
        scores = torch.vmap(lambda *of: dense_scores(*of, 8), in_dims=dims)(*mapped)
        for i in (0, 1):
            own = [of if dim is None else of[i] for of, dim in zip(mapped, dims, strict=True)]
            assert torch.equal(scores[i], dense_scores(*own, 8))


class Named(torch.Tensor):
    """Of its own type and nothing more, as what torchvision's transforms may give."""


@pytest.mark.parametrize("kind", [torch.Tensor, Named, torch.nn.Parameter])
def test_no_object_of_another_image_is_taken_whatever_tensors_are(kind):
    owner = torch.tensor([[0, 3], [1, 2]])
    owner = torch.nn.Parameter(owner, requires_grad=False) if kind is torch.nn.Parameter else owner.as_subclass(kind)
    with pytest.raises(ValueError, match=r"owner\[0\]: expected objects below 3, got 3"):
        take(owner, torch.arange(24.0).view(2, 3, 4))


def test_centerness_by_hand():
    ltrb = torch.tensor([[4.0, 2, 4, 2], [1, 2, 4, 2], [1, 1, 4, 9], [0, 2, 4, 2], [-1, 2, 4, 2], [0, 0, 0, 0]])
    assert torch.equal(centerness(ltrb), torch.tensor([1, 0.5, (0.25 * (1 / 9)) ** 0.5, 0, 0, 0]))
    inf, nan = float("inf"), float("nan")
    odd = [[inf, 1, inf, 1], [inf, 1, 1, 1], [nan, 1, 1, 1], [-1, -1, -1, -1], [-2, -1, 0, 1], [-inf, 1, inf, 1]]
    assert centerness(torch.tensor(odd)).tolist() == [0.0] * len(odd)
    assert not centerness(torch.tensor(odd)).signbit().any()


def test_centerness_is_what_is_amplified():
    """Where the score is 0 and sigma 1 off, amplified centerness is centerness ^ 1."""
    of = scene((128, 192), objects=(6,))
    boxes = of.gt_boxes[0]
    nearest = torch.stack(reference.distances(of.grid, boxes), -1)  # [P, G, 4]
    amplified = amplified_centerness(of.grid, boxes, torch.zeros(of.grid.num_points, 6), level_gate=False)
    torch.testing.assert_close(centerness(nearest), amplified, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_centerness_of_any_dtype(dtype):
    ltrb = torch.tensor([[300.0, 5, 100, 3]], dtype=dtype, requires_grad=True)
    found = centerness(ltrb)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), torch.tensor([(1 / 3 * 3 / 5) ** 0.5]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("ltrb", "error", "message"),
    [
        ([1, 2, 3, 4], TypeError, "ltrb: expected a tensor, got list"),
        (torch.ones(4, dtype=torch.int64), TypeError, "ltrb: expected a floating-point tensor, got torch.int64"),
        (torch.ones(3), ValueError, r"ltrb: expected shape \[..., 4\], got \[3\]"),
        (torch.tensor(1.0), ValueError, r"ltrb: expected shape \[..., 4\], got \[\]"),
    ],
)
def test_centerness_refuses(ltrb, error, message):
    with pytest.raises(error, match=message):
        centerness(ltrb)


def test_dense_scores():
    of = scene(objects=(4, 0, 9), seed=15)
    found = task_aligned_assign(of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, activation="sigmoid")
    scores = dense_scores(found.owner, found.target, of.gt_labels, 6)
    for b, labels in enumerate(of.gt_labels):
        expected = torch.zeros(of.grid.num_points, 6)
        for point in (found.owner[b] >= 0).nonzero().flatten().tolist():
            expected[point, labels[found.owner[b, point]]] = found.target[b, point]
        assert torch.equal(scores[b], expected)
    for form in ("padded", "jagged"):
        assert torch.equal(dense_scores(found.owner, found.target, in_form(form, of.gt_labels, -1), 6), scores)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        labels = [of_image.to(dtype) for of_image in of.gt_labels]
        assert torch.equal(dense_scores(found.owner, found.target, labels, 6), scores)
        assert torch.equal(dense_scores(found.owner, found.target, labels, 300)[..., :6], scores)
    of_several = [of.gt_labels[0], of.gt_labels[1].int(), of.gt_labels[2].to(torch.uint8)]
    assert torch.equal(dense_scores(found.owner, found.target, of_several, 6), scores)
    assert dense_scores(found.owner, found.target.half(), of.gt_labels, 6).dtype == torch.float16
    with pytest.raises(TypeError, match=r"gt_labels\[2\]: expected an integer tensor, got torch.float32"):
        dense_scores(found.owner, found.target, [*of.gt_labels[:2], of.gt_labels[2].float()], 6)
    with pytest.raises(ValueError, match=r"target: expected shape \[3, 2125\], got \[3, 2124\]"):
        dense_scores(found.owner, found.target[:, 1:], of.gt_labels, 6)
    with pytest.raises(TypeError, match="owner: expected a tensor, got NoneType"):
        dense_scores(None, found.target, of.gt_labels, 6)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, less than 2\\^31, got 0"):
        dense_scores(found.owner, found.target, of.gt_labels, 0)


@pytest.mark.parametrize(
    ("gt_labels", "error", "message"),
    [
        (None, TypeError, "gt_labels: expected a list of tensors or a tensor, got NoneType"),
        ([torch.tensor([1])], ValueError, r"gt_labels: expected one tensor per image \(2\), got 1"),
        ([torch.tensor([1]), torch.tensor(2)], ValueError, r"gt_labels\[1\]: expected shape \[G, ...\], got \[\]"),
        ([torch.tensor([[1]])] * 2, ValueError, r"gt_labels: expected one number per object, got shape \[1\] for each"),
        (
            torch.ones(2, 3, 1).long(),
            ValueError,
            r"gt_labels: expected one number per object, got shape \[1\] for each",
        ),
        (torch.ones(1, 3).long(), ValueError, r"gt_labels: expected shape \[2, G\], got \[1, 3\]"),
    ],
)
def test_dense_scores_refuses_labels_by_their_name(gt_labels, error, message):
    with pytest.raises(error, match=f"^{message}"):
        dense_scores(torch.zeros(2, 5).long(), torch.zeros(2, 5), gt_labels, 4)


def test_dense_scores_of_points_that_have_no_class():
    """Nobody's, a region's, padding's, of a class that has no column: whatever their target is, it goes nowhere."""
    owner, labels = torch.tensor([[0, -1, -2, 1, 2, 3]]), [torch.tensor([2, -1, 3, -2])]
    scores = dense_scores(owner, torch.tensor([[0.5, torch.nan, 1.0, 1.0, torch.inf, 1.0]]), labels, 3)
    assert scores.is_contiguous()
    assert scores.nonzero().tolist() == [[0, 0, 2]]
    assert scores[0, 0, 2] == 0.5
