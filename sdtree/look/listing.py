"""What a tree holds, listed: ``show``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import starmap
from typing import Any, Final

from sdtree.kinds.abstract import Abstract, by_form
from sdtree.kinds.handler import handler_of
from sdtree.kinds.strangers import reject_file_names
from sdtree.look.outline import Branch, cropped, outline
from sdtree.look.rows import Line, Row, Total
from sdtree.look.sizes import Elements, Sizes
from sdtree.naming.globs import prefix_of
from sdtree.ops.looking import ties
from sdtree.path import name_of
from sdtree.tensors.modes import uncompiled
from sdtree.tensors.storage import tie_groups
from sdtree.text.html import dtype_name as dtype_name
from sdtree.text.showing import at_prompt, html_of, rich_of
from sdtree.text.table import Table
from sdtree.transform.window import apart_in, handled
from sdtree.tree.collecting import all_kept
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree

FEW: Final = 40
"""Up to how many leaves are listed one by one, whatever repeats."""

ROOM: Final = 60
"""How many lines of leaves are printed at most."""

WIDE: Final = 24
"""How many siblings are, and rows of the tables beside."""


@dataclass(frozen=True, repr=False)
class Listing:
    """The leaves of a tree, its ties, and totals; it prints as tables.

    Where there are many leaves, what repeats stands in one line, as ``layers.0…31.w``,
    and what there is no room for in another, as ``encoder.**``; ``rows`` and ``tables``
    have every leaf. ``files`` says where each lies, if they lie in several.
    """

    rows: Sequence[Row]
    ties: Sequence[Sequence[str]]
    prefixes: Sequence[Total]
    kinds: Sequence[Total]
    total: Total
    sizes: Sizes
    elements: Elements
    files: Sequence[str] = ()

    def tables(self) -> Iterator[Table]:
        """Yield the tables: the leaves, the ties if there are any, the totals."""
        titles = ("name", "kind", "shape or value", "dtype", "bytes", "tie")
        rows = [row.cells() for row in self.rows]
        if not self.ties:
            titles, rows = titles[:-1], [row[:-1] for row in rows]
        if self.files:
            titles = (*titles, "file")
            rows = [(*row, file) for row, file in zip(rows, self.files, strict=True)]
        yield Table(titles, rows, right={4, 5} if self.ties else {4})
        yield from self.totals()

    def totals(self) -> Iterator[Table]:
        """Yield the tables without that of the leaves."""
        tied = [(name, str(i)) for i, tie in enumerate(self.ties, 1) for name in tie]
        if tied:
            yield Table(("shares memory", "tie"), tied, right={1})
        titles, right = ("leaves", "parameters", "bytes"), {1, 2, 3}
        prefixes = [total.cells() for total in (*self.prefixes, self.total)]
        yield Table(("below", *titles), prefixes, right)
        kinds = [total.cells() for total in self.kinds]
        yield Table(("kind", *titles), kinds, right)

    def brief(self) -> Iterator[Table]:
        """Yield the tables in as many lines as are read, and no longer ones."""
        if len(self.rows) <= FEW:
            yield from (table.brief(FEW) for table in self.tables())
            return
        titles = ("name", "kind", "shape or value", "dtype")
        titles = (*titles, "leaves", "parameters", "bytes", "tie")
        lines = [line.cells() for line in self.lines()]
        if not self.ties:
            titles, lines = titles[:-1], [line[:-1] for line in lines]
        yield Table(titles, lines, right={4, 5, 6, 7}).brief(ROOM)
        yield from (table.brief(WIDE) for table in self.totals())

    def lines(self) -> list[Line]:
        """Return the lines that are printed."""
        return [self.line(*found) for found in self.outline(ROOM, WIDE).lines()]

    def line(self, name: str, branch: Branch) -> Line:
        """Return the line of a branch; of one that is folded up, as a glob."""
        nbytes = self.sizes.together(branch.leaves)
        count = self.elements.together(branch.leaves)
        if branch.is_leaf:
            return Line.of(name, [self.rows[i] for i in branch.leaves], nbytes, count)
        name = name if branch.is_rest else f"{name}.**"
        return Line(name, "…", len(branch.leaves), nbytes, count)

    def outline(self, room: int, wide: int) -> Branch:
        """Return as much of the leaves as there is room for, as branches."""
        return cropped(self._whole, self.sizes.together, room, wide)

    def whole(self, *, fold: bool) -> Branch:
        """Return all leaves as branches; what repeats is in one if they ``fold``."""
        number: dict[Abstract, int] = {}
        forms = by_form(
            lambda form: number.setdefault(form, len(number)),
            [row.form for row in self.rows],
        )
        marks = [
            (form, row.tie is None) for form, row in zip(forms, self.rows, strict=True)
        ]
        names = [row.name for row in self.rows]
        return outline(names, marks, fold=fold)

    @cached_property
    def _whole(self) -> Branch:
        with all_kept():
            return self.whole(fold=len(self.rows) > FEW)

    def to_data(self) -> dict[str, Any]:
        """Return the listing as JSON data."""
        return {
            "leaves": [
                row.to_data() | ({"file": self.files[i]} if self.files else {})
                for i, row in enumerate(self.rows)
            ],
            "ties": [list(tie) for tie in self.ties],
            "prefixes": [total.to_data("prefix") for total in self.prefixes],
            "kinds": [total.to_data("kind") for total in self.kinds],
            "total": self.total.counts(),
        }

    def to_json(self) -> str:
        """Return the listing as JSON text."""
        return json.dumps(self.to_data(), indent=2)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.brief()))

    def __repr__(self) -> str:
        return at_prompt(self) or str(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        return rich_of(self, options.max_width)

    def _repr_html_(self) -> str:
        return html_of(self)


@uncompiled
def show(tree: Tree, /, *, depth: int = 1) -> Listing:
    """Return what a tree holds: every leaf, the ties, totals by prefix and by kind.

    ``depth`` is how many segments the prefixes of the totals have. The members of a
    tie, and what one total has of it, count once. Parameters are the elements of
    leaves, of sharded ones all, where bytes are this rank's. No data is read. A
    notebook shows it as a tree that opens and closes; of many leaves, those that are
    alike stand in one line.

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
    below   leaves  parameters  bytes
    model        2           6   24 B
    <root>       1           0    0 B
    total        3           6   24 B
    <BLANKLINE>
    kind            leaves  parameters  bytes
    Tensor float32       2           6   24 B
    int                  1           0    0 B
    """
    reject_file_names(tree)
    with all_kept():
        return handled(lambda: _shown(tree, depth), tree)


def _shown(tree: Tree, depth: int) -> Listing:
    leaves, structure = take(tree)
    parts = apart_in(structure, leaves)
    groups = tie_groups(parts.tensors)
    sizes = Sizes.of(parts, groups)
    forms = [*map(Abstract.of, leaves)]
    may_tie = sizes.shared or any(by_form(_is_sharded, forms))
    tie_paths = ties(tree) if may_tie else []
    number = {path: i for i, group in enumerate(tie_paths, 1) for path in group}
    tied = [*map(number.get, structure.paths())] if number else [None] * len(leaves)
    values = [
        _value(leaf) if form.dtype is None else None
        for leaf, form in zip(leaves, forms, strict=True)
    ]
    rows = [*map(Row, structure.names(), forms, sizes.each(), tied, values)]
    elements = Elements.of(parts, groups, [row.parameters for row in rows])
    total = partial(_total, sizes, elements)
    return Listing(
        rows,
        [[name_of(path) for path in group] for group in tie_paths],
        [*starmap(total, _grouped(prefix_of(row.name, depth) for row in rows))],
        [*starmap(total, _grouped(by_form(_kind, forms)))],
        total("total", range(len(rows))),
        sizes,
        elements,
    )


def _is_sharded(form: Abstract) -> bool:
    return form.layout is not None


def _value(leaf: Leaf) -> object:
    return handler_of(leaf).flatten(leaf)[1]


def _kind(form: Abstract) -> str:
    name = form.kind.__name__
    return name if form.dtype is None else f"{name} {dtype_name(form.dtype)}"


def _grouped(labels: Iterable[str]) -> Iterable[tuple[str, list[int]]]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    return groups.items()


def _total(sizes: Sizes, elements: Elements, label: str, at: Sequence[int]) -> Total:
    return Total(label, len(at), sizes.together(at), elements.together(at))
