"""Tables as plain data, how they read as text, and how numbers of bytes do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

GAP = "  "
NARROWEST = 24
LONGEST = 120
"""How many characters of one text are shown where there is little room."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under titles; it prints aligned, one line a row.

    The columns of ``right``, such as numbers, end in line; the first column is the one
    that yields where there is not enough room.

    >>> print(Table(("name", "bytes"), [("w", "16 B"), ("bias", "8 B")], right={1}))
    name  bytes
    w      16 B
    bias    8 B
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] | set[int] = frozenset()

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Yield the lines, the titles first.

        In ``width`` columns the first cell of a row goes on in further lines, or stands
        alone above the others, as these need the room; without, every row is one line.
        """
        rows = [[printable(cell) for cell in row] for row in (self.titles, *self.rows)]
        first, *others = (
            max(map(breadth, column)) for column in zip(*rows, strict=True)
        )
        rest = sum(others) + len(GAP) * len(others)
        room = first if width is None else min(first, width - rest)
        if width is not None and room < min(first, NARROWEST):
            return self._stacked(rows, others, width)
        return self._side_by_side(rows, others, room)

    def brief(self, most: int) -> Table:
        """Return the table with at most so many rows, the last of which tells the rest.

        Cells that are too long to be read lose their middle.

        >>> print(Table(("n",), [("1",), ("2",), ("3",)]).brief(2))
        n
        1
        … and 2 more
        """
        rows = [[*map(shortened, row)] for row in self.rows[:most]]
        left = len(self.rows) - most + 1
        if left > 1:
            rows[-1] = [f"… and {left:,} more", *[""] * (len(self.titles) - 1)]
        return Table(self.titles, rows, self.right)

    def _side_by_side(
        self, rows: Sequence[Sequence[str]], widths: Sequence[int], room: int
    ) -> Iterator[str]:
        folded = [fold(row[0], room) for row in rows]
        used = max(breadth(piece) for pieces in folded for piece in pieces)
        for (first, *more), row in zip(folded, rows, strict=True):
            yield self._line([first, *row[1:]], [used, *widths])
            yield from more

    def _stacked(
        self, rows: Sequence[Sequence[str]], widths: Sequence[int], width: int
    ) -> Iterator[str]:
        for first, *others in rows:
            yield from fold(first, width)
            yield self._line(["", *others], [len(GAP), *widths])

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        placed: list[str] = []
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            gap = " " * (width - breadth(cell))
            placed.append(gap + cell if i in self.right else cell + gap)
        return GAP.join(placed).rstrip()

    def __str__(self) -> str:
        return "\n".join(self.lines())


def breadth(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    >>> breadth("layer"), breadth("層"), breadth("e\u0301")
    (5, 2, 1)
    """
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 1 + (east_asian_width(c) in "WF") for c in text)


def printable(text: str) -> str:
    r"""Return text in one line that no terminal takes for anything but text.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text without its middle, if it is longer than ``most``.

    >>> shortened("encoder.layer.0.weight", 11)
    'encod…eight'
    """
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[-half:]}"


def fold(text: str, width: int) -> list[str]:
    """Return text in pieces of at most ``width``, cut behind a dot where it can be.

    >>> fold("encoder.layer.0.attention", 16)
    ['encoder.layer.0.', 'attention']
    """
    pieces: list[str] = []
    while breadth(text) > width:
        most = next(
            n for n in range(width, 0, -1) if n == 1 or breadth(text[:n]) <= width
        )
        dot = text.rfind(".", 0, most)
        end = dot + 1 if dot >= most // 2 else most
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]


def readable_bytes(count: int) -> str:
    """Return a number of bytes as people read it.

    >>> readable_bytes(640), readable_bytes(1536), readable_bytes(90_868_376)
    ('640 B', '1.5 KiB', '86.7 MiB')
    """
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number of things in words.

    >>> counted(1, "tie"), counted(1200, "leaf", "leaves")
    ('1 tie', '1,200 leaves')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
