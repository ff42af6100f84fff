"""Strategies for trees of sharded leaves that ranks make alike.

What is drawn is data and goes to other processes; each rank makes its part of it there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.kinds.handler import register_leaf
from sdtree.testing.layouts import Blocked, Boxed, Meshed, blocks, layouts
from sdtree.testing.strategies import DTYPES, dense
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree

SHARED_DTYPES = (torch.float32, torch.bfloat16, *DTYPES)


@dataclass(frozen=True, slots=True)
class Sketch:
    """A leaf that ranks are to make: of some bits, dense where there is no layout.

    ``full()`` is the whole tensor, ``sharded()`` what this rank is to hold of it, and
    ``bits`` is what two sketches of the same data share.

    >>> one, other = (Sketch((2,), None, torch.int8, 7) for _ in range(2))
    >>> one.bits == other.bits, bool((one.full() == other.sharded()).all())
    (True, True)
    """

    shape: tuple[int, ...]
    layout: Meshed | Blocked | Boxed | None
    dtype: torch.dtype
    number: int
    is_parameter: bool = False

    def full(self) -> Tensor:
        """Return the whole tensor."""
        return dense(self.shape, self.dtype, self.number)

    def sharded(self) -> Leaf:
        """Return what this rank is to hold of it."""
        return (
            self.full() if self.layout is None else self.layout.distribute(self.full())
        )

    @property
    def bits(self) -> Hashable:
        """Return what two sketches of the same data share."""
        return self.shape, self.layout, self.dtype, self.number


# Else it would be a container, as other dataclasses are.
register_leaf(Sketch, flatten=lambda x: ((), x), unflatten=lambda x, _: x)


def full_of(tree: Tree) -> Tree:
    """Return the tree of whole tensors; sketches of the same data are tied.

    >>> x = Sketch((2,), None, torch.int8, 7)
    >>> sd.ties(full_of({"a": x, "b": x}))
    [[('a',), ('b',)]]
    """

    def mark(x: Sketch, t: Tensor) -> Tensor:
        return t.detach().requires_grad_(x.is_parameter)

    return _made(tree, Sketch.full, mark)


def sharded_of(tree: Tree) -> Tree:
    """Return the tree of what this rank holds; sketches of the same data are tied.

    >>> x = Sketch((2,), None, torch.int8, 7)
    >>> sd.equal(sharded_of([x, 3]), full_of([x, 3]))
    True
    """

    def mark(x: Sketch, t: Tensor) -> Tensor:
        return torch.nn.Parameter(t) if x.is_parameter else t

    return _made(tree, Sketch.sharded, mark)


def _made(
    tree: Tree,
    make: Callable[[Sketch], Tensor],
    mark: Callable[[Sketch, Tensor], Tensor],
) -> Tree:
    leaves, spec = take(tree)
    made: dict[Hashable, Tensor] = {}
    for x in leaves:
        if isinstance(x, Sketch) and x.bits not in made:
            made[x.bits] = make(x)
    return spec.make(
        [mark(x, made[x.bits]) if isinstance(x, Sketch) else x for x in leaves]
    )


@st.composite
def sketches(draw: DrawFn, world: int = 4, **options: Any) -> Sketch:
    """Return leaves to be: of every sharded kind, dense ones, steps of 0 dimensions.

    The options are those of ``layouts``.

    >>> import hypothesis
    >>> hypothesis.find(sketches(), lambda x: x.layout is None).shape
    ()
    """
    kind = draw(st.sampled_from("mmmmmmbbdpss" if not options else "mmms"))
    layout: Meshed | Blocked | Boxed | None = None
    if kind == "m":
        layout = draw(layouts(world, **options))
    elif kind == "b":
        layout = draw(blocks(world))
    elif kind == "s":
        settled = {name: x for name, x in options.items() if name != "partial"}
        ways = layouts(world, **settled) | (st.nothing() if options else blocks(world))
        layout = Boxed(draw(ways), world)
    shape = (
        draw(st.sampled_from([(), (3,), (2, 2)])) if layout is None else layout.shape
    )
    dtype = draw(st.sampled_from(SHARED_DTYPES))
    parameter = kind == "m" and dtype.is_floating_point and draw(st.booleans())
    return Sketch(shape, layout, dtype, draw(st.integers(0, 99)), parameter)


@st.composite
def sharded_trees(
    draw: DrawFn, leaves: SearchStrategy[Sketch] | None = None, *, max_leaves: int = 6
) -> Tree:
    """Return trees of sketches and plain values; a sketch that stands twice is a tie.

    Some are of one form, and have other data.

    ``sharded_of`` makes of one what a rank holds, ``full_of`` what all hold together.

    >>> import hypothesis
    >>> from hypothesis import strategies as st
    >>> step = st.just(Sketch((), None, torch.int8, 7))
    >>> tree = hypothesis.find(sharded_trees(step), lambda tree: len(tree["each"]) == 1)
    >>> sd.spec(full_of(tree)["each"])
    [Abstract(Tensor, (), int8)]
    """
    found = draw(
        st.lists(
            sketches() if leaves is None else leaves, min_size=1, max_size=max_leaves
        )
    )
    again = draw(st.lists(st.sampled_from(found), max_size=4))
    found += [replace(x, number=10_000 * (k + 1)) for k, x in enumerate(again)]
    some = st.sampled_from([*found, *found, None, 3, "text", 0.5])
    nested = draw(
        st.recursive(
            st.dictionaries(
                st.sampled_from(["w", "b", "a.b", 0, "0"]), some, max_size=3
            ),
            lambda inner: st.one_of(
                st.dictionaries(st.sampled_from(["model", "optimizer", 1]), inner),
                st.lists(st.one_of(inner, some), max_size=3),
                st.tuples(inner, some),
            ),
            max_leaves=3,
        )
    )
    return {"each": found, "nested": nested}
