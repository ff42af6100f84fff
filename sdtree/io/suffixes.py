"""Which format is written to a target, told by its name.

Nothing else than the suffix counts there; a file that is read is told by its content.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sdtree.errors import FileError
from sdtree.io.dcp.saved import METADATA
from sdtree.io.disk.target import Source, check_name
from sdtree.io.hf.finding import weights_in
from sdtree.io.refusal import in_short

SUFFIXES: Final = {
    ".pt": "pt",
    ".pth": "pt",
    ".bin": "pt",
    ".ckpt": "pt",
    ".pth.tar": "pt",
    ".safetensors": "safetensors",
}

HUB: Final = "huggingface"
"""The format of folders of shards."""

DCP: Final = "dcp"
"""The format of the directories of torch.distributed.checkpoint."""


def format_for(target: Source, shard_bytes: int = 0) -> str:
    """Return the format to write, which the suffix of a file tells.

    With ``shard_bytes`` it is a folder, and without a suffix a directory of DCP.
    """
    if not isinstance(target, (str, os.PathLike)):
        raise TypeError(
            f"save takes the tree first, and then the path of a file, here a "
            f"{type(target).__name__}; write sd.save(tree, 'state.pt')"
        )
    check_name(target, "save")
    name, path = os.fspath(target).lower(), Path(target)
    found = next((SUFFIXES[suffix] for suffix in SUFFIXES if name.endswith(suffix)), "")
    if shard_bytes:
        _check_shards(path, found)
        return HUB
    if found:
        return found
    if not path.suffix or (path / METADATA).is_file():
        _check_directory(path)
        return DCP
    raise FileError(
        f"{target}: the suffix tells no format to write; use one of "
        f"{', '.join(SUFFIXES)}, or none for a directory of DCP, or give the size of "
        "shards, for a folder of them, as shard_bytes= or on the command line "
        "--shard-size"
    )


def _check_shards(path: Path, suffix: str) -> None:
    """Raise ``FileError`` unless shards may be written into a folder of this name."""
    if suffix or path.is_file():
        raise FileError(
            f"{path}: shard_bytes=, on the command line --shard-size, writes shards "
            "into a folder, and this is the name of a file; give that of a folder, or "
            "leave it out"
        )
    _check_free(path, [METADATA] * (path / METADATA).is_file())


def _check_directory(path: Path) -> None:
    """Raise ``FileError`` unless a directory of DCP may be written at a path."""
    if path.is_file():
        raise FileError(
            f"{path}: a name without a suffix is that of a directory, and this "
            "is a file; give another, or a suffix"
        )
    _check_free(path, weights_in(path))


def _check_free(folder: Path, others: Sequence[str]) -> None:
    """Raise ``FileError`` if a folder has a checkpoint of another format."""
    if others:
        raise FileError(
            f"{folder} holds a checkpoint of another format, {in_short(others[0])}; "
            "give another folder, with shard_bytes= for shards and without for DCP, "
            "or on the command line --shard-size"
        )
