"""The rows and lines of a listing: a leaf, several that are alike, and totals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sdtree.kinds.abstract import Abstract
from sdtree.text.html import dtype_name
from sdtree.text.short import LONG, Short
from sdtree.text.table import readable_bytes
from sdtree.typing import Dtype

SHORT: Final = Short()
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

    @property
    def parameters(self) -> int:
        """Return how many elements it has, all of them if it is sharded."""
        return 0 if self.form.dtype is None else math.prod(self.form.shape)

    @property
    def what(self) -> str:
        """Return its shape, or its value in short."""
        if self.form.dtype is None:
            return SHORT.repr(self.value)
        return str(self.form.shape)

    def cells(self) -> Sequence[str]:
        """Return what the table has of the leaf."""
        size = "" if self.form.dtype is None else readable_bytes(self.nbytes)
        tie = "" if self.tie is None else str(self.tie)
        return self.name, self.kind, self.what, self.dtype, size, tie

    def to_data(self) -> dict[str, Any]:
        """Return what JSON has of the leaf."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.form.dtype is None:
            return data | {"value": _json_value(self.value)}
        shape = list(self.form.shape)
        data |= {"shape": shape, "dtype": self.dtype, "bytes": self.nbytes}
        data |= {"parameters": self.parameters}
        return data if self.tie is None else data | {"tie": self.tie}


class Line(NamedTuple):
    """One line: a leaf, several that are alike, or what there is no room for.

    ``form`` is what each of them is; None where they are folded up.
    """

    name: str
    what: str
    leaves: int
    nbytes: int
    parameters: int
    ties: str = ""
    form: Abstract | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[Row], nbytes: int, parameters: int) -> Line:
        """Return the line of leaves that are alike."""
        first, last = rows[0], rows[-1]
        what = between([first.what, last.what])
        tie = between([str(row.tie) for row in rows if row.tie is not None])
        return cls(name, what, len(rows), nbytes, parameters, tie, first.form)

    @property
    def dtype(self) -> Dtype | None:
        return None if self.form is None else self.form.dtype

    @property
    def kind(self) -> str:
        return "" if self.form is None else self.form.kind.__name__

    @property
    def size(self) -> str:
        """Return its bytes as people read them; plain values have none."""
        return "" if self.is_plain else readable_bytes(self.nbytes)

    @property
    def is_plain(self) -> bool:
        return self.form is not None and self.form.dtype is None

    @property
    def elements(self) -> str:
        """Return how many elements it has; plain values have none."""
        return "" if self.is_plain else f"{self.parameters:,}"

    def cells(self) -> Sequence[str]:
        """Return what the table has of the line."""
        dtype = "" if self.dtype is None else dtype_name(self.dtype)
        told = self.name, self.kind, self.what, dtype
        return *told, f"{self.leaves:,}", self.elements, self.size, self.ties


class Total(NamedTuple):
    """How many leaves, bytes and elements something has, those of a tie once."""

    label: str
    leaves: int
    nbytes: int
    parameters: int = 0

    def cells(self) -> Sequence[str]:
        count, elements = f"{self.leaves:,}", f"{self.parameters:,}"
        return self.label, count, elements, readable_bytes(self.nbytes)

    def to_data(self, key: str) -> dict[str, Any]:
        return {key: self.label} | self.counts()

    def counts(self) -> dict[str, int]:
        """Return what JSON has of it, but for what it is of."""
        counts = {"leaves": self.leaves, "bytes": self.nbytes}
        return counts | {"parameters": self.parameters}


def between(texts: Sequence[str]) -> str:
    """Return the first and the last of some texts, one of them if they are the same.

    >>> between(["1", "2", "3"]), between(["1", "1"])
    ('1…3', '1')
    """
    ends = texts[:1] if not texts or texts[0] == texts[-1] else (texts[0], texts[-1])
    return "…".join(ends)


def _json_value(value: object) -> object:
    """Return a plain value where JSON can say it, else its short text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, int) and value.bit_length() > LONG:
        return SHORT.repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return SHORT.repr(value)
