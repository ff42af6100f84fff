"""Data on its way to the host: what is copied at once, and what a device will copy."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sdtree.tensors.counting import UNHEARD, Count
from sdtree.tensors.remake import fill
from sdtree.tensors.storage import as_stored, dtype_of

PIECE = 2**24
"""How many bytes are copied on the host before it is told."""

TICK = 0.0005
"""How many seconds lie between two looks at an event that is waited for so long."""


@dataclass(slots=True)
class Flight:
    """Copies under way: their events, and the tensors that they read until then.

    ``count`` ends when all has arrived.
    """

    events: list[tuple[torch.device, Any]] = field(default_factory=list[Any])
    sources: list[Tensor] = field(default_factory=list[Tensor])
    count: Count = UNHEARD

    def ready(self) -> bool:
        """Return whether all has arrived."""
        if all(event.query() for _, event in self.events):
            self._land()
        return not self.events

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all has arrived, and return whether it has."""
        if timeout is None:
            self.halt()
            self._land()
            return True
        end = time.monotonic() + timeout
        while not self.ready():
            if time.monotonic() >= end:
                return False
            time.sleep(TICK)
        return True

    def fence(self) -> None:
        """Have what comes next on the current streams wait until all was read."""
        for device, event in self.events:
            torch.accelerator.current_stream(device).wait_event(event)

    def halt(self) -> None:
        """Wait until nothing is under way."""
        for _, event in self.events:
            event.synchronize()

    def _land(self) -> None:
        self.events.clear()
        self.sources.clear()
        self.count.end()


class Streams:
    """The side streams that copies run on, one for each device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def copy(
        self,
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        is_pinned: bool,
        count: Count = UNHEARD,
    ) -> Flight:
        """Copy what is on the host, have devices copy theirs, and return the flight.

        A device copies behind the host's back only into pinned memory.
        """
        flight = Flight(count=count)
        try:
            self._take_off(flight, targets, sources, is_pinned)
        except BaseException:
            flight.halt()
            raise
        return flight

    def _take_off(
        self,
        flight: Flight,
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        is_pinned: bool,
    ) -> None:
        for device, places in _by_device(sources).items():
            here = [sources[i] for i in places]
            there = [targets[i] for i in places]
            if device.type == "cpu":
                _fill(there, here, flight.count)
                continue
            flight.sources += here
            event = self._launch(device, there, here, is_pinned)
            flight.events.append((device, event))
        if not flight.events:
            flight.count.end()

    def _launch(
        self,
        device: torch.device,
        targets: list[Tensor],
        sources: list[Tensor],
        is_pinned: bool,
    ) -> Any:
        """Copy on the side stream, behind what the current one has been told so far."""
        if device not in self._streams:
            self._streams[device] = torch.Stream(device=device)
        stream = self._streams[device]
        stream.wait_stream(torch.accelerator.current_stream(device))
        with stream:
            if torch.bool in map(dtype_of, sources):
                targets, sources = as_stored(targets, sources)
            torch._foreach_copy_(targets, sources, non_blocking=is_pinned)
            return stream.record_event()


def _fill(targets: Sequence[Tensor], sources: Sequence[Tensor], count: Count) -> None:
    """Copy each source into its target, some at a time if anyone is told."""
    if not count.is_heard:
        fill(targets, sources)
        return
    start = size = 0
    for stop, t in enumerate(sources, 1):
        size += t.nbytes
        if size >= PIECE or stop == len(sources):
            fill(targets[start:stop], sources[start:stop])
            count.add(size)
            start, size = stop, 0


def _by_device(ts: Sequence[Tensor]) -> dict[torch.device, Sequence[int]]:
    """Return the places of tensors by their devices."""
    if all(map(attrgetter("is_cpu"), ts)):
        return {torch.device("cpu"): range(len(ts))} if ts else {}
    places: defaultdict[torch.device, list[int]] = defaultdict(list)
    for i, t in enumerate(ts):
        places[t.device].append(i)
    return dict(places)
