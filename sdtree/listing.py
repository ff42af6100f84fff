"""What a tree holds, listed: ``show``."""

from __future__ import annotations

import html
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sdtree.kinds.abstract import Abstract
from sdtree.leaf import handler_of
from sdtree.ops.looking import nbytes, ties
from sdtree.path import name_of, where
from sdtree.selectors import segments_of
from sdtree.table import Table, readable_bytes
from sdtree.tree import items
from sdtree.typing import Leaf, Path, Tree

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 20


class Row(NamedTuple):
    """One leaf: what it is, its bytes, its tie, its value if it is plain."""

    name: str
    form: Abstract
    nbytes: int
    tie: int | None
    value: object

    @property
    def kind(self) -> str:
        return self.form.kind.__name__

    @property
    def dtype(self) -> str:
        return "" if self.form.dtype is None else dtype_name(self.form.dtype)

    def cells(self) -> Sequence[str]:
        """Return what the table has of the leaf."""
        tie = "" if self.tie is None else str(self.tie)
        if self.form.dtype is None:
            return self.name, self.kind, SHORT.repr(self.value), "", "", tie
        size = readable_bytes(self.nbytes)
        return self.name, self.kind, str(self.form.shape), self.dtype, size, tie

    def to_data(self) -> dict[str, Any]:
        """Return what JSON has of the leaf."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.form.dtype is None:
            return data | {"value": _json_value(self.value)}
        shape = list(self.form.shape)
        data |= {"shape": shape, "dtype": self.dtype, "bytes": self.nbytes}
        return data if self.tie is None else data | {"tie": self.tie}


class Total(NamedTuple):
    """How many leaves something has, and how many bytes, those of a tie once."""

    label: str
    leaves: int
    nbytes: int

    def cells(self) -> Sequence[str]:
        return self.label, str(self.leaves), readable_bytes(self.nbytes)

    def to_data(self, key: str) -> dict[str, Any]:
        return {key: self.label, "leaves": self.leaves, "bytes": self.nbytes}


@dataclass(frozen=True, slots=True)
class Listing:
    """The leaves of a tree, its ties, and totals; it prints as tables."""

    rows: Sequence[Row]
    ties: Sequence[Sequence[str]]
    prefixes: Sequence[Total]
    kinds: Sequence[Total]
    total: Total

    def tables(self) -> Iterator[Table]:
        """Yield the tables: the leaves, the ties if there are any, the totals."""
        titles = ("name", "kind", "shape or value", "dtype", "bytes", "tie")
        rows = [row.cells() for row in self.rows]
        if not self.ties:
            titles, rows = titles[:-1], [row[:-1] for row in rows]
        yield Table(titles, rows, right={4, 5})
        yield from self.totals()

    def totals(self) -> Iterator[Table]:
        """Yield the tables without that of the leaves."""
        tied = [(name, str(i)) for i, tie in enumerate(self.ties, 1) for name in tie]
        if tied:
            yield Table(("shares memory", "tie"), tied, right={1})
        right = {1, 2}
        prefixes = [total.cells() for total in (*self.prefixes, self.total)]
        yield Table(("below", "leaves", "bytes"), prefixes, right)
        kinds = [total.cells() for total in self.kinds]
        yield Table(("kind", "leaves", "bytes"), kinds, right)

    def to_data(self) -> dict[str, Any]:
        """Return the listing as JSON data."""
        return {
            "leaves": [row.to_data() for row in self.rows],
            "ties": [list(tie) for tie in self.ties],
            "prefixes": [total.to_data("prefix") for total in self.prefixes],
            "kinds": [total.to_data("kind") for total in self.kinds],
            "total": {"leaves": self.total.leaves, "bytes": self.total.nbytes},
        }

    def to_json(self) -> str:
        """Return the listing as JSON text."""
        return json.dumps(self.to_data(), indent=2)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(
            f"<pre>{html.escape(str(table))}</pre>" for table in self.tables()
        )


def show(tree: Tree, /, *, depth: int = 1) -> Listing:
    """Return what a tree holds: every leaf, the ties, totals by prefix and by kind.

    ``depth`` is how many segments the prefixes of the totals have. The members of a
    tie, and what one total has of it, count once. No data is read.

    >>> w = torch.ones(2, 3)
    >>> print(sd.show({"model": {"in": w, "out": w}, "step": 3}))
    name       kind    shape or value  dtype    bytes  tie
    model.in   Tensor  (2, 3)          float32   24 B    1
    model.out  Tensor  (2, 3)          float32   24 B    1
    step       int     3
    <BLANKLINE>
    shares memory  tie
    model.in         1
    model.out        1
    <BLANKLINE>
    below   leaves  bytes
    model        2   24 B
    <root>       1    0 B
    total        3   24 B
    <BLANKLINE>
    kind            leaves  bytes
    Tensor float32       2   24 B
    int                  1    0 B
    """
    found = items(tree)
    groups = ties(tree)
    number = {path: i for i, group in enumerate(groups, 1) for path in group}
    rows = [_row(path, leaf, number.get(path)) for path, leaf in found]
    return Listing(
        rows,
        [[name_of(path) for path in group] for group in groups],
        _totals(found, lambda path, _: _prefix(path, depth)),
        _totals(found, lambda _, leaf: _kind(leaf)),
        Total("total", len(found), nbytes(tree)),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def _row(path: Path, leaf: Leaf, tie: int | None) -> Row:
    aux = handler_of(leaf).flatten(leaf)[1]
    return Row(name_of(path), Abstract.of(leaf), nbytes(leaf), tie, aux)


def _prefix(path: Path, depth: int) -> str:
    segments = segments_of(name_of(path))[:-1]
    return ".".join(segments[:depth]) or where(())


def _kind(leaf: Leaf) -> str:
    form = Abstract.of(leaf)
    name = form.kind.__name__
    return name if form.dtype is None else f"{name} {dtype_name(form.dtype)}"


def _totals(
    found: Sequence[tuple[Path, Leaf]], label: Callable[[Path, Leaf], str]
) -> list[Total]:
    groups: dict[str, list[Leaf]] = {}
    for path, leaf in found:
        groups.setdefault(label(path, leaf), []).append(leaf)
    return [Total(name, len(group), nbytes(group)) for name, group in groups.items()]


def _json_value(value: object) -> object:
    """Return a plain value where JSON can say it, else its short text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return SHORT.repr(value)
