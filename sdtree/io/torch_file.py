"""Files of torch's own format, read and written by ``torch.load`` and ``torch.save``.

They are read with ``weights_only=True``, always: no file makes us run anything.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import (
    get_unsafe_globals_in_checkpoint,
    set_default_mmap_options,
    skip_data,
)

from sdtree.errors import FileError
from sdtree.io import pickling
from sdtree.io.allowing import allowed
from sdtree.io.arrays import PickledArray, settled
from sdtree.io.checksum import write_checksums
from sdtree.io.refusal import gist, unsafe_names
from sdtree.io.sharing import cut_storages, remade
from sdtree.io.target import reserve
from sdtree.io.trial import check_readable
from sdtree.treespec import take
from sdtree.typing import Tree

ZIP = b"PK\x03\x04"
OLD = "old format: the file was read whole, and cannot be mapped"
MISNAMED = "torch takes the name for that of a safetensors file: it was read whole"


def read(path: Path, device: torch.device, lazy: bool) -> tuple[Tree, list[str]]:
    """Return the tree of a file, and what is to be noted about how it was read."""
    notes = [note for note in (_unmapped(path),) if note and lazy]
    with _explained(path):
        if lazy and not notes:
            return _load(path, device, mmap=True), notes
        with path.open("rb") as file:
            return _load(file, device), notes


def _load(source: Any, device: torch.device | str, mmap: bool = False) -> Tree:
    made = PickledArray.made
    with allowed():
        tree = torch.load(source, device, weights_only=True, mmap=mmap)
    return tree if made == PickledArray.made else settled(tree)


def _unmapped(path: Path) -> str:
    """Return why a file cannot be mapped, empty if it can."""
    with path.open("rb") as file:
        if file.read(4) != ZIP:
            return OLD
    return MISNAMED if path.suffix == ".safetensors" else ""


def write(tree: Tree, path: Path) -> None:
    """Write a tree to a file. Of each storage only what its leaves cover is written."""
    check_readable(tree, restored)
    leaves, spec = take(tree)
    _save(spec.make(remade(leaves, cut_storages)), path)


def lay_out(tree: Tree, path: Path) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    """
    check_readable(tree, restored)
    with skip_data():
        _save(tree, path)
    with path.open("r+b") as file:
        reserve(file, path.stat().st_size)
    with set_default_mmap_options(mmap.MAP_SHARED):
        return _load(path, "cpu", mmap=True)


def _save(tree: Tree, path: Path) -> None:
    try:
        pickling.save(tree, path)
    except RuntimeError as error:  # what torch makes of a disk that is full
        told = f"{path.name} was not written, the disk may be full: {error}"
        raise OSError(told) from error


def seal(path: Path) -> None:
    """Finish a file that was laid out and filled."""
    write_checksums(path)


def restored(x: object) -> Any:
    """Return what a file would give back of a tree that was written to it."""
    buffer = io.BytesIO()
    pickling.save(x, buffer)
    buffer.seek(0)
    return _load(buffer, "cpu")


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Raise what ``torch.load`` cannot read as a ``FileError`` with the reason."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise FileError(f"{path}: {_reason(path, str(error))}") from error


def _reason(path: Path, text: str) -> str:
    if "TorchScript" in text:
        return (
            "a TorchScript archive, which is code; open it with torch.jit.load and "
            "save its state_dict()"
        )
    names = _unsafe_names(path) or unsafe_names(text)
    if names:
        return (
            f"it needs unsafe loading, for it holds {', '.join(names)}, and that can "
            "run any code; allow these, if you trust them, by "
            "torch.serialization.add_safe_globals([...])"
        )
    return f"not a checkpoint of torch, or a damaged one: {gist(text)}"


def _unsafe_names(path: Path) -> list[str]:
    """Return all that only unsafe loading would take, as far as the file tells."""
    try:
        with allowed():
            return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads the same damaged pickle
        return []
