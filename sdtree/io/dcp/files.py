"""The files of a DCP directory, mapped, and the items in them.

Each item is what ``torch.save`` made of one tensor or value. They lie one after the
other, wherever that is, so that most are not aligned: chunks are copied as bytes.
"""

from __future__ import annotations

import io
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sdtree.errors import FileError, one_of, text_of
from sdtree.io.dcp.saved import Chunk, Place, SavedTensor
from sdtree.io.disk.memory import bytes_of, mapped
from sdtree.io.disk.pages import Pages
from sdtree.io.leaves.fetching import fetch
from sdtree.io.pickles.machine import Machine, Room, Tape
from sdtree.io.pickles.names import Names
from sdtree.io.pt.archive import ALIGNED, Archive, is_packed
from sdtree.io.pt.file import damage_told, read_item
from sdtree.io.refusal import gist, listed
from sdtree.layout.layout import Region, meet
from sdtree.tensors.counting import Count
from sdtree.tensors.storage import is_lazy
from sdtree.tree.plain_json import shortly
from sdtree.typing import Leaf

META = torch.device("meta")


class Stretch(io.RawIOBase):
    """Some bytes of memory, to be read as a file."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        begin = (0, self._at, len(self._data))[whence]
        if begin + offset < 0:
            raise ValueError(f"negative seek position {begin + offset}")
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer).cast("B")
        found = self._data[self._at : self._at + len(room)]
        room[: len(found)] = found
        self._at += len(found)
        return len(found)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a directory, by name, each mapped once.

    ``pages`` are those of all of them; ``count`` counts what is copied from them.
    """

    folder: Path
    whole: Mapping[str, torch.UntypedStorage] = field(repr=False)
    pages: Pages = field(repr=False)
    count: Count = field(repr=False)

    @classmethod
    def of(cls, folder: Path, places: Iterable[Place], count: Count) -> Files:
        """Return the files in which items lie, seen to be there and long enough."""
        stops: defaultdict[str, int] = defaultdict(int)
        for place in places:
            stops[place.file] = max(stops[place.file], place.offset + place.length)
        whole = {name: _mapped(folder / name) for name in sorted(stops)}
        lacking = [name for name, found in whole.items() if found is None]
        cut = [
            f"{name} has {found.nbytes():,} bytes of {stops[name]:,}"
            for name, found in whole.items()
            if found is not None and found.nbytes() < stops[name]
        ]
        faults = [f"{listed(lacking)} missing"] * bool(lacking) + cut[:1]
        if faults:
            raise FileError("; ".join(faults))
        known = {name: found for name, found in whole.items() if found is not None}
        raw = [_bytes_over(found, 0, (found.nbytes(),)) for found in known.values()]
        count.expect(sum(found.nbytes() for found in known.values()))
        return cls(folder, known, Pages(raw), count)

    def opened(self, place: Place) -> BinaryIO:
        """Return an item, to be read as a file of its own."""
        whole = self.whole[place.file]
        data = bytes_of(whole) if whole.nbytes() else memoryview(b"")
        found: Any = Stretch(data[place.offset : place.offset + place.length])
        return _restored(found, place.transforms) if place.transforms else found

    def value(self, name: str, place: Place) -> Leaf:
        """Return a value that is no tensor of the directory; it may hold some."""
        try:
            return read_item(self.opened(place))
        except FileError as error:
            raise FileError(f"{shortly(name)}: {error}") from error

    # -- tensors -------------------------------------------------------------------

    def tensor(self, name: str, saved: SavedTensor, *, own: bool) -> Tensor:
        """Return a tensor, mapped where it is one chunk, unless it is to have its own.

        Its data is copied together else.
        """
        whole = ((0,) * len(saved.shape), saved.shape)
        if not own and [chunk.region for chunk in saved.chunks] == [whole]:
            raw = self._raw(name, saved.dtype, saved.chunks[0])
            if raw.data_ptr() % ALIGNED == 0:
                return _over(raw, saved.dtype, saved.shape)
        made = torch.empty(saved.shape, dtype=saved.dtype)
        self.fill(name, saved, made)
        return made

    def fill(
        self,
        name: str,
        saved: SavedTensor,
        into: Tensor,
        regions: Sequence[Region] | None = None,
    ) -> None:
        """Copy regions of a tensor, or all, to where they lie in one of its shape.

        Regions are read ahead, and else nothing is.
        """
        target = _bytes_over(
            into.untyped_storage(),
            int(into.storage_offset()) * into.itemsize,
            _in_bytes(saved.shape, saved.dtype),
        )
        for chunk in saved.chunks:
            wanted = [chunk.region] if regions is None else regions
            found = [meet(chunk.region, region) for region in wanted]
            parts = [part for part in found if part is not None]
            if not parts:
                continue
            raw = self._raw(name, saved.dtype, chunk)
            for offset, size in parts:
                inside = tuple(a - b for a, b in zip(offset, chunk.offset, strict=True))
                if regions is not None:
                    begin, step = raw.data_ptr(), saved.dtype.itemsize
                    fetch(self.pages, begin, (inside, size), chunk.size, step)
                here = _cut(target, offset, size, saved.dtype)
                here.copy_(_cut(raw, inside, size, saved.dtype))
                self.count.add(here.nbytes)

    def _raw(self, name: str, dtype: torch.dtype, chunk: Chunk) -> Tensor:
        """Return the bytes of a chunk, the last dimension being that of its bytes."""
        try:
            with damage_told():
                form, begin = self._located(chunk.place)
            if form.dtype != dtype or tuple(form.shape) != chunk.size:
                raise FileError(
                    f"a tensor of {form.dtype} and shape {tuple(form.shape)}, and its "
                    f"metadata has {dtype} and {chunk.size}"
                )
            if begin is None:
                t = read_item(self.opened(chunk.place))
                t = t.resolve_conj().resolve_neg().contiguous()
                storage, begin = t.untyped_storage(), t.storage_offset() * t.itemsize
            else:
                storage = self.whole[chunk.place.file]
            return _bytes_over(storage, begin, _in_bytes(chunk.size, dtype))
        except FileError as error:
            raise FileError(f"{shortly(name)}: {error}") from error

    def _located(self, place: Place) -> tuple[Tensor, int | None]:
        """Return the form of a tensor, and where in its file its bytes begin.

        None where it does not lie dense there, as it is.
        """
        archive = Archive(self.opened(place))
        data = archive.read("data.pkl")
        starts: list[int | None] = []

        def find(key: Any, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
            record = archive.record(f"data/{key}")
            if not is_packed(record) and record.file_size < count * dtype.itemsize:
                raise FileError(f"{count} elements in {record.file_size} bytes")
            starts.append(None if is_packed(record) else archive.start(record))
            return torch.UntypedStorage(record.file_size, device=META)

        names = Names(Room(len(data), archive.size), META, find)
        form = Machine(names).run(Tape(io.BytesIO(data), len(data)))
        if not isinstance(form, Tensor):
            raise FileError(f"{one_of(type(form))}, and no tensor")
        is_native = archive.byte_order() == sys.byteorder
        is_plain = not place.transforms and is_native and len(starts) == 1
        if not (is_plain and _lies_dense(form)) or starts[0] is None:
            return form, None
        begin = place.offset + starts[0] + int(form.storage_offset()) * form.itemsize
        return form, begin


def _lies_dense(form: Tensor) -> bool:
    """Return whether the bytes of a tensor are its elements, in their order."""
    is_strided = form.layout is torch.strided and not form.is_quantized
    return is_strided and form.is_contiguous() and not is_lazy(form)


def _mapped(path: Path) -> torch.UntypedStorage | None:
    """Return a file as a storage, None if there is none."""
    if not path.is_file():  # opening a pipe would wait for its other end
        return None
    with path.open("rb") as file:
        return mapped(file)


def _restored(file: BinaryIO, transforms: Sequence[str]) -> BinaryIO:
    """Return an item without the transforms, of those that torch has, that it had."""
    from torch.distributed.checkpoint._extension import ExtensionRegistry

    try:
        stream: Any = file
        for each in ExtensionRegistry().from_descriptor_list(transforms):
            extension: Any = each
            stream = extension.transform_from(stream)
        return io.BytesIO(stream.read())
    except Exception as error:  # of torch, or of what unpacks it
        told = f"it was transformed by {listed([*map(str, transforms)])}, which is not"
        raise FileError(f"{told} undone: {gist(text_of(error))}") from error


# -- tensors as bytes --------------------------------------------------------------


def _in_bytes(shape: Sequence[int], dtype: torch.dtype) -> tuple[int, ...]:
    """Return a shape with its last dimension in bytes, which a number gets too."""
    *rest, last = shape or (1,)
    return (*rest, last * dtype.itemsize)


def _bytes_over(
    storage: torch.UntypedStorage, begin: int, shape: Sequence[int]
) -> Tensor:
    """Return the bytes of a dense tensor that begins there in a storage."""
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    empty = torch.empty(0, dtype=torch.uint8)
    return empty.set_(storage, begin if math.prod(shape) else 0, shape, strides)


def _over(raw: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return the tensor of the bytes that lie there."""
    begin = raw.storage_offset()
    storage = raw.untyped_storage()[begin : begin + raw.numel()]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _cut(
    raw: Tensor, offset: Sequence[int], size: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Return a region of a tensor that is given as bytes."""
    starts = [*offset[:-1], *(n * dtype.itemsize for n in offset[-1:])]
    sizes = [*size[:-1], *(n * dtype.itemsize for n in size[-1:])]
    for dim, (start, length) in enumerate(zip(starts, sizes, strict=True)):
        raw = raw.narrow(dim, start, length)
    return raw
