"""Files of torch's own format: read as data, and written by ``torch.save``.

No file makes us import or run anything. What it holds of classes that are not known
here comes as ``Foreign``.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, skip_data

from sdtree.errors import FileError, UnknownContainer, UnknownLeaf
from sdtree.io.disk.counted import writing
from sdtree.io.disk.memory import mapped, size_of
from sdtree.io.disk.target import reserve
from sdtree.io.leaves.restriding import Read
from sdtree.io.leaves.sharing import cut_storages, remade
from sdtree.io.pickles.foreign import Foreign
from sdtree.io.pickles.foreigners import with_sets_apart
from sdtree.io.pickles.machine import Machine, Room, Tape
from sdtree.io.pickles.names import Names, written_names
from sdtree.io.pickles.unfolding import check_extent
from sdtree.io.pt import pickling
from sdtree.io.pt.archive import Archive, ZipStorages
from sdtree.io.pt.checksum import write_checksums
from sdtree.io.pt.old_format import MAGIC, OldStorages
from sdtree.io.pt.trial import check_readable
from sdtree.io.refusal import gist
from sdtree.tensors.counting import Count
from sdtree.tensors.storage import covered_bytes
from sdtree.text.short import full_name
from sdtree.transform.window import apart_in
from sdtree.tree.spec import take
from sdtree.typing import Tree

ZIP = b"PK\x03\x04"
CPU = torch.device("cpu")
OLD = "old format: the file was read whole, and cannot be mapped"


def read(file: BufferedReader, device: torch.device, lazy: bool) -> Read:
    """Return the tree of a file, and what is to be noted about how it was read."""
    with _explained(file.name):
        if file.read(4) == ZIP:
            whole = mapped(file) if lazy else None
            return Read(_read_zip(file, device, whole))
        return Read(_read_old(file, device), [OLD] if lazy else [])


def _read_zip(
    file: BinaryIO,
    device: torch.device,
    whole: torch.UntypedStorage | None = None,
    is_filled: bool = True,
) -> Tree:
    """Return the tree of an archive, over what is mapped of it, or read into memory."""
    archive = Archive(file)
    if archive.has("constants.pkl"):
        raise FileError(
            "a TorchScript archive, which is code; open it with torch.jit.load and "
            "save its state_dict()"
        )
    data = archive.read("data.pkl")
    storages = ZipStorages(archive, device, whole)
    room = Room(len(data), archive.size)
    names = Names(room, device, storages.find)
    names.rebuilder.is_swapped = storages.is_swapped
    tree = Machine(names).run(Tape(io.BytesIO(data), len(data)))
    check_extent(tree, len(data))
    if is_filled:
        names.rebuilder.check_unseen()
    return with_sets_apart(tree)


def read_item(file: BinaryIO) -> Tree:
    """Return the tree of a file that is part of another, in memory of its own."""
    head = file.read(4)
    file.seek(0)
    with damage_told():
        return _read_zip(file, CPU) if head == ZIP else _read_old(file, CPU)


@contextmanager
def damage_told() -> Generator[None]:
    """Raise what a damaged file makes other libraries raise as a ``FileError``."""
    try:
        yield
    except (OSError, MemoryError, FileError, UnknownLeaf):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise FileError(_told(error)) from error


def _read_old(file: BinaryIO, device: torch.device) -> Tree:
    """Return the tree of a file of the old format."""
    storages, size = OldStorages(file, device), size_of(file)
    names = Names(Room(size, size), device, storages.find, has_data=False)
    file.seek(0)
    tape = Tape(file, size)
    if Machine(names).run(tape) != MAGIC:
        raise FileError(
            "a pickle that torch.save did not write: it has no magic number"
        )
    _version, _system = Machine(names).run(tape), Machine(names).run(tape)
    tree = Machine(names).run(tape)
    storages.fill(Machine(names).run(tape))
    check_extent(tree, size)
    names.rebuilder.check_unseen()
    return with_sets_apart(tree)


def write(tree: Tree, path: Path, count: Count) -> None:
    """Write a tree to a file. Of each storage only what its leaves cover is written."""
    check_readable(tree, restored)
    leaves, spec = take(tree)
    made = spec.make(remade(leaves, cut_storages))
    if not count.is_heard:
        _save(made, path)
        return
    count.expect(covered_bytes(apart_in(spec, leaves).tensors))
    with writing(path, count) as file, full_disk_told(path.name):
        pickling.save(made, file)


def written_item(tree: Tree) -> io.BytesIO:
    """Return a tree as a file that is to be part of another."""
    leaves, spec = take(tree)
    buffer = io.BytesIO()
    pickling.save(spec.make(remade(leaves, cut_storages)), buffer)
    return buffer


def lay_out(tree: Tree, path: Path) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    One that is there was laid out by another process.
    """
    if not path.exists():
        check_readable(tree, partial(restored, is_filled=False))
        with skip_data():
            _save(tree, path)
        with path.open("r+b") as file:
            reserve(file, path.stat().st_size)
    with path.open("r+b") as file:
        return _read_zip(file, CPU, mapped(file, shared=True), is_filled=False)


def _save(tree: Tree, path: Path) -> None:
    with full_disk_told(path.name):
        pickling.save(tree, path)


@contextmanager
def full_disk_told(name: str) -> Generator[None]:
    """Raise what torch makes of a disk that is full as an ``OSError``."""
    try:
        yield
    except RuntimeError as error:
        told = f"{name} was not written, the disk may be full: {error}"
        raise OSError(told) from error


def seal(path: Path) -> None:
    """Finish a file that was laid out and filled."""
    write_checksums(path)


def restored(x: object, is_filled: bool = True) -> Any:
    """Return what a file would give back of a tree that was written to it.

    Raise ``FileError`` if torch would only load it unsafely, without us.
    """
    buffer = io.BytesIO()
    pickling.save(x, buffer)
    buffer.seek(0)
    names = {*get_unsafe_globals_in_checkpoint(buffer)} - written_names()
    if full_name(Foreign) in names:
        raise FileError("it holds an object that was read without its class")
    if names:
        raise FileError(f"it takes unsafe loading of {', '.join(sorted(names))}")
    return _read_zip(buffer, CPU, is_filled=is_filled)


@contextmanager
def _explained(name: str) -> Generator[None]:
    """Raise what is wrong with a file as a ``FileError`` that names it."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except (FileError, UnknownContainer, UnknownLeaf) as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise FileError(f"{name}: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"not a checkpoint of torch, or a damaged one: {gist(str(error))}"
