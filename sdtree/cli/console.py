"""Where the command line writes: results to stdout, notes and progress to stderr."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sdtree.errors import RuleError
from sdtree.text.table import Table, printable
from sdtree.typing import OnProgress

LONG: Final = 0.5
"""After how many seconds work is long enough for a bar."""


def write(tables: Iterable[Table], is_first: bool = True) -> None:
    """Print tables: folded to the terminal there, every row in one line elsewhere."""
    room = width() if is_read() else None
    for i, table in enumerate(tables):
        titles, *lines = table.lines(room)
        head(titles, is_first=is_first and not i)
        if lines:
            print("\n".join(lines))


def is_read() -> bool:
    """Return whether a person reads along, in a terminal."""
    return sys.stdout.isatty()


def width() -> int:
    """Return how many columns the terminal has."""
    return shutil.get_terminal_size().columns


def head(text: str, is_first: bool = True) -> None:
    """Print a line in bold, with an empty one above unless it is the first."""
    above = "" if is_first else "\n"
    bold = Text(f"{above}{printable(text)}", style="bold")
    Console(highlight=False, soft_wrap=True).print(bold)


def note(text: str) -> None:
    """Print what is worth knowing, and no result, to stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def tell(text: str) -> None:
    """Print what was done to a terminal; a script has the exit code."""
    if sys.stderr.isatty():
        print(printable(text), file=sys.stderr)


def fail(error: object) -> int:
    """Print an error to stderr and return the exit code.

    That is one line, unless the error itself has lines that show where it is.
    """
    first, *others = map(printable, _lines(error))
    print("\n".join((f"error: {first}", *others)), file=sys.stderr)
    return 2


def _lines(error: object) -> Sequence[str]:
    """Return an error in lines: the file it is about, the message, its notes."""
    said, rest = str(error), list[str]()
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename is not None else ""
        words = [f"{name}{error.strerror}"]
    else:
        if isinstance(error, RuleError):
            said, *rest = said.split("\n")
        words = said.split()
    words += getattr(error, "__notes__", ())
    if re.search(r"\bsd\.\w+\(", said):
        words.append("(what begins with sd. is for Python)")
    return [" ".join(words), *rest]


@contextmanager
def progress(what: str, *, hidden: bool = False) -> Generator[OnProgress]:
    """Yield a function that draws a bar on the terminal, if the work is long.

    The bar goes when the work is done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = hidden or not console.is_terminal
    bar = Progress(*columns, console=console, transient=True, disable=hidden)
    task, began = bar.add_task(what), monotonic()

    def on_progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if monotonic() - began > LONG:
            bar.start()

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def waiting(what: str) -> Generator[None]:
    """Show on the terminal that work goes on whose length is not known."""
    with Console(stderr=True).status(what):
        yield
