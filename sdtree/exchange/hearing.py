"""What ranks hear of a source: what it has, and where it does not fit on any of them.

Each raises what all raise, or goes on as all do.
"""

from __future__ import annotations

import pickle
from collections.abc import (
    Callable,
    Container,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from itertools import compress
from operator import not_
from typing import Any

from sdtree.errors import Mismatch, SpecMismatch, listed, reraise, text_of
from sdtree.exchange.optimizers import loses_state, lost_state
from sdtree.exchange.source import LeafMetadata, Source, SourceMetadata
from sdtree.kinds.abstract import Abstract, grouped
from sdtree.path import where
from sdtree.typing import Path
from sdtree.wire.agreement import settle
from sdtree.wire.collectives import RankGroup, broadcast_bytes, gather_bytes, greatest

# -- what the source tells ---------------------------------------------------------


def _take_values(source: Source) -> None:
    """Have the steps before make the plain values now, so that others are told."""
    stage_input = source.stage_input
    if stage_input is None or stage_input.forms is not None:
        return
    here = [i for i, k in enumerate(source.places) if k >= 0]
    here = [i for i in here if source.forms[i].dtype is None]
    made = stage_input.pull([source.places[i] for i in here])
    source.kept = dict(zip(here, made, strict=True))
    values = {source.paths[i]: x for i, x in source.kept.items()}
    told = {path: LeafMetadata.of(Abstract.of(x)) for path, x in values.items()}
    given = {**source.metadata.given, **told}
    source.know(replace(source.metadata, given=given, values=values))


def get_ready(source: Source) -> None:
    """Have what the source is to tell at hand, so that what fails, fails before."""
    _take_values(source)
    _telling(source)


def _telling(source: Source) -> bytes | None:
    """Return what the source tells, None off it; raise if it cannot."""
    if source.told is None and source.stage_input is not None:
        source.told = _as_told(source.metadata)
    return source.told


def _as_told(metadata: SourceMetadata) -> bytes:
    """Return what a source tells of what it has; values and makeups one by one."""
    every = [*metadata.given.values()]
    groups = grouped(every)
    shown = [every[i]._replace(layout=None) for i in groups.first]
    given = {path: shown[k] for path, k in zip(metadata.given, groups.of, strict=True)}
    values, makeups = _pickled(metadata.values), _pickled(metadata.makeups)
    return pickle.dumps(SourceMetadata(given, metadata.tied, values, makeups))


def _pickled(values: Mapping[Path, object]) -> dict[Path, Any]:
    """Return the bytes of each value; an error tells of which."""
    found: dict[Path, bytes] = {}
    for path, value in values.items():
        try:
            found[path] = pickle.dumps(value)
        except Exception as error:
            error.add_note(f"at {where(path)}, whose value is to go to other ranks")
            raise
    return found


def _as_heard(data: bytes) -> SourceMetadata:
    """Return what a source told; values stay bytes until they are asked for."""
    found: SourceMetadata = pickle.loads(data)
    told: Mapping[Path, Any] = found.makeups
    makeups = {path: pickle.loads(x) for path, x in told.items()}
    return replace(found, makeups=makeups)


# -- what all hear -----------------------------------------------------------------


def hear(source: Source, rank_group: RankGroup, check: Callable[[], None]) -> None:
    """Have each rank hear what it must of the source, and judge it. Collective.

    A rank by itself has all it needs. ``check`` raises where what is heard cannot be
    had.
    """
    order = source.order
    if order.src is None:
        if rank_group.others and not order.moves:
            _settle_misfits(source, rank_group)
    elif rank_group.others:
        _hear_from(source, rank_group, order.src, check)
    else:
        check_here(source, rank_group)


def _hear_from(
    source: Source, rank_group: RankGroup, src: int, check: Callable[[], None]
) -> None:
    """Have the source tell all what it has, plain values included.

    Then all hear of the misfits of all, which may have other targets, and raise
    unless they are allowed, or if a function that is told of them raises on one. Of
    what has no target, only what has none on any rank is a misfit.
    """
    data, mine, error = None, Mismatch(), None
    try:
        data = _telling(source)
    except BaseException as found:  # what others ask for may not be told
        data, error = b"", found
    size = None if data is None else len(data).to_bytes(8)
    size = broadcast_bytes(rank_group, size, 8, src)
    if any(size):
        data = broadcast_bytes(rank_group, data, int.from_bytes(size), src)
    try:
        if error is not None:
            raise error
        if data:
            if source.stage_input is None:
                source.know(_as_heard(data))
            mine = source.misfit()
            if not mine.mismatched:
                check()
    except BaseException as found:  # what a source is can be foreign to this rank
        mine, error = _fault_on(rank_group.me, found), found
    every = _misfits_of_all(rank_group, mine)
    if every:
        common = set[Path].intersection(*({*one.unexpected} for one in every))
        _judge(source, rank_group, mine, _merged(every, common), error)


def _fault_on(me: int, error: BaseException) -> Mismatch:
    """Return what other ranks are told of a rank that cannot have what it heard of."""
    told = f"rank {me}: {type(error).__name__}: {text_of(error)}"
    return Mismatch(mismatched=(((), told),))


def _settle_misfits(source: Source, rank_group: RankGroup) -> None:
    """Hear what does not fit on one rank or another, each having a source.

    They raise together unless it may be so. What has no target on any of them is
    unexpected. Collective.
    """
    mine, targets = source.misfit(), {*source.paths}
    every = _misfits_of_all(rank_group, mine)
    if not every:
        return
    told = dict.fromkeys(_unexpected(every))
    wanted = greatest(rank_group, [int(x in targets) for x in told]) if told else []
    misfit = _merged(every, {*compress(told, map(not_, wanted))})
    if source.order.strict:
        _judge(source, rank_group, mine, misfit)
    else:  # what may be so was judged here before
        source.report = misfit
        settle(rank_group, None)


def hearings(source: Source) -> list[tuple[str, int]]:
    """Return the collectives of ``hear``, and what bytes each rank puts in.

    Where each rank has a source, what they hear of each other.
    """
    misfit, told = source.misfit(), [("all_reduce", 8)]
    if misfit:
        told += [("all_gather", 8), ("all_gather", len(_as_bytes(misfit)))]
    if source.order.src is None:
        words = 8 * len(misfit.unexpected)
        told += [("all_reduce", words)] if words else []
    else:
        heard = [("broadcast", 8), ("broadcast", len(_telling(source) or b""))]
        told = [*heard, *told]
    return [*told, *([("all_reduce", 8)] if misfit else [])]


def _misfits_of_all(rank_group: RankGroup, mine: Mismatch) -> list[Mismatch]:
    """Return what does not fit on each rank, nothing if all does. Collective."""
    if not any(greatest(rank_group, [int(bool(mine))])):
        return []
    return [pickle.loads(told) for told in gather_bytes(rank_group, _as_bytes(mine))]


def _as_bytes(misfit: Mismatch) -> bytes:
    """Return what travels: as many bytes on each rank on which as much does not fit.

    A key is told once, wherever it comes from, since pickle tells what is one thing.
    """
    known: dict[Hashable, Any] = {}

    def as_one(x: Any) -> Any:
        if type(x) is tuple:
            return tuple(map(as_one, x))
        return known.setdefault((type(x), x), x)

    parts = misfit.missing, misfit.unexpected, misfit.mismatched
    return pickle.dumps(Mismatch(*map(as_one, parts)))


def _merged(every: Sequence[Mismatch], unexpected: Container[Path]) -> Mismatch:
    """Return what does not fit on one rank or another, of the unexpected only these.

    Ranks may have targets for parts of a source, as the stages of a pipeline have.
    """
    return Mismatch(
        tuple(dict.fromkeys(x for one in every for x in one.missing)),
        tuple(dict.fromkeys(filter(unexpected.__contains__, _unexpected(every)))),
        tuple(dict.fromkeys(x for one in every for x in one.mismatched)),
    )


def _unexpected(every: Iterable[Mismatch]) -> Iterator[Path]:
    """Yield what has no target on one rank or another."""
    return (path for one in every for path in one.unexpected)


# -- whether it may be so ----------------------------------------------------------


def _judge(
    source: Source,
    rank_group: RankGroup,
    mine: Mismatch,
    misfit: Mismatch,
    error: BaseException | None = None,
) -> None:
    """Raise, all together, unless what does not fit may be so. Collective."""
    try:
        if error is None:
            is_lost = not misfit and loses_state([*source.metadata.given], source.paths)
            _check_fit(source, mine if is_lost else misfit)
    except BaseException as found:  # an interrupt, too
        error = found
    try:
        settle(rank_group, error, when="before anything moved")
        if error is not None:
            raise error
    finally:
        error = None  # it would hold this frame, and the frame it


def check_here(source: Source, rank_group: RankGroup) -> None:
    """See that a source fits the targets here, if others have none for it."""
    misfit = source.misfit()
    if is_for_all(source, rank_group, misfit):
        source.report = misfit
    else:
        _check_fit(source, misfit)


def is_for_all(source: Source, rank_group: RankGroup, misfit: Mismatch) -> bool:
    """Return whether a misfit is none if other ranks have targets for the rest.

    So have the stages of a pipeline, each for its own part of a source.
    """
    order, found = source.order, bool(misfit.unexpected)
    fits_here = found and not (misfit.missing or misfit.mismatched)
    is_one_of_many = order.is_of_one and not rank_group.is_alone
    return fits_here and order.strict and is_one_of_many


def supposed(source: Source, rank_group: RankGroup) -> str:
    """Return what is taken of other ranks where none of them is heard."""
    report = source.report
    if not is_for_all(source, rank_group, report):
        return ""
    names = listed([*map(where, report.unexpected)])
    return f"other ranks had targets for what has none here: {names}"


def _check_fit(source: Source, misfit: Mismatch) -> None:
    """Tell of a misfit, and raise ``SpecMismatch`` unless it is allowed.

    That an optimizer's state is left out altogether never is.
    """
    source.report = misfit
    if not misfit:
        return
    order = source.order
    if order.on_mismatch is not None:
        try:
            order.on_mismatch(misfit)
        except Exception as error:
            reraise(error, "in the function given as on_mismatch=")
    lost = lost_state([*source.metadata.given], source.paths)
    if misfit.mismatched or order.strict or lost:
        advice = f"; {lost}" if lost else _advice_on(misfit, order.is_of_one)
        raise SpecMismatch(
            f"{order.verb}: the source does not fit the target, and nothing was moved; "
            f"{misfit}{advice}"
        )


def _advice_on(misfit: Mismatch, is_of_one: bool) -> str:
    """Return what to do about it, as the end of a message."""
    if any(why.startswith("dtype") for _, why in misfit.mismatched):
        return "; for other dtypes put sd.cast(like=target) before it"
    if misfit.mismatched:
        return "; select or drop those leaves, or give a target of their form"
    if not is_of_one:
        return "; select or drop what only one of them has"
    return "; to keep what only the target has, and skip the rest: strict=False"
