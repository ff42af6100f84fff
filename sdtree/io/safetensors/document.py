"""What a safetensors file of ours says beside its tensors, as JSON in its metadata.

The format holds dense tensors under flat names. The document has the rest of the tree:
its structure, plain values, the kinds of leaves, and how leaves lay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from sdtree.errors import FileError
from sdtree.io.leaves.places import Place
from sdtree.path import name_of, reject_collisions
from sdtree.tree.plain_json import Json
from sdtree.tree.portable import dump_shape, load_shape
from sdtree.tree.spec import TreeSpec

VERSION = 2


@dataclass(slots=True)
class Document:
    """A tree without its tensors. Leaves go by their position in path order.

    A leaf that is neither among ``plain`` nor ``aliases`` is the entry of its name. An
    alias is the same as another leaf, whose entry it has. ``storages`` tell of leaves
    that shared bytes, or had strides, where they lay: those of one storage together.
    """

    spec: TreeSpec
    plain: dict[int, Json] = field(default_factory=dict[int, Json])
    kinds: dict[int, Json] = field(default_factory=dict[int, Json])
    aliases: dict[int, int] = field(default_factory=dict[int, int])
    storages: list[list[Place]] = field(default_factory=list[list[Place]])

    def to_json(self) -> str:
        """Return the document as JSON text."""
        data = {
            "version": VERSION,
            "spec": dump_shape(self.spec.shape),
            "plain": self.plain,
            "kinds": self.kinds,
            "aliases": self.aliases,
            "storages": self.storages,
        }
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_data(cls, data: Json) -> Document:
        """Return the document that JSON data tells.

        What is wrong with the data is raised as it comes, whatever it is.
        """
        return cls(
            TreeSpec(load_shape(data["spec"])),
            {int(i): value for i, value in data["plain"].items()},
            {int(i): kind for i, kind in data["kinds"].items()},
            {int(i): j for i, j in data["aliases"].items()},
            [[Place.told(*each) for each in places] for places in data["storages"]],
        )

    def names(self, most: int) -> dict[int, str]:
        """Return which leaves are entries, of ``most`` at most, and their names.

        Raise ``FileError`` if the document does not agree with itself.
        """
        others = [*self.plain, *self.aliases]
        # Counted before any path is made: a few bytes could claim any number of leaves.
        if len(self.spec) > len(others) + most:
            raise FileError("its metadata has more leaves than the file holds")
        names = self._names_but_of(others)
        placed = [place.leaf for places in self.storages for place in places]
        meant = {*self.aliases.values(), *placed}
        if not meant <= names.keys() or len(set(placed)) < len(placed):
            raise FileError("its metadata places leaves that it does not have")
        return names

    def _names_but_of(self, others: Collection[int]) -> dict[int, str]:
        """Return names of leaves; of others none is made: all of them may be long."""
        paths = dict(enumerate(self.spec.paths()))
        for i in others:
            del paths[i]
        names = list(map(name_of, paths.values()))
        reject_collisions(names, paths.values())
        return dict(zip(paths, names, strict=True))
