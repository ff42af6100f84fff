"""What a transform makes, kept in files while it runs.

Of a function of leaves nobody knows what it will return, so that no file can be laid
out for it before; and what it has returned may be more than there is memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sdtree.io.disk.pages import Pages, releaser
from sdtree.io.disk.target import Source, check_place
from sdtree.io.leaves.sharing import bounds, by_storage, over
from sdtree.kinds.calls import Call
from sdtree.tensors.modes import writing
from sdtree.tensors.remake import Allocator, remake_some
from sdtree.tensors.storage import as_one, is_lazy, storage_keys
from sdtree.transform.stages import LeafStage
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window, apart
from sdtree.typing import Leaf

Spooled = tuple[StorageWeakRef, torch.UntypedStorage]
"""A storage, while there is one, and its like in a file."""


@dataclass(slots=True)
class Spool:
    """A folder for the data of leaves, and what is in it.

    Storages that outlive their window are known again, so that ties stay: those of the
    source, and those that a function hands out more than once. Not so memory that torch
    did not make, as that of numpy arrays: what lies in it is tied within a window.
    """

    folder: Path
    source: frozenset[int]
    release: Callable[[], None]
    known: dict[tuple[int, int], Spooled] = field(
        default_factory=dict[tuple[int, int], Spooled]
    )
    count: int = 0

    @classmethod
    def of(
        cls, folder: Path, source: Sequence[Tensor], mapped: Sequence[Tensor]
    ) -> Spool:
        """Return a spool for what is made of tensors, of some of which pages go."""
        return cls(folder, frozenset(storage_keys(source)), releaser(mapped))

    def kept(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Return leaves whose data lies in files, and give back the pages."""
        parts = apart(leaves, lambda i: (i,))
        made = self._filed(parts.tensors)
        found = parts.join(made)
        Pages(made).release()
        self.release()
        return found

    def _filed(self, ts: Sequence[Tensor]) -> list[Tensor]:
        keys, given, ts = storage_keys(ts), ts, as_one(ts)
        ts = remake_some(ts, [i for i, t in enumerate(ts) if is_lazy(t)], Allocator())
        made = list(ts)
        for members in by_storage(ts):
            group = [ts[i] for i in members]
            if group[0].is_meta or not group[0].numel():
                continue
            is_one = all(ts[i] is given[i] for i in members)
            with writing():
                room, low = self._room(group, keys[members[0]], is_one)
            for i in members:
                made[i] = over(ts[i], room, low)
        return made

    def _room(
        self, ts: Sequence[Tensor], key: int, is_one: bool
    ) -> tuple[torch.UntypedStorage, int]:
        """Return a storage in a file that has what tensors cover, and where it begins.

        If it ``is_one`` that they lie in, and not one made of several, it is known
        again. What is covered is copied each time: it may have been written since.
        """
        storage, (low, high) = ts[0].untyped_storage(), bounds(ts)
        if not is_one:
            begin = low - low % max(t.itemsize for t in ts)
            room = self._file(high - begin)
            _bytes(room)[low - begin :].copy_(_bytes(storage)[low:high])
            return room, begin
        place = storage.data_ptr(), storage.nbytes()
        known = self.known.get(place)
        if known is None or known[0].expired():
            known = StorageWeakRef(storage), self._file(storage.nbytes())
            self.known[place] = known
        _bytes(known[1])[low:high].copy_(_bytes(storage)[low:high])
        return known[1], 0

    def _file(self, nbytes: int) -> torch.UntypedStorage:
        """Return a storage in a file of its own; what is written of it takes room."""
        self.count += 1
        path = self.folder / str(self.count)
        room: Any = torch.UntypedStorage.from_file(str(path), True, nbytes)
        path.unlink()  # what is mapped stays
        return room


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def spooling(
    folder: Path, source: Sequence[Tensor], mapped: Sequence[Tensor]
) -> Transform:
    """Return a step that changes nothing, and keeps the data of leaves in files.

    The pages of ``mapped``, which are tensors of the source, are given back.
    """
    action = Call(_kept, Spool.of(folder, source, mapped))
    return Transform((LeafStage.by("spooling", action, by_leaf=True),))


def _kept(spool: Spool, window: Window) -> list[Leaf]:
    return spool.kept(window.leaves)


@contextmanager
def room_beside(target: Source) -> Generator[Path]:
    """Yield a folder beside a target, where there is room if there is for that."""
    path = Path(target).resolve()
    check_place(path, target)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as room:
        yield Path(room)
