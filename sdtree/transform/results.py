"""Results that lie in one and the same memory, call after call."""

from __future__ import annotations

from sdtree.tensors.remake import Allocator, remake
from sdtree.transform.form import Fitting, Look
from sdtree.transform.into import Rewriter
from sdtree.transform.run import Run
from sdtree.transform.stages import LeafStage
from sdtree.transform.window import apart_in, handled
from sdtree.tree.alike import Into
from sdtree.tree.spec import take
from sdtree.typing import Tree


class Results:
    """Buffers that take the results of one call after the other.

    They are made anew when the form of a result is another, or theirs is changed.
    """

    __slots__ = ("_buffers", "_own", "_wanted", "_write")

    def __init__(self) -> None:
        self._buffers: Tree = None
        self._own: Fitting | None = None
        self._wanted: Fitting | None = None
        self._write = LeafStage("", lambda _: lambda window: window.leaves)

    def filled(self, tree: Tree) -> Tree:
        """Return a tree of the buffers with the data of another, plain values its."""
        look = handled(lambda: self._look(tree), tree)
        if look is not None:
            return Run.of(tree, [self._write], look).call()
        return handled(lambda: self._renewed(tree), tree)

    def _look(self, tree: Tree) -> Look | None:
        """Return a result looked at, None if there are no buffers of its form."""
        if self._wanted is None or self._own is None:
            return None
        look, own = self._wanted.look(tree), self._own.look(self._buffers)
        return look if isinstance(look, Look) and isinstance(own, Look) else None

    def _renewed(self, tree: Tree) -> Tree:
        self._buffers = _copy(tree)
        self._wanted, self._own = Fitting(tree), Fitting(self._buffers)
        bind = Rewriter(Into(self._buffers))
        self._write = LeafStage("", bind, is_paired=True)
        leaves, spec = take(self._buffers)
        return spec.make(leaves)


def _copy(tree: Tree) -> Tree:
    leaves, spec = take(tree)
    parts = apart_in(spec, leaves)
    return spec.make(parts.join(remake(parts.tensors, Allocator())))
