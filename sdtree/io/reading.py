"""Files as trees: ``load``, and ``open_file`` for a look that reads no data."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from sdtree.errors import FileError
from sdtree.io.foreigners import note_on
from sdtree.io.formats import FORMATS, format_of
from sdtree.io.restriding import restrided
from sdtree.io.target import Source, path_of
from sdtree.tensors.devices import check_present, device_named
from sdtree.tensors.modes import making, uncompiled
from sdtree.transform.transform import Transform, identity
from sdtree.typing import Tree


@dataclass(frozen=True, slots=True)
class Opened:
    """A file as a tree, its tensors mapped: their data is read when it is looked at.

    ``notes`` tell what is out of the ordinary, such as that the file was read whole;
    ``loaded`` makes of the mapped leaves what ``load`` returns, which may have strides.
    """

    tree: Tree
    format: str
    nbytes: int
    notes: tuple[str, ...] = ()
    loaded: Transform = identity


@uncompiled
def load(
    source: Source, /, *, device: str | torch.device | None = None, mmap: bool = False
) -> Tree:
    """Return the tree that a .pt or .safetensors file holds, told by its content.

    Law: ``equal(load(save(t)), t)``, with the same structure and ties. Tensors are on
    ``device``, the CPU by default, in memory of their own. With ``mmap`` their data is
    read from the file when it is looked at, so the file must not be written to; another
    may take its place. Leaves of a .safetensors file are contiguous then, but for those
    that share bytes in part, which are read at once.

    A .safetensors file of other software is a dict by name. Where other software has
    changed leaves of ours that shared bytes, they come back apart. Containers that are
    not built in come back only if ``register_container`` was called for them.

    Nothing in a file is imported or run, and a damaged file raises ``FileError``. An
    object in a .pt file whose class is not known here is a ``sdtree.io.Foreign``: a
    leaf that holds what the file says of it. If you trust the class, allow it to be
    loaded by ``torch.serialization.add_safe_globals``.

    >>> path = getfixture("tmp_path") / "state.safetensors"
    >>> sd.save({"model": {"w": torch.ones(2)}, "steps": [1, 2]}, path)
    >>> sd.load(path)
    {'model': {'w': tensor([1., 1.])}, 'steps': [1, 2]}
    """
    path = path_of(source, "load")
    place = device_named("cpu" if device is None else device, "load: device=")
    check_present(place)
    with making(), _opened(path) as file:
        place = torch.empty(0, device=place).device  # with the index that it has
        return FORMATS[format_of(file)].read(file, place, mmap).tree


def open_file(source: Source, /) -> Opened:
    """Return a file as a tree whose tensors are mapped, and what is to be noted.

    >>> path = getfixture("tmp_path") / "state.pt"
    >>> sd.save({"w": torch.ones(2)}, path)
    >>> opened = open_file(path)
    >>> opened.tree, opened.format, opened.notes
    ({'w': tensor([1., 1.])}, 'pt', ())
    """
    path = path_of(source, "open_file")
    with making(), _opened(path) as file:
        name = format_of(file)
        found = FORMATS[name].read(file, torch.device("cpu"), True)
        notes = tuple(filter(None, [*found.notes, note_on(found.tree)]))
        size = os.fstat(file.fileno()).st_size
        return Opened(found.tree, name, size, notes, restrided(found.strides))


@contextmanager
def _opened(path: Path) -> Generator[BufferedReader]:
    """Yield a file open for reading; it is opened once, whatever takes its place."""
    if path.is_dir():
        raise FileError(
            f"{path} is a directory, and distributed checkpoints are not read yet; "
            "give a single file"
        )
    with path.open("rb") as file:
        yield file
