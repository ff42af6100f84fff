"""What a run will do, before it does it: ``explain`` and ``Plan``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdtree.kinds.abstract import Abstract
from sdtree.look.picture import caption, named_ranks
from sdtree.path import name_of
from sdtree.plan.following import Following
from sdtree.plan.held import LeafCost
from sdtree.plan.traffic import RankTraffic
from sdtree.tensors.modes import uncompiled
from sdtree.text.html import element, framed, table_html
from sdtree.text.table import Table, readable_bytes
from sdtree.transform.stages import next_to_communicate
from sdtree.transform.transform import Transform
from sdtree.transform.window import handled
from sdtree.tree.spec import take
from sdtree.typing import FrozenDict, Leaf, Path, Tree
from sdtree.wire.collectives import RankGroup, Traffic

MOST_ROWS = 40
"""How many leaves are printed; ``rows`` and ``to_json`` have them all."""


class PlanRow(NamedTuple):
    """What becomes of one leaf.

    ``path`` is where it comes from, ``to`` where it goes, None if it is dropped, or
    comes from ``like=``. ``before`` and ``after`` tell what it is there. ``ranks`` are
    those that have it in the end, None if each has its own, and ``device`` the kind
    that it lies on. ``moves`` are the bytes of it that go from rank to rank, ``sent``
    and ``received`` those of them that this rank sends and receives. ``others`` is
    where more leaves come from that it is made of, by the rules of a conversion.
    """

    path: Path | None
    to: Path | None
    before: Abstract | None
    after: Abstract | None
    ranks: tuple[int, ...] | None = None
    device: str = "cpu"
    moves: int = 0
    sent: int = 0
    received: int = 0
    others: tuple[Path, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return what a table shows of it."""
        names = [name_of(path) for path in (self.path, self.to) if path is not None]
        if self.others:
            names[0] += f" and {len(self.others)} more"
        path = names[0] if len({*names}) == 1 else " -> ".join(names)
        moves = readable_bytes(self.moves) if self.moves else ""
        return path, _form(self.before, self.after), self._goal(), moves

    def _goal(self) -> str:
        if self.to is None:
            return "dropped"
        if self.path is None:
            return "stays in the target"
        if self.after is None or self.after.dtype is None:
            return ""
        return (
            self.device
            if self.ranks is None
            else f"{named_ranks(self.ranks)}, {self.device}"
        )

    def to_data(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        return {
            "path": None if self.path is None else name_of(self.path),
            "to": None if self.to is None else name_of(self.to),
            "before": _told(self.before),
            "after": _told(self.after),
            "ranks": None if self.ranks is None else list(self.ranks),
            "device": self.device,
            "moves": self.moves,
            "sent": self.sent,
            "received": self.received,
            "others": [*map(name_of, self.others)],
        }


class Spread(NamedTuple):
    """A figure of every rank in short: the least, the most, and the sum."""

    least: int
    most: int
    total: int


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run of a transform will do, leaf by leaf and rank by rank.

    It prints as tables; ``rows`` has every leaf, ``traffic(rank)`` what the rank sends
    and receives, ``peak(rank)`` the bytes that the run makes and holds at a time, by
    the kind of device. ``notes`` tell what was assumed.

    >>> state = {"w": torch.ones(2, 3), "step": 3}
    >>> plan = sd.explain(sd.cast(dtype=torch.float16) | sd.prefix("model"), state)
    >>> plan.peak(), plan.rows[0].to
    ({'cpu': 12}, ('model.w',))
    """

    transform: Transform
    ranks: tuple[int, ...]
    me: int
    rows: Sequence[PlanRow]
    windows: int
    messages: Mapping[str, Sequence[int]]
    nbytes: Mapping[str, Sequence[int]]
    peaks: Mapping[str, Sequence[int]]
    streamed: Mapping[str, Sequence[int]]
    notes: Sequence[str]

    def traffic(self, rank: int | None = None) -> Traffic:
        """Return what a rank, this one if None, sends and receives, by type.

        Law: it is what ``sd.record`` counts in the run.

        >>> sd.explain(sd.copy(), {"w": torch.ones(2)}).traffic().messages
        Counter()
        """
        k = self._place(rank)
        made = {kind: found[k] for kind, found in self.messages.items() if found[k]}
        sizes = {kind: self.nbytes[kind][k] for kind in made}
        return Traffic(Counter(made), Counter(sizes))

    def peak(
        self, rank: int | None = None, *, streamed: bool = False
    ) -> dict[str, int]:
        """Return the bytes that the run makes and holds at a time, by kind of device.

        The input is not among them. ``streamed``: where what was yielded is let go. A
        process takes at least as much, and more if its allocator gives nothing back.
        """
        k, found = self._place(rank), self.streamed if streamed else self.peaks
        return {home: nbytes[k] for home, nbytes in found.items()}

    def spreads(self) -> dict[str, Spread]:
        """Return least, most and sum over the ranks of what they send and hold.

        >>> sd.explain(sd.copy(), {"w": torch.ones(2)}).spreads()["peak: cpu"]
        Spread(least=8, most=8, total=8)
        """
        kinds = self.nbytes.items()
        found = {f"bytes: {kind}": _spread(sizes) for kind, sizes in kinds}
        found |= {f"peak: {home}": _spread(x) for home, x in self.peaks.items()}
        streams = self.streamed.items()
        return found | {f"peak of a stream: {home}": _spread(x) for home, x in streams}

    def _place(self, rank: int | None) -> int:
        rank = self.me if rank is None else rank
        if rank not in self.ranks:
            raise ValueError(
                f"rank {rank} is not in the plan, which is for {self.ranks}"
            )
        return self.ranks.index(rank)

    # -- how it shows --------------------------------------------------------------

    def tables(self) -> Iterator[Table]:
        """Yield the tables: the leaves, what is sent, what is held.

        >>> [*sd.explain(sd.copy(), {"w": torch.ones(2)}).tables()][0].rows
        [('w', 'Tensor (2,) float32', 'cpu', '')]
        """
        rows = [row.cells() for row in self.rows]
        yield Table(("leaf", "form", "goes to", "moves"), rows, right={3})
        titles = ("messages", "on a rank", "least", "most", "all ranks")
        sent = [
            (kind, _count(self.messages[kind]), *map(readable_bytes, _spread(sizes)))
            for kind, sizes in self.nbytes.items()
        ]
        if sent:
            yield Table(titles, sent, right={1, 2, 3, 4})
        held = [
            (name, *map(readable_bytes, _spread(sizes)))
            for how, found in (("call", self.peaks), ("stream", self.streamed))
            for home, sizes in found.items()
            if (name := f"{how}, on {home}")
        ]
        if held:
            peak = ("peak beside the input", "least", "most", "all ranks")
            yield Table(peak, held, right={1, 2, 3})

    @property
    def _head(self) -> str:
        ranks = f"{len(self.ranks)} ranks" if self.ranks[1:] else "1 rank"
        windows = f"{self.windows} window{'s' * (self.windows != 1)}"
        leaves = f"{len(self.rows)} {'leaves' if self.rows[1:] else 'leaf'}"
        return f"{self.transform!r}: {leaves}, {ranks}, {windows}"

    def __str__(self) -> str:
        leaves, *others = self.tables()
        shown = [self._head, _cropped(leaves), *map(str, others)]
        return "\n\n".join([*shown, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        leaves, *others = self.tables()
        moves = [row.moves for row in self.rows]
        most = max(moves, default=0) or 1
        return framed(
            element("p", self._head, cls="head"),
            *(table_html(table) for table in others),
            table_html(leaves, {3: [x / most for x in moves]}),
            *(element("p", f"note: {note}") for note in self.notes),
            plain=str(self),
        )

    def to_json(self) -> str:
        """Return the plan as JSON text: every leaf, and every rank.

        >>> "leaves" in sd.explain(sd.copy(), {"w": torch.ones(2)}).to_json()
        True
        """
        return json.dumps(
            {
                "transform": repr(self.transform),
                "ranks": list(self.ranks),
                "windows": self.windows,
                "leaves": [row.to_data() for row in self.rows],
                "messages": {k: list(v) for k, v in self.messages.items()},
                "nbytes": {k: list(v) for k, v in self.nbytes.items()},
                "peaks": {k: list(v) for k, v in self.peaks.items()},
                "streamed": {k: list(v) for k, v in self.streamed.items()},
                "notes": list(self.notes),
            },
            indent=2,
        )


@uncompiled
def explain(transform: Transform, tree: Tree, /) -> Plan:
    """Return what a run of a transform on a tree will do. No data is touched.

    Nothing is sent, either: what other ranks do follows from the layouts of the leaves
    here. So the tree may be one of ``Abstract`` leaves, and the mesh need not be there.
    It is taken that the other ranks have the same leaves, and the same ties; a note
    tells which of them this rank cannot see. What ``broadcast`` takes is known on its
    source alone.

    Law: messages and bytes are those of the run, on each rank.

    >>> plan = sd.explain(sd.drop("step") | sd.copy(), {"w": torch.ones(4), "step": 3})
    >>> print(plan)
    drop('step') | copy(): 2 leaves, 1 rank, 1 window
    <BLANKLINE>
    leaf  form                 goes to  moves
    w     Tensor (4,) float32  cpu
    step  int                  dropped
    <BLANKLINE>
    peak beside the input  least  most  all ranks
    call, on cpu            16 B  16 B       16 B
    stream, on cpu          16 B  16 B       16 B
    """
    if not isinstance(transform, Transform):
        raise TypeError(
            f"explain takes a transform, then the tree; {type(transform).__name__} "
            "stands first; write sd.explain(sd.gather(ranks=0), tree)"
        )
    return handled(lambda: _explained(transform, tree), tree)


def _explained(transform: Transform, tree: Tree) -> Plan:
    leaves, _ = take(tree)
    ranks, me = _ranks_of(transform, leaves)
    planning = Following(ranks, me, RankTraffic(len(ranks)))
    begun = planning.first(tree)
    _, ended = planning.follow(tree, transform.stages, begun)
    return Plan(
        transform,
        ranks,
        me,
        tuple(_rows(begun, ended, ranks.index(me))),
        planning.windows,
        _figures(planning.traffic.messages),
        _figures(planning.traffic.nbytes),
        _figures(planning.peaks),
        _figures(planning.streamed),
        tuple(planning.notes),
    )


def _ranks_of(
    transform: Transform, leaves: Sequence[Leaf]
) -> tuple[tuple[int, ...], int]:
    """Return the ranks that a plan is for, and which of them is this one."""
    stage = next_to_communicate(transform.stages)
    world = RankGroup.of()
    if stage is None:
        return (world.me,), world.me
    if world.is_there:
        return world.ranks, world.me
    likes = [] if stage.like is None else take(stage.like.tree)[0]
    forms = [Abstract.of(leaf) for leaf in (*leaves, *likes)]
    named = {rank for form in forms if form.layout for rank in form.layout.ranks}
    return tuple(sorted(named | {0})), world.me


def _rows(
    begun: Mapping[Path, LeafCost], ended: Mapping[Path, LeafCost], me: int
) -> Iterator[PlanRow]:
    """Yield a row for each leaf of the result, then for each that is dropped."""
    for to, held in ended.items():
        path, before = held.source or (None, None)
        row = PlanRow(
            path, to, before, held.form, held.ranks, held.home, others=held.others
        )
        if held.moved is not None:
            sent, received = held.moved
            here = int(sent[me]), int(received[me])
            row = PlanRow(*row[:6], int(received.sum()), *here, held.others)
        yield row
    kept = {held.source[0] for held in ended.values() if held.source is not None}
    kept |= {path for held in ended.values() for path in held.others}
    for path, held in begun.items():
        if path not in kept:
            yield PlanRow(path, None, held.form, None)


def _figures(found: Mapping[str, Tensor]) -> Mapping[str, Sequence[int]]:
    return FrozenDict({kind: tuple(x.tolist()) for kind, x in found.items()})


def _spread(numbers: Sequence[int]) -> Spread:
    return Spread(min(numbers), max(numbers), sum(numbers))


def _count(numbers: Sequence[int]) -> str:
    least, most, _ = _spread(numbers)
    return str(most) if least == most else f"{least} to {most}"


def _form(before: Abstract | None, after: Abstract | None) -> str:
    """Return in words what a leaf is, and what of that becomes another."""
    was, will = (_words(form) if form is not None else [] for form in (before, after))
    if not was or not will:
        return " ".join(was or will)
    changed = [new for old, new in zip(was, will, strict=True) if new != old]
    told = " ".join(was).rstrip()
    return f"{told} -> {' '.join(changed)}" if changed else told


def _words(form: Abstract) -> list[str]:
    if form.dtype is None:
        return [form.kind.__name__, "", ""]
    dtype = str(form.dtype).removeprefix("torch.")
    return [form.kind.__name__, str(form.shape), dtype]


def _told(form: Abstract | None) -> dict[str, Any] | None:
    if form is None:
        return None
    dtype = None if form.dtype is None else str(form.dtype).removeprefix("torch.")
    layout = None if form.layout is None else caption(form.layout)
    shape = list(form.shape)
    return {
        "kind": form.kind.__name__,
        "shape": shape,
        "dtype": dtype,
        "layout": layout,
    }


def _cropped(table: Table) -> str:
    more = len(table.rows) - MOST_ROWS
    if more <= 0:
        return str(table)
    shown = Table(table.titles, table.rows[:MOST_ROWS], table.right)
    return f"{shown}\n… and {more} more leaves"
