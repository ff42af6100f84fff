"""The formats that files and folders have: how each is read and written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from sdtree.io.beside import Options
from sdtree.io.hf import folder as hub
from sdtree.io.hf.finding import find, is_index
from sdtree.io.hf.replacing import replacing_weights
from sdtree.io.pt import file as torch_file
from sdtree.io.restriding import Read
from sdtree.io.safetensors import file as safetensors_file
from sdtree.io.target import HUB, Source, replacing
from sdtree.typing import Tree

S = TypeVar("S")


class Format(NamedTuple, Generic[S]):
    """How files of one format are read, when they are open, and written.

    ``lay_out`` writes a file for a tree but for its data and returns the tree that is
    mapped to it; ``seal`` finishes the file when that is filled. A folder is read from
    its path, or from that of the file in it that stands for it. ``replacing`` yields
    where to write, and puts it in the place of a target. ``metadata`` reads the texts
    beside the tensors, for which not every format has room.
    """

    read: Callable[[S, torch.device, bool], Read]
    write: Callable[[Tree, Path, Options], None]
    lay_out: Callable[[Tree, Path, Options], Tree]
    seal: Callable[[Path], None] = lambda _: None
    replacing: Callable[[Source], AbstractContextManager[Path]] = replacing
    metadata: Callable[[S], dict[str, str]] | None = None


def _write_pt(tree: Tree, path: Path, options: Options) -> None:
    torch_file.write(tree, path)


def _lay_out_pt(tree: Tree, path: Path, options: Options) -> Tree:
    return torch_file.lay_out(tree, path)


FORMATS: dict[str, Format[BufferedReader]] = {
    "pt": Format(torch_file.read, _write_pt, _lay_out_pt, torch_file.seal),
    "safetensors": Format(
        safetensors_file.read,
        safetensors_file.write,
        safetensors_file.lay_out,
        metadata=safetensors_file.metadata,
    ),
}

FOLDERS: dict[str, Format[Path]] = {
    HUB: Format(
        hub.read,
        hub.write,
        hub.lay_out,
        replacing=replacing_weights,
        metadata=hub.metadata,
    ),
}

EVERY: dict[str, Format[Any]] = {**FORMATS, **FOLDERS}


def found_at(path: Path) -> tuple[str, Path]:
    """Return the format of a folder, and what of it is to be opened.

    The format is empty where that is one file, which tells its own.
    """
    if path.is_dir():
        path = find(path)
    return HUB if is_index(path) else "", path
