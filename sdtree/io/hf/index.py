"""The index of a folder: which name is in which file, seen to be so."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from sdtree.errors import FileError
from sdtree.io.hf.finding import INDEX, set_of
from sdtree.io.hf.splitting import PATTERN, Split
from sdtree.io.refusal import in_short, some_of
from sdtree.tree.plain_json import Json, expect, parse, shortly

LONGEST: Final = 4000
"""How many characters tell what is wrong with a folder: it may be much."""


class Contents(NamedTuple):
    """The names in a shard, and how many bytes they take.

    ``own_bytes`` are what they take where those that share memory count once.
    """

    names: Collection[str]
    nbytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says: the file of each name, and the bytes of all."""

    path: Path
    files: dict[str, str]
    total_size: int | None

    @classmethod
    def read(cls, path: Path) -> Index:
        """Return the index in a file; raise ``FileError`` if it is none."""
        try:
            data = expect(parse(path.read_bytes().decode()), dict)
            files = expect(data["weight_map"], dict)
            for file in files.values():
                expect(file, str)
            "".join([*files, *files.values()]).encode()
        except KeyError:
            raise FileError(
                f"{path}: no index of shards: no weight_map in it"
            ) from None
        except ValueError as error:
            told = in_short(str(error))
            raise FileError(f"{path}: no index of shards: {told}") from None
        outside = sorted({file for file in files.values() if not _is_inside(file)})
        if outside:
            told = some_of([*map(shortly, outside)])
            raise FileError(f"{path}: it names files outside of its folder: {told}")
        return cls(path, files, _total_size(data))

    def check(self, shards: Mapping[str, Contents | str]) -> None:
        """Raise ``FileError`` that tells all in which files are not as they should be.

        A file that cannot be read has in its place what is wrong with it.
        """
        faults = [*self._faults(shards)]
        if faults:
            told = in_short("; ".join(faults), most=LONGEST)
            raise FileError(f"{self.path}: {told}")

    def _faults(self, shards: Mapping[str, Contents | str]) -> Iterator[str]:
        by_file: defaultdict[str, list[str]] = defaultdict(list)
        for name, file in self.files.items():
            by_file[file].append(name)
        for file in sorted(by_file):
            found = shards[file]
            if isinstance(found, str):
                yield found
                continue
            there = set(found.names)
            lacking = [name for name in by_file[file] if name not in there]
            if lacking:
                yield f"{file} lacks {some_of(lacking)}, which the index has there"
            extra = sorted(there.difference(by_file[file]))
            if extra:
                yield f"{file} holds {some_of(extra)}, which the index has not there"
        yield from self._strays(by_file)
        readable = [found for found in shards.values() if isinstance(found, Contents)]
        if len(readable) == len(shards):
            yield from self._wrong_size(readable)

    def _strays(self, files: Collection[str]) -> Iterator[str]:
        """Yield the files that are called as shards and have no name in the index."""
        sets = {set_of(file) for file in files} - {None}
        for name in sorted(path.name for path in self.path.parent.iterdir()):
            if name not in files and set_of(name) in sets:
                yield f"{name} has no name in the index"

    def _wrong_size(self, shards: Collection[Contents]) -> Iterator[str]:
        each = sum(shard.nbytes for shard in shards)
        own = sum(shard.own_bytes for shard in shards)
        if self.total_size not in (None, each, own):
            yield (
                f"its total_size is {self.total_size:,} and the tensors take {each:,} "
                "bytes; if all of them are there, correct it or take it out"
            )


def _is_inside(file: str) -> bool:
    """Return whether a file lies in the folder, whatever system reads the name."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    is_plain = bool(parts) and not {"..", "/", "//"}.intersection(parts)
    return is_plain and not any(char in file for char in "\0:")


def _total_size(data: Json) -> int | None:
    """Return how many bytes an index claims; some software has rounded it, or none."""
    metadata = data.get("metadata")
    found = metadata.get("total_size") if isinstance(metadata, dict) else None
    return found if type(found) is int else None


def write_index(split: Split, folder: Path) -> None:
    """Write the index of shards to their folder."""
    places = {name: file for file, names in split.files.items() for name in names}
    index = {"metadata": {"total_size": split.total_size}, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"{PATTERN.format(suffix='')}{INDEX}").write_text(text)
