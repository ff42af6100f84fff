"""How many bytes, or elements, leaves have together; what they share counts once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdtree.tensors.storage import bytes_of, stretch, union_of
from sdtree.transform.window import Parts

Groups = Sequence[Sequence[int]]
"""The positions of tensors that share memory, group by group."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bytes of leaves by position, without the leaves.

    ``loose`` is what each has for itself; ``shared`` are those that share a storage, as
    (storage, start, stop, what it has if it is alone).
    """

    loose: Sequence[int]
    shared: Mapping[int, Sequence[tuple[int, int, int, int]]]

    @classmethod
    def of(cls, parts: Parts, groups: Groups) -> Sizes:
        """Return the sizes of the leaves that came apart so."""
        ts, owners = parts.tensors, parts.owners()
        shared: defaultdict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
        tied: set[int] = set()
        for storage, group in enumerate(groups):
            tied.update(group)
            for k in group:
                shared[owners[k]].append((storage, *stretch(ts[k]), bytes_of(ts[k])))
        loose = [0] * len(parts.leaves)
        for k, t in enumerate(ts):
            if k not in tied:
                loose[owners[k]] += bytes_of(t)
        return cls(loose, shared)

    def each(self) -> Sequence[int]:
        """Return the bytes of each leaf by itself."""
        found = list(self.loose)
        for i in self.shared:
            found[i] = self.together((i,))
        return found

    def together(self, positions: Iterable[int]) -> int:
        """Return the bytes that the leaves at some positions have together."""
        found = list(positions)
        total = sum([self.loose[i] for i in found])
        if not self.shared:
            return total
        spans: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        alone: dict[int, int] = {}
        for i in found:
            for storage, start, stop, own in self.shared.get(i, ()):
                spans[storage].append((start, stop))
                alone[storage] = own
        return total + sum(
            alone[storage] if len(group) == 1 else union_of(group)
            for storage, group in spans.items()
        )


@dataclass(frozen=True, slots=True)
class Elements:
    """How many elements leaves have by position, all of those that are sharded.

    ``shared`` are those of leaves that share a storage, as (storage, start, stop, own),
    counted in elements of the storage.
    """

    loose: Sequence[int]
    shared: Mapping[int, tuple[int, int, int, int]]

    @classmethod
    def of(cls, parts: Parts, groups: Groups, counts: Sequence[int]) -> Elements:
        """Return those of leaves that came apart so, and have so many each.

        The first of its tensors tells what a leaf shares.
        """
        owners, shared = parts.owners(), dict[int, tuple[int, int, int, int]]()
        for storage, group in enumerate(groups):
            for k in group:
                i, t = owners[k], parts.tensors[k]
                start, stop = (place // t.itemsize for place in stretch(t))
                shared.setdefault(i, (storage, start, stop, counts[i]))
        loose = [0 if i in shared else count for i, count in enumerate(counts)]
        return cls(loose, shared)

    def together(self, positions: Iterable[int]) -> int:
        """Return how many the leaves at some positions have together."""
        found = list(positions)
        total = sum([self.loose[i] for i in found])
        spans: defaultdict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        for i in found if self.shared else ():
            if i in self.shared:
                storage, start, stop, own = self.shared[i]
                spans[storage][start, stop] = own
        return total + sum(map(_without_overlaps, spans.values()))


def _without_overlaps(spans: Mapping[tuple[int, int], int]) -> int:
    """Return how many elements stretches have, no more than they cover together."""
    whole, covered = sum(stop - start for start, stop in spans), union_of(spans)
    every = sum(spans.values())
    return every if covered == whole else min(every, covered)
