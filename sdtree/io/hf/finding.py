"""Which file of a folder is to be opened: its only one, or the index of its shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sdtree.errors import FileError
from sdtree.io.refusal import in_short

INDEX: Final = ".index.json"
SHARD: Final = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)", re.DOTALL)
USUAL: Final = {".safetensors": "model", ".bin": "pytorch_model"}
"""How the weights of a model are called, those that are preferred first."""


def is_index(path: Path) -> bool:
    """Return whether a file is an index of shards, by its name."""
    return path.name.endswith(INDEX)


def set_of(name: str) -> tuple[str, ...] | None:
    """Return what the shards of one set have in common; None if it is no shard's name.

    >>> set_of("model-00001-of-00003.safetensors")
    ('model', '00003', '.safetensors')
    """
    found = SHARD.fullmatch(name)
    return found.groups() if found else None


def find(folder: Path) -> Path:
    """Return the file of a folder that is to be opened, which may be an index."""
    names = sorted(path.name for path in folder.iterdir())
    for suffix, usual in USUAL.items():
        found = [name for name in names if _is_weights(name, suffix)]
        best = [name for name in found if name.removesuffix(INDEX) == usual + suffix]
        chosen = best or found
        if len(chosen) > 1:
            raise FileError(
                f"{folder} holds several checkpoints; give the path of one: "
                f"{in_short(', '.join(chosen))}"
            )
        if chosen:
            return folder / chosen[0]
        shards = [name for name in names if (set_of(name) or ("",))[-1] == suffix]
        if shards:
            raise FileError(
                f"{folder}: a directory of shards, as {in_short(shards[0])}, without "
                "their index; write it anew, or give the path of one"
            )
    raise FileError(f"{folder}: {_nothing_in(names)}")


def weights_in(folder: Path) -> list[str]:
    """Return the names of the files of a folder that are weights, or parts of them."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [
        name
        for name in names
        if set_of(name) or any(_is_weights(name, suffix) for suffix in USUAL)
    ]


def _is_weights(name: str, suffix: str) -> bool:
    """Return whether a file is a checkpoint of its own, or the index of one.

    In a .bin file may be anything, such as the arguments of a training.
    """
    stem = name.removesuffix(INDEX)
    is_model = suffix == ".safetensors" or stem.endswith("model.bin")
    return stem.endswith(suffix) and is_model and set_of(stem) is None


def _nothing_in(names: list[str]) -> str:
    if any(name.endswith(".metadata") for name in names):
        return (
            "a directory of torch.distributed.checkpoint in which each rank has "
            "metadata of its own, which is not read; save with use_collectives=True"
        )
    return (
        "a directory without a checkpoint, for there is neither a .safetensors nor a "
        "model.bin file in it, nor an index of such, nor the .metadata of DCP; give "
        "the path of a file"
    )
