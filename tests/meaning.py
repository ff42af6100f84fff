"""Where leaves stand after an operation, said as naively as can be.

The functions take what the library's functions of these names take, but for the tree,
and return a function from a tree to what is to come out, as boxes of ``oracle``. No
code is the library's.
"""

import re
from collections import UserDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from oracle import Box, items, mark, name_of, names, refill, take

from sdtree import ABSENT
from sdtree.errors import NameCollision, NoMatch

# -- selecting ---------------------------------------------------------------------


def globbed(glob, name):
    """Return the match of a name with a dot behind it, what stars took as groups."""
    texts = [re.escape(s).replace(r"\*", "([^.]*)") + r"\." for s in glob.split(".")]
    stars = [s == "**" for s in glob.split(".")]
    both = zip(stars, texts, strict=True)
    whole = "".join(r"((?:[^.]*\.)*)" if star else text for star, text in both)
    return re.fullmatch(whole, f"{name}.")


class Selector(NamedTuple):
    """A test of (path, leaf); ``by_name`` where it does not look at the leaf."""

    test: Any
    by_name: bool

    def __and__(self, other):
        test = lambda p, x: self.test(p, x) and other.test(p, x)  # noqa: E731
        return Selector(test, self.by_name and other.by_name)

    def __invert__(self):
        return Selector(lambda p, x: not self.test(p, x), self.by_name)

    def __or__(self, other):
        return ~(~self & ~selector(other))


def selector(x):
    if isinstance(x, Selector):
        return x
    if isinstance(x, str):
        return Selector(lambda p, _: bool(globbed(x, name_of(p))), True)
    if isinstance(x, re.Pattern):
        return Selector(lambda p, _: bool(x.search(name_of(p))), True)
    if isinstance(x, (type, tuple)):
        return Selector(lambda _, leaf: isinstance(leaf, x), False)
    return Selector(x, False)


GONE = object()


def _prune(x, keep, path=()):
    """Return what is kept, ``GONE`` if nothing is."""
    if not isinstance(x, Box) or not x.pairs:
        return x if keep(path, x) or (isinstance(x, Box) and not path) else GONE
    left = [(key, _prune(child, keep, (*path, key))) for key, child in x.pairs]
    is_left = any(child is not GONE for _, child in left)
    if issubclass(x.cls, (dict, UserDict)):
        left = [(key, child) for key, child in left if child is not GONE]
    holes = [(key, ABSENT if child is GONE else child) for key, child in left]
    return x._replace(pairs=holes) if is_left or not path else GONE


def _choose(which, missing_ok, keeps):
    which = selector(which)

    def keep(path, x):
        is_leaf = x is not ABSENT and not isinstance(x, Box)
        hit = (which.by_name or is_leaf) and which.test(path, x)
        return bool(hit) == keeps

    def run(tree):
        tree = take(tree)
        seen = _atoms(tree) if which.by_name else items(tree)
        if not missing_ok and not any(which.test(p, x) for p, x in seen):
            raise NoMatch
        left = _prune(tree, keep)
        return ABSENT if left is GONE else left

    run.moves = True
    return run


def select(which, missing_ok=False):
    return _choose(which, missing_ok, True)


def drop(which, missing_ok=False):
    return _choose(which, missing_ok, False)


def combine(a, b, path=()):
    if a is ABSENT or b is ABSENT:
        return b if a is ABSENT else a
    if not isinstance(a, Box) or not isinstance(b, Box):
        raise NameCollision
    left, right = dict(a.pairs), dict(b.pairs)
    both = [(k, combine(x, right.pop(k)) if k in right else x) for k, x in left.items()]
    return a._replace(pairs=[*both, *right.items()])


def where(which, inside, missing_ok=False):
    def run(tree):
        matched = inside(select(which, missing_ok)(tree))
        whole = combine(matched, drop(which, True)(tree))
        if hasattr(inside, "moves"):
            return whole
        leaves = dict(items(whole))
        return refill(tree, iter([leaves[path] for path, _ in items(tree)]))

    return run


# -- functions ---------------------------------------------------------------------


def identity():
    return take


def map(fn):
    return map_with_path(lambda _, leaf: fn(leaf))


def map_with_path(fn):
    def run(tree):
        made = [fn(path, x) for path, x in items(tree)]
        if any(isinstance(take(x), Box) or x is ABSENT for x in made):
            raise TypeError
        return refill(tree, iter(made))

    return run


# -- names -------------------------------------------------------------------------


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
        same = {"True": "1", "False": "0"}
        found = sorted([same.get(s, s) for s in new] for _, _, new in self.atoms)
        is_odd = any(isinstance(k, (float, tuple)) for p, _, _ in self.atoms for k in p)
        return is_odd or any(b[: len(a)] == a for a, b in pairwise(found))

    def judge(self, after):
        """Raise unless leaves have their names, and what does not change stays."""
        leaves = [(p, x, new) for p, x, new in self.atoms if _is_leaf(x)]
        got = [(_segments(p), id(x), mark(p)[1]) for p, x in items(after)]
        wanted = sorted((new, id(x)) for _, x, new in leaves)
        assert sorted(one[:2] for one in got) == wanted, f"{got}, not {wanted}"
        for path, x, new in leaves:
            leads = [k for k in range(len(path)) if _leads(path[:k], new)]
            kept = path[: leads[-1]] if leads and not self.shifts else ()
            kept = path if new == _segments(path) and not self.shifts else kept
            lead, found = mark(kept)[1], [p for *one, p in got if one == [new, id(x)]]
            assert any(p[: len(kept)] == lead for p in found), f"{path} lost its keys"
            self._judge_containers(after, kept)

    def _judge_containers(self, after, path):
        """Raise unless the containers that a leaf stays in are of their types."""
        old, new = self.tree, take(after)
        for key in path:
            if not issubclass(old.cls, (dict, UserDict)):
                return
            assert old.cls is new.cls, f"above {path}: {new.cls}, no {old.cls}"
            states = [{**box.state, "_metadata": 0} for box in (old, new)]
            assert mark(states[0]) == mark(states[1]), f"above {path}: {states}"
            old, new = dict(old.pairs)[key], dict(new.pairs)[key]


def _segments(path):
    return tuple(name_of(path).split(".")) if path else ()


def _leads(path, new):
    head = _segments(path)
    return len(head) < len(new) and new[: len(head)] == head


def _is_leaf(x):
    return x is not ABSENT and not isinstance(x, Box)


def _atoms(tree, path=()):
    """Yield what holds nothing further, with its path."""
    if isinstance(tree, Box) and tree.pairs:
        for key, child in tree.pairs:
            yield from _atoms(child, (*path, key))
    else:
        yield path, tree


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
    stars = iter(found.groups() if old else [""] * len(found.groups()))
    filled = lambda part: re.sub(r"\*", lambda _: next(stars), part) + "."  # noqa: E731
    parts = new.split(".")
    text = "".join(next(stars) if p == "**" else filled(p) for p in parts)
    return tuple(text.split(".")[:-1])


def _moved(rules, missing_ok):
    def run(tree):
        tree, used, atoms = take(tree), set(), []
        for path, x in _atoms(tree):
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
            old, [(p, x, (*head, *_segments(p))) for p, x in _atoms(old)], True
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
        moved = [(p, x, behead(_segments(p))) for p, x in _atoms(old)]
        if not missing_ok and all(_segments(p) == new for p, _, new in moved):
            raise NoMatch
        return Moved(old, moved, True)

    return run
