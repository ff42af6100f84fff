"""Where leaves go when they get other names, said as naively as can be.

The functions take what the library's functions of these names take, but for the tree,
and return a function from a tree to what is to come out: boxes of ``oracle``, or a
judge of what does. No code is the library's.
"""

import enum
import re
from collections import UserDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from meaning import WILD, atoms_of, globbed, is_leaf
from oracle import Box, items, mark, name_of, names, take

from sdtree.errors import NameCollision, NoMatch


def flatten(sep="."):
    def run(tree):
        leaves = [leaf for _, leaf in items(tree)]
        return Box(dict, {}, list(zip(names(tree, sep), leaves, strict=True)))

    return run


def unflatten(sep="."):
    def run(flat):
        tree = Box(dict, {}, [])
        for path, leaf in items(flat):
            *above, last = path[0].split(sep)
            here = tree
            for key in above:
                inside = dict(here.pairs)
                if key not in inside:
                    here.pairs.append((key, Box(dict, {}, [])))
                here = dict(here.pairs)[key]
                if not isinstance(here, Box):
                    raise NameCollision
            if last in dict(here.pairs):
                raise NameCollision
            here.pairs.append((last, leaf))
        return tree

    return run


class Moved(NamedTuple):
    """What a tree is to become by moves: each atom, its path, its new segments.

    How segments make keys is free as far as the design leaves it so: it is judged.
    ``shifts``: segments come or go at the front, so that none stays in its place.
    """

    tree: Any
    atoms: list[tuple[tuple[Any, ...], Any, tuple[str, ...]]]
    shifts: bool = False

    def may_collide(self):
        """Return whether two get one name, or one above another, or equal keys."""
        same, heads = {"True": "1", "False": "0"}, {}
        found = sorted([same.get(s, s) for s in new] for _, _, new in self.atoms)
        for _, _, new in self.atoms:
            for i in range(1, len(new) + 1):
                head = tuple(same.get(s, s) for s in new[:i])
                heads.setdefault(head, set()).add(tuple(new[:i]))
        odd = float, tuple, np.generic, enum.Enum  # 1 may meet another that equals it
        is_odd = any(isinstance(k, odd) for p, _, _ in self.atoms for k in p)
        is_odd |= any(len(told) > 1 for told in heads.values())
        return is_odd or any(b[: len(a)] == a for a, b in pairwise(found))

    def judge(self, after):
        """Raise unless leaves have their names, and what does not change stays."""
        leaves = [(p, x, new) for p, x, new in self.atoms if is_leaf(x)]
        got = [(_segments(p), id(x), mark(p)[1]) for p, x in items(after)]
        wanted = sorted((new, id(x)) for _, x, new in leaves)
        assert sorted(one[:2] for one in got) == wanted, f"{got}, not {wanted}"
        taken = take(after)
        for path, x, new in leaves:
            leads = [k for k in range(len(path)) if _leads(path[:k], new)]
            is_clear = len({*_segments(path)}) == len(_segments(path))
            kept = path[: leads[-1]] if leads and is_clear and not self.shifts else ()
            kept = path if new == _segments(path) and not self.shifts else kept
            lead, found = mark(kept)[1], [p for *one, p in got if one == [new, id(x)]]
            assert any(p[: len(kept)] == lead for p in found), f"{path} lost its keys"
            is_apart = any(not any(map(_is_dotted, p)) for p in found)
            is_free = self.is_flat() or any("." in str(key) for key in path)
            assert is_apart or is_free, f"{path} has segments in one key: {found}"
            self._judge_containers(taken, kept)

    def is_flat(self):
        """Return whether a tree is one mapping from names to leaves."""
        return all(len(p) == 1 and isinstance(p[0], str) for p, _, _ in self.atoms)

    def _judge_containers(self, after, path):
        """Raise unless the containers that a leaf stays in are of their types."""
        old, new = self.tree, after
        for key in path:
            if not issubclass(old.cls, (dict, UserDict)):
                return
            assert old.cls is new.cls, f"above {path}: {new.cls}, no {old.cls}"
            states = [{**box.state, "_metadata": 0} for box in (old, new)]
            assert mark(states[0]) == mark(states[1]), f"above {path}: {states}"
            old, new = dict(old.pairs)[key], dict(new.pairs)[key]


def _is_dotted(mark):
    return mark[0] is str and "." in mark[1]


def _segments(path):
    return tuple(name_of(path).split(".")) if path else ()


def _leads(path, new):
    head = _segments(path)
    return len(head) < len(new) and new[: len(head)] == head


def _replaced(rule, old):
    """Return the segments by one rule, None if it does not apply."""
    name = ".".join(old)
    if callable(rule):
        return None if rule(name) == name else tuple(rule(name).split("."))
    pattern, new = rule
    if isinstance(pattern, re.Pattern):
        hit = pattern.search(name)
        return tuple(pattern.sub(new, name).split(".")) if hit else None
    found = globbed(pattern, name)
    if found is None or not (old or set(pattern.split(".")) == {"**"}):
        return None
    stars = iter(_captures(pattern, found.groups() if old else None))
    parts, star = new.split("."), lambda _: next(stars)[:-1]
    filled = lambda part: re.sub(r"\*", star, part) + "."  # noqa: E731
    text = "".join(next(stars) if p == "**" else filled(p) for p in parts)
    return tuple(text.split(".")[:-1])


def _captures(glob, groups):
    """Return what each star took: segments, each with a dot behind it."""
    stars = [found[0] for found in WILD.finditer(glob)]
    took = zip(stars, groups or [""] * len(stars), strict=True)
    return [text if star == "**" else f"{text}." for star, text in took]


def _moved(rules, missing_ok):
    def run(tree):
        tree, used, atoms = take(tree), set(), []
        for path, x in atoms_of(tree):
            new = [_replaced(rule, _segments(path)) for rule in rules]
            hit = next((i for i, one in enumerate(new) if one is not None), None)
            used.add(hit)
            atoms.append((path, x, _segments(path) if hit is None else new[hit]))
        must = {i for i, rule in enumerate(rules) if not callable(rule)}
        if not missing_ok and must - used:
            raise NoMatch
        return Moved(tree, atoms)

    return run


def rename(rule, missing_ok=False):
    rules = list(rule.items()) if isinstance(rule, Mapping) else [rule]
    return _moved(rules, missing_ok)


def prefix(segment):
    def run(tree):
        head, old = tuple(segment.split(".")), take(tree)
        return Moved(
            old, [(p, x, (*head, *_segments(p))) for p, x in atoms_of(old)], True
        )

    return run


def strip_prefix(*segments, missing_ok=False):
    heads = [tuple(segment.split(".")) for segment in segments]

    def behead(old):
        left = [*heads]
        while head := next((h for h in left if old[: len(h)] == h), ()):
            left.remove(head)
            old = old[len(head) :]
        return old

    def run(tree):
        old = take(tree)
        moved = [(p, x, behead(_segments(p))) for p, x in atoms_of(old)]
        if not missing_ok and all(_segments(p) == new for p, _, new in moved):
            raise NoMatch
        return Moved(old, moved, True)

    return run
