"""Training's random changes to an image: torchvision draws them, one pass over the batch applies them.

`torchvision.transforms.v2` decides for each image, from its boxes alone, where to zoom out, where to crop and how to
distort the colours. What it decides comes down to one window of the image and one matrix of its colours, and those are
applied to the whole batch on the device it is on. So an image is decoded and resized once, and a cached one never
leaves the GPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2


class IoUCrop(v2.RandomIoUCrop):  # type: ignore[misc]
    """torchvision's, with all trials drawn at once: one by one they take 10 ms for an image of many small objects."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (objects,) = flat_inputs
        boxes, canvas = objects.as_subclass(Tensor), torch.tensor(objects.canvas_size[::-1])
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        while True:
            least = self.options[int(torch.randint(len(self.options), ()))]
            if least >= 1:  # leave the image as it is
                return {}
            scales = self.min_scale + (self.max_scale - self.min_scale) * torch.rand(self.trials, 2)
            sides = (canvas * scales).int()
            corners = ((canvas - sides) * torch.rand(self.trials, 2)).int()
            windows = torch.cat([corners, corners + sides], dim=1).float()
            aspect = sides[:, 0] / sides[:, 1]
            inside = ((windows[:, None, :2] < centers) & (centers < windows[:, None, 2:])).all(-1)  # [trials, objects]
            overlap = box_iou(windows, boxes).where(inside, -1.0).amax(1)
            fits = (self.min_aspect_ratio <= aspect) & (aspect <= self.max_aspect_ratio) & (overlap >= least)
            if fits.any():
                first = int(fits.int().argmax())
                (left, top), (width, height) = corners[first].tolist(), sides[first].tolist()
                return {
                    "top": top,
                    "left": left,
                    "height": height,
                    "width": width,
                    "is_within_crop_area": inside[first],
                }


_ZOOM_OUT, _CROP, _DISTORT = v2.RandomZoomOut(), IoUCrop(), v2.RandomPhotometricDistort()
_ANY_IMAGE = torch.empty(3, 1, 1)  # of which only the number of channels is asked
MIN_SIDE = 2.0  # pixels; what a crop leaves of an object is no object below it
_GRAY = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class Change(NamedTuple):
    """What happens to one image."""

    window: Tensor
    """float32 [4]: the part of the image that becomes the new one, xyxy in units of its sides; mirrored where x2 < x1."""
    colors: Tensor
    """float32 [3, 4]: new color = colors[:, :3] @ color + colors[:, 3], colors in [0, 1]."""


def draw_change(boxes: Tensor, labels: Tensor, size: int, how: str = "full") -> tuple[Change, Tensor, Tensor]:
    """Draws a change from torch's global generator, and applies it to the objects of the image.

    Args:
        boxes, labels: The objects, float32 [G, 4] xyxy in pixels and int64 [G].
        size: Height and width of the image, before and after.
        how: ``"full"``, or ``"flip"``: mirrored or not, nothing else.

    Returns:
        The change, and the objects that are left.
    """
    colors = _draw_colors() if how == "full" else torch.eye(3, 4)
    window = torch.tensor([0.0, 0.0, size, size])
    side = size
    if how == "full" and torch.rand(()) < _ZOOM_OUT.p:
        left, top, right, bottom = _ZOOM_OUT.make_params([_on_canvas(boxes, size)])["padding"]
        side = size + max(left + right, top + bottom)  # both are the same but for rounding
        window = torch.tensor([-left, -top, side - left, side - top], dtype=torch.float32)
    if how == "full" and len(boxes):
        crop = _CROP.make_params([_on_canvas(boxes - window[:2].repeat(2), side)])
        if crop:
            corner = window[:2] + torch.tensor([crop["left"], crop["top"]])
            window = torch.cat([corner, corner + torch.tensor([crop["width"], crop["height"]])])
            boxes, labels = boxes[crop["is_within_crop_area"]], labels[crop["is_within_crop_area"]]
    boxes = (boxes - window[:2].repeat(2)) * (size / (window[2:] - window[:2])).repeat(2)
    if torch.rand(()) < 0.5:
        window = window[[2, 1, 0, 3]]
        boxes = torch.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], dim=-1)
    boxes = boxes.clamp(0, size)
    left_over = (boxes[:, 2:] - boxes[:, :2]).amin(-1) >= MIN_SIDE
    return Change(window / size, colors), boxes[left_over], labels[left_over]


def _on_canvas(boxes: Tensor, side: int) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side))


def _draw_colors() -> Tensor:
    drawn = _DISTORT.make_params([_ANY_IMAGE])
    matrix, shift, gray = torch.eye(3), torch.zeros(3), _GRAY.expand(3, 3)
    if drawn["brightness_factor"] is not None:
        matrix = matrix * drawn["brightness_factor"]
    if drawn["saturation_factor"] is not None:
        matrix = torch.lerp(gray, torch.eye(3), drawn["saturation_factor"]) @ matrix
    if drawn["hue_factor"] is not None:  # a rotation about the gray axis
        angle = 2 * math.pi * float(drawn["hue_factor"])
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = torch.linalg.solve(_TO_YIQ, turn @ _TO_YIQ) @ matrix
    if drawn["contrast_factor"] is not None:  # about the middle gray: an image's own mean is not known here
        factor = float(drawn["contrast_factor"])
        matrix, shift = matrix * factor, shift + 0.5 * (1 - factor)
    if drawn["channel_permutation"] is not None:
        order = torch.as_tensor(drawn["channel_permutation"])
        matrix, shift = matrix[order], shift[order]
    return torch.cat([matrix, shift[:, None]], dim=1)


def apply_changes(images: Tensor, windows: Tensor, colors: Tensor, fill: Tensor) -> Tensor:
    """Applies changes to a batch.

    Args:
        images: uint8 [B, 3, size, size].
        windows, colors: float32 [B, 4] and [B, 3, 4], of the images' device.
        fill: Color of what lies outside of an image, float32 [3, 1, 1] in [0, 1].

    Returns:
        float32 [B, 3, size, size] in [0, 1].
    """
    count, _, height, width = images.shape
    pixels = images.flatten(2).float() / 255
    changed = torch.baddbmm(colors[:, :, 3:], colors[:, :, :3], pixels).clamp(0, 1).view(count, 3, height, width)
    x1, y1, x2, y2 = windows.unbind(-1)
    none = torch.zeros_like(x1)
    # affine_grid counts from -1 to 1, where windows count from 0 to 1.
    theta = torch.stack([x2 - x1, none, x1 + x2 - 1, none, y2 - y1, y1 + y2 - 1], dim=-1).view(count, 2, 3)
    grid = affine_grid(theta, [count, 3, height, width], align_corners=False)
    return grid_sample(changed - fill, grid, align_corners=False) + fill
