"""Files as trees: ``load``, and ``open_file`` for a look that reads no data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdtree.devices import check_present, device_named
from sdtree.io.formats import FORMATS, format_of
from sdtree.io.target import Source, path_of
from sdtree.modes import making
from sdtree.typing import Tree


@dataclass(frozen=True, slots=True)
class Opened:
    """A file as a tree, its tensors mapped: their data is read when it is looked at.

    ``notes`` tell what is out of the ordinary, such as that the file was read whole.
    """

    tree: Tree
    format: str
    nbytes: int
    notes: tuple[str, ...] = ()


def load(
    source: Source, /, *, device: str | torch.device | None = None, mmap: bool = False
) -> Tree:
    """Return the tree that a .pt or .safetensors file holds, told by its content.

    Law: ``equal(load(save(t)), t)``, with the same structure and ties. Tensors are on
    ``device``, the CPU by default, in memory of their own. With ``mmap`` their data is
    read from the file when it is looked at, so the file must stay as it is; leaves of a
    .safetensors file are contiguous then, but for ties.

    A .safetensors file of other software is a dict by name. Containers that are not
    built in come back only if ``register_container`` was called for them. Nothing in a
    file is imported or run: a .pt file that asks for it raises ``FileError``, as do
    foreign and damaged files.

    >>> path = getfixture("tmp_path") / "state.safetensors"
    >>> sd.save({"model": {"w": torch.ones(2)}, "steps": [1, 2]}, path)
    >>> sd.load(path)
    {'model': {'w': tensor([1., 1.])}, 'steps': [1, 2]}
    """
    path = path_of(source, "load")
    place = device_named("cpu" if device is None else device, "load: device=")
    check_present(place)
    with making():
        place = torch.empty(0, device=place).device  # with the index that it has
        return FORMATS[format_of(path)].read(path, place, mmap)[0]


def open_file(source: Source, /) -> Opened:
    """Return a file as a tree whose tensors are mapped, and what is to be noted.

    >>> path = getfixture("tmp_path") / "state.pt"
    >>> sd.save({"w": torch.ones(2)}, path)
    >>> opened = open_file(path)
    >>> opened.tree, opened.format, opened.notes
    ({'w': tensor([1., 1.])}, 'pt', ())
    """
    path = path_of(source, "open_file")
    name = format_of(path)
    with making():
        tree, notes = FORMATS[name].read(path, torch.device("cpu"), True)
    return Opened(tree, name, path.stat().st_size, tuple(notes))
