"""The one way that bytes take between ranks, and the count of them.

``RankGroup`` is who takes part. What goes between pairs of ranks is sent in
``transport``, the functions here are collectives. Nothing else communicates, but for
the reduction of partial leaves, which is torch's own and is counted here too.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from ctypes import string_at
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from sdtree.path import where
from sdtree.tensors.modes import settled
from sdtree.typing import Leaf, Path

_gather: Any = getattr(
    dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None)
)


# -- counting ----------------------------------------------------------------------


@dataclass(slots=True)
class Traffic:
    """How many messages and collectives a rank made, and what bytes it put into them.

    By type: ``send``, ``receive``, ``all_gather``, ``all_reduce``, ``all_to_all``,
    ``broadcast``, ``reduce``.
    """

    messages: Counter[str] = field(default_factory=Counter[str])
    nbytes: Counter[str] = field(default_factory=Counter[str])


_RECORDS: list[Traffic] = []


@contextmanager
def record() -> Generator[Traffic]:
    """Return a block that counts what this rank sends and receives in it.

    >>> with sd.record() as traffic:
    ...     _ = sd.copy({"w": torch.ones(2)})
    >>> traffic.messages
    Counter()
    """
    traffic = Traffic()
    _RECORDS.append(traffic)
    try:
        yield traffic
    finally:
        _RECORDS[:] = [other for other in _RECORDS if other is not traffic]


def count(kind: str, nbytes: int) -> None:
    """Note a message or a collective in every record that is being kept."""
    for traffic in _RECORDS:
        traffic.messages[kind] += 1
        traffic.nbytes[kind] += nbytes


# -- who takes part ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The ranks of a process group, by their global numbers, and which is this one.

    Without a process group, a rank is a group by itself. ``text`` tells in what they
    meet; ``kinds`` are those of devices from which bytes travel, the CPU first; there
    are so many ``others`` to hear from: in torch's fake group none, nor if it
    ``is_planned``, for then it may not be there. It ``is_alone`` if there are no others
    to meet, nor would be in a run, and ``is_there`` if there is a process group, or is
    to be one.
    """

    group: Any
    ranks: tuple[int, ...]
    me: int
    text: str = ""
    kinds: tuple[str, ...] = ("cpu",)
    others: int = 0
    is_planned: bool = False
    is_alone: bool = field(init=False, repr=False)
    is_there: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        would_meet = self.is_planned and len(self.ranks) > 1
        object.__setattr__(self, "is_alone", not (self.others or would_meet))
        is_there = self.group is not None or self.is_planned
        object.__setattr__(self, "is_there", is_there)

    @classmethod
    def of(cls, group: Any = None, text: str = "") -> RankGroup:
        """Return the ranks of a process group, by default all.

        A rank outside of ``group`` raises ``ValueError``.
        """
        if not (dist.is_available() and dist.is_initialized()):
            if group is not None:
                raise ValueError(
                    "group= is given and there is no process group; call "
                    "torch.distributed.init_process_group() first"
                )
            return ALONE
        found = group if group is not None else dist.group.WORLD
        if found is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("group=: this rank is not in it, and must not call")
        if not isinstance(found, dist.ProcessGroup):
            raise TypeError(
                f"group=: {found!r} is no process group; give what "
                "torch.distributed.new_group or a mesh's get_group returns, or None"
            )
        ranks = tuple(dist.get_process_group_ranks(found))
        is_fake = dist.get_backend(found) == "fake"
        others = 0 if is_fake else len(ranks) - 1
        return cls(found, ranks, dist.get_rank(), text, _kinds(found), others)

    def device(self, kind: str = "cpu") -> torch.device:
        """Return where bytes must lie to travel, for leaves on a kind of device."""
        kind = kind if kind in self.kinds else self.kinds[0]
        if kind == "cpu" or self.is_planned:
            return torch.device(kind)
        return torch.device(kind, torch.accelerator.current_device_index())

    def wires(self, leaves: Sequence[Leaf]) -> list[str]:
        """Return from what kind of device each leaf is to travel, of those that may."""
        first, *others = self.kinds
        if not others:
            return [first] * len(leaves)
        own = (getattr(getattr(x, "device", None), "type", first) for x in leaves)
        return [kind if kind in others else first for kind in own]

    def of_ranks(self, ranks: tuple[int, ...]) -> RankGroup:
        """Return the group of some of the ranks; they all call, the first time.

        That is this group if it is all of them, else a group made once and kept, which
        waits as long as this one does.
        """
        if set(ranks) == set(self.ranks):
            return self
        others = min(self.others, len(ranks) - 1)
        made = _SUBGROUPS.setdefault(self.group, {})
        if ranks not in made:
            made[ranks] = _subgroup(ranks, self.group)
        return replace(self, group=made[ranks], ranks=ranks, others=others)


ALONE: Final = RankGroup(None, (0,), 0)
"""This rank, where there is no process group."""


def _kinds(group: Any) -> tuple[str, ...]:
    """Return the kinds of devices from which a group takes bytes, the CPU first.

    gloo takes them from the CPU alone, whatever else it says that it serves.
    """
    served = (x.split(":") for x in dist.get_backend_config(group).split(","))
    kinds = [k for k, by in served if k == "cpu" or by not in ("gloo", "fake")]
    return tuple(sorted(kinds, key="cpu".__ne__))


_SUBGROUPS: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()
"""The groups made of each that is still there; none is made twice, by no rank."""


def _subgroup(ranks: tuple[int, ...], parent: Any) -> Any:
    """Return a new group of some ranks of another, by a name that all of them give it.

    torch names it after how many groups a rank is in already, and where that differs
    from rank to rank they wait for each other under several names. From 2.14 on it also
    counts the group, where others do not: the next one that all make would hang.
    """

    def named(ranks: list[int]) -> str:
        return f"sdtree of {ranks} of {parent.group_name}"

    c10d: Any = dist.distributed_c10d
    hashed, counted = c10d._hash_ranks_to_str, c10d._world.group_count
    c10d._hash_ranks_to_str = named
    try:
        return dist.new_group(
            list(ranks),
            timeout=_patience(parent),
            backend=dist.get_backend(parent),
            use_local_synchronization=True,
        )
    finally:
        c10d._hash_ranks_to_str = hashed
        c10d._world.group_count = counted


def _patience(group: Any) -> timedelta | None:
    """Return how long the ranks of a group wait for each other, None if none tells.

    Each of its backends was given the same time.
    """
    first = RankGroup(group, (), 0, kinds=_kinds(group)).device()
    options = getattr(group._get_backend(first), "options", None)
    return getattr(options, "_timeout", None)


def check_bucket(bucket_bytes: int) -> None:
    """Raise ``ValueError`` unless so many bytes can travel at a time."""
    if type(bucket_bytes) is not int or bucket_bytes < 1:
        raise ValueError(f"bucket_bytes={bucket_bytes!r} is no number of bytes above 0")


_FORCED: list[str] = []


@contextmanager
def forced(wire: str) -> Generator[None]:
    """Have data travel by "pairs" or by "collective" inside the block, on all ranks.

    >>> from sdtree.wire import forced
    >>> with forced("collective"):
    ...     plan = sd.explain(sd.gather(), {"w": torch.ones(2)})
    """
    _FORCED.append(wire)
    try:
        yield
    finally:
        _FORCED.pop()


def is_collective(device: torch.device) -> bool:
    """Return whether bytes on a device travel best by collectives, as NCCL's do."""
    return _FORCED[-1] == "collective" if _FORCED else device.type != "cpu"


# -- collectives -------------------------------------------------------------------


@contextmanager
def _meeting(rank_group: RankGroup) -> Generator[None]:
    """Have an error of the backend's tell in which call the ranks were to meet."""
    try:
        yield
    except Exception as error:
        if rank_group.text:
            error.add_note(
                f"waiting for the ranks {rank_group.ranks} to meet in "
                f"{rank_group.text}, which each of them must call"
            )
        raise


def gather_words(rank_group: RankGroup, words: Sequence[int]) -> list[list[int]]:
    """Return the whole numbers that each rank gives, as many from each.

    Whoever asks is in ``making()``.
    """
    device = rank_group.device()
    mine = torch.tensor(words, dtype=torch.int64, device=device)
    every = torch.empty(
        len(words) * len(rank_group.ranks), dtype=torch.int64, device=device
    )
    with _meeting(rank_group):
        _gather(every, mine, group=rank_group.group)
    count("all_gather", mine.nbytes)
    return every.view(len(rank_group.ranks), len(words)).tolist()


@settled
def gather_bytes(rank_group: RankGroup, data: bytes) -> list[bytes]:
    """Return the bytes that each rank gives, of any length."""
    sizes = [size for [size] in gather_words(rank_group, [len(data)])]
    most = max(sizes)
    if not most:
        return [b""] * len(sizes)
    mine = torch.frombuffer(bytearray(data.ljust(most, b"\0")), dtype=torch.uint8)
    every = torch.empty(
        most * len(sizes), dtype=torch.uint8, device=rank_group.device()
    )
    with _meeting(rank_group):
        _gather(every, mine.to(every.device), group=rank_group.group)
    count("all_gather", most)
    parts = every.cpu().view(len(sizes), most)
    return [_bytes(part[:size]) for part, size in zip(parts, sizes, strict=True)]


def gather_objects(rank_group: RankGroup, mine: object) -> list[Any]:
    """Return what each rank gives, of any type that can be pickled."""
    return [pickle.loads(x) for x in gather_bytes(rank_group, pickle.dumps(mine))]


@settled
def broadcast_bytes(
    rank_group: RankGroup, data: bytes | None, size: int, src: int
) -> bytes:
    """Return the bytes that ``src`` gives, whose number all know."""
    if data is None:
        buffer = torch.empty(size, dtype=torch.uint8, device=rank_group.device())
    else:
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        buffer = mine.to(rank_group.device())
    with _meeting(rank_group):
        dist.broadcast(buffer, src, group=rank_group.group)
    count("broadcast", size)
    return _bytes(buffer.cpu()) if data is None else data


def _bytes(t: Tensor) -> bytes:
    return string_at(t.data_ptr(), len(t)) if len(t) else b""


@settled
def greatest(rank_group: RankGroup, words: Sequence[int]) -> list[int]:
    """Return the greatest of each whole number that the ranks give."""
    device = rank_group.device()
    found = torch.tensor(words, dtype=torch.int64, device=device)
    with _meeting(rank_group):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=rank_group.group)
    count("all_reduce", found.nbytes)
    return found.tolist()


def waited_for(error: Exception, ranks: Sequence[int], path: Path) -> None:
    """Have an error of the backend's tell which ranks were waited for, and where."""
    text = f"rank {ranks[0]}" if len(ranks) == 1 else f"one of the ranks {ranks}"
    error.add_note(f"waiting for {text}, at {where(path)}")


def all_to_all(
    rank_group: RankGroup,
    out: Tensor,
    sent: Sequence[int],
    into: Tensor,
    taken: Sequence[int],
    path: Path,
) -> None:
    """Exchange bytes with each rank of a group, so many of ``out`` and of ``into``."""
    try:
        dist.all_to_all_single(
            into, out, list(taken), list(sent), group=rank_group.group
        )
    except Exception as error:
        waited_for(
            error, [rank for rank in rank_group.ranks if rank != rank_group.me], path
        )
        raise
    count("all_to_all", out.nbytes)
