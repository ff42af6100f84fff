"""What a DCP directory of ours says beside what DCP does, in a file of its own.

DCP keeps names, tensors and pickled values. The file has the rest of the tree: its
structure, the kinds of tensors, and how they lay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torch import Tensor

from sdtree.errors import FileError, UnknownContainer
from sdtree.io.leaves.restriding import Read
from sdtree.io.refusal import in_short
from sdtree.io.safetensors.packing import unpack
from sdtree.io.texts import Metadata
from sdtree.tree.plain_json import Json, expect, parse, shortly
from sdtree.tree.portable import dump_shape, load_shape
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Tree

FILE: Final = ".sdtree"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Beside:
    """A tree without its leaves, and which entries of the directory have these.

    ``entries`` are names, in the order of the leaves, and how many of them each has;
    ``aliases`` those that have the tensor of another. ``tensors`` is a document of a
    dict of all others that are tensors; those among ``tied`` are looked at for it.
    """

    save_id: str | None
    spec: TreeSpec
    entries: Sequence[tuple[str, int]]
    tensors: str
    tied: Sequence[str] = ()
    aliases: Sequence[str] = ()
    metadata: Metadata = field(default_factory=dict[str, str])

    def write(self, folder: Path) -> None:
        """Write it beside the files of DCP."""
        data = {
            "version": VERSION,
            "save_id": self.save_id,
            "spec": dump_shape(self.spec.shape),
            "entries": self.entries,
            "tensors": self.tensors,
            "tied": self.tied,
            "aliases": self.aliases,
            "metadata": dict(self.metadata),
        }
        (folder / FILE).write_text(json.dumps(data, separators=(",", ":")))

    @classmethod
    def of(cls, folder: Path, save_id: str | None) -> tuple[Beside | None, list[str]]:
        """Return what is beside a save, None if nothing, and what is to be noted."""
        path = folder / FILE
        if not path.is_file():
            return None, []
        data = _parsed(path.read_bytes())
        if data["save_id"] != save_id:
            return None, [f"{FILE} is of an earlier save there, and was left aside"]
        try:
            found = cls(
                save_id,
                TreeSpec(load_shape(data["spec"])),
                [(expect(name, str), expect(n, int)) for name, n in data["entries"]],
                expect(data["tensors"], str),
                [expect(name, str) for name in data["tied"]],
                [expect(name, str) for name in data["aliases"]],
                {name: expect(x, str) for name, x in data["metadata"].items()},
            )
        except (FileError, UnknownContainer, ImportError, MemoryError):
            raise
        except Exception as error:  # whatever a text can get wrong
            raise FileError(f"its {FILE} is damaged: {error!r:.200}") from error
        return found, []


def _parsed(text: bytes) -> dict[str, Json]:
    try:
        data = expect(parse(text.decode()), dict)
        version, _ = data["version"], data["save_id"]
    except (KeyError, ValueError) as error:
        told = in_short(f"{error!r}")
        raise FileError(f"its {FILE} is none of ours, or damaged: {told}") from None
    if version != VERSION:
        raise FileError(
            f"its {FILE} is of version {shortly(version)} and this sdtree reads "
            f"{VERSION}; upgrade sdtree"
        )
    return data


def rebuilt(
    beside: Beside,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Tree],
    release: Callable[[], None],
    are_tied: bool = True,
) -> tuple[Read, Mapping[str, Leaf]]:
    """Return the tree that lies in a directory, over its tensors and other values.

    And the leaves that tensors have become, by their names. Unless they ``are_tied``
    leaves have nothing to do with each other, whatever they had.
    """
    aliases = {*beside.aliases}
    own = {name: t for name, t in tensors.items() if name not in aliases}
    try:
        text = beside.tensors if are_tied else _untied(beside.tensors)
        found = unpack(text, own, lazy=True, release=release)
        leaves, homes = list[Leaf](), dict[str, int]()
        for name, count in beside.entries:
            homes[name] = len(leaves)
            here = take(values[name])[0] if name in values else [found.tree[name]]
            if len(here) != count:
                raise FileError(f"{shortly(name)} has {len(here)} leaves of {count}")
            leaves += here
        if len(leaves) != len(beside.spec):
            raise FileError(f"it has {len(leaves)} leaves of {len(beside.spec)}")
        tree, paths = beside.spec.make(leaves), beside.spec.every_path
        strides = {paths[homes[str(path[0])]]: x for path, x in found.strides.items()}
    except (FileError, UnknownContainer, MemoryError):
        raise
    except Exception as error:  # whatever a text can get wrong
        raise FileError(f"its {FILE} is damaged: {error!r:.200}") from error
    return Read(tree, found.notes, strides, beside.metadata), found.tree


def _untied(text: str) -> str:
    """Return a document in which no leaf lies in the storage of another."""
    return json.dumps(expect(parse(text), dict) | {"storages": []})
