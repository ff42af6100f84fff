"""Whether a tree has the data that is to be written."""

from __future__ import annotations

from collections.abc import Sequence

from sdtree.kinds.handler import kind_of
from sdtree.ops.local import copy
from sdtree.path import where
from sdtree.tensors.storage import is_lazy
from sdtree.transform.window import Parts, apart_in
from sdtree.tree.spec import take
from sdtree.typing import Path, Tree


def with_data(tree: Tree) -> Tree:
    """Return a tree that can be written as it is, with conj and neg bits resolved."""
    if any(map(is_lazy, check_given(tree).tensors)):
        return copy(tree)
    return tree


def check_given(tree: Tree) -> Parts:
    """Return the local tensors of a tree; raise if a leaf is without data."""
    leaves, spec = take(tree)
    parts = apart_in(spec, leaves)
    for i, leaf in enumerate(leaves):
        if kind_of(leaf) is not type(leaf):
            raise _no_data(spec.every_path[i], type(leaf).__name__)
    check_data(parts, spec.paths())
    return parts


def check_data(parts: Parts, paths: Sequence[Path]) -> None:
    """Raise if one of the local tensors is without data."""
    for owner, t in zip(parts.owners(), parts.tensors, strict=True):
        if t.is_meta:
            raise _no_data(paths[owner], "meta tensor")


def _no_data(path: Path, what: str) -> TypeError:
    return TypeError(f"{where(path)}: the {what} has no data to write; drop it first")
