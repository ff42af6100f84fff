"""The row of import time, in fresh interpreters that take turns."""

import statistics
import subprocess
import sys
from collections.abc import Callable

from race import Row, milliseconds

CLOCK = (
    "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
)
TARGET = 1.1


def import_time(tiny: bool) -> Row:
    """Compare ``import sdtree`` with the import of what it stands on."""
    lines = {"torch": "import torch, optree", "ours": "import sdtree"}
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(1 if tiny else 21):
        for name, line in lines.items():
            times[name].append(_seconds(line))
    torch, ours = (statistics.median(found) for found in times.values())
    figures = milliseconds(torch), milliseconds(ours)
    return Row(*figures, ours / torch, TARGET, at_least=False)


def _seconds(line: str) -> float:
    command = [sys.executable, "-c", CLOCK.format(line)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


WORKS: dict[str, Callable[[bool], Row]] = {"import sdtree": import_time}
