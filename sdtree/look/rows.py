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
        return data if self.tie is None else data | {"tie": self.tie}


class Line(NamedTuple):
    """One line: a leaf, several that are alike, or what there is no room for.

    ``form`` is what each of them is; None where they are folded up.
    """

    name: str
    what: str
    leaves: int
    nbytes: int
    ties: str = ""
    form: Abstract | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[Row], nbytes: int) -> Line:
        """Return the line of leaves that are alike."""
        first, last = rows[0], rows[-1]
        what = between([first.what, last.what])
        tie = between([str(row.tie) for row in rows if row.tie is not None])
        return cls(name, what, len(rows), nbytes, tie, first.form)

    @property
    def dtype(self) -> Dtype | None:
        return None if self.form is None else self.form.dtype

    @property
    def kind(self) -> str:
        return "" if self.form is None else self.form.kind.__name__

    @property
    def size(self) -> str:
        """Return its bytes as people read them; plain values have none."""
        is_plain = self.form is not None and self.form.dtype is None
        return "" if is_plain else readable_bytes(self.nbytes)

    def cells(self) -> Sequence[str]:
        """Return what the table has of the line."""
        dtype = "" if self.dtype is None else dtype_name(self.dtype)
        count = f"{self.leaves:,}"
        return self.name, self.kind, self.what, dtype, count, self.size, self.ties


class Total(NamedTuple):
    """How many leaves something has, and how many bytes, those of a tie once."""

    label: str
    leaves: int
    nbytes: int

    def cells(self) -> Sequence[str]:
        return self.label, str(self.leaves), readable_bytes(self.nbytes)

    def to_data(self, key: str) -> dict[str, Any]:
        return {key: self.label, "leaves": self.leaves, "bytes": self.nbytes}


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
