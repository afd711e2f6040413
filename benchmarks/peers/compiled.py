"""A stand-in for the compiled half of a package, where only the Python half is installed and the other is not used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def stand_in(name: str) -> None:
    """Makes the module importable if it is not: it says that it holds everything, and none of that can be called."""
    if name in sys.modules or find_spec(name) is not None:
        return

    class Everything(ModuleType):
        def __getattr__(self, attribute: str) -> Callable[..., Any]:
            if attribute.startswith("__"):
                raise AttributeError(attribute)

            def missing(*args: Any, **kwargs: Any) -> None:
                raise NotImplementedError(f"{name} is not installed: no {attribute}")

            return missing

    sys.modules[name] = Everything(name)
