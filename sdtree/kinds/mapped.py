"""Tensors of tensordict that lie in a file, or in shared memory, and tell in which."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdtree.kinds import tensor
from sdtree.kinds.handler import add_handler
from sdtree.typing import Aux


def _flatten(x: Any) -> tuple[Sequence[Tensor], Aux]:
    """Return the tensor over the memory. What tells of a file is not of a copy.

    Pickled, a copy that told of it would come back as what the file holds.
    """
    ts, aux = tensor.flatten(x)
    return ts, replace(aux, attributes={})


def _register(kind: type) -> None:
    add_handler(replace(tensor.HANDLER, kind=kind, flatten=_flatten))


with suppress(ModuleNotFoundError):  # then no leaf is of this kind
    from tensordict.memmap import MemoryMappedTensor  # type: ignore[import-not-found]

    _register(MemoryMappedTensor)
