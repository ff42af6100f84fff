"""The row of import time, in fresh interpreters that take turns."""

import subprocess
import sys

from benchmarks.race import Figure, Row, Work

CLOCK = (
    "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
)
BARE, OURS = "import torch, optree", "import sdtree"
TARGET = 1.1


def import_time(tiny: bool) -> Row:
    """Compare ``import sdtree`` with the import of what it stands on."""
    times: dict[str, list[float]] = {BARE: [], OURS: []}
    for _ in range(1 if tiny else 21):
        for line, found in times.items():
            found.append(_seconds(line))
    bare, ours = map(Figure.of, times.values())
    ratio = ours.median / bare.median
    return Row(ours, {BARE: bare}, ratio=ratio, target=TARGET, at_least=False)


def _seconds(line: str) -> float:
    command = [sys.executable, "-c", CLOCK.format(line)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


WORKS = {"import sdtree": Work(import_time, "start")}
