"""What a safetensors file of ours says beside its tensors, as JSON in its metadata.

The format holds dense tensors under flat names. The document has the rest of the tree:
its structure, plain values, the kinds of leaves, and which leaves share an entry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sdtree.errors import FileError
from sdtree.portable import Json, dump, dump_shape, load, load_shape
from sdtree.treespec import TreeSpec

VERSION = 1


class View(NamedTuple):
    """Where in the bytes of an entry a tensor lies."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """Return the byte after its last."""
        if 0 in self.shape:
            return self.offset
        steps = zip(self.shape, self.stride, strict=True)
        last = sum((size - 1) * step for size, step in steps)
        return self.offset + (last + 1) * self.dtype.itemsize


class Place(NamedTuple):
    """The entry that holds a leaf, and where in it the leaf is if not all of it."""

    entry: str
    view: View | None = None


@dataclass(slots=True)
class Document:
    """A tree without its tensors. Leaves go by their position in path order.

    A leaf that is neither among ``plain`` nor ``places`` is the entry of its own name.
    ``strides`` are those of entries that were not contiguous.
    """

    spec: TreeSpec
    plain: dict[int, Json] = field(default_factory=dict[int, Json])
    kinds: dict[int, Json] = field(default_factory=dict[int, Json])
    places: dict[int, Place] = field(default_factory=dict[int, Place])
    strides: dict[str, tuple[int, ...]] = field(
        default_factory=dict[str, tuple[int, ...]]
    )

    def to_json(self) -> str:
        """Return the document as JSON text."""
        data = {
            "version": VERSION,
            "spec": dump_shape(self.spec.shape),
            "plain": self.plain,
            "kinds": self.kinds,
            "places": {i: _dump_place(place) for i, place in self.places.items()},
            "strides": self.strides,
        }
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, most: int) -> Document:
        """Return the document of a text. It speaks of ``most`` entries at most.

        What is wrong with the text is raised as it comes, whatever it is.
        """
        data = json.loads(text)
        if data["version"] != VERSION:
            raise FileError(
                f"it is of version {data['version']} of the metadata and this sdtree "
                f"reads version {VERSION}; upgrade sdtree"
            )
        document = cls(
            TreeSpec(load_shape(data["spec"])),
            {int(i): value for i, value in data["plain"].items()},
            {int(i): kind for i, kind in data["kinds"].items()},
            {int(i): _load_place(place) for i, place in data["places"].items()},
            {name: tuple(stride) for name, stride in data["strides"].items()},
        )
        # Counted before any path is made: a few bytes could claim any number of leaves.
        known = len(document.plain) + len(document.places) + most
        if len(document.spec) > known:
            raise FileError("its metadata has more leaves than the file holds")
        return document


def _dump_place(place: Place) -> Json:
    if place.view is None:
        return [place.entry]
    offset, shape, stride, dtype = place.view
    return [place.entry, offset, shape, stride, dump(dtype)]


def _load_place(data: Json) -> Place:
    entry, *view = data
    if not view:
        return Place(entry)
    offset, shape, stride, dtype = view
    numbers = (offset, *shape, *stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise FileError(f"its metadata has an impossible view of {entry!r}")
    return Place(entry, View(offset, tuple(shape), tuple(stride), load(dtype)))
