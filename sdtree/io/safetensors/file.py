"""Files of the safetensors format, which need no other library.

A file is read by the one descriptor that is open, from its header to its last byte:
what takes its place meanwhile does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from sdtree.errors import FileError, UnknownContainer
from sdtree.io.dtypes import form_in_torch
from sdtree.io.foreign import Foreign
from sdtree.io.header import Entry, Header, header_bytes, laid_out, read_header
from sdtree.io.memory import bytes_of, mapped, read_next
from sdtree.io.pages import releaser
from sdtree.io.refusal import in_short
from sdtree.io.restriding import Read
from sdtree.io.safetensors.kinds import kind_in_file
from sdtree.io.safetensors.packing import Pack, assembled, unpack
from sdtree.io.sharing import remade
from sdtree.io.target import reserve
from sdtree.tensors.remake import Allocator, remake
from sdtree.tensors.storage import span
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree

KEY = "sdtree"
"""Under which the metadata of a file has our document."""

FORMAT = "format"
"""Under which it says whose tensors they are, for other readers."""


def read(file: BufferedReader, device: torch.device, lazy: bool) -> Read:
    """Return the tree of a file, and notes: ours as it was, another as a dict by name.

    The file is open at its beginning.
    """
    try:
        header = read_header(file)
        entries = _mapped(file, header) if lazy else _loaded(file, header)
        found = Read(dict(sorted(entries.items())))
        if KEY in header.metadata:
            found = _unpacked(header.metadata[KEY], entries, lazy=lazy)
        found = found._replace(notes=[*found.notes, *_beside(header.metadata)])
    except (FileError, UnknownContainer) as error:
        raise type(error)(f"{file.name}: {in_short(str(error))}") from None
    if device.type == "cpu":
        return found
    return found._replace(tree=_moved(found.tree, device))


def _beside(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield a note on what other software has written beside the tensors."""
    others = sorted(map(in_short, metadata.keys() - {FORMAT, KEY}))
    if others:
        told = ", ".join(others)
        yield f"metadata of other software is no part of the tree: {told}"


def _unpacked(text: str, entries: Mapping[str, Leaf], *, lazy: bool) -> Read:
    ts = [t for t in entries.values() if isinstance(t, Tensor)]
    release = releaser(ts) if lazy else lambda: None
    try:
        return unpack(text, entries, lazy=lazy, release=release)
    except (FileError, UnknownContainer, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a text can get wrong
        raise FileError(f"its metadata is damaged: {error!r}") from error


def _moved(tree: Tree, device: torch.device) -> Tree:
    leaves, spec = take(tree)
    return spec.make(remade(leaves, lambda ts: remake(ts, Allocator(device))))


def _loaded(file: BufferedReader, header: Header) -> dict[str, Leaf]:
    """Return the tensors of a file, in memory of their own."""
    return {
        name: _shaped(name, entry, read_next(file, entry.nbytes))
        for name, entry in header.entries.items()
    }


def _mapped(file: BufferedReader, header: Header) -> dict[str, Leaf]:
    """Return the tensors of a file, mapped to it; each has a storage of its own."""
    whole = mapped(file)
    if whole.nbytes() < header.nbytes + header.data_bytes:
        raise FileError("it has become shorter while it was read")
    return _slices(whole, header.nbytes, header.entries)


def _slices(
    whole: torch.UntypedStorage, begin: int, entries: Mapping[str, Entry]
) -> dict[str, Leaf]:
    return {
        name: _shaped(name, entry, whole[begin + entry.start : begin + entry.stop])
        for name, entry in entries.items()
    }


def _shaped(name: str, entry: Entry, storage: torch.UntypedStorage) -> Leaf:
    """Return the tensor of an entry over a storage; ``Foreign`` if torch has none."""
    form = form_in_torch(entry.dtype, entry.shape)
    if form is None:
        return Foreign(f"safetensors.{entry.dtype}", (entry.shape,))
    dtype, shape = form
    try:
        return torch.empty(0, dtype=dtype).set_(storage).view(shape)
    except (RuntimeError, OverflowError) as error:
        raise FileError(f"{name}: torch has no tensor of this shape") from error


# -- written -----------------------------------------------------------------------


def write(tree: Tree, path: Path, keep_names: bool) -> None:
    """Write a tree to a file, one tensor after the other."""
    pack = Pack.of(tree, keep_names=keep_names)
    entries = laid_out(pack.entries)
    with path.open("wb") as file:
        file.write(_header(pack, entries))
        for name in entries:
            dense = pack.entries[name].cpu().contiguous()
            low, high = span(dense)
            if low < high:
                file.write(bytes_of(dense.untyped_storage()[low:high]))


def lay_out(tree: Tree, path: Path, keep_names: bool) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    """
    pack = Pack.of(tree, keep_names=keep_names)
    entries = laid_out(pack.entries)
    header = _header(pack, entries)
    total = len(header) + sum(t.nbytes for t in pack.entries.values())
    with path.open("w+b") as file:
        file.write(header)
        reserve(file, total)
        whole = mapped(file, shared=True)
    ts = _slices(whole, len(header), entries)
    kinds = {i: kind_in_file(kind) for i, kind in pack.document.kinds.items()}
    document = replace(pack.document, kinds=kinds)
    names = document.names(len(entries))
    return assembled(document, {i: ts[name] for i, name in names.items()})


def _header(pack: Pack, entries: Mapping[str, Entry]) -> bytes:
    """Return the header of a file; other readers ask its metadata for the format."""
    metadata = {FORMAT: "pt", KEY: pack.document.to_json()}
    return header_bytes(entries, metadata)
