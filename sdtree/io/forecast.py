"""What a course of stages will make, before the data is touched.

Leaves pass the stages without their data; only those whose outcome depends on more
than their form, such as ties, pass with it, one group at a time. What comes out is laid
over storage that is reserved and never written: it takes no memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from sdtree.arena import ALIGNMENT, span, storage_keys
from sdtree.course import Course
from sdtree.leaf import handler_of
from sdtree.typing import Leaf, Tree
from sdtree.window import SLICE_BYTES, apart, cut


def forecast(course: Course) -> Tree | None:
    """Return the tree that a course will make, without data, None if only it can tell.

    Its leaves have the forms, kinds, values and ties of those to come.
    """
    if not course.is_foreseeable:
        return None
    groups = _cut(course, course.ids, 0)
    formal = [i for i, *others in groups if not others and _is_formal(course.source[i])]
    made = dict(zip(formal, _made_of(course, formal, _without_data), strict=True))
    rest = [i for i in course.ids if i not in made]
    for group in _cut(course, rest, SLICE_BYTES):
        made.update(zip(group, _made_of(course, group, _itself), strict=True))
    return course.spec.make(made[i] for i in course.ids)


def _cut(course: Course, ids: Sequence[int], limit: int) -> Iterator[list[int]]:
    paths = course.source_spec.paths()
    return cut(ids, course.source, paths.__getitem__, limit)


def _made_of(
    course: Course, ids: Sequence[int], stand_in: Callable[[Leaf], Leaf]
) -> list[Leaf]:
    """Return what the course makes of leaves, without data."""
    return hollow(course.act(ids, [stand_in(course.source[i]) for i in ids])[1])


def _itself(leaf: Leaf) -> Leaf:
    return leaf


def _without_data(leaf: Leaf) -> Leaf:
    (t,), aux = handler_of(leaf).flatten(leaf)
    return handler_of(leaf).unflatten(aux, [torch.empty_like(t, device="meta")])


def _is_formal(leaf: Leaf) -> bool:
    """Return whether the form of a leaf tells what becomes of it."""
    return (
        type(leaf) in (Tensor, Parameter)
        and leaf.layout is torch.strided
        and not (leaf.is_quantized or leaf.is_nested or leaf.is_conj() or leaf.is_neg())
        and leaf.is_contiguous()
    )


def hollow(leaves: Sequence[Leaf]) -> list[Leaf]:
    """Return leaves of the same forms and ties, over storage that is never written.

    What torch writes with its data inside, as it does numpy arrays, stays itself.
    """
    inside = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    parts = apart(inside, lambda i: (i,))
    made = iter(parts.join(_hollow(parts.tensors)))
    return [next(made) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _hollow(ts: Sequence[Tensor]) -> list[Tensor]:
    groups: defaultdict[object, list[Tensor]] = defaultdict(list)
    keys = [
        (key,) if key and t.numel() else i
        for i, (key, t) in enumerate(zip(storage_keys(ts), ts, strict=True))
    ]
    for key, t in zip(keys, ts, strict=True):
        groups[key].append(t)
    rooms = {key: _Room.of(group) for key, group in groups.items()}
    return [rooms[key].make(t) for key, t in zip(keys, ts, strict=True)]


class _Room(NamedTuple):
    """Storage that no one writes, for what lies from ``low`` on in another."""

    storage: torch.UntypedStorage
    low: int

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> _Room:
        spans = [span(t) for t in ts]
        low = min(spans)[0]
        if len({t.dtype for t in ts}) > 1:
            low = low // ALIGNMENT * ALIGNMENT
        return cls(torch.UntypedStorage(max(stop for _, stop in spans) - low), low)

    def make(self, like: Tensor) -> Tensor:
        offset = (span(like)[0] - self.low) // like.itemsize
        empty = torch.empty(0, dtype=like.dtype)
        return empty.set_(self.storage, offset, like.size(), like.stride())
