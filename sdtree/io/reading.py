"""Files as trees: ``load``, and ``open_file`` for a look that reads no data."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from sdtree.errors import SpecMismatch
from sdtree.io.content import format_of
from sdtree.io.disk.counted import Place, reading
from sdtree.io.disk.pages import Pages, releasing
from sdtree.io.disk.target import Source, path_of, reopened
from sdtree.io.formats import FOLDERS, FORMATS, Format, S, found_at
from sdtree.io.leaves.fetching import fetching, regions_of
from sdtree.io.leaves.restriding import Pour, Read, restrided
from sdtree.io.pickles.foreigners import note_on
from sdtree.io.safetensors.file import moved
from sdtree.io.texts import Metadata
from sdtree.tensors.counting import UNHEARD, Count, counting
from sdtree.tensors.devices import check_present, device_named
from sdtree.tensors.modes import making, uncompiled
from sdtree.transform.transform import Transform, identity
from sdtree.transform.window import apart
from sdtree.tree.spec import take
from sdtree.typing import OnProgress, Tree
from sdtree.typing import Path as TreePath


@dataclass(frozen=True, slots=True)
class Opened:
    """A file as a tree, its tensors mapped: their data is read when it is looked at.

    ``notes`` tell what is out of the ordinary, such as that the file was read whole;
    ``loaded`` makes of the mapped leaves what ``load`` returns, which may have strides.
    ``metadata`` are the texts that stand beside the tensors. ``files`` tells in which
    file of a folder the leaf at a path lies. ``pour`` reads a leaf that is not mapped
    into a tensor, where that is all that ``loaded`` would do.
    """

    tree: Tree
    format: str
    nbytes: int
    notes: tuple[str, ...] = ()
    loaded: Transform = identity
    metadata: Metadata = field(default_factory=dict[str, str])
    files: Mapping[TreePath, str] = field(default_factory=dict[TreePath, str])
    pour: Pour | None = None


@uncompiled
def load(
    source: Source,
    /,
    *,
    device: str | torch.device | None = None,
    mmap: bool = False,
    like: Tree | None = None,
    on_progress: OnProgress | None = None,
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

    A folder with one such file, or with shards and their index, is one tree as well: by
    name, where other software wrote it. All that is not as the index says is told. A
    directory of torch.distributed.checkpoint is the tree that torch makes of it, or
    what it was, where it is one of ours.

    With ``like``, a tree of the same paths, shapes and dtypes, each rank reads its own
    parts and no others, as ``distribute(like=like)`` of the mapped file. Collective.

    ``on_progress(done, total)`` is called with bytes of the files, or with ``like`` of
    what this rank has, some two hundred times at most, and at last with both the same.

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
    if like is not None:
        return _loaded_like(path, like, device, mmap, on_progress)
    place = device_named("cpu" if device is None else device, "load: device=")
    check_present(place)
    with counting(on_progress) as count, making(), _opened(path, count) as opening:
        place = torch.empty(0, device=place).device  # with the index that it has
        return _whole(opening.read(place, mmap), place, mmap)


def _whole(found: Read, device: torch.device, mmap: bool) -> Tree:
    """Return the tree that was read, with those of its leaves that are not yet."""
    if found.fill is None:
        return found.tree
    steps = found.filled(own=True) | restrided(found.strides)
    tree = (found.filled(own=False) if mmap else steps)(found.tree)
    return moved(found._replace(tree=tree), device).tree


def _loaded_like(
    path: Path,
    like: Tree,
    device: str | torch.device | None,
    mmap: bool,
    on_progress: OnProgress | None,
) -> Tree:
    """Return the parts of a file that a rank has of another tree, in its layouts."""
    from sdtree.ops.collective import distribute

    if device is not None or mmap:
        raise TypeError(
            "load: like= tells where leaves go and maps the file, so leave out device= "
            "and mmap="
        )
    parted = distribute(like=like, on_progress=on_progress)
    with _told_of_parts():
        found = _to_be_parted(path)
        if found is not None:
            steps = found.filled(own=False, regions=regions_of(like))
            return (steps | parted)(found.tree)
        opened = open_file(path)
        pages = Pages(apart(take(opened.tree)[0], lambda i: (i,)).tensors)
        steps = opened.loaded | parted | releasing(pages)
        return (fetching(like, pages) | steps)(opened.tree)


@contextmanager
def _told_of_parts() -> Generator[None]:
    """Say how a part of a file is loaded, where that is what does not fit."""
    try:
        yield
    except SpecMismatch as error:
        error.add_note(
            "load(like=) takes a tree of all that the file has; for a part of it call "
            "sd.distribute(sd.load(file, mmap=True), like=like, strict=False)"
        )
        raise


def _to_be_parted(path: Path) -> Read | None:
    """Return a tree of which a format reads parts, None if it maps all of it."""
    with making(), _opened(path) as opening:
        return opening.part() if opening.part else None


def open_file(source: Source, /) -> Opened:
    """Return a file as a tree whose tensors are mapped, and what is to be noted.

    >>> path = getfixture("tmp_path") / "state.pt"
    >>> sd.save({"w": torch.ones(2)}, path)
    >>> opened = open_file(path)
    >>> opened.tree, opened.format, opened.notes
    ({'w': tensor([1., 1.])}, 'pt', ())
    """
    path = path_of(source, "open_file")
    with making(), _opened(path) as opening:
        found = opening.read(torch.device("cpu"), True)
        notes = tuple(filter(None, [*found.notes, note_on(found.tree)]))
        path = opening.path
        parts = {path, *(path.parent / name for name in {*found.files.values()})}
        if path.is_dir():
            parts = {part for part in path.iterdir() if part.is_file()}
        return Opened(
            found.tree,
            opening.format,
            sum(part.stat().st_size for part in parts),
            notes,
            found.loaded,
            found.metadata,
            found.files,
            None if found.strides else found.pour,
        )


class _Opening(NamedTuple):
    """What is open: the file, its format, and how it is read."""

    path: Path
    format: str
    read: Callable[[torch.device, bool], Read]
    metadata: Callable[[], dict[str, str]]
    part: Callable[[], Read] | None = None

    @classmethod
    def of(cls, path: Path, name: str, form: Format[S], source: S) -> _Opening:
        """Return what is open in a format."""
        metadata = partial(form.metadata, source) if form.metadata else dict[str, str]
        part = partial(form.part, source) if form.part else None
        return cls(path, name, partial(form.read, source), metadata, part)


@uncompiled
def metadata(source: Source, /) -> dict[str, str]:
    """Return the texts that a .safetensors file, or a folder, has beside its tensors.

    They are no part of the tree. A file of ours has ``format: pt``, as other software
    asks for it, and what ``save`` was given as ``metadata``. Files of other formats
    have none. No tensor is read.

    >>> path = getfixture("tmp_path") / "state.safetensors"
    >>> sd.save({"w": torch.ones(2)}, path, metadata={"trained by": "us"})
    >>> sd.metadata(path)
    {'format': 'pt', 'trained by': 'us'}
    """
    with _opened(path_of(source, "metadata")) as opening:
        return opening.metadata()


@contextmanager
def _opened(path: Path, count: Count = UNHEARD) -> Generator[_Opening]:
    """Yield a file open for reading; it is opened once, whatever takes its place."""
    folder, path = found_at(path)
    if folder:
        yield _Opening.of(path, folder, FOLDERS[folder], Place(path, count))
        return
    with reading(path, count) as file:
        count.expect(os.fstat(file.fileno()).st_size)
        name = format_of(file)
        yield _Opening.of(reopened(file), name, FORMATS[name], file)
