"""A state dict is a tree: one walk takes it apart into leaves and a ``TreeSpec``."""

from __future__ import annotations

from sdtree.kinds.strangers import reject_file_names
from sdtree.tensors.modes import uncompiled
from sdtree.tree.spec import TreeSpec, lasting, take
from sdtree.typing import Leaf, Path, Tree


@uncompiled
def structure(tree: Tree, /) -> TreeSpec:
    """Return the structure of a tree.

    Law: ``unflatten(flatten(tree), spec=structure(tree))`` is ``tree``. What is written
    into the tree afterwards, as ``load_state_dict`` does into ``_metadata``, changes
    nothing of it.

    >>> sd.structure({"model": {"w": 1.0}, "step": 3})
    TreeSpec({'model': {'w': *}, 'step': *})
    """
    return lasting(take(tree)[1])


@uncompiled
def leaves(tree: Tree, /) -> list[Leaf]:
    """Return the leaves of a tree in path order. ``None`` is a leaf.

    >>> sd.leaves({"a": 1, "b": [2, None]})
    [1, 2, None]
    """
    return take(tree)[0]


@uncompiled
def paths(tree: Tree, /) -> list[Path]:
    """Return the path of every leaf: a tuple of dict keys, indices and field names.

    Law: paths are unique.

    >>> sd.paths({"state": {0: {"step": 1}}, "lrs": [0.1]})
    [('state', 0, 'step'), ('lrs', 0)]
    """
    return take(tree)[1].paths()


@uncompiled
def names(tree: Tree, /, *, sep: str = ".") -> list[str]:
    """Return the name of every leaf; raise ``NameCollision`` if two share one.

    >>> sd.names({"state": {0: {"step": 1}}, "lrs": [0.1]})
    ['state.0.step', 'lrs.0']
    """
    reject_file_names(tree)
    return take(tree)[1].unique_names(sep)


@uncompiled
def items(tree: Tree, /) -> list[tuple[Path, Leaf]]:
    """Return every leaf with its path, in path order.

    >>> sd.items({"a": 1, "b": [2]})
    [(('a',), 1), (('b', 0), 2)]
    """
    reject_file_names(tree)
    found, spec = take(tree)
    return list(zip(spec.paths(), found, strict=True))


def check_spec(verb: str, spec: object) -> None:
    """Raise unless what is given as ``spec=`` is one."""
    if not isinstance(spec, TreeSpec):
        raise TypeError(
            f"{verb}: spec= is a TreeSpec, not a {type(spec).__name__}; "
            "sd.structure(tree) returns that of a tree"
        )
