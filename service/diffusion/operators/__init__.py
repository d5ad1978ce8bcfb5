"""Zero-shot edits (Song et al. 2023, section 6 and appendix D): one small file each, found by being here.

An edit is a struct of plain values that travels with its sample; what it does to the run stands beside it. A new
one needs its own file in this folder, with a subclass of `Edit` that bears a tag, and a route that plans it.

Nothing here imports torch when it is imported: the HTTP process makes these structs, the engine calls them, and
methods of the tensors they are handed are enough.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Union

from service.diffusion.operators.base import Edit, Opening, Operator, edit_name

__all__ = ["AnyEdit", "Edit", "Opening", "Operator", "edit_name"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

if TYPE_CHECKING:
    AnyEdit = Edit
else:
    # What msgspec decodes: the tag says which of them it is.
    AnyEdit = Union[tuple(Edit.__subclasses__())]  # noqa: UP007
