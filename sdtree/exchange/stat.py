"""What changed below a prefix, in numbers, and how numbers of differences read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sdtree.tensors.bits import Distance, Gap


def part_of(gap: Gap | Stat) -> float:
    """Return the norm of a difference as a part of that of what there is."""
    if not gap.norm:
        return 0.0
    return gap.norm / gap.scale if gap.scale else math.inf


class Stat(NamedTuple):
    """What changed below a prefix: leaves, and elements of those that were compared.

    ``norm`` is that of all differences together, and ``rel`` its part of the norm that
    the changed leaves have in the second tree. ``unlike`` are those changed leaves that
    have no numbers and no part in ``of``: they differ in shape or dtype, or only one
    tree has them.
    """

    label: str
    leaves: int
    changed: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    of: int
    max_abs: Distance
    norm: float
    scale: float
    unlike: int

    @property
    def share(self) -> float:
        """Which share of the elements differs, of leaves that were compared."""
        return self.count / max(self.of, 1)

    @property
    def rel(self) -> float:
        """That norm as a part of the norm of what the second tree has."""
        return part_of(self)

    def to_data(self) -> dict[str, Any]:
        """Return what JSON has of it; what is not finite is text."""
        named = {"prefix": self.label, "leaves": self.leaves, "changed": self.changed}
        named |= {"unlike": self.unlike}
        numbers = {"count": self.count, "of": self.of, "max_abs": self.max_abs}
        numbers |= {"norm": self.norm, "rel": self.rel}
        return named | {name: in_json(x) for name, x in numbers.items()}

    def cells(self) -> Sequence[str]:
        """Return what the table has of it."""
        leaves = f"{self.changed:,} of {self.leaves:,}", f"{self.unlike:,}"
        if self.unlike == self.leaves:  # there is nothing of which a share could differ
            return self.label, *leaves, "", "", "", ""
        far = "no number" if self.max_abs is None else short(self.max_abs)
        numbers = percent(self.share), far, short(self.norm), short(self.rel)
        return self.label, *leaves, *numbers


def percent(share: float) -> str:
    """Return a share as people read it; only all of it is 100 %, and only none 0 %.

    >>> from sdtree.exchange.stat import percent
    >>> percent(0.5), percent(1e-9), percent(0.99999)
    ('50 %', '<0.1 %', '>99.9 %')
    """
    if 0 < share < 0.001:
        return "<0.1 %"
    return ">99.9 %" if 0.999 < share < 1 else f"{100 * share:.3g} %"


def short(x: int | float) -> str:
    """Return a number as people read it."""
    return str(x) if isinstance(x, int) else f"{x:.3g}"


def in_json(x: Distance) -> int | float | str | None:
    """Return a number as JSON has it; what is not finite is text."""
    return x if x is None or math.isfinite(x) else repr(x)
