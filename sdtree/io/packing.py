"""A tree as the entries of a safetensors file and its document, and back.

Leaves that share bytes share an entry, under the name of one of them: the whole if one
is the whole of what they share, else the span of storage in one dimension. So nothing
is written twice, nor lost where views overlap only in part. Views of one storage that
share no byte are entries of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdtree.arena import ALIGNMENT, as_one, extent, span
from sdtree.errors import FileError
from sdtree.io.document import Document, Place, View
from sdtree.io.kinds import held, make
from sdtree.io.sharing import bounds, by_storage
from sdtree.portable import dump, load
from sdtree.room import stored_bytes
from sdtree.shapes import difference
from sdtree.treespec import take
from sdtree.typing import Tree

RESERVED = "__metadata__"


@dataclass(slots=True)
class Pack:
    """A tree as a file holds it. Not all entries are contiguous yet."""

    document: Document
    entries: dict[str, Tensor]

    @classmethod
    def of(cls, tree: Tree) -> Pack:
        """Return a tree as a file holds it; raise if the format has no room for it."""
        leaves, spec = take(tree)
        names, paths = spec.unique_names(), spec.paths()
        pack = cls(Document(spec), {})
        tensors: dict[int, Tensor] = {}
        for i, leaf in enumerate(leaves):
            found = held(leaf, paths[i])
            if found is None:
                pack.document.plain[i] = dump(leaf, paths[i])
                continue
            _check_name(names[i])
            tensors[i] = found.tensor
            if found.kind is not None:
                pack.document.kinds[i] = found.kind
        tensors = dict(zip(tensors, as_one([*tensors.values()]), strict=True))
        for members in _overlapping(tensors):
            pack._add({i: tensors[i] for i in members}, names)
        return pack

    def _add(self, ts: Mapping[int, Tensor], names: Sequence[str]) -> None:
        """Add the entry that holds these tensors, which share bytes."""
        first, *others = ts
        t = ts[first]
        covered = extent(t)
        is_alone = not others and 2 * t.numel() < covered
        if is_alone or (_are_identical(ts) and not _repeats(t)):
            self.entries[names[first]] = t
            if not is_alone and not t.is_contiguous():
                self.document.strides[names[first]] = tuple(t.stride())
            self.document.places.update(dict.fromkeys(others, Place(names[first])))
            return
        whole = _find_whole(ts)
        owner = first if whole is None else whole
        entry, low = _span_of(ts) if whole is None else (ts[whole], span(ts[whole])[0])
        self.entries[names[owner]] = entry
        for i, t in ts.items():
            if i != whole:
                self.document.places[i] = Place(names[owner], _view(t, low))


def unpack(
    document: Document, entries: Mapping[str, Tensor], *, restride: bool
) -> Tree:
    """Return the tree of a document and entries, which are contiguous.

    Without ``restride``, leaves that share storage with no other stay contiguous.
    """
    names = document.spec.unique_names()
    places = [
        document.places.get(i, Place(name))
        for i, name in enumerate(names)
        if i not in document.plain
    ]
    wanted = dict.fromkeys(place.entry for place in places)
    if wanted.keys() != entries.keys():
        holder, other = "the file", "its metadata"
        raise FileError(difference(entries, wanted, holder, other))
    whole = dict(entries)
    for name, stride in document.strides.items() if restride else ():
        whole[name] = _restrided(entries[name], stride)
    rest = iter(places)
    return document.spec.make(
        load(document.plain[i])
        if i in document.plain
        else make(document.kinds.get(i), _at(next(rest), whole))
        for i in range(len(names))
    )


def _check_name(name: str) -> None:
    if name == RESERVED:
        raise ValueError(
            f"{name}: a safetensors file keeps this name for itself; rename the leaf"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name!r}: the name of a tensor must be text that UTF-8 can say, with no "
            "lone surrogates; rename the leaf"
        ) from None


# -- which bytes are shared --------------------------------------------------------


def _overlapping(tensors: Mapping[int, Tensor]) -> Iterator[list[int]]:
    """Yield the positions of tensors that share bytes, those that share none alone."""
    positions = list(tensors)
    for group in by_storage(tensors.values()):
        spans = {i: span(tensors[i]) for i in (positions[k] for k in group)}
        yield from map(sorted, _touching(spans))


def _touching(spans: Mapping[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Yield the keys of intervals that overlap, in one list with what these overlap."""
    found: list[int] = []
    reached = 0
    for i in sorted(spans, key=spans.__getitem__):
        start, stop = spans[i]
        if found and start >= reached:
            yield found
            found = []
        found.append(i)
        reached = max(reached, stop)
    yield found


def _are_identical(ts: Mapping[int, Tensor]) -> bool:
    forms = {(t.dtype, t.storage_offset(), t.size(), t.stride()) for t in ts.values()}
    return len(forms) == 1


def _repeats(t: Tensor) -> bool:
    """Return whether a tensor has one element in several places."""
    steps = zip(t.size(), t.stride(), strict=True)
    return extent(t) < t.numel() or any(size > 1 and not step for size, step in steps)


def _find_whole(ts: Mapping[int, Tensor]) -> int | None:
    """Return which tensor is all that the others are views of, if one is."""
    low, high = bounds(ts.values())
    if any((span(t)[0] - low) % t.itemsize for t in ts.values()):
        return None
    found = (i for i, t in ts.items() if t.is_contiguous() and span(t) == (low, high))
    return next(found, None)


def _span_of(ts: Mapping[int, Tensor]) -> tuple[Tensor, int]:
    """Return the storage that tensors cover in one dimension, and where it begins.

    Of several dtypes it is bytes, with some before them so that all stay aligned.
    """
    low, high = bounds(ts.values())
    t = next(iter(ts.values()))
    if len({t.dtype for t in ts.values()}) == 1:
        size = (high - low) // t.itemsize
        return t.as_strided((size,), (1,), low // t.itemsize), low
    before = torch.zeros(low % ALIGNMENT, dtype=torch.uint8, device=t.device)
    entry = torch.cat([before, stored_bytes(t, low, high - low)])
    return entry, low - len(before)


def _view(t: Tensor, low: int) -> View:
    return View(span(t)[0] - low, tuple(t.size()), tuple(t.stride()), t.dtype)


# -- and back ----------------------------------------------------------------------


def _restrided(t: Tensor, stride: Sequence[int]) -> Tensor:
    return t.new_empty_strided(t.size(), stride).copy_(t)


def _at(place: Place, entries: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that lies at a place of an entry."""
    entry, view = entries[place.entry], place.view
    if view is None:
        return entry.detach()
    if view.stop > entry.nbytes:
        raise FileError(f"its metadata has a view beyond the end of {place.entry!r}")
    start = int(entry.storage_offset()) * entry.itemsize + view.offset
    offset, rest = divmod(start, view.dtype.itemsize)
    if rest:
        raise FileError(f"its metadata has a view askew in {place.entry!r}")
    empty = torch.empty(0, dtype=view.dtype, device=entry.device)
    return empty.set_(entry.untyped_storage(), offset, view.shape, view.stride)
