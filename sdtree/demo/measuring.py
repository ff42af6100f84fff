"""What moved between the ranks, and how long it took, beside torch's own functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch.distributed as dist

from sdtree.text.table import Table, readable_bytes
from sdtree.wire.collectives import Traffic

ROUNDS = 5

Call = Callable[[], object]


def moved(traffic: Traffic) -> Table:
    """Return the table of what each rank sent and received. All ranks call."""
    titles = ("rank", "sent", "bytes", "received", "bytes", "collectives", "bytes")
    rows = enumerate(_from_each([*_cells(traffic)]))
    return Table(titles, [(str(k), *row) for k, row in rows], right={*range(7)})


def _cells(traffic: Traffic) -> Iterator[str]:
    pairs = {"send", "receive"}
    for kinds in ({"send"}, {"receive"}, traffic.messages.keys() - pairs):
        yield str(sum(traffic.messages[kind] for kind in kinds))
        yield readable_bytes(sum(traffic.nbytes[kind] for kind in kinds))


def torchs(name: str, *args: Any, **options: Any) -> Call | None:
    """Return a call of a private function of torch's, None where it has gone."""
    try:
        from torch.distributed import _state_dict_utils
    except ImportError:
        return None
    function = getattr(_state_dict_utils, name, None)
    return function and partial(function, *args, **options)


def side_by_side(**works: tuple[Call, Call | None]) -> Table:
    """Return the table of how long ours and torch's take. All ranks call.

    Medians of some calls by turns, after one of each; the slowest rank counts.
    """
    titles = ("", "sdtree", "torch")
    rows = [(work, *_medians(calls)) for work, calls in works.items()]
    return Table(titles, rows, right={1, 2})


def _medians(calls: tuple[Call | None, ...]) -> Iterator[str]:
    rounds = [[call and _seconds(call) for call in calls] for _ in range(1 + ROUNDS)]
    for times in zip(*rounds[1:], strict=True):
        known = [time for time in times if time is not None]
        yield f"{1e3 * statistics.median(known):.1f} ms" if known else "not there"


def _seconds(call: Call) -> float:
    """Return how long a call takes on the slowest rank; all begin together."""
    dist.barrier()
    start = perf_counter()
    call()
    return max(_from_each(perf_counter() - start))


def _from_each(value: Any) -> list[Any]:
    """Return what each rank gives."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
