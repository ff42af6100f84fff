"""Buffers must not overlap the source, nor each other but as their sources do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import add, le
from typing import Final

import torch
from torch import Tensor

from sdtree.errors import SpecMismatch
from sdtree.path import where
from sdtree.tensors.lattice import Clash, Lattice, clash, crossing, lattice, repeats
from sdtree.tensors.storage import extent, identity_of, stretch
from sdtree.transform.window import Parts, Window

IN_TURN: Final = (
    "into= overlaps the source, or what another step writes or keeps, which is read "
    "window by window where ranks exchange leaves; nothing was written, give buffers "
    "of their own"
)
"""Why what is written while others read is refused."""

Owned = tuple[Hashable, Sequence[Tensor]]
"""Tensors, with what they belong to."""


def do_not_clash(
    here: list[int], there: list[int], sizes: list[int], have_bits: Callable[[], bool]
) -> bool:
    """Return whether each source can be copied there: ties go where their twins do.

    Not so if they have bits to resolve, which twins may have in other ways. No
    arithmetic of tensors on addresses: it would wait for threads.
    """
    if len({*there}) < len(there):
        first: dict[int, int] = {}
        for i, start in enumerate(there):
            twin = first.setdefault(start, i)
            if twin != i and (here[i], sizes[i]) != (here[twin], sizes[twin]):
                return False
        if have_bits():
            return False
        kept = [*first.values()]
        there = [there[i] for i in kept]
        here, sizes = [here[i] for i in kept], [sizes[i] for i in kept]
    sources = dict(zip(here, sizes, strict=True))
    if len(sources) < len(here) and any(
        sources[start] != size for start, size in zip(here, sizes, strict=True)
    ):
        return False
    return _are_apart([*sources, *there], [*sources.values(), *sizes])


def _are_apart(starts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether stretches of memory are disjoint.

    They are if, in order, each end lies before the start that follows as many: if two
    crossed, some end would lie behind it.
    """
    ends = sorted(map(add, starts, sizes))
    return all(map(le, ends, sorted(starts)[1:]))


def check_overlap(window: Window, parts: Parts, targets: Sequence[Tensor]) -> None:
    """Raise ``SpecMismatch`` if a buffer overlaps a source, or others but for a tie."""
    count, owners = len(targets), parts.owners()

    def at(i: int) -> str:
        return where(window.path(owners[i]))

    for i, (source, target) in enumerate(zip(parts.tensors, targets, strict=True)):
        if not target.is_contiguous() and merges(source, target):
            raise SpecMismatch(
                f"{at(i)}: the buffer holds one element in several places and the leaf "
                "does not; nothing was written, give a buffer that is not expanded"
            )
    check_apart(
        targets,
        parts.tensors,
        lambda: map(way, parts.tensors, targets),
        lambda i: at(i % count),
        "written",
        ", such as sd.empty_like(tree)",
    )


def check_apart(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    colours: Callable[[], Iterable[Hashable]],
    at: Callable[[int], str],
    done: str,
    such: str = "",
    unlike: str = "where the source does not",
) -> None:
    """Raise ``SpecMismatch`` if a target overlaps a source, or one of another colour.

    ``at`` tells where a target stands or, counted on from these, a source; ``done``
    what is not done then, ``such`` what buffers there are of their own, and ``unlike``
    how others are not to lie.
    """
    found = clash_of(
        [*targets, *sources], lambda: [*colours(), *("source",) * len(sources)]
    )
    if found is None:
        return
    i, j = found
    if j >= len(targets):
        raise SpecMismatch(
            f"into= overlaps the source, nothing was {done}; the buffer at {at(i)} "
            f"shares memory with the leaf at {at(j)}; give buffers of their own{such}"
        )
    raise SpecMismatch(
        f"into= has buffers that overlap {unlike}, nothing was "
        f"{done}; those at {at(i)} and {at(j)} share memory, give them buffers of "
        "their own"
    )


def clash_of(ts: Sequence[Tensor], colours: Callable[[], Sequence[Hashable]]) -> Clash:
    """Return the places, lower first, of two tensors of different colours that overlap.

    That is, of two that have a byte in common. Whatever has no memory overlaps nothing.
    """
    starts = [0 if t.is_meta else t.data_ptr() for t in ts]
    sizes = [t.nbytes if t.is_contiguous() else extent(t) * t.itemsize for t in ts]
    places = [i for i, start in enumerate(starts) if start and sizes[i]]
    if len(places) < len(ts):
        starts, sizes = [starts[i] for i in places], [sizes[i] for i in places]
    if _are_apart(starts, sizes):
        return None
    every = colours()
    here = [every[i] for i in places]
    spans = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    for group in crossing(spans, here):
        views = [lattice_of(ts[places[k]]) for k in group]
        if found := clash(views, [here[k] for k in group]):
            i, j = (places[group[k]] for k in found)
            return min(i, j), max(i, j)
    return None


def lie_in_others(
    targets: Iterable[Owned], sources: Iterable[Owned], *, in_turn: bool = False
) -> bool:
    """Return whether a target lies in a source that is not its own, nor one with that.

    Both come with their owners. ``in_turn``: those that are one may be read in turn,
    and so each is for itself.
    """
    twins, one = dict[Hashable, Hashable](), dict[Hashable, Hashable]()
    sides, owners, every = list[int](), list[Hashable](), list[Tensor]()
    for owner, ts in sources:
        twin = owner if in_turn else twins.setdefault(identity_of(ts), owner)
        one[owner] = twin
        every += ts
        owners += [twin] * len(ts)
    sides += [0] * len(every)
    for owner, ts in targets:
        every += ts
        owners += [one.get(owner, owner)] * len(ts)
    sides += [1] * (len(every) - len(sides))
    meet = all(clash_of(every, lambda x=x: x) is not None for x in (sides, owners))
    return meet and _meet_others(every, sides, owners)


def _meet_others(
    ts: Sequence[Tensor], sides: Sequence[int], owners: Sequence[Hashable]
) -> bool:
    """Return whether stretches of two sides meet that are of different owners.

    Of each side it is enough to know the two owners that reach the furthest.
    """
    real = [i for i, t in enumerate(ts) if t.numel() and not t.is_meta]
    ahead: tuple[dict[Hashable, int], dict[Hashable, int]] = {}, {}
    for (start, stop), i in sorted((stretch(ts[i]), i) for i in real):
        own, others = ahead[sides[i]], ahead[1 - sides[i]]
        if any(end > start and owner != owners[i] for owner, end in others.items()):
            return True
        own[owners[i]] = max(stop, own.get(owners[i], 0))
        if len(own) > 2:
            del own[min(own, key=own.__getitem__)]
    return False


def way(source: Tensor, target: Tensor) -> Hashable:
    """Return what two copies have in common that may write to the same bytes.

    Such bytes come from the same bytes: as far away in both, or all of the tensor, and
    with the same bits to resolve.
    """
    here, there = source.data_ptr(), target.data_ptr()
    bits = bits_between(source, target)
    if source.stride() == target.stride():
        return there - here, bits
    dims = sorted(zip(target.size(), source.stride(), target.stride(), strict=True))
    return here, there, bits, target.dtype, *dims


def bits_between(source: Tensor, target: Tensor) -> tuple[bool, bool]:
    """Return which bits a copy resolves: whether it conjugates, and negates."""
    conjugates = source.is_conj() != target.is_conj()
    return conjugates, source.is_neg() != target.is_neg()


def merges(source: Tensor, target: Tensor) -> bool:
    """Return whether two elements of a source would go to one place of a target.

    They may if they are one in the source, too.
    """
    if source.stride() == target.stride():
        return False
    sides = zip(target.size(), source.stride(), target.stride(), strict=True)
    dims = [(n, a, b) for n, a, b in sides if n > 1 and (a or b)]
    if not repeats([(n, b) for n, _, b in dims]):
        return False
    if any(a and not b for _, a, b in dims):
        return True
    here, there = (_places([(n, steps[k]) for n, *steps in dims]) for k in (0, 1))
    found = torch.stack([there, here]).unique(dim=1)
    return bool((found[0].diff() == 0).any())


def _places(dims: Iterable[tuple[int, int]]) -> Tensor:
    """Return how far from the start of a view each of its elements lies."""
    places = torch.zeros(1, dtype=torch.int64)
    for n, step in dims:
        steps = step * torch.arange(n)
        places = (places[:, None] + steps).flatten()
    return places


def is_repeating(t: Tensor) -> bool:
    """Return whether a tensor has one element in several places."""
    return not t.is_contiguous() and repeats(zip(t.size(), t.stride(), strict=True))


def lattice_of(t: Tensor) -> Lattice:
    """Return the bytes that a tensor takes, which has some."""
    steps = [step * t.itemsize for step in t.stride()]
    dims = [*zip(t.size(), steps, strict=True), (t.itemsize, 1)]
    return lattice(t.data_ptr(), dims)


def unexpanded(t: Tensor, like: Tensor) -> Tensor:
    """Return one of the copies that ``like`` repeats along dimensions of stride 0."""
    for dim, (size, step) in enumerate(zip(like.size(), like.stride(), strict=True)):
        if step == 0 and size > 1:
            t = t.narrow(dim, 0, 1)
    return t
