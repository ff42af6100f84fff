"""Processes that write one file together: each its share, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from sdtree.errors import RankMismatch
from sdtree.io.disk.target import Source
from sdtree.wire.collectives import RankGroup

Work = Callable[[], Any]


def _alone(work: Work) -> list[Any]:
    return [work()]


class Crew(NamedTuple):
    """Processes that write together; this is the ``turn``-th of ``size``.

    ``meet`` does work on each and returns to all what it comes to. If one fails, all
    raise. Collective.
    """

    turn: int = 0
    size: int = 1
    meet: Callable[[Work], list[Any]] = _alone
    ranks: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, rank_group: RankGroup) -> Crew:
        """Return the ranks of a group as such, this process alone without one."""
        if not rank_group.others:
            return ALONE
        from sdtree.exchange.meeting import collect

        def meet(work: Work) -> list[Any]:
            return [*collect(rank_group, (), work).values()]

        ranks = rank_group.ranks
        return cls(ranks.index(rank_group.me), len(ranks), meet, ranks)

    def meet_first(self, work: Work) -> Any:
        """Do work on the first alone, and return to all what it comes to."""
        return self.meet(lambda: work() if self.turn == 0 else None)[0]

    @contextmanager
    def room(
        self,
        replacing: Callable[[Source], AbstractContextManager[Path]],
        target: Source,
    ) -> Generator[Path]:
        """Yield where all write, which the first puts in the place of a target."""
        self._check_same(target)
        with ExitStack() as stack:
            enter = partial(stack.enter_context, replacing(target))
            yield Path(self.meet_first(lambda: str(enter())))
            self.meet(stack.close)

    def _check_same(self, target: Source) -> None:
        """Raise ``RankMismatch`` unless all are to write to one place."""
        first, *others = self.meet(lambda: str(Path(target).absolute()))
        for rank, other in zip(self.ranks[1:], others, strict=True):
            if other != first:
                raise RankMismatch(
                    f"ranks write to one place together, and the first was given "
                    f"{first}, another {other}; nothing was written; give all the same",
                    ranks=(self.ranks[0], rank),
                )


ALONE: Final = Crew()
