"""Strategies for trees, and for selectors that have something to say about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.naming.globs import only_name
from sdtree.testing.ndarrays import DTYPES as ARRAY_DTYPES
from sdtree.testing.ndarrays import array_of
from sdtree.testing.samples import (
    MAPPINGS,
    SEQUENCES,
    SEQUENCES_APART,
    TWINS,
    TWINS_APART,
    Both,
    Pair,
    layer,
)
from sdtree.testing.strategies import DTYPES, dense, keys, leaves
from sdtree.tree.containers import ABSENT
from sdtree.tree.flattening import structure
from sdtree.typing import Key, Leaf, Path, Tree


def trees(
    leaves: SearchStrategy[Leaf] | None = None,
    *,
    portable: bool = True,
    unique_names: bool = False,
    max_leaves: int = 8,
) -> SearchStrategy[Tree]:
    """Return trees with all the nasty cases.

    Every container, empty ones and ``ABSENT`` too; keys alike but of other types;
    tied tensors, and views of one storage or array; leaves of every kind, or of the
    strategy given. ``portable`` leaves out keys that JSON cannot say, ``unique_names``
    the trees in which two paths have one name.

    >>> import hypothesis
    >>> from sdtree.testing import trees
    >>> from hypothesis import strategies as st
    >>> hypothesis.find(trees(st.just(1), max_leaves=2), lambda tree: tree == (1,))
    (1,)
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
    array = st.shared(
        st.builds(array_of, st.just((12,)), st.sampled_from(ARRAY_DTYPES), st.just(0)),
        key="the array that leaves of one tree are views of",
    )
    views = st.builds(_apply, st.sampled_from(ARRAY_VIEWS), array)
    return st.one_of(shared, views, leaves())


def _apply(make: Callable[[Any], Tree], given: Any) -> Tree:
    return make(given)


POOL_VIEWS: tuple[Callable[[Tensor], Leaf], ...] = (
    lambda t: t,
    lambda t: t.detach(),
    lambda t: t.view(3, 4),
    lambda t: t.view(3, 4).t(),
    lambda t: t[2:5],
    lambda t: t[8:],
    lambda t: t[6].expand(2, 2),
    lambda t: t.view(3, 4)[:, 1:3],
    lambda t: t.view(3, 4)[:, 3:],
    lambda t: t.as_strided((2, 2), (4, 4), 2),
    lambda t: t.as_strided((3, 2), (1, 2), 1),
    lambda t: t.view(torch.uint8),
    lambda t: Both(t.view(3, 4), t.view(4, 3).t()),
    lambda t: torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), t[4:6], (3,), check_invariants=False
    ),
    lambda t: torch.nn.Parameter(t.view(4, 3), requires_grad=False),
    lambda t: t.view(torch.uint8)[3:].numpy(),
)


ARRAY_VIEWS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x,
    lambda x: x[:5],
    lambda x: x[4:].reshape(2, 4),
    lambda x: x[8:2:-2],
    lambda x: x[3, ...],
    lambda x: x[7:8].repeat(0),
    lambda x: x[3] if x.dtype.names else x.reshape(3, 4).T,
    lambda x: x["f1"] if x.dtype.names else x[1:6:3],
    lambda x: _as_tensor(x),
    lambda x: _as_tensor(x[1:5]),
    lambda x: _as_tensor(x.view("u1")[3:9]),
)


def _as_tensor(x: Any) -> Any:
    """Return a tensor over the memory of an array, with a storage of its own."""
    try:
        return torch.from_numpy(x) if x.flags.writeable else x
    except (TypeError, ValueError):  # torch has none of this dtype, or these steps
        return x


def containers(
    children: SearchStrategy[Tree], portable: bool = True
) -> SearchStrategy[Tree]:
    """Return containers of every type, empty ones too, with these children.

    >>> import hypothesis
    >>> from hypothesis import strategies as st
    >>> from sdtree.testing import containers
    >>> hypothesis.find(containers(st.just(1)), lambda x: x == {0: 1})
    {0: 1}
    """
    elements = st.lists(st.one_of(children, children, st.just(ABSENT)), max_size=3)
    pairs = st.dictionaries(keys(portable=portable), children, max_size=3).map(_pairs)
    two = st.tuples(children, children)
    sequences = SEQUENCES if portable else (*SEQUENCES, *SEQUENCES_APART)
    return st.one_of(
        st.builds(_apply, st.sampled_from(MAPPINGS), pairs),
        st.builds(_apply, st.sampled_from(sequences), elements),
        two.map(lambda found: Pair(*found)),
        two.map(layer),
        siblings(children, portable=portable),
    )


def siblings(
    children: SearchStrategy[Tree], *, portable: bool = True
) -> SearchStrategy[Tree]:
    """Return dicts side by side whose keys are equal, but in another order or type.

    >>> import hypothesis
    >>> from hypothesis import strategies as st
    >>> from sdtree.testing.growing import siblings
    >>> def is_mixed(found):
    ...     return len({type(key) for one in found for key in one}) > 1
    >>> hypothesis.find(siblings(st.just(0)), is_mixed)
    [{0: 0}, {False: 0}]
    """
    return _rows_of_keys(portable).flatmap(
        lambda rows: st.tuples(
            *(st.fixed_dictionaries(dict.fromkeys(row, children)) for row in rows)
        ).map(list)
    )


@st.composite
def _rows_of_keys(draw: DrawFn, portable: bool) -> list[list[Key]]:
    """Return for each of two or three dicts its keys, one of each word."""
    words = [*TWINS, *((word,) for word in ("step", "w", "a.b"))]
    words += () if portable else TWINS_APART
    chosen = draw(st.lists(st.sampled_from(words), min_size=1, max_size=3))
    return [
        [draw(st.sampled_from(word)) for word in draw(st.permutations(chosen))]
        for _ in range(draw(st.integers(2, 3)))
    ]


def _pairs(found: Mapping[Key, Tree]) -> list[tuple[Key, Tree]]:
    return list(found.items())


@st.composite
def selectors_of(draw: DrawFn, tree: Tree) -> object:
    """Return selectors that have something to say about a tree: globs, types, tests.

    >>> import hypothesis
    >>> from sdtree.testing import selectors_of
    >>> hypothesis.find(selectors_of({"model": {"w": 1}}), lambda x: x == "model.**")
    'model.**'
    """
    found = structure(tree).names()
    names = [name for name in found if only_name(name)] or ["none"]
    name = draw(st.sampled_from(names))
    head, _, tail = name.partition(".")
    globs = [name, "**", f"{head}.**", f"**.{tail}" if tail else "*", "*", "nothing"]
    globs += [f"?{head[1:]}.**", f"{{{head},nothing}}.**", f"**.[!0-3]{name[-1:]}"]
    kinds: list[object] = [Tensor, int, (float, str), type(None)]
    return draw(st.sampled_from([*globs, *kinds, _is_even]))


def _is_even(path: Path, leaf: Leaf) -> bool:
    return len(path) % 2 == 0
