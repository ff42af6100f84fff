"""Containers of every sort, as trees are drawn with."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Level(enum.IntEnum):
    """Numbers that are members of an enum, equal to what they are not.

    >>> sd.structure([{Level.LOW: 0}, {0: 0}])
    TreeSpec([{<Level.LOW: 0>: *}, {0: *}])
    """

    LOW = 0
    HIGH = 1


class Mode(enum.StrEnum):
    """Words that are members of an enum, equal to what they are not.

    >>> sd.structure({Mode.W: 0}) == sd.structure({"w": 0})
    False
    """

    W = "w"


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
    ("w", Mode.W),
    (frozenset({1}), frozenset({True})),
)
"""Others, that JSON cannot say."""


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
