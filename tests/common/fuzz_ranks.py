"""Programs on ranks, one after the other, on processes that are kept: for ``fuzz``."""

import itertools
import time
from contextlib import suppress

from hypothesis import given
from hypothesis import seed as seeded
from rank_running import check
from rank_worlds import programs
from ranks import RanksStuck, pool
from searching import search

SMALLER = 120
"""For how many seconds a program that fails is made smaller."""


class Enough(BaseException):
    """The time for making a failure smaller is over."""


class Batch:
    """Programs drawn from one seed, and the smallest that fails."""

    def __init__(self, size, seed, end):
        self.size, self.seed, self.end = size, seed, end
        self.count, self.failure, self.program = 0, "", None

    def run(self):
        """Run them, to the end of the time or the first that fails, made smaller."""
        with suppress(Enough, AssertionError):
            search()(seeded(self.seed)(given(programs(self.size))(self.one)))()

    def one(self, program):
        if time.monotonic() > self.end:
            raise Enough
        self.count += 1
        try:
            check(program)
        except (AssertionError, RanksStuck) as error:
            if self.program is None:
                self.end = time.monotonic() + SMALLER
            if self.program is None or len(repr(program)) <= len(repr(self.program)):
                self.program, self.failure = program, str(error)
            raise AssertionError(self.failure) from None

    def script(self):
        """Return the failure as a test, empty if there is none."""
        if self.program is None:
            return ""
        told = "".join(f"# {line}\n" for line in self.failure.splitlines()[-40:])
        imports = "from rank_running import check\nfrom rank_programs import Program\n"
        call = f"def test_found():\n    check({self.program!r})\n"
        return f"# seed {self.seed}\n{told}{imports}\n\n{call}"


def run(size, seconds, seed):
    """Return how many programs were run in a time, and the first failure."""
    end, total = time.monotonic() + seconds, 0
    try:
        for number in itertools.count(seed * 1_000_000):
            batch = Batch(size, number, end)
            batch.run()
            total += batch.count
            if batch.program is not None or time.monotonic() > end:
                return total, batch.script()
    finally:
        pool(size).stop()
