"""What each rank tells of the tree that it writes, and what all of that comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from sdtree.io.dcp.document import Beside
from sdtree.io.leaves.places import Place
from sdtree.io.safetensors.document import Document
from sdtree.io.safetensors.packing import Pack
from sdtree.io.texts import Metadata
from sdtree.ops.choosing import combine, drop
from sdtree.tree.flattening import structure
from sdtree.tree.plain_json import Json
from sdtree.tree.portable import dump_shape, load_shape
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree


class Told(NamedTuple):
    """A tree without its leaves, the entry that each leaf is in, and what they are.

    ``tensors`` are the entries that are such, with their kinds; ``aliases`` those that
    have the data of another; ``storages`` tell of others where they lay, and ``paths``
    where DCP is to have each. ``sharded`` are those of which ranks have boxes: a number
    that tells which ranks, and whether this one has data of it.
    """

    spec: Json
    homes: Sequence[str]
    tensors: Mapping[str, Json]
    aliases: Mapping[str, str]
    storages: Sequence[Sequence[tuple[str, int, tuple[int, ...]]]]
    paths: Mapping[str, tuple[str | int, ...]]
    sharded: Mapping[str, tuple[int, bool]]

    @classmethod
    def of(
        cls,
        spec: TreeSpec,
        homes: Mapping[str, Sequence[int]],
        pack: Pack,
        paths: Mapping[str, tuple[str | int, ...]],
        sharded: Mapping[str, tuple[int, bool]],
    ) -> Told:
        """Return what there is to tell of the entries that have leaves of a tree."""
        document = pack.document
        names = document.spec.names()
        owners = {i: name for name, ids in homes.items() for i in ids}
        return cls(
            dump_shape(spec.shape),
            [owners[i] for i in range(len(spec))],
            {name: document.kinds.get(i) for i, name in enumerate(names)},
            owners_in(document),
            [
                [(names[place.leaf], place.offset, place.stride) for place in places]
                for places in document.storages
            ],
            paths,
            sharded,
        )

    def parts(self, one: Iterable[str], other: Iterable[str]) -> bool:
        """Return whether this rank has sharded entries of both, and in two places."""
        owners = {self.aliases.get(n, n) for n in (*one, *other) if self._has(n)}
        return len(owners) > 1

    def _has(self, name: str) -> bool:
        return name in self.sharded and self.sharded[name][1]

    @property
    def tree(self) -> Tree:
        """Return the tree of the entries' names."""
        return TreeSpec(load_shape(self.spec)).make(self.homes)


def owners_in(document: Document) -> dict[str, str]:
    """Return which entries have the data of another, as one rank sees it."""
    names = document.spec.names()
    return {names[i]: names[j] for i, j in document.aliases.items()}


def aliases_of(every: Sequence[Told]) -> dict[str, str]:
    """Return which entries have the data of another, the first that they are one with.

    Any rank can tell that two are one, unless another has parts of them in two places.
    """
    same: dict[str, list[str]] = {}
    for name, owner in (pair for told in every for pair in told.aliases.items()):
        one, other = (same.setdefault(x, [x]) for x in (owner, name))
        if one is not other and not any(told.parts(one, other) for told in every):
            one += other
            same.update(dict.fromkeys(other, one))
    found = dict[str, str]()
    for name in dict.fromkeys(name for told in every for name in told.tensors):
        if name in same and name not in found:
            found |= dict.fromkeys(same[name], name)
    return {name: owner for name, owner in found.items() if name != owner}


def left_to_others(every: Sequence[Told], own: Told) -> set[str]:
    """Return which entries of a rank others write, that lie on them in another way.

    One way is enough: that of the first rank that has an entry.
    """
    first: dict[str, int | None] = {}
    for told in every:
        for name in told.tensors:
            first.setdefault(name, told.sharded.get(name, (None,))[0])
    return {n for n in own.tensors if own.sharded.get(n, (None,))[0] != first[n]}


def beside(every: Sequence[Told], save_id: str | None, metadata: Metadata) -> Beside:
    """Return what is to stand beside a tree of which each rank has told its part."""
    homes, spec = take(_united(every))
    tensors = {name: kind for told in every for name, kind in told.tensors.items()}
    place = {name: k for k, name in enumerate(tensors)}
    document = Document(structure(dict.fromkeys(tensors, 0)))
    aliases = aliases_of(every)
    document.kinds = {place[n]: x for n, x in tensors.items() if x is not None}
    document.aliases = {place[n]: place[owner] for n, owner in aliases.items()}
    placed = dict[str, None]()
    for places in (places for told in every for places in told.storages):
        names = [aliases.get(name, name) for name, *_ in places]
        if len({*names}) == len(names) and not placed.keys() & {*names}:
            document.storages.append(
                [
                    Place(place[name], start, stride)
                    for name, (_, start, stride) in zip(names, places, strict=True)
                ]
            )
            placed |= dict.fromkeys(names)
    return Beside(
        save_id,
        spec,
        [(str(name), len([*same])) for name, same in groupby(homes)],
        document.to_json(),
        [*{**placed, **dict.fromkeys(aliases.values())}],
        [*aliases],
        metadata,
    )


def _united(every: Sequence[Told]) -> Tree:
    """Return the tree of which each rank has told its part."""
    first = every[0]
    if all((t.spec, t.homes) == (first.spec, first.homes) for t in every):
        return first.tree
    seen: set[Path] = set()
    parts: list[Tree] = []
    for told in every:
        tree = told.tree
        paths = {*structure(tree).every_path}
        frame = drop(tree, _any, missing_ok=True)
        known = frozenset(seen)

        def is_known(path: Path, _: Leaf, known: frozenset[Path] = known) -> bool:
            return path in known

        parts += [frame, drop(tree, is_known, missing_ok=True)]
        seen |= paths
    return combine(*parts)


def _any(_: Path, __: Leaf) -> bool:
    return True
