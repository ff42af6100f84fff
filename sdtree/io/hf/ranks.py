"""Shards that all ranks write at once: each its own, and none holds the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdtree.io.disk.crew import Crew
from sdtree.io.disk.target import Source
from sdtree.io.hf.index import write_index
from sdtree.io.hf.replacing import replacing_weights
from sdtree.io.hf.splitting import Split, file_names, split
from sdtree.io.refusal import some_of
from sdtree.io.safetensors.document import Document
from sdtree.io.safetensors.file import bytes_in, write_entries
from sdtree.io.safetensors.packing import Pack
from sdtree.io.texts import FOLDER_KEY, KEY, Options, written
from sdtree.kinds.handler import kind_of
from sdtree.ops.choosing import combine, drop, select
from sdtree.ops.collective import gather
from sdtree.path import name_of, reject_collisions_among
from sdtree.tree.flattening import structure
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Tree
from sdtree.typing import Path as TreePath
from sdtree.wire.collectives import RankGroup


class _Plan(NamedTuple):
    """What a rank will write: the names in each of its files, and the rest beside.

    ``frame`` is its tree without a leaf.
    """

    files: Sequence[Sequence[str]]
    total_size: int
    document: Document
    frame: Tree


def save_from_ranks(
    tree: Tree,
    target: Source,
    options: Options,
    rank_group: RankGroup,
    ready: Callable[[Tree], Tree],
) -> None:
    """Write the shards of a tree from all ranks, and their index from the first.

    ``ready`` makes of leaves what can be written. If one rank fails, all raise, and
    nothing is left of what was written. Collective.
    """
    crew, packs = Crew.of(rank_group), list[Pack]()
    whole = gather(tree, ranks="balanced")
    held = crew.meet(lambda: _held(whole))
    reject_collisions_among(held)
    _check_all_held(structure(whole).names(), held)

    def plan() -> _Plan:
        part = ready(_part(whole, held, crew.turn))
        packs.append(Pack.of(part, keep_names=options.keep_names))
        files, total = split(packs[0], options.shard_bytes)
        kept = [names for names in files.values() if names]
        return _Plan(kept, total, packs[0].document, drop(whole, _any, missing_ok=True))

    plans, spec = crew.meet(plan), structure(whole)
    with crew.room(replacing_weights, target) as room:
        crew.meet(partial(_write, packs[0], plans, room, crew.turn, options, spec))


def _any(path: TreePath, leaf: Leaf) -> bool:
    return True


def _held(whole: Tree) -> dict[str, TreePath]:
    """Return the paths of the leaves that are here, by names that no two have."""
    leaves, spec = take(whole)
    every = zip(spec.unique_names(), spec.paths(), leaves, strict=True)
    return {name: path for name, path, leaf in every if kind_of(leaf) is type(leaf)}


def _check_all_held(names: Sequence[str], held: Sequence[Iterable[str]]) -> None:
    there = {name for each in held for name in each}
    lost = [name for name in names if name not in there]
    if lost:
        raise TypeError(f"{some_of(lost)}: no rank has data to write; drop it first")


def _part(whole: Tree, held: Sequence[Iterable[str]], turn: int) -> Tree:
    """Return the leaves that this rank writes: those that none before it has."""
    before = {name for names in held[:turn] for name in names}
    mine = {*held[turn]} - before

    def is_mine(path: TreePath, leaf: Leaf) -> bool:
        return name_of(path) in mine

    return select(whole, is_mine, missing_ok=True)


def _write(
    pack: Pack,
    plans: Sequence[_Plan],
    room: Path,
    turn: int,
    options: Options,
    spec: TreeSpec,
) -> None:
    """Write the files of this rank, and the index if it is the first."""
    options.done.expect(bytes_in(pack))
    shards = [(k, names) for k, plan in enumerate(plans) for names in plan.files]
    shards = shards or [(0, ())]
    files = file_names(len(shards))
    for file, (k, names) in zip(files, shards, strict=True):
        if k != turn:
            continue
        ours: dict[str, str] = {}
        if file == files[0]:
            document = _joined(plans, spec)
            ours = {KEY if len(files) == 1 else FOLDER_KEY: document.to_json()}
        ts = {name: pack.entries[name] for name in names}
        metadata = written(options.metadata, **ours)
        write_entries(ts, room / file, metadata, options.done)
        with (room / file).open("rb") as done:
            os.fsync(done.fileno())
    if turn == 0 and len(files) > 1:
        split = Split(
            {f: [*names] for f, (_, names) in zip(files, shards, strict=True)},
            sum(plan.total_size for plan in plans),
        )
        write_index(split, room)


def _joined(plans: Sequence[_Plan], spec: TreeSpec) -> Document:
    """Return the document of a tree of which each rank has told a part."""
    paths = [plan.document.spec.every_path for plan in plans]
    made = Document(_spec_of_all(plans, spec))
    place = {path: k for k, path in enumerate(made.spec.every_path)}
    for own, plan in zip(paths, plans, strict=True):
        at, document = [place[path] for path in own], plan.document
        made.plain |= {at[i]: value for i, value in document.plain.items()}
        made.kinds |= {at[i]: kind for i, kind in document.kinds.items()}
        made.aliases |= {at[i]: at[j] for i, j in document.aliases.items()}
        made.storages += [
            [each._replace(leaf=at[each.leaf]) for each in places]
            for places in document.storages
        ]
    return made


def _spec_of_all(plans: Sequence[_Plan], spec: TreeSpec) -> TreeSpec:
    """Return the structure of all leaves: that which this rank has, if it has all."""
    specs = [plan.document.spec for plan in plans]
    if {path for own in specs for path in own.every_path} == {*spec.every_path}:
        return spec
    parts = [own.make([True] * len(own)) for own in specs]
    return structure(combine(*(plan.frame for plan in plans), *parts))
