"""Where two trees differ: ``diff``, and what it returns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from sdtree.exchange.joint import me_in
from sdtree.exchange.meeting import collect, looked, rank_group_for
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import handler_of
from sdtree.kinds.sides import FULL, SHORT, apart, sides
from sdtree.kinds.strangers import reject_file_names
from sdtree.kinds.values import same_leaf, same_value
from sdtree.path import name_of, where
from sdtree.tensors.bits import Distance, Gap, gap_between, largest
from sdtree.tensors.modes import uncompiled
from sdtree.text.html import dtype_name
from sdtree.text.table import Table, counted
from sdtree.transform.window import handled
from sdtree.tree.alike import compared, same_form
from sdtree.tree.pairing import differing_containers
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.collectives import RankGroup
from sdtree.wire.messages import region

MOST: Final = 100
"""How many differences are printed at most."""


class Difference(NamedTuple):
    """One place where two trees differ: what differs, and what each of them has."""

    path: Path
    what: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{where(self.path)}: {self.what}, {self.a} and {self.b}"


@dataclass(frozen=True, slots=True)
class Diff:
    """Where two trees differ. It is falsy if nowhere, and prints as a table.

    ``unseen`` are the paths of the leaves whose data was not compared, and of which
    nothing else differs.

    >>> found = sd.diff({"step": 1}, {"step": 2})
    >>> bool(found), len(found), [d.path for d in found]
    (True, 1, [('step',)])
    >>> sd.diff({"w": torch.ones(2)}, {"w": torch.zeros(2)}, values=False)
    no differences, but the data of 1 leaf was not compared
    """

    differences: tuple[Difference, ...] = ()
    unseen: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def to_json(self) -> str:
        """Return the differences as a JSON list of objects.

        >>> import json
        >>> json.loads(sd.diff({"step": 1}, {"step": 2}).to_json())
        [{'name': 'step', 'what': 'value', 'a': 'int 1', 'b': 'int 2'}]
        """
        rows = [
            {"name": name_of(d.path), "what": d.what, "a": d.a, "b": d.b}
            for d in self.differences
        ]
        return json.dumps(rows, indent=2)

    def __str__(self) -> str:
        if not self.differences:
            return self._without_differences()
        table = str(self._table().brief(MOST))
        return f"{table}\n{self.left_out()}" if self.unseen else table

    __repr__ = __str__

    def _without_differences(self) -> str:
        return "no differences" + (f", but {self.left_out()}" if self.unseen else "")

    def left_out(self) -> str:
        """Return in words how much was not compared.

        >>> w = {"w": torch.ones(2)}
        >>> sd.diff(w, w, values=False).left_out()
        'the data of 1 leaf was not compared'
        """
        count = counted(len(self.unseen), "leaf", "leaves")
        return f"the data of {count} was not compared"

    def _repr_html_(self) -> str:
        from sdtree.text.html import element, framed, table_html, tag

        if not self.differences:
            color = "orange" if self.unseen else "green"
            text = self._without_differences()
            return framed(tag(text, color), plain=str(self))
        count = element("strong", counted(len(self), "difference"))
        head = [element("div", count, cls="head")]
        if self.unseen:
            head.append(element("div", self.left_out(), cls="faint"))
        return framed(*head, table_html(self._table()), plain=str(self))

    def _table(self) -> Table:
        rows = [(where(d.path), d.what, d.a, d.b) for d in self.differences]
        return Table(("name", "differs in", "a", "b"), rows)


@uncompiled
def diff(a: Tree, b: Tree, /, *, values: bool = True, group: Any = None) -> Diff:
    """Return where two trees differ, falsy if ``equal``.

    That is in leaves that only one has, containers, kinds, shapes, dtypes and values.
    A difference in values tells how many elements differ and by how much at most, of
    integers exactly; text and records are no numbers, and only counted. Without
    ``values`` the data of tensors is not looked at, and what was left out is told;
    plain values are compared in any case.

    Collective if a tree has sharded leaves, as ``equal`` is: the parts are counted
    together, and what differs on another rank only is told with that rank.

    >>> print(sd.diff({"w": torch.ones(2), "n": 1}, {"w": torch.zeros(3)}))
    name  differs in  a      b
    w     shape       (2,)   (3,)
    n     leaf        int 1  nothing
    """
    reject_file_names(a, b)
    rank_group = rank_group_for("diff", a, b, group)

    def find() -> list[Finding]:
        return handled(lambda: _find(a, b, values), a, b)

    if rank_group is None:
        return _told([found.row() for found in find()])
    look = looked(a, b)
    every = collect("diff", rank_group, look, find)
    place = {path: k for k, (path, _) in enumerate(look)}
    rows = _merged(every, rank_group.me)
    return _told(sorted(rows, key=lambda row: place.get(row.path, len(place))))


UNSEEN: Final = "data that was not compared"


def _told(rows: Sequence[Difference]) -> Diff:
    unseen = tuple(row.path for row in rows if row.what == UNSEEN)
    return Diff(tuple(row for row in rows if row.what != UNSEEN), unseen)


class Finding(NamedTuple):
    """A difference as one rank sees it.

    Of data there are the gaps, by the region of the whole tensor or else of this rank's
    own; ``is_shared`` tells which.
    """

    path: Path
    what: str
    a: str = ""
    b: str = ""
    gaps: Mapping[object, Gap] | None = None
    total: int = 0
    is_shared: bool = False

    def row(self) -> Difference:
        """Return it as people read it."""
        if self.gaps is None:
            return Difference(*self[:4])
        count = sum(gap.differing for gap in self.gaps.values())
        told = _by_how_much(largest(gap.most for gap in self.gaps.values()))
        return Difference(
            self.path, self.what, f"{count} of {self.total} elements differ", told
        )


def _by_how_much(most: Distance) -> str:
    if most is None:
        return "which are no numbers"
    if not most:
        return "in bits that mean the same"
    return f"by at most {most if isinstance(most, int) else f'{most:.3g}'}"


def _find(a: Tree, b: Tree, values: bool) -> list[Finding]:
    """Return where two trees differ on this rank."""
    (here, spec), (there, other) = take(a), take(b)
    theirs = dict(zip(other.paths(), there, strict=True))
    found: list[Finding] = []
    for path, x in zip(spec.paths(), here, strict=True):
        if path in theirs:
            found.extend(_differences(path, x, theirs.pop(path), values))
        else:
            found.append(Finding(path, "leaf", _described(x), "nothing"))
    for path, y in theirs.items():
        found.append(Finding(path, "leaf", "nothing", _described(y)))
    for path, ours, others in differing_containers(spec.shape, other.shape):
        found.append(Finding(path, "container", ours, others))
    return found


def _merged(every: Mapping[int, Sequence[Finding]], me: int) -> Iterator[Difference]:
    """Yield the differences of all ranks; of data, each region is counted once."""
    shared: dict[Path, dict[object, Gap]] = {}
    for finding in (x for found in every.values() for x in found if x.is_shared):
        gaps = shared.setdefault(finding.path, {})
        for place, gap in (finding.gaps or {}).items():
            gaps[place] = gap.worse_of(gaps.get(place, gap))
    told: set[tuple[Path, str]] = set()
    for rank in sorted(every, key=me.__ne__):
        for finding in every[rank]:
            if (finding.path, finding.what) in told:
                continue
            told.add((finding.path, finding.what))
            if finding.is_shared:
                yield finding._replace(gaps=shared[finding.path]).row()
            elif rank == me or finding.what == UNSEEN:
                yield finding.row()
            else:
                yield finding._replace(what=f"{finding.what}, on rank {rank}").row()


def _described(leaf: Leaf) -> str:
    form = Abstract.of(leaf)
    if form.dtype is None:
        return f"{form.kind.__name__} {SHORT(leaf)}"
    return f"{form.kind.__name__} {form.shape} {dtype_name(form.dtype)}"


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _stated(leaf: Leaf) -> str:
    """Return what there is to say of a leaf that may be without data."""
    empty = Abstract.of(leaf).dtype is not None and not any(
        not t.is_meta for t in handler_of(leaf).flatten(leaf)[0]
    )
    return _described(leaf) + (", without data" if empty else "")


def _differences(path: Path, x: Leaf, y: Leaf, values: bool) -> Iterator[Finding]:
    """Yield in what two leaves differ: in kind, else in form, else in value."""
    x, y = compared(x), compared(y)
    a, b = Abstract.of(x), Abstract.of(y)
    if a.kind is not b.kind:
        full = _full_name(a.kind), _full_name(b.kind)
        yield Finding(path, "kind", *apart((_described(x), _described(y)), full))
        return
    if a.shape != b.shape:
        yield Finding(path, "shape", str(a.shape), str(b.shape))
    if a.dtype != b.dtype:
        yield Finding(path, "dtype", *apart((dtype_name(a.dtype), dtype_name(b.dtype))))
    elif a.shape == b.shape and not same_form(x, y):
        yield Finding(path, "layout", *_layouts(x, y))
    elif a.shape == b.shape and not values and (_has_data(x) or _has_data(y)):
        yield Finding(path, UNSEEN)
    elif a.shape == b.shape and not same_leaf(x, y):
        yield _values(path, x, y)


def _has_data(leaf: Leaf) -> bool:
    return len(handler_of(leaf).flatten(leaf)[0]) > 0


def _layouts(x: Leaf, y: Leaf) -> tuple[str, str]:
    """Return how the data of two leaves is laid out otherwise: the tensors, or aux."""
    forms = [Abstract.of(leaf).forms() for leaf in (x, y)]
    auxes = [handler_of(leaf).flatten(leaf)[1] for leaf in (x, y)]
    told: list[tuple[str, str]] = []
    if forms[0] != forms[1]:
        told.append(apart((_tensors(forms[0]), _tensors(forms[1]))))
    if not told or not same_value(*auxes):
        told.append(sides("aux", *auxes))
    ours, theirs = map("; ".join, zip(*told, strict=True))
    return ours, theirs


def _tensors(forms: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{dtype_name(dtype)} {shape}" for shape, dtype in forms)


def _values(path: Path, x: Leaf, y: Leaf) -> Finding:
    """Return what tells two leaves of one form apart."""
    ours, theirs = handler_of(x).flatten(x)[0], handler_of(y).flatten(y)[0]
    if not ours:
        name = Abstract.of(x).kind.__name__
        a, b = apart((SHORT(x), SHORT(y)), (FULL(x), FULL(y)))
        return Finding(path, "value", f"{name} {a}", f"{name} {b}")
    if any(t.is_meta for t in (*ours, *theirs)):
        return Finding(path, "value", _stated(x), _stated(y))
    layout = Abstract.of(x).layout
    gaps: dict[object, Gap] = {}
    if layout is None or layout.parts is not None:
        own = handler_of(x).gap
        found = [*map(gap_between, ours, theirs)] if own is None else [own(x, y)]
        total = sum(gap.of for gap in found)
        return Finding(path, "value", gaps=dict(enumerate(found)), total=total)
    rank_group = RankGroup.of()
    for box in layout.boxes.get(me_in(rank_group), ()):
        a, b = (
            region(ts[box.tensor].detach(), box.local, box.size)
            for ts in (ours, theirs)
        )
        gaps[box.offset, box.size] = gap_between(a, b)
    total = math.prod(layout.shape)
    return Finding(path, "value", gaps=gaps, total=total, is_shared=True)
