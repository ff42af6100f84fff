"""Where the ranks of the measurements come from, and how calls on them are timed."""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch.distributed as dist
from ranks import FORKS, pool

from benchmarks.race import Figure, Runners, collecting_nothing_old, seconds

PATIENCE = 600.0
T = TypeVar("T")


def timed(
    make: Callable[..., Runners], args: tuple[object, ...], rounds: Mapping[str, int]
) -> dict[str, list[float]]:
    """Return on a rank how long each call of each runner takes here.

    They take turns after a warm-up, each as often as ``rounds`` say, and all ranks
    begin together. Whom ``rounds`` do not name does not run.
    """
    runners = {name: run for name, run in make(*args).items() if name in rounds}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run()
    with collecting_nothing_old():
        for turn in range(max(rounds.values())):
            for name, run in runners.items():
                if turn < rounds[name]:
                    times[name].append(seconds(run, dist.barrier))
    return times


def times_of_ranks(
    size: int,
    make: Callable[..., Runners],
    args: tuple[object, ...],
    rounds: Mapping[str, int],
) -> dict[str, list[float]]:
    """Return for each runner, round by round, how long its slowest rank took."""
    size = 2 if max(rounds.values()) == 1 else size  # a look, whose figures say nothing
    every = pool(size).run(timed, make, args, rounds, timeout=PATIENCE)
    return {
        name: [*map(max, zip(*(times[name] for times in every), strict=True))]
        for name in every[0]
    }


def race_of_ranks(
    size: int,
    make: Callable[..., Runners],
    args: tuple[object, ...],
    rounds: Mapping[str, int],
) -> dict[str, Figure]:
    """Return for each runner the figure of its slowest rank."""
    found = times_of_ranks(size, make, args, rounds)
    return {name: Figure.of(times) for name, times in found.items()}


def apart(function: Callable[..., T], *args: object) -> T:
    """Return what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=FORKS) as processes:
        return processes.submit(function, *args).result(PATIENCE)
