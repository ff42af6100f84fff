"""How a row is measured and what it shows."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

Runners = Mapping[str, Callable[[], object]]
"""What takes turns in a race: ``torch``, ``ours``, and first of others the limit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What some rounds have found: their median, and the quartiles it lies between."""

    median: float
    low: float
    high: float
    rounds: int
    unit: str = "s"

    @classmethod
    def of(cls, found: Sequence[float], unit: str = "s") -> Self:
        """Return the figure of what was found, round by round."""
        if len(found) == 1:
            return cls(*found, *found, *found, 1, unit)
        low, median, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, low, high, len(found), unit)

    def __str__(self) -> str:
        """Return the median in a unit that suits it."""
        size = abs(self.median)
        scales = SECONDS if self.unit == "s" else BYTES
        scale, unit = next(x for x in scales if size >= x[0] or x is scales[-1])
        figure = self.median / scale
        digits = 0 if abs(figure) >= 100 or unit[-1] == "B" or not figure else 1
        return f"{figure:,.{digits}f} {unit}"


SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
BYTES = ((2**20, "MiB"), (2**10, "KiB"), (1, "B"))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: figures, the ratio and what it must reach, if anything.

    The first of ``raw`` is the limit: what the machine takes for as much, done bare.
    """

    ours: Figure
    raw: Mapping[str, Figure]
    torch: Figure | None = None
    ratio: float | None = None
    target: float | None = None
    at_least: bool = True

    @property
    def is_met(self) -> bool | None:
        """Tell whether the ratio is what it must be; None if nothing is wanted."""
        if self.target is None or self.ratio is None:
            return None
        return (self.ratio >= self.target) is self.at_least or self.ratio == self.target

    @property
    def to_limit(self) -> float | None:
        """Return how many times the raw limit ours is."""
        limit = next(iter(self.raw.values())).median
        return self.ours.median / limit if limit > 0 else None


class Work(NamedTuple):
    """Something to measure, small if it is told so; perhaps a point of a curve."""

    run: Callable[[bool], Row]
    group: str
    curve: str = ""
    at: int = 0


Around = Callable[[], AbstractContextManager[None]]
"""What goes on around a call, such as whether Python looks for garbage."""


def race(
    runners: Runners,
    rounds: int,
    times: int = 1,
    around: Around | None = None,
    warm: int = 2,
) -> dict[str, Figure]:
    """Return the figure of each runner; they take turns, after a warm-up.

    In each turn a runner is called ``times``, and what counts is a call's share.
    """
    found: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        for _ in range(warm):
            run()
    for _ in range(rounds):
        for name, run in runners.items():
            found[name].append(seconds(run, times=times, around=around))
    return {name: Figure.of(figures) for name, figures in found.items()}


def seconds(
    run: Callable[[], object],
    ready: Callable[[], object] = lambda: None,
    times: int = 1,
    around: Around | None = None,
) -> float:
    """Return how long a call takes once all is ready; its result is freed after."""
    with (around or _collector_off)():
        ready()
        start = time.perf_counter()
        for _ in range(times - 1):
            run()
        result = run()
        stop = time.perf_counter()
        del result
        return (stop - start) / times


@contextmanager
def collecting_nothing_old() -> Iterator[None]:
    """Keep what is there already from the garbage collector, which each call starts."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def collector_on() -> Iterator[None]:
    """Let Python look for garbage in a call, as it does for users."""
    gc.collect()
    yield


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def row_of(
    found: Mapping[str, Figure], target: float | None = None, over: str = "torch"
) -> Row:
    """Return the row of a race, whose ratio is the time of ``over`` over ours."""
    raw = {name: x for name, x in found.items() if name not in ("torch", "ours")}
    ours, other = found["ours"], found.get(over)
    ratio = other.median / ours.median if other else None
    return Row(ours, raw, found.get("torch"), ratio, target)
