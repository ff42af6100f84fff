"""Worlds of conversion rules, and what they mean: each element told one by one.

A world is drawn as two ways to lay out the same parts. A dim is an axis, a product or
a sum, as tuples; what an element is follows from its index by division, and no text is
read.
"""

import itertools
import math
import re
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

import sdtree as sd

ONE = ("*", ())


def axis(name):
    return ("axis", name)


def size(expr, sizes):
    """Return how many indices a dim has."""
    kind, inner = expr
    if kind == "axis":
        return sizes[inner]
    each = [size(part, sizes) for part in inner]
    return sum(each) if kind == "+" else math.prod(each)


def decode(expr, i, sizes):
    """Return the values of the axes at an index of a dim."""
    kind, inner = expr
    if kind == "axis":
        return {inner: i}
    found = {}
    if kind == "*":
        for part in reversed(inner):
            i, rest = divmod(i, size(part, sizes))
            found |= decode(part, rest, sizes)
        return found
    for part in inner:
        if i < size(part, sizes):
            return decode(part, i, sizes)
        i -= size(part, sizes)
    raise AssertionError


def text(expr):
    """Return how a dim is written."""
    kind, inner = expr
    if kind == "axis":
        return inner
    if kind == "*":
        return "1" if not inner else f"({' '.join(map(text, inner))})"
    return f"({' + '.join(map(addend, inner))})"


def literal(name):
    """Return how a name is written whose characters have a meaning in rules."""
    return re.sub(r"[\s\[\]{}\\]", r"\\\g<0>", name)


def addend(expr):
    """Return how a dim is written between plus signs, where a row needs no ( )."""
    kind, inner = expr
    return " ".join(map(text, inner)) if kind == "*" and inner else text(expr)


@dataclass
class Term:
    """A family of leaves: what stands in its slots, how these are written, its dims."""

    head: str
    slots: list
    dims: list
    names: dict = field(default_factory=dict)  # of an axis, what its values are called
    width: int = 0
    keys: tuple = ()
    rest: tuple = ()
    paths: frozenset = frozenset()  # the keys that are any number of segments
    echo: tuple = ()  # the keys that stand in the name once more

    def text(self):
        slots = []
        for expr in self.slots:
            tail = ""
            if expr[1] in self.names and expr[0] == "axis":
                tail = ":" + "|".join(self.names[expr[1]])
            elif self.width:
                tail = f":0{self.width}"
            slots.append(f"{{{text(expr)}{tail}}}")
        keys = [f"{{{key}{':**' * (key in self.paths)}}}" for key in self.keys]
        slots += [f"{{{key}}}" for key in self.echo]
        dims = [*map(text, self.dims), *(["..."] if self.rest else [])]
        return f"{'.'.join([literal(self.head), *keys, *slots])} [{' '.join(dims)}]"

    def leaves(self, key, sizes):
        """Yield the names of the leaves, and of each the part and values everywhere."""
        counts = [range(size(expr, sizes)) for expr in self.slots]
        dims = [*self.dims, *map(axis, self.rest)]
        shape = [size(expr, sizes) for expr in dims]
        for at in itertools.product(*counts):
            here = {}
            for expr, i in zip(self.slots, at, strict=True):
                here |= decode(expr, i, sizes)
            index = torch.empty(shape, dtype=torch.int64)
            yield self.name(key, at), here, index, dims

    def name(self, key, at):
        shown = []
        for expr, i in zip(self.slots, at, strict=True):
            if expr[0] == "axis" and expr[1] in self.names:
                shown.append(self.names[expr[1]][i])
            else:
                shown.append(str(i).zfill(self.width))
        again = [key[self.keys.index(each)] for each in self.echo]
        return ".".join([self.head, *filter(None, key), *shown, *again])


@dataclass
class World:
    """Two layouts of the same parts, the sizes of their axes, and what each batches."""

    source: list
    target: list
    sizes: dict
    keys: list  # the values of the keys, group by group
    given: dict

    def rule(self):
        sides = [[term.text() for term in side] for side in (self.source, self.target)]
        return sd.rule(*sides, **self.given)

    def index(self, side):
        """Return for each leaf of a side which elements of the pool it has."""
        numbers, found = {}, {}
        for key in self.keys:
            for term in side:
                for name, here, index, dims in term.leaves(key, self.sizes):
                    for at in itertools.product(*map(range, index.shape)):
                        told = dict(here)
                        for expr, i in zip(dims, at, strict=True):
                            told |= decode(expr, i, self.sizes)
                        own = (key, frozenset(told.items()))
                        index[at] = numbers.setdefault(own, self.number(own))
                    found[name] = index
        return found

    def made_of(self):
        """Return for each leaf of the target those of the source that it is made of."""
        sides = self.source, self.target
        given, wanted = (
            {name: {*x.flatten().tolist()} for name, x in self.index(side).items()}
            for side in sides
        )
        return {
            name: {source for source, own in given.items() if own & elements}
            for name, elements in wanted.items()
        }

    def partners(self, name):
        """Return the leaves that some leaf is made of together with one."""
        every = [parts for parts in self.made_of().values() if name in parts]
        return set().union(*every) - {name}

    def is_told(self, plan):
        """Return whether a plan tells of what each leaf is made that has elements."""
        told = {row.to: {row.path, *row.others} for row in plan.rows if row.to}
        parts = {(k,): {(x,) for x in found} for k, found in self.made_of().items()}
        full = set().union(*parts.values())
        return told.keys() == parts.keys() and all(
            told[to] & full == found for to, found in parts.items() if found
        )

    def number(self, own):
        """Return the number of an element: by its group, its part and its values."""
        if not hasattr(self, "_numbers"):
            self._numbers = {}
        return self._numbers.setdefault(own, len(self._numbers))

    def pool(self, dtype):
        """Return what elements there are to choose from, as bytes."""
        count = sum(index.numel() for index in self.index(self.source).values())
        generator = torch.Generator().manual_seed(count)
        width = torch.empty(0, dtype=dtype).itemsize
        shape = (max(count, 1), width)
        most = 2 if dtype == torch.bool else 256
        return torch.randint(0, most, shape, generator=generator, dtype=torch.uint8)

    def leaves(self, side, dtype):
        """Return the leaves of a side."""
        pool = self.pool(dtype)
        return {
            name: pool[index].view(dtype).squeeze(-1)
            for name, index in self.index(side).items()
        }


def bits(t):
    """Return a tensor as its bytes, and its form."""
    dense = torch.empty(t.shape, dtype=t.dtype).copy_(t.detach())
    return t.dtype, tuple(t.shape), dense.flatten().view(torch.uint8).tolist()


def same(found, wanted):
    """Raise unless two flat trees have the same names and bits."""
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        assert bits(found[name]) == bits(t), name


# -- how worlds are drawn ----------------------------------------------------------


@st.composite
def worlds(draw):
    """Draw a world: parts, two ways to lay them out, sizes, keys."""
    names = [*"abcdef"]
    parts, blocks = draw(_parts(names))
    used = sorted({name for part in parts for name in part})
    sizes = {name: draw(st.sampled_from([2, 3, 1])) for name in used}
    rest = draw(st.sampled_from([(), (), ("r",), ("r", "s")]))
    sizes |= {name: draw(st.integers(0, 3)) for name in rest}
    keys = draw(st.sampled_from([(), ("k",), ("k", "m")]))
    paths = draw(st.sampled_from([frozenset(), *map(frozenset, keys)]))
    values = [(), *itertools.product(*(draw(_texts(k in paths)) for k in keys))]
    values = values[bool(keys) :]
    values = list(dict.fromkeys(values))
    echo = draw(st.sampled_from([(), *((k,) for k in keys if k not in paths)]))
    tail = draw(st.sampled_from(["", "", "[0]", " {x} ", "\\*"]))
    source, target = (
        [
            Term(
                f"{head}{i}{tail}", slots, dims, called, width, keys, rest, paths, echo
            )
            for i, (slots, dims, called, width) in enumerate(
                draw(_side(parts, blocks, sizes))
            )
        ]
        for head in "st"
    )
    world = World(source, target, sizes, values, {})
    plain = {
        expr[1] for t in source for expr in [*t.slots, *t.dims] if expr[0] == "axis"
    }
    for name in used:
        if name not in plain or draw(st.booleans()):
            world.given[name] = sizes[name]
    return world


def _texts(is_path):
    """Draw the values of a key: one segment each, or any number of them."""
    found = ["", "a", "a.b", "0"] if is_path else ["0", "1", "00", "x"]
    return st.lists(st.sampled_from(found), min_size=1, max_size=2)


@st.composite
def _parts(draw, names):
    """Draw parts, each a set of axes; of two sums that are multiplied, these too."""
    kind = draw(st.sampled_from(["one", "product", "any", "any"]))
    if kind == "one":  # which may be turned without its shape telling
        return [frozenset(draw(st.permutations(names))[:2])], None
    if kind == "product":
        a, b = [{"a"}, {"b"}], [{"c"}, {"d", "e"}, set()]
        b = b[: draw(st.integers(1, 3))]
        parts = [frozenset(x | y) for x in a for y in b]
        return parts, (tuple(map(frozenset, a)), tuple(map(frozenset, b)))
    some = st.frozensets(st.sampled_from(names), max_size=3)
    return draw(st.lists(some, min_size=1, max_size=4, unique=True)), None


@st.composite
def _side(draw, parts, blocks, sizes):
    """Draw the terms of a side."""
    if blocks and draw(st.booleans()):
        dims = [draw(_sum(list(block))) for block in blocks]
        return [draw(_term(dims, sizes))]
    order = draw(st.permutations(parts))
    cuts = draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    groups = [[order[0]]]
    for part, cut in zip(order[1:], cuts, strict=False):
        groups.append([part]) if cut else groups[-1].append(part)
    found = []
    for group in groups:
        common = frozenset.intersection(*group)
        factors = [axis(name) for name in sorted(common)]
        if len(group) > 1:
            factors.append(draw(_sum([part - common for part in group])))
        found.append(draw(_term(draw(st.permutations(factors)), sizes)))
    return found


@st.composite
def _term(draw, factors, sizes):
    """Draw how factors are slots and dims."""
    rows, left = [], list(factors)
    while left:
        count = draw(st.integers(1, len(left)))
        row, left = left[:count], left[count:]
        rows.append(row[0] if count == 1 else ("*", tuple(row)))
    slots = draw(st.integers(0, min(2, len(rows))))
    dims = rows[slots:]
    if draw(st.integers(0, 4)) == 0:
        dims.insert(draw(st.integers(0, len(dims))), ONE)
    called = {}
    for expr in rows[:slots]:
        if expr[0] == "axis" and draw(st.booleans()):
            words = ["up", "down", ".gate.x", "q_1"]
            called[expr[1]] = words[: sizes[expr[1]]]
    return rows[:slots], dims, called, draw(st.sampled_from([0, 0, 2]))


@st.composite
def _sum(draw, parts):
    """Draw one dim that is a sum of parts, with what they share taken out or not."""
    if len(parts) == 1:
        return draw(_product([axis(name) for name in sorted(parts[0])]))
    common = frozenset.intersection(*parts)
    if common and draw(st.booleans()):
        inner = draw(_sum([part - common for part in parts]))
        return draw(_product([*map(axis, sorted(common)), inner]))
    order = draw(st.permutations(parts))
    middle = draw(st.integers(1, len(parts) - 1))
    sides = [order[:middle], order[middle:]]
    addends = []
    for side in sides:
        nested = len(side) == 1 or draw(st.booleans())
        each = [side] if nested else [[part] for part in side]
        addends += [draw(_sum(part)) for part in each]
    return ("+", tuple(addends))


@st.composite
def _product(draw, factors):
    order = draw(st.permutations(factors))
    return order[0] if len(order) == 1 else ("*", tuple(order))
