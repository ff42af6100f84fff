"""Containers and tensor classes of every sort, as trees are drawn with."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdtree.container import register_container
from sdtree.typing import Key, Tree


@register_container
class Pair(NamedTuple):
    """A namedtuple.

    >>> sd.paths(Pair(1, 2))
    [('first',), ('second',)]
    """

    first: Tree
    second: Tree


@register_container
@dataclass
class Layer:
    """A dataclass that cannot be made from its children alone.

    >>> sd.structure(layer([1, 2]))
    TreeSpec(Layer('weight': *, 'bias': *))
    """

    weight: Tree
    bias: Tree

    def __post_init__(self) -> None:
        raise AssertionError("a dataclass is rebuilt without its __init__")


@register_container
class State(OrderedDict[Any, Any]):
    """A Mapping subclass with an ``__init__`` of its own and attributes.

    >>> sd.copy(State(version=3)).version
    3
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version


@register_container
class Rows(list[Any]):
    """A list subclass that has attributes.

    >>> type(sd.copy(Rows([1]))).__name__
    'Rows'
    """


class Color(enum.Enum):
    """An enum, for leaves and keys.

    >>> sd.leaves({Color.RED: Color.BLUE})
    [<Color.BLUE: 'blue'>]
    """

    RED = 1
    BLUE = "blue"


class Named(Tensor):
    """A subclass that says no more than its name.

    >>> type(sd.copy([torch.ones(2).as_subclass(Named)])[0]).__name__
    'Named'
    """


class Both(Tensor):
    """A wrapper of two tensors of one form, which has no data of its own.

    >>> x = Both(torch.ones(2), torch.zeros(2))
    >>> sd.copy([x])[0].second
    tensor([0., 0.])
    """

    first: Tensor
    second: Tensor

    @staticmethod
    def __new__(cls: type[Both], first: Tensor, second: Tensor) -> Both:
        new = Tensor._make_wrapper_subclass(
            cls,
            first.size(),
            strides=first.stride(),
            dtype=first.dtype,
            device=first.device,
        )
        new.first, new.second = first, second
        return new

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["first", "second"], None

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], context: None, size: object, stride: object
    ) -> Both:
        return cls(inner["first"], inner["second"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} is not for a tensor without data")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Both({self.first}, {self.second})"


def _state(pairs: Sequence[tuple[Key, Tree]]) -> State:
    new = State(3)
    new.update(pairs)
    return new


def _ordered(pairs: Sequence[tuple[Key, Tree]]) -> OrderedDict[Key, Tree]:
    """Return what ``Module.state_dict`` does: an OrderedDict that has metadata."""
    new = OrderedDict(pairs)
    modules = {"": {"version": 1}, **{str(key): {"version": 2} for key, _ in pairs}}
    new._metadata = OrderedDict(modules)  # type: ignore[attr-defined]
    return new


def _default(pairs: Sequence[tuple[Key, Tree]]) -> defaultdict[Key, Tree]:
    return defaultdict(list, pairs)


def _counter(pairs: Sequence[tuple[Key, Tree]]) -> Counter[Any]:
    new: Counter[Any] = Counter()
    dict.update(new, pairs)
    return new


def layer(children: Sequence[Tree]) -> Layer:
    new = object.__new__(Layer)
    new.weight, new.bias = children
    return new


def _rows(children: Sequence[Tree]) -> Rows:
    new = Rows(children)
    new.label = "rows"  # type: ignore[attr-defined]
    return new


MAPPINGS: tuple[Callable[[Sequence[tuple[Key, Tree]]], Tree], ...] = (
    *(dict, _ordered, _default, _counter, _state),
)
SEQUENCES: tuple[Callable[[Sequence[Tree]], Tree], ...] = (
    *(list, tuple, _rows, lambda xs: deque(xs, maxlen=len(xs) + 1)),
)
