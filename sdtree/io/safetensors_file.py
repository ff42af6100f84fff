"""Files of the safetensors format, which need no other library.

A file is read by the one descriptor that is open, from its header to its last byte:
what takes its place meanwhile does not matter.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from sdtree.errors import FileError, UnknownContainer
from sdtree.io.dtypes import form_in_torch
from sdtree.io.header import Entry, Header, header_bytes, laid_out, read_header
from sdtree.io.kinds import kind_in_file
from sdtree.io.packing import Pack, assembled, unpack
from sdtree.io.pages import releaser
from sdtree.io.refusal import gist, in_short
from sdtree.io.sharing import remade
from sdtree.io.target import reopened, reserve
from sdtree.room import Room, remake
from sdtree.treespec import take
from sdtree.typing import Tree

KEY = "sdtree"
"""Under which the metadata of a file has our document."""

SMALL = 2**16
"""Of how many bytes a tensor is not worth a view of its memory."""

SHORTER = "it has become shorter while it was read"


def read(
    file: BufferedReader, device: torch.device, lazy: bool
) -> tuple[Tree, list[str]]:
    """Return the tree of a file, and notes: ours as it was, another as a dict by name.

    The file is open at its beginning.
    """
    try:
        header = read_header(file)
        entries = _mapped(file, header) if lazy else _loaded(file, header)
        tree, notes = dict(sorted(entries.items())), []
        if KEY in header.metadata:
            tree, notes = _unpacked(header.metadata[KEY], entries, lazy=lazy)
    except (FileError, UnknownContainer) as error:
        raise type(error)(f"{file.name}: {in_short(str(error))}") from None
    return tree if device.type == "cpu" else _moved(tree, device), notes


def _unpacked(
    text: str, entries: Mapping[str, Tensor], *, lazy: bool
) -> tuple[Tree, list[str]]:
    release = releaser(entries.values()) if lazy else lambda: None
    try:
        return unpack(text, entries, lazy=lazy, release=release)
    except (FileError, UnknownContainer, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a text can get wrong
        raise FileError(f"its metadata is damaged: {error!r}") from error


def _moved(tree: Tree, device: torch.device) -> Tree:
    leaves, spec = take(tree)
    return spec.make(remade(leaves, lambda ts: remake(ts, Room(device))))


def _loaded(file: BufferedReader, header: Header) -> dict[str, Tensor]:
    """Return the tensors of a file, in memory of their own."""
    found: dict[str, Tensor] = {}
    for name, entry in header.entries.items():
        found[name] = t = _shaped(name, entry)
        if entry.nbytes and _fill(t, file) < entry.nbytes:
            raise FileError(SHORTER)
    return found


def _fill(t: Tensor, file: BufferedReader) -> int:
    """Read a contiguous tensor, and return how many bytes there were to read."""
    if t.nbytes > SMALL:
        return file.readinto(_memory(t))
    data = file.read(t.nbytes)  # less work than a view of the memory of each
    ctypes.memmove(t.data_ptr(), data, len(data))
    return len(data)


def _mapped(file: BufferedReader, header: Header) -> dict[str, Tensor]:
    """Return the tensors of a file, mapped to it; each has a storage of its own."""
    size = header.nbytes + header.data_bytes
    try:
        storage = _map(reopened(file), size, shared=False)
    except RuntimeError as error:
        if os.fstat(file.fileno()).st_size < size:
            raise FileError(SHORTER) from error
        raise OSError(f"{file.name} cannot be mapped: {gist(str(error))}") from error
    return _slices(storage, header.nbytes, header.entries)


def _map(path: Path, size: int, *, shared: bool) -> torch.UntypedStorage:
    mapped = torch.from_file(str(path), shared=shared, size=size, dtype=torch.uint8)
    return mapped.untyped_storage()


def _slices(
    storage: torch.UntypedStorage, begin: int, entries: Mapping[str, Entry]
) -> dict[str, Tensor]:
    return {
        name: _shaped(name, entry, storage[begin + entry.start : begin + entry.stop])
        for name, entry in entries.items()
    }


def _shaped(
    name: str, entry: Entry, storage: torch.UntypedStorage | None = None
) -> Tensor:
    """Return the tensor of an entry, over a storage or in memory of its own."""
    form = form_in_torch(entry.dtype, entry.shape)
    if form is None:
        raise FileError(f"{name}: torch has no {entry.dtype} of shape {entry.shape}")
    dtype, shape = form
    try:
        if storage is None:
            return torch.empty(shape, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(storage).view(shape)
    except (RuntimeError, OverflowError) as error:
        raise FileError(f"{name}: torch has no tensor of this shape") from error


def _memory(t: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU."""
    return memoryview((ctypes.c_char * t.nbytes).from_address(t.data_ptr()))


# -- written -----------------------------------------------------------------------


def write(tree: Tree, path: Path, keep_names: bool) -> None:
    """Write a tree to a file, one tensor after the other."""
    pack = Pack.of(tree, keep_names=keep_names)
    entries = laid_out(pack.entries)
    with path.open("wb") as file:
        file.write(_header(pack, entries))
        for name in entries:
            dense = pack.entries[name].cpu().contiguous()
            if dense.nbytes:
                file.write(_memory(dense))


def lay_out(tree: Tree, path: Path, keep_names: bool) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    """
    pack = Pack.of(tree, keep_names=keep_names)
    entries = laid_out(pack.entries)
    header = _header(pack, entries)
    total = len(header) + sum(t.nbytes for t in pack.entries.values())
    with path.open("wb") as file:
        file.write(header)
        reserve(file, total)
    mapped = _slices(_map(path, total, shared=True), len(header), entries)
    kinds = {i: kind_in_file(kind) for i, kind in pack.document.kinds.items()}
    document = replace(pack.document, kinds=kinds)
    names = document.names(len(entries))
    return assembled(document, {i: mapped[name] for i, name in names.items()})


def _header(pack: Pack, entries: Mapping[str, Entry]) -> bytes:
    """Return the header of a file; other readers ask its metadata for the format."""
    metadata = {"format": "pt", KEY: pack.document.to_json()}
    return header_bytes(entries, metadata)
