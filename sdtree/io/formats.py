"""The formats that files have, and which of them a file is in, told by its content."""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import torch

from sdtree.errors import FileError
from sdtree.io.pt import file as torch_file
from sdtree.io.restriding import Read
from sdtree.io.safetensors import file as safetensors_file
from sdtree.typing import Tree


class Format(NamedTuple):
    """How files of one format are read, when they are open, and written.

    ``lay_out`` writes a file for a tree but for its data and returns the tree that is
    mapped to it; ``seal`` finishes the file when that is filled.
    """

    read: Callable[[BufferedReader, torch.device, bool], Read]
    write: Callable[[Tree, Path, bool], None]
    lay_out: Callable[[Tree, Path, bool], Tree]
    seal: Callable[[Path], None] = lambda _: None


def _write_pt(tree: Tree, path: Path, keep_names: bool) -> None:
    torch_file.write(tree, path)


def _lay_out_pt(tree: Tree, path: Path, keep_names: bool) -> Tree:
    return torch_file.lay_out(tree, path)


FORMATS = {
    "pt": Format(torch_file.read, _write_pt, _lay_out_pt, torch_file.seal),
    "safetensors": Format(
        safetensors_file.read, safetensors_file.write, safetensors_file.lay_out
    ),
}


TAR = slice(257, 262)
"""Where a tar archive has its mark."""


def format_of(file: BufferedReader) -> str:
    """Return the name of the format of an open file, told by how it begins."""
    start = file.read(TAR.stop)
    head, mark = start[:9], start[TAR]
    file.seek(0)
    if not head:
        raise FileError(f"{file.name} is empty")
    if head.startswith(torch_file.ZIP):
        return "pt"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pt"
    if mark == b"ustar":
        raise FileError(
            f"{file.name}: a tar archive, as the first versions of torch wrote, which "
            "only unsafe loading reads; where you trust it, torch.save anew what "
            "torch.load(..., weights_only=False) gives"
        )
    raise FileError(
        f"{file.name}: neither a .pt nor a .safetensors file; it begins with {head!r}"
    )
