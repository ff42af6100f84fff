"""What guards the calls by which ranks meet: nobody is to wait for one that failed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

from sdtree.errors import RankFailed, RankMismatch
from sdtree.path import named_by
from sdtree.transform.stages import CollectiveStage
from sdtree.tree.spec import take
from sdtree.typing import Tree
from sdtree.wire.agreement import join_as_failed
from sdtree.wire.collectives import RankGroup

_OPEN: Final[list[object]] = []
"""The exchange whose stream is open: until it is closed, no other may begin."""


def hold_open(exchange: object) -> None:
    """Let no other communication begin before this one has ended."""
    _OPEN.append(exchange)


def let_go(exchange: object) -> None:
    """Let others begin, if this one held them up."""
    if exchange in _OPEN:
        _OPEN.remove(exchange)


def refuse_during_stream(text: str) -> None:
    """Raise if a stream is open: what ranks exchange would mix with what it brings."""
    if _OPEN:
        raise RuntimeError(
            f"{text}: a stream that communicates is open on this rank; exhaust it or "
            "close it first, best in a with block"
        )


def guarded(stage: CollectiveStage, tree: Tree) -> AbstractContextManager[None]:
    """Tell the others, who wait in the agreement of a stage, of an error in here.

    They hear its path, too, if it names one of those in the tree.
    """
    return heard(stage.group, tree)


@contextmanager
def heard(group: Any, tree: Tree) -> Generator[None]:
    """Tell the others of a group, who wait in an agreement, of an error in here."""
    try:
        yield
    except BaseException as error:  # an interrupt, too
        rank_group = RankGroup.of(group)
        if rank_group is not None and rank_group.others and not _OPEN:
            at = None
            with suppress(Exception):
                at = named_by(error, take(tree)[1].paths())
            join_as_failed(rank_group, error, at)
        raise


@contextmanager
def meeting(rank_group: RankGroup, text: str) -> Generator[None]:
    """Tell of an error of the backend's in which call the ranks were to meet."""
    try:
        yield
    except (RankFailed, RankMismatch):
        raise
    except Exception as error:
        error.add_note(
            f"waiting for the ranks {rank_group.ranks} to meet in {text}, which each "
            "of them must call"
        )
        raise
