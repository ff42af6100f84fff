"""One level of names, and back: ``flatten`` and ``unflatten``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from sdtree.errors import NameCollision, SpecMismatch
from sdtree.kinds.calls import Call
from sdtree.kinds.strangers import reject_file_names
from sdtree.path import check_sep
from sdtree.tensors.modes import uncompiled
from sdtree.transform.stages import PathStage
from sdtree.transform.transform import Transform, reject_as_tree
from sdtree.tree.flattening import check_spec
from sdtree.tree.pairing import difference
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Tree


@overload
def flatten(*, sep: str = ".") -> Transform: ...
@overload
def flatten(tree: Tree, /, *, sep: str = ".") -> dict[str, Leaf]: ...
@overload
def flatten(tree: Tree, sep: str, /) -> dict[str, Leaf]: ...
@uncompiled
def flatten(*tree: Any, sep: str = ".") -> Any:
    """Return one level of dotted names.

    Inverse: ``unflatten(flat, spec=structure(tree))``, which brings back what a dict of
    names has no room for: containers with all that they are, empty ones and ``ABSENT``.
    Two leaves of one name raise ``NameCollision``.

    >>> sd.flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c.0': 2, 'c.1': 3}
    >>> (sd.select("c.**") | sd.flatten(sep="/"))({"a": {"b": 1}, "c": [2, 3]})
    {'c/0': 2, 'c/1': 3}
    """
    if not tree:
        check_sep(sep)
        return Transform((PathStage.by(_text("flatten", sep), Call(_flat, sep)),))
    given, sep = _by_place("flatten", tree, sep)
    if isinstance(given, Transform):  # a dtype or a device is a leaf, and so a tree
        reject_as_tree("flatten", given)
    reject_file_names(given)
    return _flat(sep, given)


def _flat(sep: str, tree: Tree) -> dict[str, Leaf]:
    found, spec = take(tree)
    flat = dict(zip(spec.names(sep), found, strict=True))
    if len(flat) < len(found):
        spec.unique_names(sep)
    return flat


@overload
def unflatten(*, spec: TreeSpec | None = None, sep: str = ".") -> Transform: ...
@overload
def unflatten(
    flat: Mapping[str, Leaf], /, *, spec: TreeSpec | None = None, sep: str = "."
) -> Tree: ...
@overload
def unflatten(
    flat: Mapping[str, Leaf], spec: TreeSpec | None, /, *, sep: str = "."
) -> Tree: ...
@overload
def unflatten(flat: Mapping[str, Leaf], spec: TreeSpec | None, sep: str, /) -> Tree: ...
@uncompiled
def unflatten(*flat: Any, spec: Any = None, sep: str = ".") -> Any:
    """Return the tree whose flat form is given.

    With ``spec`` it is the very tree that ``flatten`` was given; names that are missing
    or unexpected raise ``SpecMismatch``. Without, names are split at ``sep`` into
    nested dicts with str keys.

    >>> sd.unflatten({"a.b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    >>> spec = sd.structure({"a": [0]})
    >>> (sd.flatten() | sd.rename(("b.0", "a.0")) | sd.unflatten(spec=spec))({"b": [1]})
    {'a': [1]}
    """
    given, spec, sep = _by_place("unflatten", flat or (None,), spec, sep)
    if isinstance(given, TreeSpec):
        raise TypeError(
            "unflatten takes the flat dict first: sd.unflatten(flat, spec=spec), or "
            "sd.unflatten(spec=spec) in a chain"
        )
    reject_as_tree("unflatten", given)
    check_sep(sep)
    if spec is not None:
        check_spec("unflatten", spec)
    if flat:
        return _unflat(spec, sep, given)
    text = _text("unflatten", sep, *([] if spec is None else [f"spec={spec!r}"]))
    return Transform((PathStage.by(text, Call(_unflat, spec, sep)),))


def _unflat(spec: TreeSpec | None, sep: str, flat: Mapping[str, Leaf]) -> Tree:
    if not isinstance(flat, Mapping):
        raise TypeError(
            f"unflatten takes a mapping from names to leaves, not a "
            f"{type(flat).__name__}; flatten(tree) returns one"
        )
    if spec is None:
        return _nest(flat, sep)
    if list(flat) == spec.names(sep):
        return spec.make(flat.values())
    wanted = spec.unique_names(sep)
    if len(flat) != len(wanted) or not all(map(flat.__contains__, wanted)):
        raise SpecMismatch(difference(flat, wanted, "the flat dict", "the spec"))
    return spec.make([flat[name] for name in wanted])


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


def _by_place(verb: str, given: Sequence[Any], *options: Any) -> tuple[Any, ...]:
    """Return the tree and the options, the first of which may come by position."""
    if len(given) > 1 + len(options):
        raise TypeError(f"sd.{verb} takes one tree; sd.combine makes one of several")
    return (*given, *options[len(given) - 1 :])


def _text(verb: str, sep: str, *options: str) -> str:
    shown = [*options, *([] if sep == "." else [f"sep={sep!r}"])]
    return f"{verb}({', '.join(shown)})"
