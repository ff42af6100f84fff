"""The formats that files have, and which of them a file is in, told by its content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from sdtree.errors import FileError
from sdtree.io import safetensors_file, torch_file
from sdtree.typing import Tree


class Format(NamedTuple):
    """How files of one format are read and written.

    ``lay_out`` writes a file for a tree but for its data and returns the tree that is
    mapped to it; ``seal`` finishes the file when that is filled.
    """

    read: Callable[[Path, torch.device, bool], tuple[Tree, list[str]]]
    write: Callable[[Tree, Path], None]
    lay_out: Callable[[Tree, Path], Tree]
    seal: Callable[[Path], None] = lambda _: None


FORMATS = {
    "pt": Format(
        torch_file.read, torch_file.write, torch_file.lay_out, torch_file.seal
    ),
    "safetensors": Format(
        safetensors_file.read, safetensors_file.write, safetensors_file.lay_out
    ),
}


def format_of(path: Path) -> str:
    """Return the name of the format of a file; raise ``FileError`` if it has none."""
    if path.is_dir():
        raise FileError(
            f"{path} is a directory, and distributed checkpoints are not read yet; "
            "give a single file"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise FileError(f"{path} is empty")
    if head.startswith(torch_file.ZIP):
        return "pt"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pt"
    raise FileError(
        f"{path}: neither a .pt nor a .safetensors file; it begins with {head!r}"
    )
