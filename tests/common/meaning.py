"""Which leaves an operation keeps, and what it makes of them, as naively as can be.

The functions take what the library's functions of these names take, but for the tree,
and return a function from a tree to what is to come out, as boxes of ``oracle``. No
code is the library's.
"""

import operator
import re
from collections import UserDict
from functools import reduce
from itertools import product
from types import UnionType
from typing import Any, NamedTuple

from oracle import Box, items, name_of, refill, take

from sdtree import ABSENT
from sdtree.errors import NameCollision, NoMatch

# -- selecting ---------------------------------------------------------------------


BRACES = r"\{([^{}]*,[^{}]*)\}"
WILD = re.compile(rf"(?<![^.])\*\*(?![^.])|[*?]|\[!?[^\]]+\]|{BRACES}")


def globbed(glob, name):
    """Return the match of a name and a dot, what wildcards took as groups."""
    offers = [found[1].split(",") for found in re.finditer(BRACES, glob)]
    for choices in product(*offers):
        found = re.fullmatch(_regex(glob, iter(choices)), f"{name}.")
        if found:
            return found
    return None


def _regex(glob, choices):
    end = [found.end() for found in WILD.finditer(glob)]
    starts = [found.start() for found in WILD.finditer(glob)]
    fixed = zip([0, *end], [*starts, len(glob)], strict=True)
    texts = [re.escape(glob[a:b]) for a, b in fixed]
    wild = [_wild(found[0], choices) for found in WILD.finditer(glob)]
    text = "".join(a + b for a, b in zip(texts, [*wild, ""], strict=True)) + r"\."
    return text.replace(DEEP + r"\.", DEEP)


DEEP = r"((?:[^.]*\.)*)"


def _wild(text, choices):
    if text[0] == "{":
        return f"({re.escape(next(choices))})"
    if text[0] == "[":
        return "((?![.])" + text.replace("[!", "[^") + ")"
    return {"**": DEEP, "*": "([^.]*)", "?": "([^.])"}[text]


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
    if isinstance(x, tuple) and not all(isinstance(part, type) for part in x):
        return reduce(operator.or_, [selector(part) for part in x])
    if isinstance(x, (type, tuple, UnionType)):
        return Selector(lambda _, leaf: isinstance(leaf, x), False)
    return Selector(x, False)


def is_leaf(x):
    return x is not ABSENT and not isinstance(x, Box)


def atoms_of(tree, path=()):
    """Yield what holds nothing further, with its path."""
    if isinstance(tree, Box) and tree.pairs:
        for key, child in tree.pairs:
            yield from atoms_of(child, (*path, key))
    else:
        yield path, tree


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
        seen = atoms_of(tree) if which.by_name else items(tree)
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
    which = selector(which)

    def run(tree):
        hit = [which.test(path, x) for path, x in items(tree)]
        if not missing_ok and not any(hit):
            raise NoMatch
        matched = inside(select(which, True)(tree))
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


def whole(fn):
    return fn
