"""Print how fast sdtree is and how much memory it takes, beside torch.

    python tests/benchmarks                  every row
    python tests/benchmarks map 'import.*'   rows whose work a regex finds
    python tests/benchmarks --list           what there is
    python tests/benchmarks --tiny           small trees and few rounds, to see it run

A row of speed is the median of several rounds, in each of which torch, ours and the
raw limit take turns after a warm-up, with the garbage collector off. Its ratio is
torch's time over ours (for the flat memory copy: its time over ours), and the higher
the better. The ratio of a row of memory is our peak over the input (and the result)
in windows, that of the import our time over torch's, and the lower the better.

Run it on a machine that does nothing else: where another process holds a core, each
copy of a large tensor waits for it, and the row of these shows nothing.

A row with ranks starts that many processes under gloo, with one thread each.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence

import exchange
import exchange_memory
import memory
import planning
import speed
import startup
from race import Row

WORKS: dict[str, Callable[[bool], Row]] = {
    **speed.WORKS,
    **memory.WORKS,
    **startup.WORKS,
    **exchange.WORKS,
    **exchange_memory.WORKS,
    **planning.WORKS,
}
HEAD = ("work", "torch", "ours", "ratio", "target", "met", "raw limit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that the command line picks and print each as it comes."""
    parser = argparse.ArgumentParser("python tests/benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("patterns", nargs="*", help="regexes searched in the work")
    parser.add_argument("--tiny", action="store_true", help="small trees, few rounds")
    parser.add_argument("--list", action="store_true", help="name the works and stop")
    options = parser.parse_args(arguments)
    works = [work for work in WORKS if _is_picked(work, options.patterns)]
    if options.list or not works:
        print("\n".join(works or WORKS))
        return 0 if works else 2
    width = max(map(len, works))
    for cells in _table(works, options.tiny):
        print(
            cells[0].ljust(width),
            *(c.rjust(9) for c in cells[1:-1]),
            cells[-1],
            sep="  ",
            flush=True,
        )
    return 0


def _is_picked(work: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(re.search(pattern, work) for pattern in patterns)


def _table(works: Sequence[str], tiny: bool) -> Iterator[tuple[str, ...]]:
    yield HEAD
    for work in works:
        yield (work, *WORKS[work](tiny).cells())


if __name__ == "__main__":
    raise SystemExit(main())
