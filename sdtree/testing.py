"""Hypothesis strategies for state dicts, and the laws as checks for what you add.

>>> from sdtree.testing import check_transform, trees
>>> check_transform(sd.drop("**.step", missing_ok=True), trees(), examples=5)
"""

from __future__ import annotations

import enum
import io
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.arena import storage_keys
from sdtree.container import ABSENT, register_container
from sdtree.course import Course, runs_of
from sdtree.errors import NoMatch
from sdtree.leaf import handler_of
from sdtree.ops.comparing import diff
from sdtree.ops.local import copy, empty_like
from sdtree.ops.looking import spec, ties
from sdtree.path import name_of
from sdtree.transform import Transform, identity
from sdtree.tree import items, structure
from sdtree.treespec import take
from sdtree.typing import Key, Leaf, Path, Tree
from sdtree.values import same_value

# -- containers of every sort ------------------------------------------------------


@register_container
class Pair(NamedTuple):
    """A namedtuple."""

    first: Tree
    second: Tree


@register_container
@dataclass
class Layer:
    """A dataclass that cannot be made from its children alone."""

    weight: Tree
    bias: Tree

    def __post_init__(self) -> None:
        raise AssertionError("a dataclass is rebuilt without its __init__")


@register_container
class State(OrderedDict[Any, Any]):
    """A Mapping subclass with an ``__init__`` of its own and attributes."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version


@register_container
class Rows(list[Any]):
    """A list subclass that has attributes."""


class Color(enum.Enum):
    """An enum, for leaves and keys."""

    RED = 1
    BLUE = "blue"


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


def _layer(children: Sequence[Tree]) -> Layer:
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


# -- keys, paths, plain values -----------------------------------------------------


@cache
def keys(*, portable: bool = True) -> SearchStrategy[Key]:
    """Return keys of mappings: str (dotted, empty), int, bool, None, bytes, tuples.

    Without ``portable`` also those that JSON cannot say.
    """
    words = st.sampled_from(["w", "0", "1", "a.b", "", "step", "é", "module"])
    portable_keys: list[SearchStrategy[Key]] = [
        words,
        st.text(st.characters(codec="utf-8"), max_size=4),
        st.integers(-1, 3),
        st.booleans(),
        st.none(),
        st.floats(allow_nan=False),
        st.binary(max_size=2),
        st.tuples(st.integers(0, 2), words),
    ]
    others: list[SearchStrategy[Key]] = [
        st.sampled_from(Color),
        st.frozensets(st.integers(0, 2)),
    ]
    return st.one_of(*portable_keys, *(others if not portable else ()))


def paths() -> SearchStrategy[Path]:
    """Return paths: tuples of keys."""
    return st.lists(keys(), max_size=4).map(tuple)


def plain_values() -> SearchStrategy[Leaf]:
    """Return plain Python values as leaves, bits of floats and all."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.complex_numbers(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.sampled_from([torch.float32, torch.int8, torch.Size([2, 3])]),
        st.just(torch.device("cpu")),
        st.builds(_buffer, st.binary(max_size=5), st.integers(0, 5)),
    )


def _buffer(data: bytes, position: int) -> io.BytesIO:
    buffer = io.BytesIO(data)
    buffer.seek(position)
    return buffer


# -- tensors -----------------------------------------------------------------------

FLOATING = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
)
INTEGRAL = (
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
DTYPES = (*FLOATING, *INTEGRAL, *COMPLEX)


def dense(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Return a contiguous tensor of that dtype with random bits."""
    count = math.prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).view(tuple(shape))


@st.composite
def tensors(
    draw: DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    max_dims: int = 3,
    max_side: int = 3,
    meta: bool = True,
) -> Tensor:
    """Return tensors of every dtype, shape and stride, with random bits.

    0-dim, zero-size, transposed, sliced, expanded, conjugated, negated; Parameters and
    tensors that require grad; meta tensors unless ``meta`` is False.
    """
    shape = draw(st.lists(st.integers(0, max_side), max_size=max_dims))
    base = dense(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16)))
    changed = draw(st.sampled_from(VIEWS))(base)
    if meta and draw(st.integers(0, 9)) == 0:
        changed = changed.to("meta")
    return draw(st.sampled_from(MARKS))(changed)


def _every_second(t: Tensor) -> Tensor:
    return t[..., ::2] if t.dim() else t


def _expanded(t: Tensor) -> Tensor:
    return t.unsqueeze(0).expand(3, *t.shape)


def _far_apart(t: Tensor) -> Tensor:
    """Return a view that fills little of its span."""
    wide = torch.zeros(*t.shape, 7, dtype=torch.uint8).view(torch.uint8)
    return t if t.dim() == 0 else wide.select(-1, 3)


def _conjugated(t: Tensor) -> Tensor:
    return t.conj() if t.is_complex() else t


def _imaginary(t: Tensor) -> Tensor:
    """Return the imaginary part of a conjugate: a tensor whose negative bit is set."""
    return t.conj().imag if t.dtype in (torch.complex64, torch.complex128) else t


VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda t: t, lambda t: t, lambda t: t.mT if t.dim() > 1 else t),
    *(_every_second, _expanded, _far_apart, _conjugated, _imaginary),
)


def _parameter(t: Tensor) -> Tensor:
    return torch.nn.Parameter(t, requires_grad=t.is_floating_point())


def _with_attribute(t: Tensor) -> Tensor:
    t = t.detach()
    t.note = "kept"  # type: ignore[attr-defined]
    return t


def _requiring_grad(t: Tensor) -> Tensor:
    t = t.detach()
    return t.requires_grad_() if t.is_floating_point() or t.is_complex() else t


MARKS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda t: t, lambda t: t, lambda t: t),
    *(_parameter, _requiring_grad, _with_attribute),
)


@st.composite
def sparse_tensors(draw: DrawFn) -> Tensor:
    """Return sparse tensors, coordinates or compressed rows."""
    side = draw(st.integers(1, 4))
    values = dense((side, side), torch.float32, draw(st.integers(0, 9)))
    kept = torch.where(values.isfinite() & (values > 0), values, torch.zeros(()))
    return kept.to_sparse() if draw(st.booleans()) else kept.to_sparse_csr()


def arrays() -> SearchStrategy[Leaf]:
    """Return numpy arrays and scalars, backwards and read-only ones too."""
    import numpy as np

    def backwards(n: int) -> Leaf:
        return np.arange(n, dtype=np.float32)[::-1]

    def read_only(n: int) -> Leaf:
        array = np.arange(n)
        array.flags.writeable = False
        return array

    sizes = st.integers(0, 3)
    return st.one_of(
        sizes.map(backwards),
        sizes.map(read_only),
        sizes.map(lambda n: np.ones((n, 2), np.dtype(">i4"))),
        st.just(np.array(["ab", "c"])),
        st.floats(width=32).map(np.float32),
    )


def leaves() -> SearchStrategy[Leaf]:
    """Return leaves of every kind that is built in."""
    return st.one_of(tensors(), tensors(), plain_values(), arrays(), sparse_tensors())


# -- trees -------------------------------------------------------------------------


def trees(
    leaves: SearchStrategy[Leaf] | None = None,
    *,
    portable: bool = True,
    unique_names: bool = False,
    max_leaves: int = 8,
) -> SearchStrategy[Tree]:
    """Return trees with all the nasty cases.

    Every container, empty ones and ``ABSENT`` too; keys alike but of other types;
    tied tensors and views of one storage; leaves of every kind, or of the strategy
    given. ``portable`` leaves out keys that JSON cannot say, ``unique_names`` the trees
    in which two paths have one name.

    >>> from sdtree.testing import trees
    >>> sd.structure(trees(unique_names=True).example())  # doctest: +SKIP
    TreeSpec([{'w': *}, *])
    """
    found = st.recursive(
        _any_leaf() if leaves is None else leaves,
        lambda inner: containers(inner, portable),
        max_leaves=max_leaves,
    )
    return found.filter(_has_unique_names) if unique_names else found


def _has_unique_names(tree: Tree) -> bool:
    found = structure(tree).names()
    return len(set(found)) == len(found)


@cache
def _any_leaf() -> SearchStrategy[Leaf]:
    """Return leaves of every kind, some of which share storage with each other."""
    pool = st.shared(
        st.builds(dense, st.just((12,)), st.sampled_from(DTYPES), st.integers(0, 9)),
        key="the storage that the leaves of one tree share",
    )
    shared = st.builds(_apply, st.sampled_from(POOL_VIEWS), pool)
    return st.one_of(shared, leaves())


def _apply(make: Callable[[Any], Tree], given: Any) -> Tree:
    return make(given)


POOL_VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t,
    lambda t: t.detach(),
    lambda t: t.view(3, 4),
    lambda t: t.view(3, 4).t(),
    lambda t: t[2:5],
    lambda t: t[8:],
    lambda t: t[6].expand(2, 2),
    lambda t: t.view(torch.uint8 if t.dtype.itemsize > 1 else t.dtype),
    lambda t: torch.nn.Parameter(t.view(4, 3), requires_grad=False),
)


def containers(
    children: SearchStrategy[Tree], portable: bool = True
) -> SearchStrategy[Tree]:
    """Return containers of every type, empty ones too, with these children."""
    elements = st.lists(st.one_of(children, children, st.just(ABSENT)), max_size=3)
    pairs = st.dictionaries(keys(portable=portable), children, max_size=3).map(_pairs)
    two = st.tuples(children, children)
    return st.one_of(
        st.builds(_apply, st.sampled_from(MAPPINGS), pairs),
        st.builds(_apply, st.sampled_from(SEQUENCES), elements),
        two.map(lambda found: Pair(*found)),
        two.map(_layer),
    )


def _pairs(found: Mapping[Key, Tree]) -> list[tuple[Key, Tree]]:
    return list(found.items())


@st.composite
def selectors_of(draw: DrawFn, tree: Tree) -> object:
    """Return selectors that have something to say about a tree: globs, types, tests."""
    found = structure(tree).names()
    names = [name for name in found if "*" not in name] or ["none"]
    name = draw(st.sampled_from(names))
    head, _, tail = name.partition(".")
    globs = [name, "**", f"{head}.**", f"**.{tail}" if tail else "*", "*", "nothing"]
    kinds: list[object] = [Tensor, int, (float, str), type(None)]
    return draw(st.sampled_from([*globs, *kinds, _is_even]))


def _is_even(path: Path, leaf: Leaf) -> bool:
    return len(path) % 2 == 0


# -- the laws as checks ------------------------------------------------------------


def check_leaf(
    kind: type, strategy: SearchStrategy[Leaf], *, examples: int = 50
) -> None:
    """Check the law of leaves for a kind, on ``examples`` leaves of a strategy.

    That is: a leaf comes apart into tensors and goes together as it was, of its own
    type, without a copy; and so ``copy``, ``empty_like``, ``spec`` work on it.

    >>> from sdtree.testing import check_leaf, tensors
    >>> check_leaf(torch.Tensor, tensors(), examples=5)
    """

    def check(leaf: Leaf) -> None:
        assert isinstance(leaf, kind), f"the strategy drew a {type(leaf).__name__}"
        check_one_leaf(leaf)

    _for_all(check, strategy, examples)


def check_one_leaf(leaf: Leaf) -> None:
    """Check the law of leaves for one leaf."""
    handler = handler_of(leaf)
    ts, aux = handler.flatten(leaf)
    assert all(isinstance(t, Tensor) for t in ts), "flatten gives local tensors"
    back = handler.unflatten(aux, ts)
    if handler.keeps_type:
        assert type(back) is type(leaf), "unflatten gives back the type"
        again, other = handler.flatten(back)
        assert same_value(aux, other), f"aux came back as {other}, not {aux}"
        assert _held(again) == _held(ts), "neither of them copies data"
        assert not diff(back, leaf), f"a leaf came back changed: {diff(back, leaf)}"
    copied = copy({"leaf": leaf})["leaf"]
    assert not diff(copied, back), f"copy changes the leaf: {diff(copied, back)}"
    assert not _shared(copied, leaf), "copy shares storage with the leaf"
    buffer = empty_like({"leaf": back})
    assert not diff(copy({"leaf": back}, into=buffer), {"leaf": back})
    spec(leaf)


def _held(ts: Sequence[Tensor]) -> list[int]:
    """Return the storage of each tensor that has data."""
    return storage_keys(t for t in ts if t.numel() and not t.is_meta)


def _shared(a: Leaf, b: Leaf) -> set[int]:
    sides = (_held(handler_of(leaf).flatten(leaf)[0]) for leaf in (a, b))
    return set(next(sides)) & set(next(sides))


def check_transform(
    transform: Transform, strategy: SearchStrategy[Tree], *, examples: int = 50
) -> None:
    """Check the laws of transforms for one, on ``examples`` trees of a strategy.

    That is: the input stays as it was; ``identity`` is neutral; windows never show,
    however small; a stream yields what a call returns.

    >>> from sdtree.testing import check_transform, trees
    >>> check_transform(sd.copy() | sd.prefix("model"), trees(), examples=5)
    """
    _for_all(lambda tree: check_transform_on(transform, tree), strategy, examples)


def check_transform_on(transform: Transform, tree: Tree) -> None:
    """Check the laws of transforms for one transform on one tree."""
    before = snapshot(tree)
    try:
        expected = transform(tree)
    except NoMatch:
        return
    assert snapshot(tree) == before, "the input was changed"
    for same in (identity | transform, transform | identity):
        assert_same(same(tree), expected, "identity is neutral")
    wanted = dict(items(expected))
    for limit in (None, 1):
        streamed = dict(_stream(transform, tree, limit))
        assert set(streamed) == set(wanted), "a stream yields what a call returns"
        for path, leaf in streamed.items():
            assert not diff(leaf, wanted[path]), f"the window shows at {name_of(path)}"
    assert snapshot(tree) == before, "the input was changed"


def _stream(
    transform: Transform, tree: Tree, limit: int | None
) -> Sequence[tuple[Path, Leaf]]:
    *before, last = runs_of(transform.stages)
    if any(len(run) for run in before):
        return list(transform.stream(tree))
    return list(Course.of(tree, last).stream(limit))


def assert_same(a: Tree, b: Tree, law: str) -> None:
    """Raise ``AssertionError`` unless two trees are the same: structure, bits, ties."""
    assert structure(a) == structure(b), f"{law}: {structure(a)} is not {structure(b)}"
    assert not diff(a, b), f"{law}:\n{diff(a, b)}"
    assert ties(a) == ties(b), f"{law}: ties {ties(a)} are not {ties(b)}"


def snapshot(tree: Tree) -> Hashable:
    """Return what must not change when a tree is only read: containers and bits."""
    found, structure_ = take(tree)
    marks = [(id(leaf), *((id(t), t._version) for t in _dense(leaf))) for leaf in found]
    return repr(structure_), tuple(marks)


def _dense(leaf: Leaf) -> list[Tensor]:
    return [leaf] if isinstance(leaf, Tensor) and not leaf.is_inference() else []


def _for_all(
    check: Callable[[Any], None], strategy: SearchStrategy[Any], examples: int
) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.nested_given]
    run = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=quiet,
        report_multiple_bugs=False,
    )
    run(given(strategy)(check))()
