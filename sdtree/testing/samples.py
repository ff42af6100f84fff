"""Containers and tensor classes of every sort, as trees are drawn with."""

from __future__ import annotations

import enum
import os
import time
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdtree.tree.containers import register_container
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

    def __init__(self, version: int = 1) -> None:
        super().__init__()
        self.version = version


@register_container
class Rows(list[Any]):
    """A list subclass that has attributes.

    >>> type(sd.copy(Rows([1]))).__name__
    'Rows'
    """


@register_container
class Settings(dict[str, Any]):
    """A dict whose items are its attributes.

    >>> sd.map(lambda x: x + 1, Settings(lr=1)).lr
    2
    """

    def __init__(self, *args: Any, **items: Any) -> None:
        super().__init__(*args, **items)
        self.__dict__ = self


@register_container
class Mirror(dict[Any, Any]):
    """A dict that has each of its items as an attribute, too, if its key is text.

    >>> sd.map(lambda x: x + 1, Mirror(lr=1)).lr
    2
    """

    def __init__(self, *args: Any, **items: Any) -> None:
        super().__init__(*args, **items)
        for key, value in self.items():
            if isinstance(key, str):
                object.__setattr__(self, key, value)


@register_container
class Boxed(UserDict[Any, Any]):
    """A wrapper around a dict, of whatever type it is.

    >>> type(sd.copy(Boxed.around(OrderedDict(a=1))).data).__name__
    'OrderedDict'
    """

    @classmethod
    def around(cls, data: Any) -> Boxed:
        new = cls()
        new.data = data
        return new


@register_container
class Listed(UserList[Any]):
    """A wrapper around a list, of whatever type it is.

    >>> sd.copy(Listed([1]))
    [1]
    """


class Color(enum.Enum):
    """An enum, for leaves and keys.

    >>> sd.leaves({Color.RED: Color.BLUE})
    [<Color.BLUE: 'blue'>]
    """

    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    """Numbers that are members of an enum, equal to what they are not.

    >>> sd.structure([{Level.LOW: 0}, {0: 0}])
    TreeSpec([{<Level.LOW: 0>: *}, {0: *}])
    """

    LOW = 0
    HIGH = 1


class Word(enum.StrEnum):
    """Words that are members of an enum, equal to what they are not.

    >>> sd.structure({Word.W: 0}) == sd.structure({"w": 0})
    False
    """

    W = "w"


class Text(str):
    """A str of a type of its own, which reads as any other.

    >>> Text("w"), sd.similar({Text("w"): 0}, {"w": 0})
    ('w', False)
    """


TWINS: tuple[tuple[Key, ...], ...] = (
    (0, False, 0.0, -0.0),
    (1, True, 1.0),
    (("w", 1), ("w", True), ("w", 1.0)),
    ((0.0, "w"), (-0.0, "w")),
)
"""Keys that Python takes for equal, and JSON can say."""

TWINS_APART: tuple[tuple[Key, ...], ...] = (
    (0, Level.LOW, False),
    (1, Level.HIGH, 1.0),
    ("w", Word.W, Text("w")),
    (frozenset({1}), frozenset({True})),
)
"""Others, that JSON cannot say."""


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


def _times(children: Sequence[Tree]) -> time.struct_time:
    """Return a tuple of named fields of which two are not among its items."""
    return _struct(time.struct_time, [*children, *range(9)], 9)


def _stat(children: Sequence[Tree]) -> os.stat_result:
    """Return a tuple of named fields of which three have no name."""
    return _struct(os.stat_result, [*children, *range(10)], 10)


def _struct(cls: Any, values: Sequence[Tree], count: int) -> Any:
    _, (_, hidden) = cls(range(count)).__reduce__()
    return cls(values[:count], dict.fromkeys(hidden, "hidden"))


_INNER = (dict, _ordered, _default, _state)


def _listed(children: Sequence[Tree]) -> Listed:
    new = Listed()
    new.data = _rows(children)
    return new


MAPPINGS: tuple[Callable[[Sequence[tuple[Key, Tree]]], Tree], ...] = (
    *(dict, _ordered, _default, _counter, _state, Settings, Mirror),
    *(lambda pairs, inner=inner: Boxed.around(inner(pairs)) for inner in _INNER),
)
SEQUENCES: tuple[Callable[[Sequence[Tree]], Tree], ...] = (
    *(list, tuple, _rows, lambda xs: deque(xs, maxlen=len(xs) + 1)),
    *(Listed, _listed),
)
SEQUENCES_APART: tuple[Callable[[Sequence[Tree]], Tree], ...] = (_times, _stat)
"""Others, that JSON cannot say."""
