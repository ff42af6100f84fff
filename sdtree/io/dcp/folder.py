"""Directories of DCP as trees whose tensors are read when they are asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdtree.io.dcp import writing
from sdtree.io.dcp.document import FILE, Beside, rebuilt
from sdtree.io.dcp.files import META, Files
from sdtree.io.dcp.holding import held
from sdtree.io.dcp.nesting import nested
from sdtree.io.dcp.saved import (
    METADATA,
    SUFFIX,
    Place,
    Saved,
    SavedTensor,
    read_saved,
)
from sdtree.io.dcp.writing import Plan
from sdtree.io.disk.counted import Place as At
from sdtree.io.disk.crew import Crew
from sdtree.io.disk.target import Source
from sdtree.io.hf.replacing import replacing_files
from sdtree.io.leaves.places import zeros
from sdtree.io.leaves.restriding import Read, Regions
from sdtree.io.pickles.foreigners import with_sets_apart
from sdtree.io.safetensors.file import naming
from sdtree.io.texts import Options
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import handler_of
from sdtree.layout.layout import Region
from sdtree.tensors.counting import Count
from sdtree.tensors.storage import QUANTIZED
from sdtree.transform.stages import LeafStage, StageContext
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window
from sdtree.tree.collecting import all_kept
from sdtree.tree.flattening import structure
from sdtree.typing import Leaf, Tree


class Unread(NamedTuple):
    """A tensor that is not read yet, and the leaf that stands for it."""

    name: str
    saved: SavedTensor
    stand_in: Leaf


def read(place: At, device: torch.device, lazy: bool) -> Read:
    """Return the tree of a directory, and how the tensors that stand in it are read.

    Those that are not yet are meta tensors, which have no data. A directory of ours is
    as it was; another is a tree as DCP itself nests it.
    """
    return _read(*place, own=not lazy)


def part(place: At) -> Read:
    """Return a tree of which only parts are to be looked at: nothing in it is tied."""
    return _read(*place, own=False, are_tied=False)


def _read(folder: Path, count: Count, *, own: bool, are_tied: bool = True) -> Read:
    with naming(folder), all_kept():
        saved = _saved(folder)
        files = Files.of(folder, saved.places(), count)
        if not are_tied:
            files.pages.advise_all(mmap.MADV_RANDOM)
        beside, notes = Beside.of(folder, saved.save_id)
        tied = {*beside.tied} if beside and are_tied else set[str]()
        values, tensors = _entries(saved, files, tied, own)
        if beside is None:
            every = {**tensors, **values}
            tree = nested({name: every[name] for name in saved.entries}, saved.paths)
            found, leaves = Read(tree, notes), tensors
        else:
            found, leaves = rebuilt(
                beside, tensors, values, files.pages.release, are_tied
            )
    unread = {
        id(leaf): Unread(name, entry, leaf)
        for name, leaf in leaves.items()
        if isinstance(entry := saved.entries[name], SavedTensor) and leaf.is_meta
    }
    return found._replace(
        fill=partial(_filling, files, unread), pour=partial(_pour, files, unread)
    )


def _entries(
    saved: Saved, files: Files, tied: Container[str], own: bool
) -> tuple[dict[str, Tree], dict[str, Tensor]]:
    """Return the values of a directory, and its tensors, not read but if they must."""
    values, tensors = dict[str, Tree](), dict[str, Tensor]()
    for name, entry in saved.entries.items():
        if isinstance(entry, Place):
            values[name] = with_sets_apart(files.value(name, entry))
        elif name in tied or entry.dtype in QUANTIZED:
            tensors[name] = files.tensor(name, entry, own=own)
        else:
            tensors[name] = torch.empty(entry.shape, dtype=entry.dtype, device=META)
    return values, tensors


def metadata(place: At) -> dict[str, str]:
    """Return the texts that stand beside a tree of ours."""
    folder = place.path
    with naming(folder), all_kept():
        beside, _ = Beside.of(folder, _saved(folder).save_id)
    return {} if beside is None else dict(beside.metadata)


def _saved(folder: Path) -> Saved:
    return read_saved((folder / METADATA).read_bytes())


# -- the tensors -------------------------------------------------------------------


def _filling(
    files: Files, unread: Mapping[int, Unread], own: bool, regions: Regions
) -> Transform:
    """Return the step that reads the tensors that are not read yet.

    They are mapped where they can be, unless each is to have its ``own`` memory. Where
    ``regions`` tell which are wanted, the rest of a tensor is not read, nor does it
    take memory, and must not be looked at.
    """
    bind = Call(_bound, files, unread, own, regions)
    return Transform((LeafStage("read", bind, by_leaf=True, on_abstract=True),))


def _bound(
    files: Files,
    unread: Mapping[int, Unread],
    own: bool,
    regions: Regions,
    _: StageContext,
) -> Any:
    return Call(_act, files, unread, own, regions)


def _act(
    files: Files,
    unread: Mapping[int, Unread],
    own: bool,
    regions: Regions,
    window: Window,
) -> list[Leaf]:
    """Return a window with its tensors read; the pages of the last are given back."""
    files.pages.release()
    leaves = [*window.leaves]
    with naming(files.folder):
        for i, leaf in enumerate(leaves):
            each = unread.get(id(leaf))
            if each is not None:
                leaves[i] = _leaf_of(files, each, own, regions.get(window.path(i)))
    return leaves


def _pour(
    files: Files, unread: Mapping[int, Unread], leaf: Leaf, target: Tensor
) -> bool:
    """Read a leaf into a tensor, and return whether it was one that is not read yet."""
    each = unread.get(id(leaf))
    if each is None:
        return False
    with naming(files.folder):
        files.fill(each.name, each.saved, target)
    files.pages.release()
    return True


def _leaf_of(
    files: Files, each: Unread, own: bool, regions: Sequence[Region] | None
) -> Leaf:
    """Return the leaf that another stands for."""
    name, saved, leaf = each
    if regions is None:
        t = files.tensor(name, saved, own=own)
    else:
        nbytes = math.prod(saved.shape) * saved.dtype.itemsize
        t = torch.empty(0, dtype=saved.dtype).set_(zeros(nbytes)).view(saved.shape)
        files.fill(name, saved, t, regions)
    _, aux = handler_of(leaf).flatten(leaf)
    return handler_of(leaf).unflatten(aux, [t])


# -- written -----------------------------------------------------------------------


def write(tree: Tree, folder: Path, options: Options) -> None:
    """Write a tree as a directory."""
    plan = Plan.of(tree)
    writing.write(plan, folder, options.metadata, writing.Source.of(plan, options.done))


def pour(
    outline: Tree,
    pull: Callable[[Sequence[int]], Sequence[Leaf]],
    folder: Path,
    options: Options,
    crew: Crew,
) -> None:
    """Write a tree whose leaves are made when each is written; this is its outline."""
    plan = Plan.of(outline)

    def tensor(name: str) -> Tensor:
        [leaf] = pull(plan.leaves[name])
        return held(leaf, (name,)).tensor

    def value(name: str) -> Tree:
        return structure(plan.state[name]).make(pull(plan.leaves.get(name, ())))

    source = writing.Source(tensor, value)
    writing.write(plan, folder, options.metadata, source, crew)


def replacing(target: Source) -> AbstractContextManager[Path]:
    """Yield a folder to write to, whose files take the place of those of DCP."""
    return replacing_files(target, _is_ours, _is_head)


def _is_ours(path: Path) -> bool:
    return path.name in (METADATA, FILE) or path.suffix == SUFFIX


def _is_head(path: Path) -> bool:
    return path.name == METADATA
