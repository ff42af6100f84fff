"""Results of functional collectives that are still on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from sdtree.kinds.handler import Handler, add_handler
from sdtree.typing import Aux


def _flatten(x: Any) -> tuple[Sequence[Tensor], Aux]:
    """Wait, and return the tensor that has arrived."""
    return (x.trigger_wait(),), None


add_handler(
    Handler(
        AsyncCollectiveTensor,
        _flatten,
        lambda _, ts: ts[0],
        stands_for=lambda _: Tensor,
        keeps_type=False,
        is_waiting=lambda _: True,
        compared=lambda x: x.trigger_wait(),
        dtype=lambda x: x.dtype,
    )
)
