"""The figures of a run as they are kept, and merged with those of the runs before."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import optree
import torch

from benchmarks.race import Figure, Row, Work

FILE = "results.json"
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Line:
    """A row, what it is the row of, and the run that has found it."""

    row: Row
    run: str
    group: str
    curve: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Results:
    """The lines by the names of their works, and the runs by when they began."""

    lines: Mapping[str, Line] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what a folder has, which may be nothing."""
        file = folder / FILE
        kept = json.loads(file.read_text()) if file.exists() else {}
        lines = {name: _line(**line) for name, line in kept.get("lines", {}).items()}
        return cls(lines, kept.get("runs", {}))

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(text + "\n")

    def merged(self, newer: "Results", order: Sequence[str]) -> "Results":
        """Return the newer lines, those of other names, and their runs, in order."""
        every = {**self.lines, **newer.lines}
        lines = {name: every[name] for name in order if name in every}
        runs = {**self.runs, **newer.runs}
        return Results(lines, {line.run: runs[line.run] for line in lines.values()})

    def of_group(self, group: str) -> dict[str, Line]:
        """Return the lines of a group."""
        return {name: x for name, x in self.lines.items() if x.group == group}


def run_now(tiny: bool) -> dict[str, Mapping[str, str]]:
    """Return a run that begins now."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {now: machine() | ({"size": "tiny"} if tiny else {})}


def found(
    name: str, row: Row, work: Work, run: Mapping[str, Mapping[str, str]]
) -> Results:
    """Return the results of a run as far as one row."""
    [began] = run
    line = Line(row, began, work.group, work.curve, work.at)
    return Results({name: line}, run)


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "optree": optree.__version__,
        "threads": f"{torch.get_num_threads()}, on a rank 1",
    }


def _processor() -> str:
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    names = [x.partition(": ")[2] for x in text.splitlines() if x[:10] == "model name"]
    return names[0] if names else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _line(row: Mapping[str, Any], **line: Any) -> Line:
    return Line(_row(**row), **line)


def _row(
    ours: Mapping[str, Any],
    raw: Mapping[str, Mapping[str, Any]],
    torch: Mapping[str, Any] | None,
    **rest: Any,
) -> Row:
    limits = {name: Figure(**x) for name, x in raw.items()}
    return Row(Figure(**ours), limits, Figure(**torch) if torch else None, **rest)
