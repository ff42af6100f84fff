"""Where two trees differ, as a value: the differences, and their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple, get_args

from sdtree.exchange.stat import Stat, in_json, part_of, percent, short
from sdtree.naming.globs import prefix_of
from sdtree.path import name_of, where
from sdtree.tensors.bits import Distance, Gap, largest
from sdtree.text.showing import at_prompt, html_of, rich_of
from sdtree.text.table import Table, counted
from sdtree.typing import Path

MOST: Final = 100
"""How many differences are printed at most."""

Number = Literal["max_abs", "norm", "rel", "count", "share"]
"""By what differences are sorted."""


class Told(NamedTuple):
    """What is said of a difference: where, in what, and what each of two trees has."""

    path: Path
    what: str
    a: str
    b: str


class Difference(Told):
    """One place where two trees differ: what differs, and what each of them has.

    Where data was compared there are numbers; without any, they are None. Two are equal
    if they read the same.

    >>> [found] = sd.diff({"w": torch.tensor([3.0, 5])}, {"w": torch.tensor([3.0, 4])})
    >>> found.count, found.of, found.max_abs, found.norm, found.rel
    (1, 2, 1.0, 1.0, 0.2)
    """

    gap: Gap | None = None

    def __new__(
        cls, path: Path, what: str, a: str, b: str, gap: Gap | None = None
    ) -> Difference:
        """Return a difference; ``gap`` are its numbers."""
        self = super().__new__(cls, path, what, a, b)
        if gap is not None:
            self.gap = gap
        return self

    @property
    def count(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many elements differ in a bit."""
        return None if self.gap is None else self.gap.differing

    @property
    def of(self) -> int | None:
        """How many elements there are."""
        return None if self.gap is None else self.gap.of

    @property
    def share(self) -> float | None:
        """Which share of the elements differs."""
        return None if self.gap is None else self.gap.differing / max(self.gap.of, 1)

    @property
    def max_abs(self) -> Distance:
        """By how much elements differ at most; integers exactly."""
        return None if self.gap is None else self.gap.most

    @property
    def norm(self) -> float | None:
        """The 2-norm of what the data differs by."""
        return None if self.max_abs is None or not self.gap else self.gap.norm

    @property
    def rel(self) -> float | None:
        """That norm as a part of the norm of what the second tree has."""
        return None if self.norm is None or not self.gap else part_of(self.gap)

    def numbers(self) -> dict[str, int | float]:
        """Return the numbers that there are, by name."""
        names = ("count", "of", "max_abs", "norm", "rel")
        found = {name: getattr(self, name) for name in names}
        return {name: x for name, x in found.items() if x is not None}

    @property
    def sides(self) -> str:
        """What each tree has, empty where numbers tell."""
        is_told = self.gap is not None and self.a == count_told(self.gap)
        if self.what == NAME:  # the first is where it stands
            return f"\N{RIGHTWARDS ARROW} {self.b}"
        return "" if is_told else f"{self.a} \N{RIGHTWARDS ARROW} {self.b}"

    def in_short(self) -> str:
        """Return in what they differ, with both sides where no numbers tell."""
        return f"{self.what} {self.sides}".rstrip()

    def __str__(self) -> str:
        return f"{where(self.path)}: {self.what}, {self.a} and {self.b}"


def together(differences: Iterable[Difference]) -> Gap:
    """Return what differences come to, as far by numbers as some of them have any."""
    gaps = [d.gap for d in differences if d.gap is not None]
    numbers = [gap.most for gap in gaps if gap.most is not None]
    found = Gap.joined(gaps)
    return found._replace(most=largest(numbers)) if numbers else found


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """Where two trees differ. It is falsy if nowhere, and prints as a table.

    ``unseen`` are the paths of the leaves whose data was not compared, and of which
    nothing else differs; ``within`` the differences that a tolerance allows. In
    ``renamed`` are pairs of paths, the second tree having at the second what the first
    has at the first, to the bit; both are among the differences, too. ``elements``
    tells of every leaf how many it has, ``more`` how many differences are left out, and
    ``by`` by which number they are sorted.

    >>> found = sd.diff({"step": 1}, {"step": 2})
    >>> bool(found), len(found), [d.path for d in found]
    (True, 1, [('step',)])
    >>> sd.diff({"w": torch.ones(2)}, {"w": torch.zeros(2)}, values=False)
    no differences, but the data of 1 leaf was not compared
    """

    differences: tuple[Difference, ...] = ()
    unseen: tuple[Path, ...] = ()
    within: tuple[Difference, ...] = ()
    renamed: tuple[tuple[Path, Path], ...] = ()
    elements: tuple[tuple[Path, int], ...] = ()
    more: int = 0
    by: Number | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Take what was pickled, also before there were all of the fields."""
        for i, field in enumerate(fields(self)):
            value = state[i] if i < len(state) else field.default
            object.__setattr__(self, field.name, value)

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def sorted(self, by: Number = "norm") -> Diff:
        """Return the same with the largest first, by one of the numbers.

        What has no number comes before: another shape, say, or a leaf that one lacks.

        >>> a, b = {"x": torch.ones(2), "y": torch.ones(2)}, {"x": torch.zeros(2)}
        >>> [d.path for d in sd.diff(a, {**b, "y": torch.full((2,), 9.0)}).sorted()]
        [('y',), ('x',)]
        """
        check_number(by)
        found = sorted(self.differences, key=lambda d: place(getattr(d, by)))
        return replace(self, differences=tuple(found), by=by)

    def top(self, most: int, by: Number | None = None) -> Diff:
        """Return the ``most`` largest differences; how many there are more is told.

        Without ``by`` they are those by which the differences are sorted, or by norm.

        >>> found = sd.diff([1, 2, 3], [1, 3, 5])
        >>> len(found.top(1)), found.sorted("rel").top(1).by
        (1, 'rel')
        """
        if most < 1:
            raise ValueError(f"top({most}) would tell of no difference; give 1 or more")
        ordered = self if by is None and self.by else self.sorted(by or "norm")
        found = ordered.differences
        kept, more = found[:most], len(found[most:])
        return replace(ordered, differences=kept, more=self.more + more)

    def stat(self, depth: int = 1) -> list[Stat]:
        """Return what changed below each prefix of ``depth`` segments, then in all.

        That is of leaves; containers that differ are no part of it. Of the ``top`` of
        differences there is none, for it would not tell of the others.

        >>> a, b = {"m": {"w": torch.ones(4)}}, {"m": {"w": torch.zeros(4)}}
        >>> [(s.label, s.changed, s.count, s.norm) for s in sd.diff(a, b).stat()]
        [('m', 1, 4, 2.0), ('total', 1, 4, 2.0)]
        """
        if self.more:
            raise ValueError(
                f"stat: {self.more:,} differences are left out, which it would not "
                "count; ask all of them, sd.diff(a, b).stat()"
            )
        every = dict(self.elements)
        others = (d for d in self.differences if d.what.partition(",")[0] != CONTAINER)
        every |= {d.path: d.of or 0 for d in others if d.path not in every}
        below: dict[str, list[Path]] = {}
        for path in every:
            below.setdefault(prefix_of(name_of(path), depth), []).append(path)
        return [
            self._stat(label, paths, every)
            for label, paths in (*below.items(), ("total", [*every]))
        ]

    def _stat(self, label: str, paths: Iterable[Path], every: dict[Path, int]) -> Stat:
        found = {*paths}
        changed = [d for d in self.differences if d.path in found]
        gap = together(changed)
        unlike = {d.path for d in changed if d.gap is None}
        of = sum(every[path] for path in found - unlike)
        leaves = len({d.path for d in changed})
        numbers = gap.differing, of, gap.most, gap.norm, gap.scale
        return Stat(label, len(found), leaves, *numbers, len(unlike))

    def to_json(self) -> str:
        """Return the differences as a JSON list of objects.

        Those of data have numbers: count, of, max_abs, norm, rel; what is not finite is
        text.

        >>> import json
        >>> json.loads(sd.diff({"step": "a"}, {"step": "b"}).to_json())[0]["b"]
        "str 'b'"
        """
        to = {a: {"renamed_to": name_of(b)} for a, b in self.renamed}
        to |= {b: {"renamed_from": name_of(a)} for a, b in self.renamed}
        rows = [
            {"name": name_of(d.path), "what": d.what, "a": d.a, "b": d.b}
            | {name: in_json(x) for name, x in d.numbers().items()}
            | (to.get(d.path, {}) if d.what == LEAF else {})
            for d in self.differences
        ]
        return json.dumps(rows, indent=2)

    def __str__(self) -> str:
        if not self.differences:
            return in_words(self)
        more = f"… and {self.more:,} more" if self.more else ""
        lines = [str(table_of(self).brief(MOST)), more, self.left_out()]
        return "\n".join(filter(None, lines))

    def __repr__(self) -> str:
        return at_prompt(self) or str(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        return rich_of(self, options.max_width)

    def _repr_html_(self) -> str:
        return html_of(self)

    def left_out(self) -> str:
        """Return in words how much was not compared, or is allowed to differ.

        >>> w = {"w": torch.ones(2)}
        >>> sd.diff(w, w, values=False).left_out()
        'the data of 1 leaf was not compared'
        """
        unseen, within = (
            counted(len(x), "leaf", "leaves") for x in (self.unseen, self.within)
        )
        told = [f"the data of {unseen} was not compared"] if self.unseen else []
        told += [f"{within} differ within the tolerance"] if self.within else []
        return "; ".join(told).replace("1 leaf differ ", "1 leaf differs ")


def in_words(found: Diff) -> str:
    """Return in words that there are no differences, and what was not compared."""
    left = found.left_out()
    return "no differences" + (f", but {left}" if left else "")


def rows_of(found: Diff) -> Iterator[Difference]:
    """Yield the differences as people read them: a leaf that was renamed once."""
    to, gone = dict(found.renamed), {b for _, b in found.renamed}
    for d in found:
        if d.what == LEAF and d.path in to:
            yield Difference(d.path, NAME, where(d.path), where(to[d.path]))
        elif d.what != LEAF or d.path not in gone:
            yield d


def table_of(found: Diff) -> Table:
    """Return the differences as a table, in words."""
    rows = [(where(d.path), d.what, d.a, d.b) for d in rows_of(found)]
    return Table(("name", "differs in", "a", "b"), rows)


def numbered(found: Diff) -> Table:
    """Return the differences as a table, in numbers."""
    titles = ("name", "differs in", "elements", "max", "norm", "rel")
    rows = [(where(d.path), d.in_short(), *numbers_of(d.gap)) for d in rows_of(found)]
    return Table(titles, rows, right={2, 3, 4, 5})


LEAF: Final = "leaf"
"""In what trees differ of which one has no leaf at a path."""

CONTAINER: Final = "container"
"""In what trees differ that is above leaves."""

NAME: Final = "name"
"""In what a leaf differs that was renamed, as people read it."""


def check_number(by: str) -> None:
    """Raise if differences have no such number."""
    if by not in get_args(Number):
        known = ", ".join(map(repr, get_args(Number)))
        raise ValueError(f"by={by!r}: differences are sorted by one of {known}")


def place(x: float | None) -> tuple[int, float]:
    """Return where a number stands: none first, then nan, then the largest."""
    if x is None or math.isnan(x):
        return (0 if x is None else 1), 0
    return 2, -x


def numbers_of(gap: Gap | None) -> Sequence[str]:
    """Return which share differs, and by how much at most, in all and in part."""
    if gap is None:
        return "", "", "", ""
    share = percent(gap.differing / max(gap.of, 1))
    if gap.most is None:
        return share, "", "", ""
    return share, short(gap.most), short(gap.norm), short(part_of(gap))


def count_told(gap: Gap) -> str:
    """Return in words how many elements differ."""
    return f"{gap.differing} of {gap.of} elements differ"
