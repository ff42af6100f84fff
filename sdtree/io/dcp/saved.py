"""What the metadata of a DCP directory says: read as data, and seen to make sense.

torch unpickles it, which can run anything. Here only the classes of DCP itself are
made of it, and nothing else is looked up.
"""

from __future__ import annotations

import gc
import io
import math
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import torch

from sdtree.errors import FileError, LayoutError
from sdtree.io.refusal import gist, in_short
from sdtree.layout.layout import Box, Layout, Region
from sdtree.tree.plain_json import FAR, shortly

SUFFIX: Final = ".distcp"
VERSION: Final = "1"
"""The first number of the version of the format."""


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
        with _all_kept():
            return _checked(_Unpickler(io.BytesIO(data)).load())
    except FileError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        told = gist(f"{type(error).__name__}: {error}")
        raise FileError(f"no metadata of DCP, or damaged: {in_short(told)}") from error


@contextmanager
def _all_kept() -> Generator[None]:
    """Have Python look for no garbage among many new objects, which takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of DCP's own classes."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what a name stands for, if it is one of those."""
        found = _known().get((module, name))
        if found is None and module == "torch":
            found = vars(torch).get(name)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise FileError(
                f"it names {in_short(f'{module}.{name}', most=100)}, which is no class "
                "of DCP's metadata; nothing of it was loaded"
            )
        return found


@cache
def _known() -> dict[tuple[str, str], Any]:
    """Return what metadata may name, by module and name."""
    from torch.distributed._shard.sharded_tensor import metadata as earlier
    from torch.distributed.checkpoint import filesystem, metadata

    names = {
        metadata: (
            *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties", "MetadataIndex"),
            *("StorageMeta", "_MEM_FORMAT_ENCODING"),
        ),
        filesystem: ("_StorageInfo", "_StoragePrefix"),
        earlier: ("TensorProperties", "MEM_FORMAT_ENCODING"),
    }
    known: dict[tuple[str, str], Any] = {
        (module.__name__, name): vars(module)[name]
        for module, found in names.items()
        for name in found
        if name in vars(module)
    }
    known["torch", "Size"] = torch.Size
    known["torch.serialization", "_get_layout"] = _layout
    known["collections", "OrderedDict"] = OrderedDict
    for module in ("pathlib", "pathlib._local"):
        for name in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
            pure = f"Pure{name.removeprefix('Pure')}"
            known[module, name] = vars(pathlib)[pure]
    return known


def _layout(name: object) -> Any:
    """Return the layout of a name, as torch pickles it."""
    found = vars(torch).get(str(name).removeprefix("torch."))
    if not isinstance(found, torch.layout):
        raise FileError(f"it tells of a layout {shortly(name)}")
    return found


# -- seen to make sense ------------------------------------------------------------


def _checked(found: Any) -> Saved:
    metadata = _as(_known()["torch.distributed.checkpoint.metadata", "Metadata"], found)
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
    index, where = item
    offset = None if index.offset is None else tuple(index.offset)
    file, start, length = where.relative_path, where.offset, where.length
    _check_file(file)
    if not all(type(n) is int and 0 <= n < FAR for n in (start, length)):
        raise FileError(f"{shortly(index.fqn)} lies nowhere in {shortly(file)}")
    transforms = vars(where).get("transform_descriptors") or ()
    return (index.fqn, offset), Place(file, start, length, tuple(transforms))


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
        raise FileError(f"{shortly(name)} is a {kind}")
    dtype, layout = entry.properties.dtype, entry.properties.layout
    if layout is not torch.strided or not isinstance(dtype, torch.dtype):
        raise FileError(f"{shortly(name)} is of layout {layout}, which is not read")
    shape = tuple(_as(torch.Size, entry.size))
    found = {
        (tuple(chunk.offsets), tuple(chunk.sizes)): None
        for chunk in _as(list, entry.chunks)
    }
    chunks = [Chunk(*each, _found(name, each[0], places)) for each in found]
    _check_chunks(name, dtype, shape, chunks)
    return SavedTensor(dtype, shape, chunks)


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
        if not is_path or not path:
            raise FileError(f"{shortly(name)} stands at {shortly(path)}")
    return paths


def _as(cls: type, x: Any) -> Any:
    if not isinstance(x, cls):
        raise FileError(f"it holds a {type(x).__name__} for a {cls.__name__}")
    return x
