"""Where ranks are not about to do the same, by what each of them said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter

Ranks = tuple[int, ...]

Said = Mapping[Ranks, Mapping[int, Mapping[str, str]]]
"""What each rank of each set is about to do at each path, in canonical text."""


def first_difference(said: Said) -> tuple[str, dict[int, str]] | None:
    """Return the first path at which members of a set differ, and what each is to do.

    None if there is none.

    >>> first_difference({(0, 1): {0: {"a": "cast", "b": "copy"}, 1: {"a": "cast"}}})
    ('b', {0: 'copy', 1: 'nothing to exchange'})
    """
    found = (each for ranks in said for each in _differences(ranks, said))
    return min(found, key=itemgetter(0), default=None)


def _differences(ranks: Ranks, said: Said) -> Iterator[tuple[str, dict[int, str]]]:
    """Yield the paths at which members of a set differ, and what each is to do."""
    fingerprints = said[ranks]
    for path in {path for leaf_sets in fingerprints.values() for path in leaf_sets}:
        texts = {
            rank: fingerprints.get(rank, {}).get(path) or _elsewhere(rank, path, said)
            for rank in ranks
        }
        if len(set(texts.values())) > 1:
            yield path, texts


def _elsewhere(rank: int, path: str, said: Said) -> str:
    """Return what a rank does at a path with other ranks, or that it has nothing."""
    for fingerprints in said.values():
        if path in fingerprints.get(rank, {}):
            return fingerprints[rank][path]
    return "nothing to exchange"
