"""A state dict is a tree: one walk takes it apart into leaves and a ``TreeSpec``."""

from __future__ import annotations

from collections.abc import Mapping

from sdtree.errors import NameCollision, SpecMismatch
from sdtree.path import check_sep
from sdtree.shapes import difference
from sdtree.strangers import reject_file_names
from sdtree.treespec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree


def structure(tree: Tree, /) -> TreeSpec:
    """Return the structure of a tree.

    Law: ``unflatten(flatten(tree), spec=structure(tree))`` is ``tree``.

    >>> sd.structure({"model": {"w": 1.0}, "step": 3})
    TreeSpec({'model': {'w': *}, 'step': *})
    """
    return take(tree)[1]


def leaves(tree: Tree, /) -> list[Leaf]:
    """Return the leaves of a tree in path order. ``None`` is a leaf.

    >>> sd.leaves({"a": 1, "b": [2, None]})
    [1, 2, None]
    """
    return take(tree)[0]


def paths(tree: Tree, /) -> list[Path]:
    """Return the path of every leaf: a tuple of dict keys, indices and field names.

    Law: paths are unique.

    >>> sd.paths({"state": {0: {"step": 1}}, "lrs": [0.1]})
    [('state', 0, 'step'), ('lrs', 0)]
    """
    return take(tree)[1].paths()


def names(tree: Tree, /, *, sep: str = ".") -> list[str]:
    """Return the name of every leaf; raise ``NameCollision`` if two share one.

    >>> sd.names({"state": {0: {"step": 1}}, "lrs": [0.1]})
    ['state.0.step', 'lrs.0']
    """
    reject_file_names(tree)
    return take(tree)[1].unique_names(sep)


def items(tree: Tree, /) -> list[tuple[Path, Leaf]]:
    """Return every leaf with its path, in path order.

    >>> sd.items({"a": 1, "b": [2]})
    [(('a',), 1), (('b', 0), 2)]
    """
    reject_file_names(tree)
    found, spec = take(tree)
    return list(zip(spec.paths(), found, strict=True))


def flatten(tree: Tree, /, sep: str = ".") -> dict[str, Leaf]:
    """Return one level of dotted names.

    Inverse: ``unflatten(flat, spec=structure(tree))``. Two leaves of one name raise
    ``NameCollision``.

    >>> sd.flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c.0': 2, 'c.1': 3}
    """
    reject_file_names(tree)
    found, spec = take(tree)
    flat = dict(zip(spec.names(sep), found, strict=True))
    if len(flat) < len(found):
        spec.unique_names(sep)
    return flat


def unflatten(
    flat: Mapping[str, Leaf], /, spec: TreeSpec | None = None, sep: str = "."
) -> Tree:
    """Return the tree whose flat form is given.

    With ``spec`` it is the very tree that ``flatten`` was given; names that are missing
    or unexpected raise ``SpecMismatch``. Without, names are split at ``sep`` into
    nested dicts with str keys.

    >>> sd.unflatten({"a.b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    >>> sd.unflatten({"a.0": 1}, spec=sd.structure({"a": [0]}))
    {'a': [1]}
    """
    if not isinstance(flat, Mapping):
        raise TypeError(
            f"unflatten takes a mapping from names to leaves, not a "
            f"{type(flat).__name__}; flatten(tree) returns one"
        )
    check_sep(sep)
    if spec is None:
        return _nest(flat, sep)
    check_spec("unflatten", spec)
    if list(flat) == spec.names(sep):
        return spec.make(flat.values())
    wanted = spec.unique_names(sep)
    if len(flat) != len(wanted) or not all(map(flat.__contains__, wanted)):
        raise SpecMismatch(difference(flat, wanted, "the flat dict", "the spec"))
    return spec.make([flat[name] for name in wanted])


def check_spec(verb: str, spec: object) -> None:
    """Raise unless what is given as ``spec=`` is one."""
    if not isinstance(spec, TreeSpec):
        raise TypeError(
            f"{verb}: spec= is a TreeSpec, not a {type(spec).__name__}; "
            "sd.structure(tree) returns that of a tree"
        )


def _nest(flat: Mapping[str, Leaf], sep: str) -> dict[str, Tree]:
    tree: dict[str, Tree] = {}
    branches = {id(tree)}
    for name, leaf in flat.items():
        if not isinstance(name, str):
            raise TypeError(
                f"unflatten: the names of a flat dict are str, and {name!r} is none"
            )
        *above, last = name.split(sep)
        here = tree
        for key in above:
            if key not in here:
                here[key] = {}
                branches.add(id(here[key]))
            here = here[key]
            if id(here) not in branches:
                raise _blocked(name)
        if last in here:
            raise _blocked(name)
        here[last] = leaf
    return tree


def _blocked(name: str) -> NameCollision:
    return NameCollision(
        f"{name!r}: a leaf and a branch would stand in one place; rename one of them, "
        "or give spec="
    )
