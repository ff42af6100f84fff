"""The form of a tree: all that it is but for its data, held against that of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf, one_of, text_of
from sdtree.kinds.abstract import Abstract, by_form, look_at
from sdtree.kinds.handler import find_handler, handler_of, tensors_of
from sdtree.tensors.forms import Forms, Ground, Lay, ties_of
from sdtree.tensors.storage import storage_keys
from sdtree.transform.window import BARE, simple_types
from sdtree.tree.alike import Like
from sdtree.tree.pairing import first_difference
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

_device = attrgetter("device")


@dataclass(frozen=True, slots=True)
class TreeForm:
    """What a tree is but for data and plain values; two of one form pass a plan alike.

    ``kinds`` tell what leaves are that are more than dense tensors, and ``owners`` of
    each local tensor the place of its leaf. A leaf that cannot be looked at has none:
    whoever takes it will tell.
    """

    spec: TreeSpec
    types: list[type]
    kinds: dict[int, object]
    owners: list[int]
    forms: Forms
    devices: list[torch.device]

    @classmethod
    def of(cls, tree: Tree) -> TreeForm:
        """Return the form of a tree; nothing of it is kept."""
        leaves, spec = take(tree)
        try:
            kinds, held = _held(leaves)
            return cls._by(spec, leaves, kinds, held)
        except (UnknownLeaf, RuntimeError):
            seen = [*map(_seen, leaves)]
            kinds = {i: kind for i, (kind, _) in enumerate(seen) if kind is not None}
            return cls._by(spec, leaves, kinds, [ts for _, ts in seen])

    @classmethod
    def _by(
        cls,
        spec: TreeSpec,
        leaves: Sequence[Leaf],
        kinds: dict[int, object],
        held: Sequence[Sequence[Tensor]],
    ) -> TreeForm:
        ts = [*chain.from_iterable(held)]
        owners = [*range(len(leaves))]
        if len(held) == len(leaves):
            owners = [i for i, own in enumerate(held) for _ in own]
        devices = list(map(_device, ts))
        types = list(map(type, leaves))
        return cls(spec, types, kinds, owners, Forms.of(ts), devices)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all local tensors."""
        return sum(self.nbytes_of_each())

    def nbytes_of_each(self) -> list[int]:
        """Return the bytes of each local tensor."""
        columns = zip(self.forms.sizes, self.forms.dtypes, strict=True)
        return [prod(size) * dtype.itemsize for size, dtype in columns]

    def difference(self, other: TreeForm) -> tuple[Path, str]:
        """Return the first path at which another form differs, and how."""
        if self.spec != other.spec:
            return first_difference(self.spec, other.spec)
        unseen = 0, 0, "expected another form"
        i, _, text = min(self._differences(other), default=unseen)
        return self.spec.every_path[i], text

    def _differences(self, other: TreeForm) -> Iterator[tuple[int, int, str]]:
        """Yield of each trait the first leaf that differs in it, and how."""
        every, pair = range(len(self.types)), (self, other)
        kinds = [[*map(form.kinds.get, every)] for form in pair]
        counts = [[*map(Counter(form.owners).__getitem__, every)] for form in pair]
        yield from _first(0, "{}", [form.types for form in pair], every, one_of)
        yield from _first(1, "{}", kinds, every, _told)
        yield from _first(2, "{} local tensors", counts, every)
        if self.owners != other.owners:
            return
        for k, (what, name, told) in enumerate(TRAITS, 3):
            columns = [getattr(form.forms, name) for form in pair]
            yield from _first(k, f"{what} {{}}", columns, self.owners, told)
        devices = [form.devices for form in pair]
        yield from _first(6, "device {}", devices, self.owners)
        ties = {*self.forms.ties} ^ {*other.forms.ties}
        if ties:
            first = min(tie[0][0] for tie in ties)
            yield self.owners[first], 7, "expected it to be tied as it was"


class Look(NamedTuple):
    """A tree that was looked at: its leaves and spec, and where its tensors lie.

    ``held`` are the tensors, one of a leaf, and ``owners`` the places of their leaves,
    if they were quick to see. ``place`` is one and the same object as long as trees lie
    in the same storages, and None if that is not known. It ``lies_apart`` if it did
    when it lay there last, beside what lay where that lies with which it is written.
    """

    leaves: list[Leaf]
    spec: TreeSpec
    lay: Lay | None
    held: Sequence[Tensor] = ()
    owners: Sequence[int] = ()
    place: object = None
    lies_apart: bool = False

    def tensors(self) -> list[tuple[Tensor, ...]]:
        """Return the tensor that each leaf has, if it has one."""
        if self.owners == [*range(len(self.leaves))]:
            return [*zip(self.held, strict=True)]
        held = dict(zip(self.owners, self.held, strict=True))
        return [(held[i],) if i in held else () for i in range(len(self.leaves))]


class Looks(NamedTuple):
    """A tree that was looked at, and those that were given beside it.

    There is none of a tree that another rank has.
    """

    tree: Look | None
    beside: Sequence[tuple[Like, Look]] = ()

    def of(self, given: Like | None) -> Look | None:
        """Return what was seen of a tree that was given, if it was looked at."""
        return next((look for like, look in self.beside if like is given), None)

    def places(self) -> tuple[object, ...]:
        """Return where all that was looked at lies, None of what is not known."""
        every = ([] if self.tree is None else [self.tree]), [x for _, x in self.beside]
        return tuple(look.place for looks in every for look in looks)


class Fitting:
    """A form that trees are to have, and where the last that had it lay.

    One that lies there, too, needs no look at what it is tied to.
    """

    __slots__ = ("_ground", "_grounds", "_is_one_each", "_places", "form")

    def __init__(self, tree: Tree) -> None:
        leaves, _ = take(tree)
        self.form = TreeForm.of(tree)
        simple = simple_types(leaves)
        self._places = [i for i, x in enumerate(leaves) if type(x) not in simple]
        self._grounds = _grounds([leaves[i] for i in self._places])
        self._is_one_each = len(self.form.owners) == len({*self.form.owners})
        held = None if self._grounds is None else self._held(leaves)
        self._ground = None if held is None else Ground(held)

    def look(self, tree: Tree) -> Look | TreeForm:
        """Return the tree looked at if it has the form, and else what form it has."""
        leaves, spec = take(tree)
        ground, held, lay = self._ground, None, None
        if ground is not None and spec == self.form.spec:
            held = self._held(leaves)
            lay = None if held is None else ground.lay_of(held)
        if held is None or lay is None or not self._is_tied(held, lay):
            found = TreeForm.of(tree)
            if found != self.form:
                return found
        if ground is not None:
            ground.lay = lay
        if ground is None or held is None or lay is None:
            return Look(leaves, spec, lay)
        return Look(leaves, spec, lay, held, self.form.owners, ground.place)

    def _is_tied(self, held: Sequence[Tensor], lay: Lay) -> bool:
        """Return whether tensors that have their forms are tied as they are to be."""
        if self._ground is not None and lay is self._ground.lay:
            return True
        try:
            return ties_of(held) == self.form.forms.ties
        except (UnknownLeaf, RuntimeError):  # some have not all their memory
            return False

    def _held(self, leaves: list[Leaf]) -> Sequence[Tensor] | None:
        """Return the tensors of leaves of the types and layouts known, None of others.

        What these tensors are is yet to be seen.
        """
        if self.form.types != list(map(type, leaves)):
            return None
        others = [leaves[i] for i in self._places]
        if others and _grounds(others) != self._grounds:
            return None
        owners = self.form.owners
        if not others:
            return leaves if len(owners) == len(leaves) else [leaves[i] for i in owners]
        ts = _one_each(others) if self._is_one_each else None
        if ts is None or self._places == owners:
            return ts
        inner = dict(zip(self._places, ts, strict=True))
        return [inner[i] if i in inner else leaves[i] for i in owners]


def _one_each(leaves: Sequence[Leaf]) -> Sequence[Tensor] | None:
    """Return the local tensor of each leaf, None if one has not just one."""
    kinds = {*map(type, leaves)}
    if len(kinds) == 1 and (ts := handler_of(leaves[0]).locals(leaves)) is not None:
        return ts
    every = [*map(tensors_of, leaves)]
    return [ts[0] for ts in every] if all(len(ts) == 1 for ts in every) else None


def _grounds(leaves: Sequence[Leaf]) -> list[Hashable] | None:
    """Return what the layouts of leaves follow from, None if that is not told."""
    handlers = {cls: find_handler(cls) for cls in {*map(type, leaves)}}
    asks = {cls: x.basis.of for cls, x in handlers.items() if x and x.basis}
    if len(asks) < len(handlers):
        return None
    return [asks[type(leaf)](leaf) for leaf in leaves]


TRAITS: Final = (
    ("shape", "sizes", tuple),
    ("strides", "strides", tuple),
    ("dtype", "dtypes", str),
)
"""What local tensors are, by the names of the columns, and how that is told."""


def _first(
    k: int,
    text: str,
    columns: Sequence[Sequence[Any]],
    owners: Sequence[int],
    told: Callable[[Any], object] = str,
) -> Iterator[tuple[int, int, str]]:
    """Yield the first place at which two columns differ, and how; ours is the first."""
    for i, (a, b) in enumerate(zip(*columns, strict=True)):
        if a != b:
            one, other = told(a), told(b)
            more = ", which differ in what is not shown" if one == other else ""
            yield owners[i], k, f"expected {text.format(one)}, got {other}{more}"
            return


def _told(kind: object) -> str:
    return "a dense tensor" if kind is None else str(kind)


def _held(
    leaves: Sequence[Leaf],
) -> tuple[dict[int, object], Sequence[Sequence[Tensor]]]:
    """Return what leaves are that are no dense tensors, and the tensors of each."""
    simple = simple_types(leaves)
    if all(simple.get(cls) is BARE for cls in {*map(type, leaves)}):
        return {}, [leaves]
    others = [i for i, leaf in enumerate(leaves) if type(leaf) not in simple]
    kinds, tensors = look_at([leaves[i] for i in others])
    found = dict(zip(others, tensors, strict=True))
    held = [
        found[i] if i in found else (leaf,) if simple[type(leaf)] is BARE else ()
        for i, leaf in enumerate(leaves)
    ]
    told = zip(others, kinds, by_form(_is_plain, kinds), strict=True)
    return {
        i: kind
        for i, kind, is_plain in told
        if not (is_plain and kind.kind is type(leaves[i]))
    }, held


def _is_plain(form: Abstract) -> bool:
    """Return whether a type and a local tensor, or none, tell all of a leaf."""
    return form.is_own_tensor or not form.tensors


def _seen(leaf: Leaf) -> tuple[object, Sequence[Tensor]]:
    """Return what a leaf is, and its tensors; nothing if it does not come apart."""
    try:
        [kind], [ts] = look_at([leaf])
        storage_keys(ts)
    except Exception as error:
        return text_of(error), ()
    is_told = _is_plain(kind) and kind.kind is type(leaf)
    return None if is_told else kind, ts
