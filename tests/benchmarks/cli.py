"""Print how fast sdtree is and how much memory it takes, beside torch.

    python tests/benchmarks                          every row
    python tests/benchmarks map 'import.*'           rows whose work a regex finds
    python tests/benchmarks --list                   what there is
    python tests/benchmarks --tiny                   small trees, to see it run
    python tests/benchmarks --write docs/benchmarks  and the page, with its plots
    python tests/benchmarks --draw docs/benchmarks   that page, of what was measured

A row of speed is the median of several rounds, in each of which torch, ours and the
raw limit take turns after a warm-up, the garbage collector off unless it says on. Its
ratio is torch's time over ours (for the flat memory copy: its time over ours), and the
higher the better. The ratio of a row of memory is our peak over the input (and the
result) in windows, that of the import our time over the bare one, and the lower the
better. The raw limit is what the machine takes for as much, done bare, and beside it
stands how many times that ours is.

Run it on a machine that does nothing else: where another process holds a core, each
copy of a large tensor waits for it, and the row of these shows nothing.

A row with ranks starts that many processes under gloo, with one thread each.
Rows that are written replace those of their names; the others stay.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import (
    callers,
    converting,
    directories,
    exchange,
    exchange_memory,
    folders,
    memory,
    planning,
    scaling,
    speed,
    staging,
    startup,
)
from benchmarks.race import Row, Work, collecting_nothing_old
from benchmarks.results import Results, found, run_now

WORKS: dict[str, Work] = {
    **speed.WORKS,
    **converting.WORKS,
    **staging.WORKS,
    **memory.WORKS,
    **startup.WORKS,
    **exchange.WORKS,
    **callers.WORKS,
    **exchange_memory.WORKS,
    **folders.WORKS,
    **directories.WORKS,
    **planning.WORKS,
    **scaling.WORKS,
}
HEAD = ("torch", "ours", "ratio", "target", "met", "to limit", "raw limit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says: run rows and print each as it comes."""
    options = _parser().parse_args(arguments)
    if options.draw:
        return _draw(options.draw)
    works = [work for work in WORKS if _is_picked(work, options.patterns)]
    if options.list or not works:
        print("\n".join(works or WORKS))
        return 0 if works else 2
    rows = measured(works, options.tiny)
    if options.write:
        _keep(rows, options.write, options.tiny)
        return _draw(options.write)
    for _ in rows:
        pass
    return 0


def _keep(rows: Iterable[tuple[str, Row]], folder: Path, tiny: bool) -> None:
    """Write each row as it comes, so that a run that is broken off keeps its rows."""
    kept, run = Results.read(folder), run_now(tiny)
    for work, row in rows:
        kept = kept.merged(found(work, row, WORKS[work], run), [*WORKS])
        kept.write(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python tests/benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("patterns", nargs="*", help="regexes searched in the work")
    parser.add_argument("--tiny", action="store_true", help="small trees, one round")
    parser.add_argument("--list", action="store_true", help="name the works and stop")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep and draw")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="draw what is kept")
    return parser


def _is_picked(work: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(re.search(pattern, work) for pattern in patterns)


def measured(works: Sequence[str], tiny: bool) -> Iterator[tuple[str, Row]]:
    """Measure, print and yield row by row."""
    width = max(map(len, works))
    _print("work".ljust(width), HEAD)
    with collecting_nothing_old():
        for work in works:
            row = WORKS[work].run(tiny)
            _print(work.ljust(width), cells(row))
            yield work, row


def _print(work: str, columns: Iterable[str]) -> None:
    *figures, raw = columns
    print(work, *(cell.rjust(9) for cell in figures), raw, sep="  ", flush=True)


def cells(row: Row) -> tuple[str, ...]:
    """Return the text of each column."""
    sign = ">=" if row.at_least else "<="
    return (
        str(row.torch or "-"),
        str(row.ours),
        _fixed(row.ratio),
        "-" if row.target is None else f"{sign} {row.target:.2f}",
        {True: "yes", False: "NO", None: "-"}[row.is_met],
        _fixed(row.to_limit),
        ", ".join(f"{name} {figure}" for name, figure in row.raw.items()),
    )


def _fixed(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _draw(folder: Path) -> int:
    from benchmarks.page import draw  # which needs matplotlib

    draw(Results.read(folder), folder)
    return 0
