"""The functions that torch.compile leaves to eager mode, each under its name, disabled.

Imported where torch.compile meets one of them, not before: ``torch.compiler.disable`` imports torch's compiler, which takes
longer than torch itself.
"""

from __future__ import annotations

import torch

from ._objects import EAGER_WITH_LISTS

_REASON = "mgassign: a list of objects makes a graph break; with fullgraph=True give padded or jagged tensors"

for _name, _function in EAGER_WITH_LISTS.items():
    globals()[_name] = torch.compiler.disable(_function, reason=_REASON)  # type: ignore[no-untyped-call]
