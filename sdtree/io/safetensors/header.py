"""The header of a safetensors file: which tensors it has, and where their bytes lie.

A file is the length of its header in eight bytes, the header as JSON, and the bytes of
the tensors end to end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from io import BufferedReader
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.errors import FileError
from sdtree.io.safetensors.dtypes import BITS, DTYPES, stored_shape
from sdtree.tree.plain_json import Json, count, expect, parse, shortly

METADATA: Final = "__metadata__"
"""The name under which a header has texts of any kind, instead of a tensor."""

MOST_BYTES: Final = 100_000_000
"""How long a header may be for any reader."""


class Entry(NamedTuple):
    """A tensor of a file; its bytes are counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Return how many bytes it has."""
        return self.stop - self.start


class Header(NamedTuple):
    """What a header says, the entries in the order in which they lie in the file.

    ``nbytes`` is its length, the eight bytes before it included.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    nbytes: int

    @property
    def data_bytes(self) -> int:
        """Return how many bytes come after it."""
        return max((entry.stop for entry in self.entries.values()), default=0)


def laid_out(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return where the bytes of tensors are to lie, in that order.

    The largest elements come first, so that each tensor begins at a multiple of its
    own.
    """
    ordered = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    stops = accumulate((tensors[name].nbytes for name in ordered), initial=0)
    return {
        name: Entry(DTYPES[tensors[name].dtype], stored_shape(tensors[name]), *place)
        for name, place in zip(ordered, pairwise(stops), strict=True)
    }


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file, with its length before it."""
    header: dict[str, Json] = {METADATA: metadata}
    for name, (dtype, shape, *place) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"the structure and plain values of the tree take {len(text):,} bytes and "
            f"a safetensors file has room for {MOST_BYTES:,}; make long strings and "
            "bytes tensors, drop them, or save a .pt file"
        )
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded


# -- read --------------------------------------------------------------------------


def read_header(file: BufferedReader) -> Header:
    """Return the header of an open file; raise ``FileError`` if anything is wrong."""
    total = os.fstat(file.fileno()).st_size
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= min(MOST_BYTES, total - 8):
        raise FileError(
            f"its header would take {size:,} bytes of the {total:,} that the file has, "
            f"of which {MOST_BYTES:,} is the most"
        )
    parsed = _parsed(file.read(size))
    metadata = _checked_metadata(parsed.pop(METADATA, None))
    found = [(name, _entry(name, each)) for name, each in parsed.items()]
    entries = dict(sorted(found, key=lambda pair: (pair[1].start, pair[1].stop)))
    _check_places(entries, total - 8 - size)
    return Header(entries, metadata, 8 + size)


def _parsed(text: bytes) -> dict[str, Json]:
    try:
        found = expect(parse(text.decode()), dict)
        "".join(found).encode()
    except ValueError as error:
        raise FileError(f"its header is no JSON of tensors: {error}") from None
    return found


def _checked_metadata(found: Json) -> dict[str, str]:
    texts: dict[str, str] = {} if found is None else found
    if isinstance(texts, dict) and all(type(text) is str for text in texts.values()):
        if _is_sayable("".join([*texts, *texts.values()])):
            return texts
        raise FileError(f"its {METADATA} holds a text that UTF-8 cannot say")
    raise FileError(f"its {METADATA} holds something else than texts by name")


def _is_sayable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(name: str, data: Json) -> Entry:
    try:
        dtype, shape, place = data["dtype"], data["shape"], data["data_offsets"]
        start, stop = expect(place, list)
        for number in (*expect(shape, list), start, stop):
            count(number)
    except (KeyError, TypeError, ValueError) as error:
        told = "it tells no dtype, shape and data_offsets"
        told = told if isinstance(error, (KeyError, TypeError)) else str(error)
        raise FileError(f"{shortly(name)}: {told}") from None
    if type(dtype) is not str or dtype not in BITS:
        raise FileError(f"{shortly(name)}: {shortly(dtype)} is no dtype of the format")
    return Entry(dtype, tuple(shape), start, stop)


def _check_places(entries: Mapping[str, Entry], total: int) -> None:
    """Raise ``FileError`` unless the entries fill the file from end to end."""
    reached = 0
    for name, entry in entries.items():
        bits = _elements(entry.shape, 8 * total) * BITS[entry.dtype]
        if bits != 8 * entry.nbytes:
            raise FileError(
                f"{shortly(name)}: {entry.dtype} of shape {shortly(entry.shape)} does "
                f"not take the {entry.nbytes:,} bytes that its header gives it"
            )
        if entry.start != reached:
            what = "overlap" if entry.start < reached else "leave a hole"
            raise FileError(
                f"{shortly(name)}: its bytes begin at {entry.start:,} and those before "
                f"it end at {reached:,}: they {what}"
            )
        reached = entry.stop
    if reached != total:
        raise FileError(f"its tensors take {reached:,} bytes, and it has {total:,}")


def _elements(shape: Iterable[int], most: int) -> int:
    """Return how many elements a shape has, or just some number over ``most``."""
    found = 1
    for size in sorted(shape):  # a zero comes first
        found *= size
        if not found or found > most:
            break
    return found
