"""Which leaves go to which shard: as huggingface_hub splits, by bytes as written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from math import isfinite
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sdtree.io.safetensors.packing import Pack

UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
PATTERN: Final = "model{suffix}.safetensors"


class Split(NamedTuple):
    """The names in each file, and the bytes of all."""

    files: Mapping[str, list[str]]
    total_size: int


def shard_bytes_of(size: object) -> int:
    """Return how many bytes a shard may have, given as a number or as text.

    >>> shard_bytes_of("5GB"), shard_bytes_of("1.5 kb"), shard_bytes_of(200)
    (5000000000, 1500, 200)
    """
    found = 0
    if type(size) is int:
        found = size
    elif isinstance(size, str):
        told = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size, re.I | re.A)
        number = float(told[1]) * UNITS[told[2].upper()] if told else 0.0
        found = int(number) if isfinite(number) else 0
    if found < 1:
        raise ValueError(
            f"shard_bytes={size!r}: give how many bytes a shard may have, as a number "
            "or with a unit, as '5GB' or '200MB'"
        )
    return found


def split(pack: Pack, shard_bytes: int) -> Split:
    """Return which entries go to which file. Those that share memory go to one.

    A shard has more bytes than it may only where one entry, or tie, has.
    """
    sizes = {name: t.nbytes for name, t in pack.entries.items()}
    tie = {name: k for k, names in enumerate(pack.ties) for name in names}
    whole = [sum(sizes[name] for name in names) for names in pack.ties]
    marks = {
        name: (tie.get(name), whole[tie[name]] if name in tie else size)
        for name, size in sizes.items()
    }
    found = _factory()(
        marks,
        get_storage_size=itemgetter(1),
        get_storage_id=itemgetter(0),
        filename_pattern=PATTERN,
        max_shard_size=shard_bytes,
    )
    files = found.filename_to_tensors or {PATTERN.format(suffix=""): []}
    return Split(files, found.metadata["total_size"])


def file_names(count: int) -> list[str]:
    """Return how the files are called, as transformers calls them.

    >>> file_names(2)
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if count == 1:
        return [PATTERN.format(suffix="")]
    suffixes = [f"-{k:05d}-of-{count:05d}" for k in range(1, count + 1)]
    return [PATTERN.format(suffix=suffix) for suffix in suffixes]


def _factory() -> Any:
    try:
        found: Any = import_module("huggingface_hub")
        return found.split_state_dict_into_shards_factory
    except ImportError as error:
        raise ImportError(
            "shard_bytes= takes huggingface_hub, which splits a tree into shards: "
            "pip install 'sdtree[hf]'"
        ) from error
