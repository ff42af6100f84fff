"""``shards``: plain local tensors take layouts, and become leaves that ranks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sdtree.errors import LayoutError, NoMatch, one_of
from sdtree.kinds.calls import Call
from sdtree.kinds.shards import with_layout
from sdtree.layout.layout import Layout
from sdtree.naming.closest import closest_keys
from sdtree.naming.globs import glob_regex
from sdtree.path import name_of, where
from sdtree.transform.stages import TreeStage
from sdtree.transform.transform import Transform, verb
from sdtree.tree.pairing import closed
from sdtree.tree.shape import walk
from sdtree.tree.spec import Node, TreeSpec, take
from sdtree.typing import Leaf, Path, Tree


@verb
def shards(layouts: Tree, /) -> Transform:
    """Return the tree with ``Shards`` where layouts are given for its local tensors.

    ``layouts`` is a tree of ``sdtree.layout.Layout``: each is for the leaf at its path,
    or for all whose names its name matches as a glob. A list of tensors at the path of
    a layout is one leaf, of several local tensors. Other leaves stay. Nothing is copied
    or asked of other ranks; each gives its own tensors, and all the same layouts.

    >>> from sdtree.layout import whole
    >>> state = {"experts": {"w1": torch.ones(4, 2), "w2": torch.ones(4, 2)}, "step": 3}
    >>> sd.shards(state, {"experts.*": whole((4, 2), (0,))})["experts"]["w2"]
    Shards((4, 2), float32, whole on rank 0)
    """
    found, spec = take(layouts)
    for path, layout in zip(spec.every_path, found, strict=True):
        if not isinstance(layout, Layout):
            raise TypeError(
                f"sd.shards takes layouts, and at {where(path)} of them is "
                f"{one_of(type(layout))}; give sdtree.layout.Layout, as in "
                "sd.shards(tree, {'model.*': layout})"
            )
    given = dict(zip(spec.every_path, found, strict=True))
    count = f"{len(given)} layout{'s' * (len(given) != 1)}"
    return Transform((TreeStage.by(f"shards({count})", Call(_sharded, given)),))


def _sharded(layouts: Mapping[Path, Layout], tree: Tree) -> Tree:
    leaves, spec = take(tree)
    places = _Places.of(spec)
    taken: dict[Path, tuple[Path, Layout]] = {}
    for path, layout in layouts.items():
        for place in places.meant_by(path):
            if place in taken:
                first = name_of(taken[place][0])
                raise ValueError(
                    f"{where(place)}: it is meant by {first!r} and {name_of(path)!r}; "
                    "give one layout for each leaf"
                )
            taken[place] = path, layout
    after = closed(spec, {*taken} & places.lists.keys())
    return after.make(
        _made(place, places.held(place, leaves), taken.get(place))
        for place in after.every_path
    )


def _made(
    path: Path, held: Leaf | Sequence[Leaf], meant: tuple[Path, Layout] | None
) -> Leaf:
    """Return what becomes of a leaf, or a list of them, for which a layout is meant."""
    if meant is None:
        return held
    try:
        return with_layout(held, meant[1])
    except LayoutError as error:
        raise LayoutError(f"{where(path)}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the leaves of a tree stand, by path and by name, and lists of them."""

    leaves: Mapping[Path, int]
    names: Mapping[str, Sequence[Path]]
    lists: Mapping[Path, Sequence[Path]]

    @classmethod
    def of(cls, spec: TreeSpec) -> _Places:
        names: dict[str, list[Path]] = {}
        for name, path in zip(spec.names(), spec.every_path, strict=True):
            names.setdefault(name, []).append(path)
        lists = {
            path: shape.paths_below(path)
            for path, shape in walk(spec.shape)
            if isinstance(shape, Node) and _is_list(shape)
        }
        return cls({path: i for i, path in enumerate(spec.every_path)}, names, lists)

    def held(self, path: Path, leaves: Sequence[Leaf]) -> Leaf | Sequence[Leaf]:
        """Return the leaf at a path, or the list of leaves."""
        if path in self.leaves:
            return leaves[self.leaves[path]]
        return [leaves[self.leaves[inner]] for inner in self.lists[path]]

    def meant_by(self, path: Path) -> Iterator[Path]:
        """Yield the places that the path of a layout means."""
        name = name_of(path)
        if path in self.leaves or path in self.lists:
            yield path
        elif name in self.names:
            yield from self.names[name]
        else:
            yield from self._matched(name)

    def _matched(self, glob: str) -> Iterator[Path]:
        matches = glob_regex(glob).fullmatch
        found = [name for name in self.names if matches(name + ".")]
        if not found:
            closest = closest_keys([glob], [*self.names])
            raise NoMatch(f"shards: {glob!r} matches no leaf; {closest}")
        for name in found:
            yield from self.names[name]


def _is_list(node: Node) -> bool:
    """Return whether a container is a list of leaves."""
    return node.cls in (list, tuple) and node.children is None
