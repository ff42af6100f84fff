"""What the metadata of a DCP directory says: read as data, and seen to make sense.

torch unpickles it, which can run anything. Here only the classes of DCP itself are
made of it, and nothing else is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import torch

from sdtree.errors import FileError, LayoutError, one_of
from sdtree.io.dcp.plain_pickle import plain
from sdtree.io.refusal import gist, in_short
from sdtree.layout.layout import Box, Layout, Region
from sdtree.tree.plain_json import FAR, shortly
from sdtree.tree.shape import MOST_DEEP

METADATA: Final = ".metadata"
"""The file of a directory that tells of the others."""

SUFFIX: Final = ".distcp"
VERSION: Final = "1"
"""The first number of the version of the format."""

STRIDED: Final = str(torch.strided)

MOST_DIMENSIONS: Final = 1024
"""How many a tensor may have, so that no size is long that many tensors share."""


class Place(NamedTuple):
    """Where in the files of a directory an item lies, and how it was transformed."""

    file: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """A region of a tensor, and where it lies."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    place: Place

    @property
    def region(self) -> Region:
        """Return the region of the tensor that it is."""
        return self.offset, self.size


class SavedTensor(NamedTuple):
    """A tensor of a directory: all its chunks."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Sequence[Chunk]


class Saved(NamedTuple):
    """What is in a directory, by name, in its order: tensors, and other values.

    ``paths`` tell where in a nested tree a name stands, if the directory does.
    ``save_id`` is that of the very save.
    """

    entries: Mapping[str, SavedTensor | Place]
    paths: Mapping[str, tuple[str | int, ...]]
    save_id: str | None

    def places(self) -> Iterator[Place]:
        """Yield where each item lies."""
        for entry in self.entries.values():
            if isinstance(entry, Place):
                yield entry
            else:
                yield from (chunk.place for chunk in entry.chunks)


def read_saved(data: bytes) -> Saved:
    """Return what metadata says; raise ``FileError`` if it is none, or damaged."""
    try:
        return _checked(_Unpickler(data).load())
    except (FileError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        told = gist(f"{type(error).__name__}: {error}")
        raise FileError(f"no metadata of DCP, or damaged: {in_short(told)}") from error


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of DCP's own classes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(plain(data)))
        self._known = _known()

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what a name stands for, if it is one of those."""
        found = self._known.get((module, name))
        if found is None and module == "torch":
            found = vars(torch).get(name)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise FileError(
                f"it names {in_short(f'{module}.{name}', most=100)}, which is no class "
                "of DCP's metadata; nothing of it was loaded"
            )
        return found


EARLIER: Final = "torch.distributed._shard.sharded_tensor.metadata"
"""Where some of it stood before."""

RECORDS: Final = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    EARLIER: ("TensorProperties",),
}
"""What metadata names that is a value of each of its attributes, by module."""


def _known() -> dict[tuple[str, str], Any]:
    """Return what metadata may name, by module and name.

    It is made anew for each, for a pickle may give attributes to all that it names. No
    code of torch is among it, and what can be called takes none but its own arguments.
    """

    def text(name: object) -> str:
        return _as(str, name)

    def number(n: object) -> int:
        return _as(int, n)

    def path(*parts: object) -> str:
        return "/".join(_as(str, part) for part in parts)

    def ordered() -> OrderedDict[Any, Any]:
        return OrderedDict()

    known: dict[tuple[str, str], Any] = {
        ("torch", "Size"): type("Size", (list,), {}),  # is hashed by nothing
        ("torch.serialization", "_get_layout"): text,
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): number,
        (EARLIER, "MEM_FORMAT_ENCODING"): number,
        ("collections", "OrderedDict"): ordered,
    }
    for module in ("pathlib", "pathlib._local"):
        for name in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
            known[module, name] = path
    for module, names in RECORDS.items():
        for name in names:
            base = _Properties if name == "TensorProperties" else _Record
            known[module, name] = type(name, (base,), {})
    return known


class _Record:
    """Stands for an instance of a class of DCP: its attributes, and no more."""


class _Properties(_Record):
    """Stands for the properties of a tensor, which are told in their order."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take those that are read."""
        self.dtype, self.layout = _as(tuple, state)[:2]


# -- seen to make sense ------------------------------------------------------------


def _checked(found: Any) -> Saved:
    metadata = _as(_Record, found)
    if type(metadata).__name__ != "Metadata":
        raise FileError(f"it holds {one_of(type(metadata))} for a Metadata")
    version = vars(metadata).get("version")
    if version is not None and str(version).partition(".")[0] != VERSION:
        raise FileError(
            f"it is of version {shortly(version)} and this sdtree reads {VERSION}"
        )
    places = dict(map(_placed, _as(dict, metadata.storage_data).items()))
    entries: dict[str, SavedTensor | Place] = {}
    for name, entry in _as(dict, metadata.state_dict_metadata).items():
        entries[_as(str, name)] = _entry(name, entry, places)
    meta = vars(metadata).get("storage_meta")
    return Saved(
        entries,
        _paths(vars(metadata).get("planner_data"), entries),
        None if meta is None else vars(meta).get("save_id"),
    )


Key = tuple[str, tuple[int, ...] | None]


def _placed(item: tuple[Any, Any]) -> tuple[Key, Place]:
    """Return where an item lies, by its name and offset."""
    index, where = _as(_Record, item[0]), _as(_Record, item[1])
    offset = vars(index).get("offset")
    offset = None if offset is None else _numbers(offset)
    file, start, length = where.relative_path, where.offset, where.length
    _check_file(file)
    if not all(type(n) is int and 0 <= n < FAR for n in (start, length)):
        raise FileError(f"{shortly(index.fqn)} lies nowhere in {shortly(file)}")
    transforms = vars(where).get("transform_descriptors") or ()
    place = Place(file, start, length, tuple(_as(str, x) for x in transforms))
    return (_as(str, index.fqn), offset), place


@cache
def _check_file(file: object) -> None:
    parts = PurePath(_as(str, file).replace("\\", "/")).parts
    if not parts or {"..", "/", "//"}.intersection(parts) or "\0" in str(file):
        raise FileError(f"it names a file outside of its directory: {shortly(file)}")
    if ":" in parts[0]:
        raise FileError(f"it names a file outside of its directory: {shortly(file)}")


def _entry(name: str, entry: Any, places: Mapping[Key, Place]) -> SavedTensor | Place:
    kind = type(entry).__name__
    if kind == "BytesStorageMetadata":
        return _found(name, None, places)
    if kind != "TensorStorageMetadata":
        raise FileError(f"{shortly(name)} is {one_of(type(entry))}")
    dtype, layout = entry.properties.dtype, entry.properties.layout
    if layout != STRIDED or not isinstance(dtype, torch.dtype):
        told = shortly(str(layout))
        raise FileError(f"{shortly(name)} is of layout {told}, which is not read")
    shape = _numbers(entry.size)
    if not all(0 <= n < FAR for n in (*shape, _extent(shape) * dtype.itemsize)):
        raise FileError(f"{shortly(name)} is of shape {shape}, which no tensor has")
    regions = [
        (_numbers(chunk.offsets), _numbers(chunk.sizes))
        for chunk in _as(list, entry.chunks)
    ]
    chunks = [
        Chunk(offset, size, _found(name, offset, places))
        for offset, size in dict.fromkeys(regions)
    ]
    _check_chunks(name, dtype, shape, chunks)
    return SavedTensor(dtype, shape, chunks)


def _extent(shape: Sequence[int]) -> int:
    """Return what the strides of a tensor are counted up to, an empty one's too."""
    return math.prod(max(n, 1) for n in shape)


def _found(
    name: str, offset: tuple[int, ...] | None, places: Mapping[Key, Place]
) -> Place:
    place = places.get((name, offset))
    if place is None:
        raise FileError(f"{shortly(name)}: it does not tell where its data lies")
    return place


def _check_chunks(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], chunks: Sequence[Chunk]
) -> None:
    """Raise ``FileError`` unless chunks cover a tensor, and have as many bytes."""
    for chunk in chunks:
        nbytes = math.prod(chunk.size) * dtype.itemsize
        if len(chunk.offset) != len(shape) or len(chunk.size) != len(shape):
            raise FileError(f"{shortly(name)}: its chunks have other dimensions")
        if min(chunk.size, default=0) < 0:
            raise FileError(f"{shortly(name)}: a chunk of a size below 0")
        if nbytes > chunk.place.length and not chunk.place.transforms:
            raise FileError(
                f"{shortly(name)}: {nbytes:,} bytes in {chunk.place.length:,}"
            )
    start = (0,) * len(shape)
    if [chunk.region for chunk in chunks] == [(start, shape)]:
        return
    boxes = tuple(Box(k, start, *chunk.region) for k, chunk in enumerate(chunks))
    try:
        Layout(shape, {0: boxes}).check_coverage()
    except LayoutError as error:
        raise FileError(f"{shortly(name)}: {error}") from None


def _paths(
    data: object, entries: Mapping[str, object]
) -> dict[str, tuple[str | int, ...]]:
    """Return where names stand in a tree; without that they stand side by side."""
    if not isinstance(data, dict):
        return {}
    found: dict[Any, Any] = data
    paths = {name: found[name] for name in entries if name in found}
    for name, path in paths.items():
        is_path = isinstance(path, tuple) and all(type(k) in (str, int) for k in path)
        if not is_path or not 0 < len(path) <= MOST_DEEP:
            raise FileError(f"{shortly(name)} stands at {shortly(path)}")
    return paths


def _numbers(x: Any) -> tuple[int, ...]:
    """Return the numbers of a size, a tuple of which torch has seen that it is one."""
    if len(_as(list, x)) > MOST_DIMENSIONS:
        raise FileError(f"a tensor of {len(x):,} dimensions is in it")
    return tuple(torch.Size(x))


def _as(cls: type, x: Any) -> Any:
    if not isinstance(x, cls):
        held, wanted = type(x).__name__, cls.__name__.lstrip("_")
        raise FileError(f"of type {held} is what should be a {wanted} in it")
    return x
