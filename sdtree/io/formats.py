"""The formats that files and folders have: how each is read and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from sdtree.errors import FileError
from sdtree.io.dcp import folder as dcp
from sdtree.io.dcp.saved import METADATA
from sdtree.io.disk.counted import Place
from sdtree.io.disk.crew import Crew
from sdtree.io.disk.target import Source, replacing
from sdtree.io.hf import folder as hub
from sdtree.io.hf.finding import find, is_index, weights_in
from sdtree.io.hf.replacing import replacing_weights
from sdtree.io.leaves.restriding import Read
from sdtree.io.pt import file as torch_file
from sdtree.io.refusal import in_short
from sdtree.io.safetensors import file as safetensors_file
from sdtree.io.suffixes import DCP, HUB
from sdtree.io.texts import Options
from sdtree.typing import Leaf, Tree
from sdtree.wire.collectives import RankGroup

S = TypeVar("S")
Pull = Callable[[Sequence[int]], Sequence[Leaf]]
"""Makes the leaves at some positions of a tree."""
Joint = Callable[[Tree, Source, Options, RankGroup, Callable[[Tree], Tree]], None]
"""Writes a tree from several ranks; the last makes of leaves what can be written."""


class Format(NamedTuple, Generic[S]):
    """How files of one format are read, when they are open, and written.

    ``lay_out`` writes a file for a tree but for its data and returns the tree that is
    mapped to it; ``seal`` finishes the file when that is filled. A folder is read from
    its path, or from that of the file in it that stands for it. ``replacing`` yields
    where to write, and puts it in the place of a target. ``metadata`` reads the texts
    beside the tensors, for which not every format has room. ``pour``, where nothing is
    laid out, writes a tree of which leaves are made when it asks for them. ``joint``
    writes the parts that ranks have of a tree. ``part`` reads a tree of which only
    parts are to be looked at, where that is another matter.
    """

    read: Callable[[S, torch.device, bool], Read]
    write: Callable[[Tree, Path, Options], None]
    lay_out: Callable[[Tree, Path, Options], Tree] | None
    seal: Callable[[Path], None] = lambda _: None
    replacing: Callable[[Source], AbstractContextManager[Path]] = replacing
    metadata: Callable[[S], dict[str, str]] | None = None
    pour: Callable[[Tree, Pull, Path, Options, Crew], None] | None = None
    joint: Joint | None = None
    part: Callable[[S], Read] | None = None


def _write_pt(tree: Tree, path: Path, options: Options) -> None:
    torch_file.write(tree, path, options.done)


def _lay_out_pt(tree: Tree, path: Path, options: Options) -> Tree:
    return torch_file.lay_out(tree, path)


def _hub_from_ranks(*how: Any) -> None:
    from sdtree.io.hf.ranks import save_from_ranks

    save_from_ranks(*how)


def _dcp_from_ranks(*how: Any) -> None:
    from sdtree.io.dcp.ranks import save_from_ranks

    save_from_ranks(*how)


FORMATS: dict[str, Format[BufferedReader]] = {
    "pt": Format(torch_file.read, _write_pt, _lay_out_pt, torch_file.seal),
    "safetensors": Format(
        safetensors_file.read,
        safetensors_file.write,
        safetensors_file.lay_out,
        metadata=safetensors_file.metadata,
    ),
}

FOLDERS: dict[str, Format[Place]] = {
    HUB: Format(
        hub.read,
        hub.write,
        hub.lay_out,
        replacing=replacing_weights,
        metadata=hub.metadata,
        joint=_hub_from_ranks,
    ),
    DCP: Format(
        dcp.read,
        dcp.write,
        None,
        replacing=dcp.replacing,
        metadata=dcp.metadata,
        pour=dcp.pour,
        joint=_dcp_from_ranks,
        part=dcp.part,
    ),
}

EVERY: dict[str, Format[Any]] = {**FORMATS, **FOLDERS}


def found_at(path: Path) -> tuple[str, Path]:
    """Return the format of a folder, and what of it is to be opened.

    The format is empty where that is one file, which tells its own.
    """
    if path.name == METADATA:
        return DCP, path.parent
    if (path / METADATA).is_file():
        if others := weights_in(path):
            raise FileError(
                f"{path} holds several checkpoints; give the path of one: {METADATA}, "
                f"{in_short(', '.join(others))}"
            )
        return DCP, path
    if path.is_dir():
        path = find(path)
    return HUB if is_index(path) else "", path
