"""Real processes under gloo: started once in a run of the tests, fed call by call.

A function at the top level of a test module runs on every rank at once::

    def total(x):
        found = torch.tensor(x + dist.get_rank())
        dist.all_reduce(found)
        return found.item()

    def test_total():
        assert pool(4).run(total, 1) == [10, 10, 10, 10]
"""

import ctypes
import faulthandler
import io
import multiprocessing
import os
import pickle
import resource
import signal
import textwrap
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from math import prod
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

PATIENCE = 60.0
"""Seconds that a call may take, unless it says otherwise."""

GRACE = 5.0
"""Seconds that the other ranks have left once one has raised."""

GROUP_PATIENCE = timedelta(seconds=30)
"""How long a rank waits for another before gloo raises."""

HOST = "127.0.0.1"

# Ranks are forks of one process that has imported what takes long and done nothing
# else, so that a fresh pool is there in a tenth of a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "hypothesis",
        "torch._dynamo",  # optimizers and FSDP import it late
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
    ]
)


class RanksFailed(AssertionError):
    """Some ranks raised; the message has their tracebacks."""


class RanksStuck(BaseException):
    """Some ranks gave no answer; the message says where each was, or how it died.

    It is no Exception, for Hypothesis would let a hang happen again to shrink it.
    """


class StandIn(Exception):
    """Stands for an exception that cannot be pickled: its type's name, and its text."""

    @property
    def name(self) -> str:
        return self.args[0]

    @property
    def text(self) -> str:
        return self.args[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to on a rank: its value, or its exception and the traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Rank:
    """A process, the pipe for calls and answers, and the one for its last stacks."""

    process: BaseProcess
    pipe: Connection
    stacks: Connection


@cache
def pool(size: int) -> "Pool":
    """Return the pool of so many ranks: always the same."""
    return Pool(size)


@cache
def mesh(sizes: tuple[int, ...], names: tuple[str, ...] | None = None) -> DeviceMesh:
    """Return the mesh of the first ranks, in order. Every rank of the pool calls."""
    return DeviceMesh(
        "cpu", torch.arange(prod(sizes)).view(sizes), mesh_dim_names=names
    )


class Pool:
    """Processes that are the ranks of a world of their own, started when first used."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[Rank] = []

    def run(
        self, function: Callable[..., Any], *args: Any, timeout: float = PATIENCE
    ) -> list[Any]:
        """Return the value of ``function(*args)`` on each rank.

        Raise RanksFailed if it raises on one, RanksStuck if one does not answer.
        """
        outcomes = self.outcomes(function, *args, timeout=timeout)
        failed: dict[str, list[int]] = {}
        for number, outcome in enumerate(outcomes):
            if outcome.error is not None:
                failed.setdefault(outcome.trace, []).append(number)
        if failed:
            texts = (f"ranks {ranks} {trace}" for trace, ranks in failed.items())
            raise RanksFailed("\n".join(texts))
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self, function: Callable[..., Any], *args: Any, timeout: float = PATIENCE
    ) -> list[Outcome]:
        """Return the value of ``function(*args)``, or its exception, on each rank.

        Once one has raised, the others have ``GRACE`` left. If they then no longer
        meet in some group, the next call finds fresh processes. A message that was
        sent and not received goes unnoticed: ``stop`` after a test that leaves such.
        """
        found = self._ask(function, args, timeout)
        if any(outcome.error for outcome in found) and not self._in_step():
            self.stop()
        return found

    def stop(self) -> None:
        """End the processes, whatever they do. The next call starts fresh ones."""
        for rank in self._ranks:
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()
            rank.stacks.close()
        self._ranks = []

    def _in_step(self) -> bool:
        try:
            return all(outcome.value for outcome in self._ask(_groups_meet, (), 2))
        except RanksStuck:
            return False

    def _ask(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> list[Outcome]:
        call = _pickled((function, args))
        try:
            self._ranks = self._ranks or self._started()
            start = monotonic()
            outcomes = _outcomes(self._ranks, call, start + timeout)
            if len(outcomes) < self.size:
                what = textwrap.shorten(f"{function.__name__}{args}", 2000)
                after = f"{monotonic() - start:.1f} s"
                told = _what_happened(self._ranks, outcomes)
                raise RanksStuck(f"{what}: no answer after {after}\n{told}")
        except BaseException:  # a time-out of pytest's finds ranks at work too
            self.stop()
            raise
        return [outcomes[number] for number in range(self.size)]

    def _started(self) -> list[Rank]:
        """Return the ranks of a new world, once they have met."""
        self._store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        ranks = [_start(n, self.size, self._store.port) for n in range(self.size)]
        for rank in ranks:
            rank.pipe.recv_bytes()
        return ranks


# -- in the process that runs the tests --------------------------------------------


def _start(number: int, size: int, port: int) -> Rank:
    pipe, their_pipe = FORKS.Pipe()
    stacks, their_stacks = FORKS.Pipe(duplex=False)
    args = (number, size, port, their_pipe, their_stacks)
    process = FORKS.Process(target=_serve, args=args, daemon=True)
    process.start()
    their_pipe.close()
    their_stacks.close()
    return Rank(process, pipe, stacks)


def _outcomes(ranks: list[Rank], call: bytes, deadline: float) -> dict[int, Outcome]:
    """Return what each rank answers: not all, if one dies or the time is up."""
    outcomes: dict[int, Outcome] = {}
    waiting = {rank.pipe: number for number, rank in enumerate(ranks)}
    with suppress(EOFError, OSError):  # a rank has died
        for pipe in waiting:
            pipe.send_bytes(call)
        while waiting and (ready := wait(waiting, max(0, deadline - monotonic()))):
            for pipe in ready:
                outcome = pickle.loads(pipe.recv_bytes())
                outcomes[waiting.pop(pipe)] = outcome
                if outcome.error is not None:
                    deadline = min(deadline, monotonic() + GRACE)
    return outcomes


def _what_happened(ranks: list[Rank], outcomes: dict[int, Outcome]) -> str:
    """Return, rank by rank, what it raised, or where it was, or how it died."""
    ended = {n: _end(rank) for n, rank in enumerate(ranks) if n not in outcomes}
    raised = {n: outcome.trace for n, outcome in outcomes.items()}
    told = sorted((ended | raised).items())
    return "\n".join(f"rank {n} {text or 'has answered'}" for n, text in told)


def _end(rank: Rank) -> str:
    """Return where a process is stuck, or how it died; in any case it is dead then."""
    if rank.process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(rank.process.pid, signal.SIGABRT)
    rank.process.join(5)
    rank.process.kill()
    rank.process.join()
    with open(rank.stacks.fileno(), closefd=False) as file:
        stacks, _, _ = file.read().partition("\nExtension modules")
    return f"was here\n{stacks}" if stacks else f"died: {rank.process.exitcode}"


# -- in the processes that are ranks -----------------------------------------------


def _serve(
    number: int, size: int, port: int, pipe: Connection, stacks: Connection
) -> None:
    """Be a rank: answer one call after another until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(stacks.fileno())
    torch.set_num_threads(1)
    store = dist.TCPStore(HOST, port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=number, world_size=size, timeout=GROUP_PATIENCE
    )
    pipe.send_bytes(b"ready")
    with suppress(EOFError):
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _answer(call: bytes) -> bytes:
    try:
        function, args = pickle.loads(call)
        return _pickled(Outcome(function(*args)))
    except BaseException as error:
        trace = "raised\n" + "".join(traceback.format_exception(error))
        return _pickled(Outcome(error=_portable(error), trace=trace))


def _portable(error: BaseException) -> BaseException:
    """Return the exception, if it can be pickled, or what stands for it."""
    with suppress(Exception):
        if type(pickle.loads(_pickled(error))) is type(error):
            return error
    return StandIn(type(error).__qualname__, str(error))


def _groups_meet() -> bool:
    """Return whether the ranks of each group meet in it."""
    return all(_meet(group) for group in tuple(distributed_c10d._world.pg_map))


def _meet(group: dist.ProcessGroup) -> bool:
    present = torch.ones(())
    dist.all_reduce(present, group=group)
    return present.item() == group.size()


# -- what goes through the pipes ---------------------------------------------------


class TiesKept(pickle.Pickler):
    """Pickles the bytes of a storage once: tensors that share it go on to share it."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.TypedStorage):
            return _typed, (value._untyped_storage, value.dtype)
        if isinstance(value, torch.UntypedStorage):
            return _filled, (ctypes.string_at(value.data_ptr(), value.nbytes()),)
        return NotImplemented


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _filled(data: bytes) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(len(data))
    ctypes.memmove(storage.data_ptr(), data, len(data))
    return storage


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    TiesKept(file).dump(value)
    return file.getvalue()
