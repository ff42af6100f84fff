"""Copies that are made again: what was seen of both sides is not asked once more.

Nothing is kept alive. Identity of objects proves nothing: each side is looked at, but
all at once, whether its tensors have the forms that they had, and lie where they lay.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple
from weakref import ref

from sdtree.tensors.forms import Footing

MOST: Final = 64
"""Of how many copies something is known, so that a process does not fill with them."""

OFTEN: Final = 3
"""How often one is made before it is worth while to know it: that takes as long."""


class Copied(NamedTuple):
    """A copy that was made: into which first buffer, between which places, how often.

    ``footing`` is that of its sources and then its targets, if it is known.
    """

    first: ref[Any]
    places: int
    times: int = 1
    footing: Footing | None = None


_KNOWN: dict[int, Copied] = {}


def is_recalled(sources: Sequence[Any], targets: Sequence[Any]) -> bool:
    """Return whether this copy was made before, of the same memory into the same."""
    known = _KNOWN.get(id(targets[0])) if targets else None
    if known is None or known.footing is None or known.first() is not targets[0]:
        return False
    return known.footing.holds([*sources, *targets])


def note(sources: Sequence[Any], targets: Sequence[Any], places: Hashable) -> None:
    """Note a copy that fits, between these places."""
    if not targets:
        return
    key, at = id(targets[0]), hash(places)
    was = _KNOWN.pop(key, None)
    if was is None or was.first() is not targets[0] or was.places != at:
        first = ref(targets[0], lambda gone: _forget(key, gone))
        _KNOWN[key] = Copied(first, at)
    elif was.times + 1 < OFTEN:
        _KNOWN[key] = was._replace(times=was.times + 1, footing=None)
    else:
        footing = Footing.of([*sources, *targets])
        _KNOWN[key] = Copied(was.first, at, 1, footing)
    for oldest in [*_KNOWN][:-MOST]:
        _KNOWN.pop(oldest, None)


def _forget(key: int, gone: object) -> None:
    """Let go of what is known of a copy whose first buffer is gone."""
    known = _KNOWN.get(key)
    if known is not None and known.first is gone:
        _KNOWN.pop(key, None)
