"""Tensor classes whose tensors have no data yet, or none of their own: all refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nested._internal.nested_tensor import NestedTensor
from torch.nn import parameter

from sdtree.errors import UnknownLeaf
from sdtree.kinds.handler import Handler, add_handler
from sdtree.typing import Aux

_LAZY: Any = parameter
REFUSED: dict[type, str] = {
    _LAZY.UninitializedTensorMixin: "has no shape yet; run the lazy module once first",
    FakeTensor: "has no data; take a meta tensor, which is known to have none",
    FunctionalTensor: "stands for another; take that one",
    NestedTensor: "does not come apart; take its parts, x.values() and x.offsets()",
}


def _refuse(kind: type, advice: str) -> None:
    def flatten(x: Tensor) -> NoReturn:
        raise UnknownLeaf(f"a tensor of {type(x).__qualname__} {advice}")

    def unflatten(aux: Aux, ts: Sequence[Tensor]) -> Any:
        raise AssertionError("nothing of this kind came apart")

    add_handler(Handler(kind, flatten, unflatten))


for kind, advice in REFUSED.items():
    _refuse(kind, advice)
