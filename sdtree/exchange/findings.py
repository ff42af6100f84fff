"""What each rank finds of where two trees differ, and what all of them come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sdtree.exchange.differences import LEAF, Diff, Difference, count_told
from sdtree.tensors.bits import Distance, Gap
from sdtree.typing import Path

UNSEEN: Final = "data that was not compared"
RENAMED: Final = "renamed"


class Finding(NamedTuple):
    """A difference as one rank sees it.

    Of data there are the gaps, by the region of the whole tensor or else of this rank's
    own; ``is_shared`` tells which. ``total`` is how many elements the leaf has. ``to``
    is where a leaf is that was renamed.
    """

    path: Path
    what: str
    a: str = ""
    b: str = ""
    gaps: Mapping[object, Gap] | None = None
    total: int = 0
    is_shared: bool = False
    to: Path = ()

    def row(self) -> Difference:
        """Return it as people read it."""
        if self.gaps is None:
            return Difference(*self[:4])
        gap = Gap.joined(self.gaps.values())._replace(of=self.total)
        if self.a:
            return Difference(*self[:4], gap)
        far = _by_how_much(gap.most)
        return Difference(self.path, self.what, count_told(gap), far, gap)


def _by_how_much(most: Distance) -> str:
    if most is None:
        return "which are no numbers"
    if not most:
        return "in bits that mean the same"
    return f"by at most {most if isinstance(most, int) else f'{most:.3g}'}"


def told(
    findings: Iterable[Finding],
    elements: Iterable[tuple[Path, int]],
    has_tolerance: bool,
) -> Diff:
    """Return what was found as a value."""
    every = [*findings]
    rows = [x.row() for x in every if x.what not in (UNSEEN, RENAMED)]
    close = [has_tolerance and d.gap is not None and not d.gap.beyond for d in rows]
    return Diff(
        tuple(d for d, is_close in zip(rows, close, strict=True) if not is_close),
        tuple(x.path for x in every if x.what == UNSEEN),
        tuple(d for d, is_close in zip(rows, close, strict=True) if is_close),
        tuple((x.path, x.to) for x in every if x.what == RENAMED),
        tuple(elements),
    )


def told_by_some(every: Mapping[int, Sequence[Finding]]) -> set[Path]:
    """Return the paths of shared data that does not differ on every rank."""
    found = [{x.path for x in rows if x.is_shared} for rows in every.values()]
    return set[Path]().union(*found).difference(set.intersection(*found))


def merged(every: Mapping[int, Sequence[Finding]], me: int) -> Iterator[Finding]:
    """Yield what all ranks found; of data, each region is counted once."""
    shared: dict[Path, dict[object, Gap]] = {}
    for finding in (x for found in every.values() for x in found if x.is_shared):
        gaps = shared.setdefault(finding.path, {})
        for place, gap in (finding.gaps or {}).items():
            gaps[place] = gap.worse_of(gaps.get(place, gap))
    seen: set[tuple[Path, str]] = set()
    for rank in sorted(every, key=me.__ne__):
        for finding in every[rank]:
            if (finding.path, finding.what) in seen:
                continue
            seen.add((finding.path, finding.what))
            if finding.what == RENAMED:
                if _is_for_all(finding, every.values()):
                    yield finding
            elif finding.is_shared:
                yield finding._replace(gaps=shared[finding.path])
            elif rank == me or finding.what == UNSEEN:
                yield finding
            else:
                yield finding._replace(what=f"{finding.what}, on rank {rank}")


def _is_for_all(renamed: Finding, every: Iterable[Sequence[Finding]]) -> bool:
    """Return whether a leaf was renamed so on all ranks that have a part of it."""
    ends = {renamed.path, renamed.to}
    for found in every:
        mine = {x.path for x in found if x.what == LEAF}
        if ends & mine and renamed not in found:
            return False
    return True
