"""Trees as directories of DCP, through torch's own planner and writer.

Names, values and files are as ``dcp.save`` makes them of the tree, so that ``dcp.load``
takes them. What it would lose stands in a file of ours beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import NameCollision
from sdtree.io.dcp.boxes import Boxes, aliases_among, boxes_in
from sdtree.io.dcp.holding import held
from sdtree.io.dcp.told import Told, aliases_of, beside, owners_in
from sdtree.io.disk.crew import ALONE, Crew
from sdtree.io.pt.file import full_disk_told, restored, written_item
from sdtree.io.pt.trial import check_readable
from sdtree.io.safetensors.packing import Pack
from sdtree.io.texts import Metadata
from sdtree.path import where
from sdtree.tensors.counting import UNHEARD, Count
from sdtree.tensors.storage import raw, tie_groups
from sdtree.transform.window import apart_in
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Tree
from sdtree.typing import Path as TreePath

ROOT = "tree"
"""The name of a tree that is no mapping, as DCP wants one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written of a tree: its entries as DCP has them, by name.

    ``state`` has what they are like; ``paths`` are those of DCP, ``leaves`` the
    positions of the leaves that each has. ``sharded`` are entries of which this rank
    has boxes; they have no data in the ``pack``.
    """

    spec: TreeSpec
    state: Mapping[str, Any]
    paths: Mapping[str, tuple[str | int, ...]]
    leaves: Mapping[str, Sequence[int]]
    pack: Pack
    sharded: Mapping[str, Boxes]

    @classmethod
    def of(cls, tree: Tree) -> Plan:
        """Return how a tree is written; raise, naming the leaf, if it cannot be."""
        leaves, spec = take(tree)
        spec.unique_names()
        boxes = boxes_in(leaves, spec)
        stand_ins = [
            boxes[i].stand_in if i in boxes else x for i, x in enumerate(leaves)
        ]
        tree = spec.make(stand_ins)
        root: Any = tree if isinstance(tree, Mapping) else {ROOT: tree}
        state, paths = _flattened(root)
        homes = _homes(spec.every_path if root is tree else _below(spec), paths)
        tensors = {
            name: stand_ins[ids[0]]
            for name, ids in homes.items()
            if isinstance(state[name], Tensor)
        }
        home = {i: name for name, ids in homes.items() for i in ids}
        _check_ties(leaves, spec, home, {*tensors}, {home[i] for i in boxes})
        values = {name: x for name, x in state.items() if name not in tensors}
        check_readable(values, restored, "DCP, which pickles it,")
        sharded = {home[i]: found for i, found in boxes.items()}
        pack = Pack.of(tensors, hold=held)
        names = {name: i for i, name in enumerate(tensors)}
        aliases = {names[n]: names[m] for n, m in aliases_among(sharded).items()}
        pack.document.aliases.update(aliases)
        return cls(spec, state, paths, homes, pack, sharded)

    def told(self) -> Told:
        """Return what there is to tell of it beside the data."""
        sharded = {
            name: (hash(each.layout.ranks), any(t.numel() for t in each.tensors))
            for name, each in self.sharded.items()
        }
        return Told.of(self.spec, self.leaves, self.pack, self.paths, sharded)


def _flattened(root: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries of a tree as DCP has them, and their paths."""
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    try:
        return flatten_state_dict(dict(root))
    except RecursionError:
        raise TypeError(
            "the tree is nested deeper than DCP goes; sd.flatten it first, or save a "
            ".pt or .safetensors file"
        ) from None
    except ValueError as error:  # names of leaves differ, but a value has several
        raise NameCollision(
            f"DCP has one name for two entries, {error}; rename a key with dots in it, "
            "or save a .pt file"
        ) from None


def _below(spec: TreeSpec) -> list[TreePath]:
    return [(ROOT, *path) for path in spec.every_path]


def _homes(
    paths: Sequence[TreePath], entries: Mapping[str, Sequence[str | int]]
) -> dict[str, list[int]]:
    """Return the leaves of each entry, one of which has what is below its path.

    A name alone does not tell: a key may have dots, and be as another path reads.
    """
    names = {tuple(map(str, path)): name for name, path in entries.items()}
    homes: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        keys = tuple(map(str, path))
        heads = (keys[:n] for n in range(len(keys), 0, -1))
        home = next(names[head] for head in heads if head in names)
        homes.setdefault(home, []).append(i)
    return homes


def _check_ties(
    leaves: Sequence[Leaf],
    spec: TreeSpec,
    home: Mapping[int, str],
    tensors: Set[str],
    sharded: Set[str],
) -> None:
    """Raise ``TypeError`` if leaves are tied that do not stay so.

    Those are tensors in a value that is written whole, and in another entry; and one
    that is sharded, and another that is not.
    """
    parts, paths = apart_in(spec, leaves), spec.every_path
    owners = parts.owners()
    for group in tie_groups(parts.tensors):
        first, *others = (owners[k] for k in group)
        for i in others:
            names = {home[first], home[i]}
            if len(names) > 1 and len(names & sharded) == 1:
                raise TypeError(
                    f"{where(paths[i])}: it shares memory with {where(paths[first])}, "
                    "of which one is sharded, and would not stay tied; clone one"
                )
            if len(names) > 1 and not tensors >= names:
                raise TypeError(
                    f"{where(paths[i])}: DCP writes it as a part of one value, which "
                    f"would not stay tied to {where(paths[first])}; clone one of them, "
                    "or put it into a dict or a list"
                )


# -- written -----------------------------------------------------------------------


class Source(NamedTuple):
    """Where the data of entries comes from when it is written."""

    tensor: Callable[[str], Tensor]
    value: Callable[[str], Any]
    done: Count = UNHEARD

    @classmethod
    def of(cls, plan: Plan, count: Count) -> Source:
        """Return the data of a tree that is at hand, whose bytes are counted."""
        entries, owners = plan.pack.entries, owners_in(plan.pack.document)

        def tensor(name: str) -> Tensor:  # of those that are one all may write another
            return entries[owners.get(name, name)]

        return cls(tensor, plan.state.__getitem__, count)


class Writing:
    """A directory that ranks write together, each its part of it.

    ``plans`` are what all ranks will write, once each has told its own; ``left`` are
    entries that are not to be written here.
    """

    def __init__(self, plan: Plan, left: Container[str], source: Source) -> None:
        self.done = source.done
        self.planner = planner()(plan, left, source)
        self.planner.set_up_planner({}, None, True)

    def own(self) -> Any:
        """Return what this rank has to write, which others may have as well."""
        return self.planner.create_local_plan()

    def write(self, folder: Path, plans: Sequence[Any], k: int) -> Written:
        """Write the part of the k-th rank of those that have told their plans."""
        from torch.distributed.checkpoint import FileSystemWriter

        writer = FileSystemWriter(folder, sync_files=False)
        writer.set_up_storage_writer(k == 0)
        shared, told = self.planner.create_global_plan([*plans])
        last = writer.prepare_global_plan(shared)[k]
        writer.prepare_local_plan(last)
        ready = self.planner.finish_plan(last)
        self.done.expect(sum(map(_nbytes, ready.items)))
        with full_disk_told(folder.name):
            results = writer.write_data(ready, self.planner).value()
        return Written(writer, told, results)


class Written(NamedTuple):
    """What a rank has written, and what it knows of all."""

    writer: Any
    metadata: Any
    results: Sequence[Any]

    def finish(
        self, every: Sequence[Told], results: Sequence[Any], metadata: Metadata
    ) -> None:
        """Write the metadata of DCP, and ours: aliases have the data of another."""
        from torch.distributed.checkpoint.metadata import MetadataIndex

        found: dict[str, list[Any]] = {}
        for each in (each for rank in results for each in rank):
            found.setdefault(each.index.fqn, []).append(each)
        more: list[Any] = []
        paths = {name: path for told in every for name, path in told.paths.items()}
        entries = self.metadata.state_dict_metadata
        for alias, owner in aliases_of(every).items():
            entries[alias] = entries[owner]
            self.metadata.planner_data[alias] = paths[alias]
            for each in found.get(owner, ()):
                offset, k = each.index.offset, each.index.index
                more.append(replace(each, index=MetadataIndex(alias, offset, k)))
        self.writer.finish(self.metadata, [*results, more])
        beside(every, self.writer.save_id, metadata).write(Path(self.writer.path))


def write(
    plan: Plan,
    folder: Path,
    metadata: Metadata,
    source: Source,
    crew: Crew = ALONE,
) -> None:
    """Write the entries of a tree, each member of a crew some, and what is beside."""
    told = plan.told()
    writing = Writing(plan, told.aliases, source)
    every = [writing.own()] * crew.size
    finish(writing, folder, every, [told], metadata, crew)


def finish(
    writing: Writing,
    folder: Path,
    plans: Sequence[Any],
    told: Sequence[Told],
    metadata: Metadata,
    crew: Crew,
) -> None:
    """Write what plans of all tell, and then what is beside it."""
    written: list[Written] = []

    def write() -> Sequence[Any]:
        written.append(writing.write(folder, plans, crew.turn))
        return written[0].results

    results = crew.meet(write)
    crew.meet_first(lambda: written[0].finish(told, results, metadata))


@cache
def planner() -> Any:
    """Return torch's planner, for entries whose data comes from a source.

    One class for all: a class refers to itself, and would keep what it closes over.
    """
    from torch.distributed.checkpoint import DefaultSavePlanner
    from torch.distributed.checkpoint.planner import WriteItemType

    class Planner(DefaultSavePlanner):
        def __init__(self, plan: Plan, left: Container[str], source: Source) -> None:
            super().__init__()
            self._plan, self._left, self._source = plan, left, source

        def set_up_planner(
            self,
            state_dict: Any,
            storage_meta: Any = None,
            is_coordinator: bool = False,
        ) -> None:
            plan, left = self._plan, self._left
            known = {n: x for n, x in plan.state.items() if n not in left}
            forms = {**plan.pack.entries, **plan.sharded}
            self.state_dict = {name: forms.get(name, x) for name, x in known.items()}
            self.mappings = {name: plan.paths[name] for name in known}
            self.is_coordinator = is_coordinator

        def resolve_data(self, write_item: Any) -> Any:
            name, offset = write_item.index.fqn, write_item.index.offset
            if write_item.type == WriteItemType.BYTE_IO:
                return written_item(self._source.value(name))
            sharded = self._plan.sharded.get(name)
            t = self._source.tensor(name) if sharded is None else sharded.piece(offset)
            self._source.done.add(t.nbytes)
            if t.dtype is not torch.bool:
                return t.cpu().contiguous()
            one = raw(t).cpu().clone(memory_format=torch.contiguous_format)
            return one.view(torch.bool)  # torch clones one that is part of more

    return Planner


def _nbytes(write_item: Any) -> int:
    """Return how many bytes torch's writer has to write of a tensor."""
    data = write_item.tensor_data
    if data is None:
        return 0
    return math.prod(data.chunk.sizes) * data.properties.dtype.itemsize
