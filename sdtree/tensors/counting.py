"""How far work on bytes has come, as someone is told who wants to know."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sdtree.errors import reraise
from sdtree.typing import OnProgress

STEPS: Final = 200
"""How often it is told at most, but for the end."""


class Count:
    """How many bytes are done, of how many, and whom to tell.

    Law: what is told grows, and its end is that all are done. What whoever is told
    raises is kept as ``error``; then nothing more is told.

    >>> count = Count(print).expect(20)
    >>> count.add(5), count.end()
    5 20
    20 20
    (None, None)
    """

    __slots__ = ("_done", "_report", "_told", "_total", "error")

    def __init__(self, report: OnProgress | None) -> None:
        self._report = checked(report)
        self._done = self._total = 0
        self._told = -1
        self.error: BaseException | None = None

    @property
    def is_heard(self) -> bool:
        """Return whether anybody is told."""
        return self._report is not None

    def expect(self, total: int) -> Count:
        """Return itself, now that it is known how many bytes there are."""
        if self.is_heard:
            self._total = total
        return self

    def add(self, nbytes: int) -> None:
        """Count bytes that are done."""
        self.reach(self._done + nbytes)

    def reach(self, done: int) -> None:
        """Have so many bytes done, and tell it if they are enough more, or all."""
        if not self.is_heard:
            return
        self._done = min(max(done, self._done), self._total)
        new = self._done - max(self._told, 0)
        if new * STEPS >= max(self._total, 1) or (new and self._done == self._total):
            self._tell()

    def follow(self, done: int, total: int) -> None:
        """Have the same part done as whoever counts has that tells of it."""
        if done == total:
            self.end()
        else:
            self.reach(self._total * done // total)

    def end(self) -> None:
        """Have all done, and tell it unless it was told."""
        self._done = self._total
        if self._told < self._total:
            self._tell()

    def _tell(self) -> None:
        if self._report is None or self.error is not None:
            return
        self._told = self._done
        try:
            _tell(self._report, self._done, self._total)
        except BaseException as error:  # an interrupt, too
            self.error = error
            raise


def _tell(report: OnProgress, done: int, total: int) -> None:
    try:
        report(done, total)
    except Exception as error:
        reraise(error, "in the function given as on_progress=")


def checked(report: OnProgress | None) -> OnProgress | None:
    """Return whom to tell; raise if that cannot be called."""
    if report is not None and not callable(report):
        raise TypeError(
            f"on_progress={report!r} cannot be called; give a function of how many "
            "bytes are done and how many there are, lambda done, total: ..."
        )
    return report


UNHEARD: Final = Count(None)
"""The count of which nobody is told; it stays as it is."""


@contextmanager
def counting(report: OnProgress | None) -> Generator[Count]:
    """Yield a count, which ends with the block.

    What was raised by whoever is told is raised, whatever others have made of it.
    """
    count = Count(report)
    try:
        yield count
        count.end()
    except BaseException:
        if count.error is not None:
            raise count.error from count.error.__cause__
        raise
    if count.error is not None:
        raise count.error
