"""The tensors that are entries of a DCP directory: what is told of each beside it."""

from __future__ import annotations

import torch

from sdtree.errors import one_of
from sdtree.io.safetensors.kinds import Held, is_in_pt, marked
from sdtree.path import where
from sdtree.tensors.storage import PACKED
from sdtree.typing import Leaf, Path


def held(leaf: Leaf, path: Path) -> Held:
    """Return a tensor as DCP has it; raise ``TypeError`` if it has no room for it."""
    misfit = _misfit(leaf)
    if misfit:
        raise TypeError(f"{where(path)}: DCP has no room for {misfit}, or drop it")
    return marked(leaf, path)


def _misfit(x: torch.Tensor) -> str:
    if x.layout is not torch.strided:
        return f"a tensor of layout {x.layout}; save a .pt file, try .to_dense()"
    if x.is_quantized:
        return f"a tensor of dtype {x.dtype}; save a .pt file, try .dequantize()"
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return f"{one_of(type(x))}; save a .pt file"
    if x.dtype in PACKED or not is_in_pt(x.dtype):
        return f"a tensor of dtype {x.dtype}; try .view(...)"
    return ""
