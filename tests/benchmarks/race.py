"""How a row is measured and what it shows."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of the table: figures as text, the ratio and what it must reach."""

    torch: str
    ours: str
    ratio: float
    target: float
    at_least: bool = True
    raw: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """Return the text of each column."""
        met = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        sign = ">=" if self.at_least else "<="
        raw = ", ".join(f"{name} {figure}" for name, figure in self.raw.items())
        goal = f"{sign} {self.target:.2f}"
        return (
            self.torch,
            self.ours,
            f"{self.ratio:.2f}",
            goal,
            "yes" if met else "NO",
            raw,
        )


def race(runners: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each runner; they take turns, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in runners.items():
            times[name].append(seconds(run))
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(
    run: Callable[[], object], ready: Callable[[], object] = lambda: None
) -> float:
    """Return how long a call takes once all is ready; its result is freed after."""
    gc.collect()
    gc.disable()
    try:
        ready()
        start = time.perf_counter()
        result = run()
        stop = time.perf_counter()
        del result
        return stop - start
    finally:
        gc.enable()


def against_torch(
    torch: Callable[[], object],
    ours: Callable[[], object],
    target: float,
    rounds: int,
    **raw: Callable[[], object],
) -> Row:
    """Return the row of a race with torch, whose ratio is torch's time over ours."""
    found = race({"torch": torch, "ours": ours, **raw}, rounds)
    limits = {name: milliseconds(found[name]) for name in raw}
    theirs, mine = found["torch"], found["ours"]
    return Row(
        milliseconds(theirs), milliseconds(mine), theirs / mine, target, raw=limits
    )


def milliseconds(found: float) -> str:
    """Return seconds as milliseconds."""
    return f"{1e3 * found:.1f} ms"
