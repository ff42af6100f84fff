"""Writing into buffers that the caller gives: everything is checked, then copied."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, compress
from operator import is_

from torch import Tensor

from sdtree.errors import SpecMismatch, UnknownLeaf, listed
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import (
    Handler,
    find_handler,
    handler_of,
    of_type,
    stands_for_another,
    tensors_of,
)
from sdtree.kinds.values import same_value
from sdtree.path import where
from sdtree.tensors.forms import Lay
from sdtree.tensors.modes import making, writing
from sdtree.tensors.remake import fill
from sdtree.tensors.storage import is_lazy, repeated
from sdtree.transform.form import Fitting, Look
from sdtree.transform.overlap import (
    check_overlap,
    clash_of,
    do_not_clash,
    lie_in_others,
    unexpanded,
)
from sdtree.transform.recalled import is_recalled, note
from sdtree.transform.stages import Action, StageContext
from sdtree.transform.window import Parts, Window, apart, apart_in, blame
from sdtree.tree.alike import Into
from sdtree.tree.pairing import pair
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf


def writer(into: Into, entry: StageContext) -> Action:
    """Return the action that copies leaves into the buffers at their paths.

    Structure is checked here, and shapes, dtypes and overlaps as far as the leaves are
    known before the first window; the rest before a window is written.
    """
    given, spec = take(into.tree)
    order = pair(entry.spec, spec, "into=")
    targets = given if isinstance(order, range) else [given[k] for k in order]
    try:
        if entry.leaves is not None and (plain := Plain.of(entry.leaves, targets)):
            return plain.write
        with making():
            make = _late_writer if entry.leaves is None else _early_writer
            return make(targets, entry)
    except (UnknownLeaf, RuntimeError):
        for leaves in (entry.leaves or (), targets):
            blame(leaves, entry.spec.every_path.__getitem__)
        raise
    finally:
        entry.reach.written.extend(targets)


def _early_writer(targets: list[Leaf], entry: StageContext) -> Action:
    """Return the action that writes what is checked now, whole.

    A plan has leaves without data, of which only the forms are checked until it runs.
    """
    buffers = Buffers.of(targets, entry.spec)
    every = Window(entry.spec, range(len(targets)), list(entry.leaves or ()))
    if not any(map(stands_for_another, every.leaves)):
        _check(every, buffers)
        return lambda window: write(window, buffers)
    check_fit(every, buffers, foreseen=True)
    check = cache(lambda: _check(every, buffers))  # once, before the first window

    def act(window: Window) -> list[Leaf]:
        with making():
            check()
        return write(window, buffers)

    return act


def _late_writer(targets: list[Leaf], entry: StageContext) -> Action:
    """Return the action that checks each window as it comes, and then writes it."""
    buffers = Buffers.of(targets, entry.spec)
    known = entry.preview()
    if known is not None:
        foreseen = Window(entry.spec, range(len(known)), list(known))
        check_fit(foreseen, buffers, foreseen=True)
    every = buffers.parts.tensors
    written: list[Tensor] = []
    meet = clash_of(every, lambda: range(len(every))) is not None
    if _meet_what_is_read(buffers, entry):
        entry.reach.is_whole = True

    def act(window: Window) -> list[Leaf]:
        with making():
            _check(window, buffers)
            if meet:
                _check_first(window, buffers.tensors(window), written)
        return write(window, buffers)

    return act


def _meet_what_is_read(buffers: Buffers, entry: StageContext) -> bool:
    """Return whether a buffer lies in a source that a later window may have to read.

    Or where stages before write.
    """
    owned = zip(buffers.parts.owners(), buffers.parts.tensors, strict=True)
    read = [(k, tensors_of(leaf)) for k, leaf in entry.sources()]
    written = [(-1, tensors_of(leaf)) for leaf in entry.reach.written]
    targets, in_turn = [(k, [t]) for k, t in owned], entry.reach.is_foretold
    return lie_in_others(targets, read + written, in_turn=in_turn)


def _check_first(
    window: Window, targets: Sequence[Tensor], written: list[Tensor]
) -> None:
    """Raise ``SpecMismatch`` if a window goes where one before it was written.

    Leaves that are tied come in one window, so those of two are not.
    """
    count = len(written)
    colours = [*[0] * count, *[1] * len(targets)]
    if clash_of([*written, *targets], lambda: colours) is not None:
        names = ", ".join(where(window.path(i)) for i in range(len(window.leaves))[:3])
        raise SpecMismatch(
            "into= has buffers that overlap where the source does not, and is partly "
            f"written; one of those at {names} lies where another leaf was written, "
            "give them buffers of their own"
        )
    written += targets


def _check(window: Window, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` unless a window can be written."""
    parts = apart(window.leaves, window.path)
    check_fit(window, buffers)
    check_overlap(window, parts, buffers.tensors(window))


@dataclass(frozen=True, slots=True)
class Plain:
    """Leaves and buffers that can be copied as they are: there is nothing to check.

    ``moving`` are the types of those that have data; others are plain values.
    """

    buffers: Sequence[Leaf]
    moving: set[type]

    @classmethod
    def of(cls, leaves: Sequence[Leaf], buffers: Sequence[Leaf]) -> Plain | None:
        """Return them if they are of the same types, dense, fit, and lie apart."""
        if not all(map(is_, map(type, leaves), map(type, buffers))):
            return None
        types = {*map(type, leaves)}
        moving = {kind for kind in types if not _handler(kind).is_plain}
        sources, targets = leaves, buffers
        if len(moving) < len(types):
            sources, targets = (
                [x for x in xs if type(x) in moving] for xs in (leaves, buffers)
            )
        is_known = is_recalled(sources, targets)
        return cls(buffers, moving) if is_known or _fit(sources, targets) else None

    def write(self, window: Window) -> list[Leaf]:
        """Copy a window into its buffers and return them; plain values stay."""
        buffers = list(self.buffers)
        if window.positions != range(len(buffers)):
            buffers = [self.buffers[k] for k in window.positions]
        if buffers and self.moving.issuperset(map(type, window.leaves)):
            with writing():
                fill(buffers, window.leaves)
            return buffers
        moves = [type(leaf) in self.moving for leaf in window.leaves]
        targets = [*compress(buffers, moves)]
        if targets:
            with writing():
                fill(targets, [*compress(window.leaves, moves)])
        both = zip(moves, buffers, window.leaves, strict=True)
        return [buffer if moved else leaf for moved, buffer, leaf in both]


def _fit(sources: Sequence[Leaf], targets: Sequence[Leaf]) -> bool:
    """Return whether all can be copied as they are; that is noted."""
    here: list[int] = []
    there: list[int] = []
    sizes: list[int] = []
    for kind in {*map(type, sources)}:
        found = _handler(kind).match(of_type(kind, sources), of_type(kind, targets))
        if found is None:
            return False
        here += found.here
        there += found.there
        sizes += found.sizes

    def have_bits() -> bool:
        return any(map(is_lazy, (*sources, *targets)))

    fit = do_not_clash(here, there, sizes, have_bits)
    if fit:
        note(sources, targets, (*here, *there))
    return fit


class Rewriter:
    """Binds what copies trees of one form into buffers, again and again.

    While both are of the form that they were, and the buffers lie where they lay,
    nothing of them is checked twice but where the leaves lie.
    """

    __slots__ = ("_fitting", "_into", "_known", "_moving", "_sizes")

    def __init__(self, into: Into) -> None:
        self._into = into
        self._fitting: Fitting | None = None
        self._known: tuple[Lay, Lay] | None = None
        self._moving: set[type] = set()
        self._sizes: list[int] = []

    def __call__(self, entry: StageContext) -> Action:
        """Return the action for a tree; it raises what ``writer`` raises."""
        look = self._look()
        key = None
        if look is not None and look.spec == entry.spec and entry.lay and look.lay:
            key = entry.lay, look.lay
            if self._is_known(*key):
                self._known = key
                entry.reach.written.extend(look.leaves)
                return Plain(look.leaves, self._moving).write
        self._known = None
        action = writer(self._into, entry)
        plain: object = getattr(action, "__self__", None)
        if isinstance(plain, Plain):
            self._known, self._moving = key, plain.moving
        return action

    def _is_known(self, here: Lay, there: Lay) -> bool:
        """Return whether leaves of the known form can be copied from here to there."""
        if self._known is None or self._known[1] != there:
            return False
        if self._known[0] == here:
            return True
        sizes = self._sizes
        froms, tos = ([*compress(lay.starts, sizes)] for lay in (here, there))
        return do_not_clash(froms, tos, [*filter(None, sizes)], lambda: True)

    def _look(self) -> Look | None:
        """Return the buffers looked at; of those of another form nothing is known."""
        into = self._into.tree
        with making():
            look = None if self._fitting is None else self._fitting.look(into)
            if not isinstance(look, Look):
                self._fitting, self._known = Fitting(into), None
                self._sizes = self._fitting.form.nbytes_of_each()
                look = self._fitting.look(into)
        return look if isinstance(look, Look) else None


def _handler(kind: type) -> Handler:
    handler = find_handler(kind)
    assert handler is not None, "the walk met no other types"
    return handler


@dataclass(frozen=True, slots=True)
class Buffers:
    """The leaves to write into, in the order of the tree, and their local tensors."""

    leaves: list[Leaf]
    parts: Parts
    starts: Sequence[int]

    @classmethod
    def of(cls, leaves: list[Leaf], spec: TreeSpec) -> Buffers:
        parts = apart_in(spec, leaves)
        starts = [0, *accumulate(leaf_def.count for leaf_def in parts.defs)]
        return cls(leaves, parts, starts[:-1])

    def tensors(self, window: Window) -> list[Tensor]:
        """Return the local tensors of the buffers for the leaves of a window."""
        every = self.parts.tensors
        return [
            every[self.starts[k] + i]
            for k in window.positions
            for i in range(self.parts.defs[k].count)
        ]


def write(window: Window, buffers: Buffers) -> list[Leaf]:
    """Copy a window into its buffers and return them; plain values are the source's."""
    with writing():
        parts = apart(window.leaves, window.path)
        targets, sources = _cores(buffers.tensors(window), parts.tensors)
        if targets:
            fill(targets, sources)
    return [
        buffers.leaves[position] if leaf_def.count else leaf
        for position, leaf_def, leaf in zip(
            window.positions, parts.defs, window.leaves, strict=True
        )
    ]


def _cores(
    targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what is to be written and from where: nothing meta, no element twice."""
    real = written(targets)
    return (
        [unexpanded(targets[i], targets[i]) for i in real],
        [unexpanded(sources[i], targets[i]) for i in real],
    )


def written(ts: Sequence[Tensor]) -> Sequence[int]:
    """Return the places of tensors with data, but for one that stands before, too."""
    places = [i for i, t in enumerate(ts) if not t.is_meta]
    starts = [ts[i].data_ptr() for i in places]
    shared = repeated(starts)
    if not shared:
        return places
    firsts: dict[Hashable, int] = {}
    for i, start in zip(places, starts, strict=True):
        if start in shared:
            t = ts[i]
            firsts.setdefault((start, t.size(), t.stride(), t.dtype), i)
    kept = {*firsts.values()}
    pairs = zip(places, starts, strict=True)
    return [i for i, start in pairs if start not in shared or i in kept]


# -- does it fit -------------------------------------------------------------------


def check_fit(window: Window, buffers: Buffers, *, foreseen: bool = False) -> None:
    """Raise ``SpecMismatch`` unless leaves have kind, shape, dtype of their buffers.

    Of leaves that are only foreseen the data cannot be asked.
    """
    found: list[str] = []
    for i, leaf in enumerate(window.leaves):
        reason = _misfit(leaf, buffers.leaves[window.positions[i]], foreseen)
        if reason:
            found.append(f"{where(window.path(i))}: {reason}")
    if found:
        raise SpecMismatch(
            f"into= does not fit, nothing was written; {listed(found, '; ')}; "
            "sd.empty_like(tree) makes buffers that fit"
        )


def _misfit(leaf: Leaf, buffer: Leaf, foreseen: bool) -> str:
    """Return why a leaf cannot be written into a buffer, empty if it can."""
    a, b = Abstract.of(leaf), Abstract.of(buffer)
    if a.dtype is None and b.dtype is None:
        return ""
    for what, here, there in (
        ("kind", a.kind.__name__, b.kind.__name__),
        ("shape", a.shape, b.shape),
        ("dtype", a.dtype, b.dtype),
        ("local tensors", a.forms(), b.forms()),
    ):
        if here != there:
            return f"{what} {here} here, {there} in the buffer"
    return "" if foreseen else _misfit_inside(leaf, buffer)


def _misfit_inside(leaf: Leaf, buffer: Leaf) -> str:
    """Return what keeps two leaves of one form apart: missing data, another aux."""
    if stands_for_another(leaf) != stands_for_another(buffer):
        return "one of leaf and buffer is Abstract and has no data"
    handler = handler_of(leaf)
    if unfit := handler.unfit(buffer):
        return unfit
    (sources, aux), (targets, other) = handler.flatten(leaf), handler.flatten(buffer)
    if [t.is_meta for t in sources] != [t.is_meta for t in targets]:
        return "one of leaf and buffer is meta and has no data"
    return "" if same_value(aux, other) else f"{aux} here, {other} in the buffer"
