"""Files of the safetensors format, read and written by its own library.

Only where the tensors come one by one is the header laid out here: the library's
writer wants all of them at once.
"""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from sdtree.errors import FileError, UnknownContainer
from sdtree.io.document import Document
from sdtree.io.kinds import DTYPES
from sdtree.io.packing import RESERVED, Pack, unpack
from sdtree.io.refusal import gist
from sdtree.io.target import reserve
from sdtree.typing import Tree

KEY = "sdtree"
"""Under which the metadata of a file has our document."""

MOST_HEADER_BYTES = 100_000_000
"""How long a header may be for the library to read it."""


def library() -> ModuleType:
    """Return the safetensors library for torch."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "safetensors files need the safetensors package: "
            "pip install 'sdtree[safetensors]'"
        ) from error
    return safetensors.torch


def read(path: Path, device: torch.device, lazy: bool) -> tuple[Tree, list[str]]:
    """Return the tree of a file: ours as it was, of another a dict by name."""
    library()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", backend="mmap" if lazy else "pread") as file:
            metadata = file.metadata() or {}
            entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if "unable to mmap" in str(error):
            raise OSError(
                f"{path} cannot be mapped, it is larger than memory: {gist(str(error))}"
            ) from error
        raise FileError(f"{path}: a damaged safetensors file: {error}") from error
    entries = {name: t.to(device) for name, t in entries.items()}
    if KEY not in metadata:
        return entries, []
    try:
        document = Document.from_json(metadata[KEY], len(entries))
        return unpack(document, entries, restride=not lazy), []
    except (FileError, UnknownContainer) as error:
        raise type(error)(f"{path}: {error}") from None
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a text can get wrong
        raise FileError(f"{path}: its metadata is damaged: {error!r}") from error


def write(tree: Tree, path: Path) -> None:
    """Write a tree to a file."""
    save_file = library().save_file
    from safetensors import SafetensorError

    pack = Pack.of(tree)
    entries = {name: t.contiguous() for name, t in pack.entries.items()}
    metadata = _metadata(pack.document)
    _check_header(len(json.dumps(metadata)))
    try:
        save_file(entries, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path.name} was not written: {error}") from error


def _metadata(document: Document) -> dict[str, str]:
    """Return the metadata of a file; other readers ask it for the format."""
    return {"format": "pt", KEY: document.to_json()}


def _check_header(size: int) -> None:
    if size > MOST_HEADER_BYTES:
        raise ValueError(
            f"the structure and plain values of the tree take {size:,} bytes and a "
            f"safetensors file has room for {MOST_HEADER_BYTES:,}; make long strings "
            "and bytes tensors, drop them, or save a .pt file"
        )


# -- a file that is filled later ---------------------------------------------------


def lay_out(tree: Tree, path: Path) -> Tree:
    """Write a file for a tree but for its data, and return the tree mapped to it.

    Only the forms of the tensors are looked at. Writing to the result fills the file.
    """
    library()
    pack = Pack.of(tree)
    # The largest elements first, so that each tensor begins at a multiple of its own.
    ordered = sorted(pack.entries, key=lambda name: -pack.entries[name].itemsize)
    sizes = [pack.entries[name].nbytes for name in ordered]
    stops = list(accumulate(sizes, initial=0))
    places = dict(zip(ordered, pairwise(stops), strict=True))
    header = _header(pack, places)
    start = 8 + len(header)
    total = start + stops[-1]
    with path.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        reserve(opened, total)
    file = torch.from_file(str(path), shared=True, size=total, dtype=torch.uint8)
    storage = file.untyped_storage()
    entries: dict[str, Tensor] = {}
    for name, (low, high) in places.items():
        t = pack.entries[name]
        part = torch.empty(0, dtype=t.dtype).set_(storage[start + low : start + high])
        entries[name] = part.view(t.shape)
    return unpack(pack.document, entries, restride=False)


def _header(pack: Pack, places: dict[str, tuple[int, int]]) -> bytes:
    header: dict[str, object] = {RESERVED: _metadata(pack.document)}
    for name, place in places.items():
        t = pack.entries[name]
        form = {"dtype": DTYPES[t.dtype], "shape": list(t.shape)}
        header[name] = form | {"data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    _check_header(len(text))
    return text.ljust(-(-len(text) // 8) * 8)
