"""Where the ranks of the measurements come from, and how calls on them are timed."""

import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from race import seconds

sys.path.append(str(Path(__file__).parents[1]))

from ranks import Pool, mesh, pool

__all__ = ["PATIENCE", "Pool", "mesh", "pool", "race_of_ranks", "timed"]

PATIENCE = 600.0
Runners = Mapping[str, Callable[[], object]]


def timed(
    make: Callable[..., Runners], args: tuple[object, ...], rounds: Mapping[str, int]
) -> dict[str, list[float]]:
    """Return on a rank how long each call of each runner takes here.

    They take turns after a warm-up, each as often as ``rounds`` say, and all ranks
    begin together.
    """
    runners = make(*args)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run()
    for turn in range(max(rounds.values())):
        for name, run in runners.items():
            if turn < rounds[name]:
                times[name].append(seconds(run, dist.barrier))
    return times


def race_of_ranks(
    size: int,
    make: Callable[..., Runners],
    args: tuple[object, ...],
    rounds: Mapping[str, int],
) -> dict[str, float]:
    """Return for each runner the median, over the rounds, of its slowest rank."""
    size = 2 if max(rounds.values()) == 1 else size  # a look, whose figures say nothing
    every = pool(size).run(timed, make, args, rounds, timeout=PATIENCE)
    return {
        name: statistics.median(map(max, *(times[name] for times in every)))
        for name in every[0]
    }
