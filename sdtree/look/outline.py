"""The outline of many names: branches, repeated siblings in one, and what has room.

Neighbours whose labels differ in one number and that are alike all through stand in one
line, as ``layers.0…31``. What has no room after that is folded up, the largest opened
first. Every name is in one line, and each line knows which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import groupby
from typing import Final, NamedTuple

DEEPEST: Final = 32
"""How many segments of a name are branches of their own."""

ALIKE: Final = 3
"""How many siblings must be alike to stand in one line."""

NUMBER: Final = re.compile(r"(\d+)")

Size = Callable[[Sequence[int]], int]
"""Returns how many bytes the leaves at some positions have together."""


class Branch(NamedTuple):
    """What stands in one line: the positions of its leaves, and what is below it.

    It stands for as many alike siblings as ``times`` says. If ``is_cut``, there is more
    than there is room for: below it, or beside it if it ``is_rest``.
    """

    label: str
    leaves: tuple[int, ...]
    below: tuple[Branch, ...] = ()
    mark: int = 0
    times: int = 1
    is_cut: bool = False
    is_rest: bool = False

    @property
    def is_leaf(self) -> bool:
        """Return whether it is a leaf, or several alike."""
        return not (self.below or self.is_cut)

    def lines(self, above: str | None = None) -> Iterator[tuple[str, Branch]]:
        """Yield the branches that have nothing open below them, with their names.

        The root has no name, and there is nothing ``above`` it.
        """
        name = f"{above or ''}{self.label}"
        if not self.below:
            yield name, self
        for branch in self.below:
            yield from branch.lines("" if above is None else f"{name}.")


def outline(names: Sequence[str], marks: Sequence[Hashable], *, fold: bool) -> Branch:
    """Return the outline of names in their order; ``fold`` what repeats.

    Leaves are alike if their marks are equal.

    >>> found = outline(["a.0.w", "a.1.w", "a.2.w", "b"], "sssb", fold=True)
    >>> [(name, branch.leaves) for name, branch in found.lines()]
    [('a.0…2.w', (0, 1, 2)), ('b', (3,))]
    """
    known = {mark: k for k, mark in enumerate(dict.fromkeys(marks))}
    growing = _Growing(names, [known[mark] for mark in marks], fold, {})
    return growing.branch("", 0, len(names), 0, 0)


@dataclass(frozen=True, slots=True)
class _Growing:
    """How names become branches; ``known`` numbers what has been seen below one."""

    names: Sequence[str]
    marks: Sequence[int]
    folds: bool
    known: dict[Hashable, int]

    def branch(self, label: str, start: int, stop: int, at: int, depth: int) -> Branch:
        """Return the branch of names that are the same before their ``at``.

        An only child is one with its parent, unless that is the root.
        """
        below = self._below(start, stop, at, depth)
        if self.folds and len(below) >= ALIKE:
            below = [one for run in _runs(below) for one in _united(run)]
        if depth and len(below) == 1:
            [child] = below
            return child._replace(label=f"{label}.{child.label}")
        mark = tuple([(child.label, child.mark) for child in below])
        number = self.known.setdefault(mark, -1 - len(self.known))
        leaves = tuple([i for child in below for i in child.leaves])
        return Branch(label, leaves, tuple(below), number)

    def _below(self, start: int, stop: int, at: int, depth: int) -> list[Branch]:
        names, marks = self.names, self.marks
        found: list[Branch] = []
        while start < stop:
            name = names[start]
            dot = name.find(".", at) if depth < DEEPEST else -1
            end = start + 1
            if dot >= 0:
                prefix = name[: dot + 1]
                while end < stop and names[end].startswith(prefix):
                    end += 1
            if end == start + 1:
                found.append(Branch(name[at:], (start,), (), marks[start]))
            else:
                branch = self.branch(name[at:dot], start, end, dot + 1, depth + 1)
                found.append(branch)
            start = end
        return found


def _runs(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Yield neighbours that are alike but for the numbers in their labels."""

    return (list(run) for _, run in groupby(branches, _likeness))


def _likeness(branch: Branch) -> tuple[int, str]:
    return branch.mark, _without_numbers(branch.label)


@lru_cache(maxsize=65536)
def _without_numbers(label: str) -> str:
    return NUMBER.sub("0", label)


def _united(run: list[Branch]) -> list[Branch]:
    label = common([branch.label for branch in run]) if len(run) >= ALIKE else None
    return run if label is None else [_one(run, label)]


def _one(run: Sequence[Branch], label: str) -> Branch:
    """Return one branch for several that are alike."""
    levels = zip(*(branch.below for branch in run), strict=True)
    below = tuple(_one(level, level[0].label) for level in levels)
    leaves = tuple(i for branch in run for i in branch.leaves)
    times = sum(branch.times for branch in run)
    return Branch(label, leaves, below, run[0].mark, times)


def common(labels: Sequence[str]) -> str | None:
    """Return the label of labels that differ in one number, None if in more.

    >>> common(["h0.w", "h1.w", "h2.w"])
    'h0…2.w'
    """
    columns = list(zip(*map(NUMBER.split, labels), strict=True))
    differing = [k for k, column in enumerate(columns) if len({*column}) > 1]
    if len(differing) != 1:
        return None
    [k] = differing
    first = [column[0] for column in columns]
    return "".join([*first[:k], f"{columns[k][0]}…{columns[k][-1]}", *first[k + 1 :]])


# -- what there is room for --------------------------------------------------------


def cropped(root: Branch, size: Size, room: int, wide: int) -> Branch:
    """Return as much of an outline as ``room`` lines hold, the largest opened first.

    Of more than ``wide`` siblings those that follow the first stand in one line.
    """
    return _with_open(root, opened(root, size, room, wide))


def opened(
    root: Branch, size: Size, room: int, wide: int
) -> dict[int, tuple[Branch, ...]]:
    """Return what is seen below each branch that is open, by its ``id``."""
    found: dict[int, tuple[Branch, ...]] = {}
    waiting: list[tuple[int, int, Branch]] = [(0, 0, root)]
    lines, count = 1, 0
    while waiting:
        _, _, branch = heappop(waiting)
        below = _narrowed(branch.below, wide)
        if not below or lines + len(below) - 1 > room:
            continue
        lines += len(below) - 1
        found[id(branch)] = below
        for child in below:
            count += 1
            if child.below:
                heappush(waiting, (-size(child.leaves), count, child))
    return found


def _with_open(branch: Branch, found: dict[int, tuple[Branch, ...]]) -> Branch:
    if id(branch) not in found:
        is_cut = branch.is_cut or bool(branch.below)
        return branch._replace(below=(), is_cut=is_cut)
    below = tuple(_with_open(child, found) for child in found[id(branch)])
    return branch._replace(below=below)


def _narrowed(branches: tuple[Branch, ...], wide: int) -> tuple[Branch, ...]:
    if len(branches) <= wide:
        return branches
    kept, rest = branches[: wide - 1], branches[wide - 1 :]
    leaves = tuple(i for branch in rest for i in branch.leaves)
    label = f"{rest[0].label} … {rest[-1].label}"
    return (*kept, Branch(label, leaves, is_cut=True, is_rest=True))


# -- as it is asked for ------------------------------------------------------------


def shallow(branch: Branch, depth: int) -> Branch:
    """Return an outline of at most so many levels; what is below is folded up.

    >>> whole = outline(["a.x", "a.y", "b"], "sss", fold=False)
    >>> [name for name, _ in shallow(whole, 1).lines()]
    ['a', 'b']
    """
    if not depth and branch.below:
        return branch._replace(below=(), is_cut=True)
    below = tuple(shallow(child, depth - 1) for child in branch.below)
    return branch._replace(below=below)


def ordered(branch: Branch, size: Size) -> Branch:
    """Return an outline whose siblings stand by size, the largest first.

    >>> whole = outline(["a.x", "b.x", "b.y"], "sss", fold=False)
    >>> [name for name, _ in ordered(whole, len).lines()]
    ['b.x', 'b.y', 'a.x']
    """
    below = sorted(branch.below, key=lambda child: -size(child.leaves))
    return branch._replace(below=tuple(ordered(child, size) for child in below))
