"""Folders of shards, read as one tree and written as ``save_pretrained`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdtree.errors import FileError, UnknownContainer, one_of
from sdtree.io.content import format_of
from sdtree.io.disk.counted import Place, reading
from sdtree.io.hf.index import Contents, Index, write_index
from sdtree.io.hf.splitting import split
from sdtree.io.leaves.restriding import Read
from sdtree.io.pt import file as torch_file
from sdtree.io.refusal import in_short, some_of
from sdtree.io.safetensors.file import (
    bytes_in,
    entries_of,
    lay_out_entries,
    mapped_tree,
    moved,
    naming,
    tree_of,
    write_entries,
)
from sdtree.io.safetensors.header import read_header
from sdtree.io.safetensors.packing import Pack
from sdtree.io.texts import FOLDER_KEY, KEY, OURS, Metadata, Options, common, written
from sdtree.ops.looking import nbytes
from sdtree.tensors.counting import Count
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree


@dataclass(frozen=True, slots=True)
class Shard:
    """An open file of a folder: what is in it, and how its leaves are read."""

    contents: Contents
    read: Callable[[], Mapping[str, Leaf]]
    metadata: Metadata
    notes: tuple[str, ...] = ()


def read(place: Place, device: torch.device, lazy: bool) -> Read:
    """Return the tree of the folder that an index is in, and notes on it."""
    index = Index.read(place.path)
    files = [place.path.parent / name for name in {*index.files.values()}]
    place.done.expect(sum(map(os.path.getsize, filter(os.path.isfile, files))))
    with ExitStack() as stack:
        shards = _checked(index, stack, device, lazy, place.done)
        with naming(place.path):
            return _joined(index, shards, device, lazy)


def metadata(place: Place) -> dict[str, str]:
    """Return the texts that the files of a folder have beside their tensors."""
    path, index = place.path, Index.read(place.path)
    with ExitStack() as stack:
        shards = _checked(index, stack, torch.device("cpu"), True, place.done)
    found, apart = common({name: each.metadata for name, each in shards.items()})
    if apart:
        raise FileError(
            f"{path}: its files do not agree on their metadata, {some_of(apart)}; ask "
            "one of them"
        )
    return found


def _checked(
    index: Index, stack: ExitStack, device: torch.device, lazy: bool, count: Count
) -> dict[str, Shard]:
    """Return the files of a folder, open, and seen to be as the index has them."""
    found = {
        name: _opened(index.path.parent / name, stack, device, lazy, count)
        for name in sorted({*index.files.values()})
    }
    index.check(
        {
            name: shard if isinstance(shard, str) else shard.contents
            for name, shard in found.items()
        }
    )
    return {name: shard for name, shard in found.items() if isinstance(shard, Shard)}


def _joined(
    index: Index, shards: Mapping[str, Shard], device: torch.device, lazy: bool
) -> Read:
    entries = {name: x for shard in shards.values() for name, x in shard.read().items()}
    home, text = _document_in(shards)
    found = moved(tree_of(text, entries, lazy=lazy), device)
    metadata, apart = common({name: each.metadata for name, each in shards.items()})
    notes = [*found.notes, *_notes(shards, home)]
    notes += [f"metadata that shards do not agree on: {each}" for each in apart]
    _, spec = take(found.tree)
    names = found.entries if home else dict(enumerate(sorted(entries)))
    files = {
        leaf: index.files[names[i]] if i in names else home
        for i, leaf in enumerate(spec.every_path)
    }
    return found._replace(notes=notes, metadata=metadata, files=files)


def _document_in(shards: Mapping[str, Shard]) -> tuple[str, str | None]:
    """Return the file that has the document of all, and that; none if nobody wrote one.

    One that is alone may be any file of ours.
    """
    key = FOLDER_KEY if len(shards) > 1 else KEY
    found = [name for name, shard in shards.items() if key in shard.metadata]
    if len(found) > 1:
        raise FileError(f"several of its files tell of a tree: {some_of(found)}")
    return (found[0], shards[found[0]].metadata[key]) if found else ("", None)


def _notes(shards: Mapping[str, Shard], home: str) -> Iterator[str]:
    for name, shard in shards.items():
        yield from shard.notes
        if name != home and not shard.metadata.keys().isdisjoint(OURS):
            yield (
                f"{name} is a tree by itself, of which here tensors alone are read: "
                "structure, plain values and ties are in the file"
            )


# -- a shard -----------------------------------------------------------------------


def _opened(
    path: Path, stack: ExitStack, device: torch.device, lazy: bool, count: Count
) -> Shard | str:
    """Return a file of a folder, or what is wrong with it."""
    try:
        file = stack.enter_context(reading(path, count))
        return _shard(file, device, lazy)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return f"{in_short(path.name)} is missing"
    except OSError as error:
        return f"{in_short(path.name)}: {error.strerror or error}"
    except (FileError, UnknownContainer) as error:
        return f"{path.name}: {in_short(str(error).removeprefix(f'{path}: '))}"


def _shard(file: BufferedReader, device: torch.device, lazy: bool) -> Shard:
    if format_of(file) == "pt":
        return _torch_shard(torch_file.read(file, device, lazy))
    header = read_header(file)
    size = header.data_bytes
    contents = Contents(header.entries, size, size)
    return Shard(
        contents, partial(entries_of, file, header, lazy=lazy), header.metadata
    )


def _torch_shard(found: Read) -> Shard:
    tree: Any = found.tree
    if not isinstance(tree, dict) or not all(type(name) is str for name in tree):
        raise FileError(f"it holds {one_of(type(tree))}, and no dict by name")
    contents = Contents(tree, sum(map(nbytes, tree.values())), nbytes(tree))
    left = sorted(getattr(tree, "__dict__", ()))
    notes = [f"attributes of a shard are no part of the tree: {left}"] if left else []
    return Shard(contents, partial(dict[str, Leaf], tree), {}, (*found.notes, *notes))


# -- written -----------------------------------------------------------------------


def write(tree: Tree, folder: Path, options: Options) -> None:
    """Write the shards of a tree, one after the other, and their index."""
    pack = Pack.of(tree, keep_names=options.keep_names)
    options.done.expect(bytes_in(pack))
    for file, ts, metadata in _shards(pack, folder, options):
        write_entries(ts, file, metadata, options.done)


def lay_out(tree: Tree, folder: Path, options: Options) -> Tree:
    """Write the shards of a tree but for their data, and return the tree mapped."""
    pack = Pack.of(tree, keep_names=options.keep_names)
    mapped: dict[str, Leaf] = {}
    for file, ts, metadata in _shards(pack, folder, options):
        mapped |= lay_out_entries(ts, file, metadata)
    return mapped_tree(pack.document, mapped)


def _shards(
    pack: Pack, folder: Path, options: Options
) -> Iterator[tuple[Path, dict[str, Tensor], Metadata]]:
    """Yield the files to be written, what goes to each, and their index in the end.

    A file that is the only one has the document as any file of ours; else the first
    has it under another name: it is that of no file by itself.
    """
    parts, document = split(pack, options.shard_bytes), pack.document.to_json()
    key = KEY if len(parts.files) == 1 else FOLDER_KEY
    for k, (file, names) in enumerate(parts.files.items()):
        metadata = written(options.metadata, **({} if k else {key: document}))
        yield folder / file, {name: pack.entries[name] for name in names}, metadata
    if len(parts.files) > 1:
        write_index(parts, folder)
