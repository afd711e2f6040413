"""Argument checks: what was expected of which argument, and what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

LARGEST_NUMBER = torch.finfo(torch.float32).max
LARGEST_COUNT = 2**31 - 1


def tensor(
    name: str,
    value: Any,
    *,
    dtypes: tuple[torch.dtype, ...] = FLOATING,
    like: Tensor | None = None,
    jagged: bool = False,
) -> None:
    """A tensor of one of the dtypes, on the device of ``like``; a nested one only where it may be ``jagged``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        floating, one = torch.float32 in dtypes, len(dtypes) == 1
        expected = "a floating-point tensor" if floating else "an int64 tensor" if one else "an integer tensor"
        if value.dtype.is_floating_point == floating and not (one or value.dtype.is_complex):  # such as float8
            expected = f"a tensor of {', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}"
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")
    if not (jagged and value.layout is torch.jagged):
        dense(name, value)
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like the other tensors, got {value.device}")
    # torchvision's boxes know their format; xywh read as xyxy would be wrong without a word.
    form = None if type(value) is Tensor else getattr(value, "format", None)
    form = getattr(form, "name", form)
    if form is not None and str(form).upper() != "XYXY":
        raise ValueError(f"{name}: expected boxes of format XYXY, got {form}")


def dense(name: str, value: Tensor) -> None:
    """Neither sparse nor nested."""
    if value.layout is not torch.strided or value.is_nested:
        nested = "a nested one of layout " if value.is_nested else ""
        raise TypeError(f"{name}: expected a dense tensor, got {nested}{value.layout}")


def readable(value: Tensor) -> bool:
    """Whether the values can be read without waiting: not on a GPU, nor while compiling, tracing or under vmap."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Subclasses that leave their work to torch, such as parameters, have values; fake and distributed tensors do it all.
    if type(value) is not Tensor and type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def shape(name: str, value: Tensor, expected: tuple[int | str, ...], told_by: str = "") -> None:
    """The shape; a string stands for a dimension of any size. ``told_by``: where the sizes come from."""
    got = value.shape
    if got == expected:
        return
    fits = len(got) == len(expected)
    for size, wanted in zip(got, expected):  # noqa: B905  (lengths were compared; strict costs time on every call)
        fits = fits and (size == wanted or isinstance(wanted, str))
    if not fits:
        why = f" ({told_by})" if told_by else ""
        raise ValueError(f"{name}: expected shape [{', '.join(map(str, expected))}]{why}, got {list(got)}")


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float = -LARGEST_NUMBER,
    at_most: float = LARGEST_NUMBER,
) -> None:
    """A finite real number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    # Comparisons only: torch.compile traces them with a symbolic number, math.isfinite it does not.
    high_enough = value >= at_least if at_least is not None else value > above
    if not (high_enough and value <= at_most):
        bound = f"above {above}" if at_least is None else f"of at least {at_least}"
        if at_most != LARGEST_NUMBER:
            bound += f", at most {at_most}"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value}")
    if torch.compiler.is_dynamo_compiling():
        # A float that the compiled function works out is a symbol there, which torch.compile may bake into an operator's
        # arguments without asking for its value again. Spelling it out makes it ask.
        float(value).hex()


def count(name: str, value: Any, at_least: int = 0, at_most: int = LARGEST_COUNT) -> None:
    """A whole number within its bounds. Symbolic ones, from shapes that torch.export traces with, are whole."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not at_least <= value <= at_most:
        bounds = f"{at_least} to {at_most}" if at_most < LARGEST_COUNT else f"at least {at_least}, less than 2^31"
        raise ValueError(f"{name}: expected {bounds}, got {value}")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def activation(value: Any) -> int:
    """The operators' number for it."""
    choice("activation", value, ("none", "sigmoid"))
    return int(value == "sigmoid")
