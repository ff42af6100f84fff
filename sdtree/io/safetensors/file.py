"""Files of the safetensors format, which need no other library.

A file is read by the one descriptor that is open, from its header to its last byte:
what takes its place meanwhile does not matter.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from sdtree.errors import FileError, UnknownContainer
from sdtree.io.disk.counted import writing
from sdtree.io.disk.memory import bytes_of, mapped, read_next
from sdtree.io.disk.pages import releaser
from sdtree.io.disk.target import reserve
from sdtree.io.leaves.restriding import Read
from sdtree.io.leaves.sharing import remade
from sdtree.io.pickles.foreign import Foreign
from sdtree.io.refusal import in_short
from sdtree.io.safetensors.document import Document
from sdtree.io.safetensors.dtypes import form_in_torch
from sdtree.io.safetensors.header import (
    Entry,
    Header,
    header_bytes,
    laid_out,
    read_header,
)
from sdtree.io.safetensors.kinds import kind_in_file
from sdtree.io.safetensors.packing import Pack, assembled, unpack
from sdtree.io.texts import KEY, Metadata, Options, foreign, written
from sdtree.tensors.counting import Count
from sdtree.tensors.remake import Allocator, remake
from sdtree.tensors.storage import raw, span
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree


def read(file: BufferedReader, device: torch.device, lazy: bool) -> Read:
    """Return the tree of a file, and notes: ours as it was, another as a dict by name.

    The file is open at its beginning.
    """
    with naming(file.name):
        header = read_header(file)
        found = tree_of(
            header.metadata.get(KEY), entries_of(file, header, lazy=lazy), lazy=lazy
        )
    return moved(found, device)._replace(metadata=foreign(header.metadata))


def metadata(file: BufferedReader) -> dict[str, str]:
    """Return the texts that a file has beside its tensors, but for ours."""
    with naming(file.name):
        return foreign(read_header(file).metadata)


@contextmanager
def naming(name: object) -> Generator[None]:
    """Raise what is wrong with a file in one line that names it."""
    try:
        yield
    except (FileError, UnknownContainer) as error:
        raise type(error)(f"{name}: {in_short(str(error))}") from None


def entries_of(file: BufferedReader, header: Header, *, lazy: bool) -> dict[str, Leaf]:
    """Return the tensors of an open file by name, mapped or in their own memory."""
    return _mapped(file, header) if lazy else _loaded(file, header)


def tree_of(text: str | None, entries: Mapping[str, Leaf], *, lazy: bool) -> Read:
    """Return the tree that a document tells of entries; without one, a dict by name."""
    if text is None:
        return Read(dict(sorted(entries.items())))
    ts = [t for t in entries.values() if isinstance(t, Tensor)]
    release = releaser(ts) if lazy else lambda: None
    try:
        return unpack(text, entries, lazy=lazy, release=release)
    except (FileError, UnknownContainer, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a text can get wrong
        raise FileError(f"its metadata is damaged: {error!r}") from error


def moved(found: Read, device: torch.device) -> Read:
    """Return what was read on the CPU with its tensors on a device."""
    if device.type == "cpu":
        return found
    leaves, spec = take(found.tree)
    made = remade(leaves, lambda ts: remake(ts, Allocator(device)))
    return found._replace(tree=spec.make(made))


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


def write(tree: Tree, path: Path, options: Options) -> None:
    """Write a tree to a file, one tensor after the other."""
    pack = Pack.of(tree, keep_names=options.keep_names)
    options.done.expect(bytes_in(pack))
    write_entries(pack.entries, path, _metadata(pack, options), options.done)


def bytes_in(pack: Pack) -> int:
    """Return how many bytes the entries of a file have."""
    return sum(t.nbytes for t in pack.entries.values())


def _metadata(pack: Pack, options: Options) -> Metadata:
    return written(options.metadata, **{KEY: pack.document.to_json()})


def write_entries(
    ts: Mapping[str, Tensor], path: Path, metadata: Metadata, count: Count
) -> None:
    """Write tensors to a file by name, one after the other."""
    entries = laid_out(ts)
    with writing(path, count) as file:
        file.write(header_bytes(entries, metadata))
        for name in entries:
            dense = raw(ts[name]).cpu().contiguous()
            low, high = span(dense)
            if low < high:
                file.write(bytes_of(dense.untyped_storage()[low:high]))


def lay_out(tree: Tree, path: Path, options: Options) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    """
    pack = Pack.of(tree, keep_names=options.keep_names)
    ts = lay_out_entries(pack.entries, path, _metadata(pack, options))
    return mapped_tree(pack.document, ts)


def lay_out_entries(
    ts: Mapping[str, Tensor], path: Path, metadata: Metadata
) -> dict[str, Leaf]:
    """Write a file for tensors but for their data, and return them mapped to it.

    One that is there was laid out by another process, and is as this would be.
    """
    entries = laid_out(ts)
    header = header_bytes(entries, metadata)
    total = len(header) + sum(t.nbytes for t in ts.values())
    is_there = path.exists()
    with path.open("r+b" if is_there else "w+b") as file:
        if not is_there:
            file.write(header)
            reserve(file, total)
        whole = mapped(file, shared=True)
    return _slices(whole, len(header), entries)


def mapped_tree(document: Document, ts: Mapping[str, Leaf]) -> Tree:
    """Return the tree of a document over the entries of files that are laid out."""
    kinds = {i: kind_in_file(kind) for i, kind in document.kinds.items()}
    document = replace(document, kinds=kinds)
    names = document.names(len(ts))
    return assembled(document, {i: ts[name] for i, name in names.items()})
