"""The leaves of a tree that no file holds: what was read without its class."""

from __future__ import annotations

from collections import Counter
from typing import Final

from sdtree.errors import UnknownLeaf
from sdtree.io.pickles.foreign import SETS, Foreign
from sdtree.kinds.handler import handler_of
from sdtree.ops.choosing import drop
from sdtree.path import where
from sdtree.text.short import full_name
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

FEW: Final = 5
"""How many names a note has."""


def foreigners(tree: Tree) -> dict[Path, Foreign]:
    """Return the leaves of a tree that are ``Foreign``, by their paths."""
    leaves, spec = take(tree)
    if Foreign not in {base for cls in {*map(type, leaves)} for base in cls.__mro__}:
        return {}
    pairs = zip(spec.paths(), leaves, strict=True)
    return {path: leaf for path, leaf in pairs if isinstance(leaf, Foreign)}


def with_sets_apart(tree: Tree) -> Tree:
    """Return a tree whose sets are plain; one that holds more is a ``Foreign``.

    What is in a set has no path, so that no tensor in it could be reached. A tree with
    a leaf that the user has allowed and not registered comes as it is.
    """
    try:
        leaves, spec = take(tree)
    except UnknownLeaf:
        return tree
    if not {*SETS}.intersection(map(type, leaves)):
        return tree
    return spec.make(map(_plain_or_foreign, leaves))


def _plain_or_foreign(leaf: Leaf) -> Leaf:
    if not isinstance(leaf, SETS):
        return leaf
    try:
        handler_of(leaf).flatten(leaf)
    except UnknownLeaf:
        return Foreign(full_name(type(leaf)), ([*leaf],))
    return leaf


def note_on(tree: Tree) -> str:
    """Return what is to be noted of the foreign leaves of a tree, empty if nothing."""
    names = Counter(leaf.name for leaf in foreigners(tree).values())
    if not names:
        return ""
    told = [f"{name} ({count})" for name, count in names.most_common(FEW)]
    more = ["..."] if len(names) > FEW else []
    return f"read without their classes: {', '.join(told + more)}"


def without_foreign(tree: Tree) -> Tree:
    """Return a tree without its foreign leaves."""
    return drop(tree, Foreign, missing_ok=True)


ADVICE: Final = (
    "sd.drop(tree, sdtree.io.Foreign), or have their classes known before the file is "
    "loaded: by torch.serialization.add_safe_globals, or by importing what does that"
)


def check_known(tree: Tree, advice: str = ADVICE) -> None:
    """Raise ``TypeError`` if a leaf is foreign, with the advice how to leave it out."""
    for path, leaf in foreigners(tree).items():
        raise TypeError(
            f"{where(path)}: read without its class, and not to be written: "
            f"{leaf.told()}; leave out all that are by {advice}"
        )
