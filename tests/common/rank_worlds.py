"""Worlds of several ranks, and programs on them, drawn as the code that makes them."""

import itertools
import math
import re
from functools import cache

import torch
from hypothesis import strategies as st
from rank_leaves import Way
from rank_programs import VERBS, WORLD, Program

DTYPES = ("float32", "float32", "bfloat16", "int64", "float16", "uint8", "bool")
DTYPES += ("float64", "complex64", "float8_e4m3fn", "int8")
FLOATS = ("float32", "bfloat16", "float16", "float64")
DRESSES = ("", "", "strided", "padded", "turned", "mapped", "lazy")
HOWS = ("", "", "", ", False", ", rank != 1", ", rank < 2")
"""How a leaf is tied to another, if it is; buffers are less often than sources."""

DENSE = ("", "padded", "mapped", "lazy")
PLAIN = ("3", "'text'", "None", "0.5", "rank", "(1, 2)")
KEYS = ("'w'", "'b'", "0", "'0'", "'a.b'", "1", "'norm'")
BUCKETS = (1, 24, 64, 200, 300, 512, 4096)


@cache
def _below(n):
    return st.integers(0, n - 1)


@cache
def meshes(ranks):
    """Return the meshes of some ranks: sizes, and the ranks row by row."""
    sides = range(1, len(ranks) + 1)
    sizes = [s for n in (1, 2, 3) for s in itertools.product(sides, repeat=n)]
    sizes = [s for s in sizes if math.prod(s) == len(ranks) and s.count(1) < 2]
    orders = [ranks, ranks, ranks]
    if len(ranks) == 4:
        a, b, c, d = ranks
        orders += [(a, c, b, d), (c, a, d, b)]
    elif ranks[1:]:
        orders += [ranks[::-1]]
    return [(s, order) for order in orders for s in sizes]


def is_apart(way):
    """Return whether no two ranks hold the same."""
    cuts = [way.cut(torch.empty(way.shape, device="meta"), r) for r in way.ranks]
    return sum(t.numel() for cut in cuts for t in cut) == math.prod(way.shape)


def bare_in(way):
    """Return the ranks that hold nothing of what others do."""
    if not isinstance(way, Way) or not math.prod(way.shape):
        return ()
    cuts = {r: way.cut(torch.empty(way.shape, device="meta"), r) for r in way.ranks}
    return tuple(r for r, cut in cuts.items() if not any(t.numel() for t in cut))


class Pen:
    """Writes the code of programs; what Hypothesis draws are indices alone."""

    def __init__(self, draw, size):
        self.draw, self.size, self.lines = draw, size, []
        self.group, self.last, self.shared = tuple(range(size)), None, []
        self.most = 0

    def below(self, n):
        return self.draw(_below(n))

    def pick(self, options):
        return options[self.below(len(options))]

    def chance(self, n):
        return self.below(n) == n - 1

    # -- leaves --------------------------------------------------------------------

    def shape(self):
        if self.chance(5):
            return self.pick(((6, 64), (6, 64), (4, 128), (300,), (2, 3, 40)))
        return tuple(self.below(8) for _ in range(self.pick((0, 1, 1, 2, 2, 2, 3))))

    def ranks(self):
        """Return some ranks of the group, mostly all."""
        if self.below(4) or len(self.group) == 1:
            return self.group
        found = [rank for rank in self.group if self.below(2)]
        return tuple(found) or self.group[:1]

    def ways(self, shape, ranks, is_target=False):
        """Return how a tensor lies on ranks: on all of them, or on several sets."""
        parts = [ranks]
        if len(ranks) > 1 and self.chance(3):
            number = [self.below(3) for _ in ranks]
            found = {k: [] for k in number}
            for k, rank in zip(number, ranks, strict=True):
                found[k].append(rank)
            parts = [tuple(part) for part in found.values()]
        may_sum = not is_target and len(parts) == 1
        found = tuple(self.way(shape, part, may_sum) for part in parts)
        return found if found[1:] else found[0]

    def way(self, shape, ranks, may_sum):
        """Return how a tensor lies on ranks: by a mesh, or in blocks.

        Where it ``may_sum`` they have terms, at times; then all ranks make the mesh.
        """
        is_all = len(ranks) == self.size
        if is_all and shape and math.prod(shape) and self.chance(5):
            blocks = self.blocks(shape)
            return Way(shape, (self.size,), ranks, (), (), blocks, self.chance(3))
        sizes, order = self.pick(meshes(ranks))
        axes = range(len(sizes))
        dims = [self.pick((None, *range(len(shape)), *range(len(shape)))) for _ in axes]
        if len(shape) > 1 and self.chance(3):
            dims = [axis % len(shape) for axis in axes]  # in a grid
        turn = self.pick((axes, axes, axes[::-1]))
        splits = tuple((a, dims[a]) for a in turn if dims[a] is not None)
        terms = ()
        if may_sum and len(self.group) == self.size and self.chance(12):
            splits, terms = tuple(x for x in splits if x[0]), (0,)
        boxed = not terms and self.chance(5)
        return Way(shape, sizes, order, splits, terms, boxed=boxed)

    def blocks(self, shape):
        """Return blocks that a tensor is cut into: at random, or rows as of FSDP."""
        if self.below(2):
            step = -(-shape[0] // self.size)
            starts = range(0, shape[0], step)
            sizes = [(min(step, shape[0] - a), *shape[1:]) for a in starts]
            offsets = [(a, *(0,) * (len(shape) - 1)) for a in starts]
            return tuple(zip(offsets, sizes, range(self.size), strict=False))
        found = [((0,) * len(shape), shape)]
        for _ in range(self.below(4)):
            at, size = found.pop(0)
            dim = self.below(len(shape))
            low = size[dim] // 2
            for start, count in ((0, low), (low, size[dim] - low)):
                offset = (*at[:dim], at[dim] + start, *at[dim + 1 :])
                part = (*size[:dim], count, *size[dim + 1 :])
                found += [(offset, part)] if count else []
        return tuple((*block, self.below(self.size)) for block in found)

    def dtype(self, way=None):
        if way is not None and way.terms:
            return "int64"
        return self.pick(DTYPES)

    def line(self, name, text):
        self.lines.append(f"{name} = {text}")
        return name

    def meta(self, text, t):
        """Return the code of a leaf, sometimes without data, perhaps on one rank."""
        if "blocks" in text:
            return text  # torch has no meta shards
        if t == "b" and self.chance(12):
            return text.replace("'')", "'meta')")
        if t in "aw" and self.chance(60):
            rank = self.pick(self.group)
            return text.replace("'')", f"'meta' if rank == {rank} else '')")
        return text

    def leaf(self, k):
        """Write a leaf as it is in each tree; return the names."""
        kind, ranks, self.seed = self.below(10), None, self.below(9)
        seed, is_twin = self.seed, self.last and self.chance(2)
        shape, dtype = self.last[:2] if is_twin else (self.shape(), self.dtype())
        form = f"{shape}, torch.{dtype}"
        self.most = max(self.most, math.prod(shape) * getattr(torch, dtype).itemsize)
        if kind == 0:
            value = self.pick(PLAIN)
            found = {"only": None, "has_room": True, "is_apart": False}
            found["may_turn"], found["form"], found["bare"] = False, None, {}
            return {**dict.fromkeys("abwvc", value), **found}
        grad = ", grad=True" if dtype in FLOATS and self.chance(3) else ""
        if kind == 1 or (kind == 3 and self.chance(2)):
            scales = [self.pick(("0.5", "0.5", "1.0")) for _ in "abwv"]
            texts = [f"scaled({form}, {seed + i}, {s})" for i, s in enumerate(scales)]
        elif kind == 2:
            texts = [self.full(form, seed + i, grad) for i in range(4)]
        else:
            ranks = self.ranks()
            one, other = self.ways(shape, ranks), self.ways(shape, ranks, True)
            if len(ranks) == 4 and not is_twin and self.chance(6):
                shape = self.pick(((6, 64), (4, 9), (5, 6)))
                one = Way(shape, (2, 2), ranks, ((0, 0), (1, 1)))
                other = self.ways(shape, ranks, True)
            if is_twin:
                ranks, one, other = self.last[2:]
            self.last = shape, dtype, ranks, one, other
            has_terms = isinstance(one, Way) and one.terms
            exact = self.pick(("int64", "float32"))  # whatever is summed up
            form = f"{shape}, torch.{exact if has_terms else dtype}"
            grad = grad if form.endswith("float32") or not has_terms else ""
            dtype = form.rpartition(".")[2]
            texts = [
                self.part(w, dtype, seed + i, grad) for i, w in enumerate((one, other))
            ]
            form_of = shape, dtype, seed
            self.shared.append((shape, dtype))
            if self.chance(10):
                texts[1] = self.full(form, seed + 1, grad)
            texts += [self.full(form, seed + i, grad) for i in (2, 3)]
        names = dict(zip("abwv", texts, strict=True))
        found = {t: self.line(f"{t}{k}", self.meta(x, t)) for t, x in names.items()}
        found["c"] = self.line(f"c{k}", self.changed(f"a{k}", texts[0]))
        found["only"] = (ranks or self.ranks()) if self.chance(6) else None
        found["has_room"] = self.below(2)
        odd = r"scaled|blocks|\(0,\)\),"  # or terms of a sum
        is_odd = any(re.search(odd, text) for text in texts[:2])
        found["may_turn"] = len(shape) == 2 and not is_odd
        found["is_apart"] = ranks is None or (isinstance(one, Way) and is_apart(one))
        found["form"] = None if ranks is None or has_terms else form_of
        ways = {} if ranks is None else {"a": one, "b": other}
        found["bare"] = {t: bare_in(way) for t, way in ways.items()}
        return found

    def changed(self, name, text):
        """Return the code of a leaf that equals one, or does not, or not everywhere."""
        how = self.below(8)
        if how < 6:
            return f"alias({name}, False)"
        other = re.sub(r"(torch\.\w+), \d+", rf"\1, {self.seed + 1}", text)
        rank = self.pick(self.group)
        return (
            other
            if how == 6
            else f"alias({name}, False) if rank != {rank} else {other}"
        )

    def full(self, form, seed, grad):
        return f"full({form}, {seed}, {self.pick(DRESSES)!r}{grad})"

    def part(self, way, dtype, seed, grad):
        is_blocked = isinstance(way, Way) and way.blocks
        how = self.pick(DENSE if is_blocked else DRESSES)
        return f"part({way}, torch.{dtype}, {seed}, {how!r}{grad})"

    def tied(self, k, names):
        """Return a leaf that is tied to one, in some of the trees, on some ranks."""
        found = {}
        if names["may_turn"] and self.chance(3):
            found = {t: f"{t}{k}" for t in "abwvc"}
            for t, name in found.items():
                how = self.pick(HOWS) if t == "a" else ", False"
                self.line(name, f"turned({names[t]}{how})")
            return {**names, **found, "may_turn": False, "form": None}
        if names["form"] and self.chance(4):
            return self.tied_elsewhere(k, names)
        for t, name in names.items():
            how = self.pick(HOWS[2:] if t == "v" else HOWS)
            bare = names["bare"].get(t)
            how = f", rank in {bare}" if bare and self.below(3) else how
            may_move = t in "aw" and (how == ", False" or names["is_apart"] or t == "w")
            how += ", 1" * (bool(how) and may_move and self.chance(2))
            is_leaf = len(t) == 1 and name[:1] == t
            found[t] = self.line(f"{t}{k}", f"alias({name}{how})") if is_leaf else name
        return found

    def tied_elsewhere(self, k, names):
        """Return a leaf that is tied to one which lies in another way, where it is."""
        (shape, dtype, seed), ranks = names["form"], self.ranks()
        found = {}
        for t in "wv":
            how = self.pick((", False", ", rank != 1", ""))
            found[t] = self.line(f"{t}{k}", f"alias({names[t]}{how})")
        for i, t in enumerate("ab"):
            way = self.ways(shape, ranks, True)
            other = self.part(way, dtype, seed + i, "")
            if t == "b" and self.chance(4):
                way, other = None, self.full(f"{shape}, torch.{dtype}", seed + 1, "")
            is_free = isinstance(way, Way) and is_apart(way) and self.chance(2)
            at_any = ", True" * is_free
            found[t] = self.line(f"{t}{k}", f"met({names[t]}, {other}{at_any})")
        found["c"] = self.line(f"c{k}", f"alias(a{k}, False)")
        return {**names, **found, "may_turn": False, "form": None, "is_apart": False}

    # -- trees ---------------------------------------------------------------------

    def world(self):
        """Return the code of the trees, all of the same form but for what is odd."""
        leaves = []
        for k in range(1 + self.below(5)):
            tie = leaves and self.chance(2)
            leaves.append(self.tied(k, self.pick(leaves)) if tie else self.leaf(k))
        outer = [self.pick(KEYS) for _ in leaves]
        inner = [self.pick(("", "", "'w'", "'b'", "0")) for _ in leaves]
        return {t: self.tree(t, leaves, outer, inner) for t in "abwvc"}

    def tree(self, t, leaves, outer, inner):
        items, groups = [], {}
        for k, names in enumerate(leaves):
            found = groups.setdefault(outer[k], []) if inner[k] else items
            pair = f"({inner[k] or outer[k]}, {names[t]})"
            has_room = t == "w" or (t == "v" and names["has_room"])
            here = "" if has_room or not names["only"] else f"rank in {names['only']}"
            found.append(f"*([{pair}] if {here} else [])" if here else pair)
        kind = self.pick(("dict([{}])", "dict([{}])", "dict([{}])", "ordered({})"))
        for key, found in groups.items():
            items.append(f"({key}, {kind.format(', '.join(found))})")
        odd = self.below(24)
        if odd == 0 and items:
            items.pop()
        if odd == 1:
            items.append(
                f"('more', {self.pick(('full((2,), torch.float32, 1)', '7'))})"
            )
        return kind.format(", ".join(items))

    # -- steps ---------------------------------------------------------------------

    def common(self):
        """Return the code of options, seldom of one that differs from rank to rank."""
        if self.chance(30):
            found = [f"bucket_bytes=by({', '.join(map(str, self.one_odd(24, 25)))})"]
        else:
            least = self.most // 64  # or ranks exchange for longer than they wait
            size = max(self.bucket(), least) if self.below(3) else None
            found = [f"bucket_bytes={size}"] if size else []
            found += ["verify=False"] if self.chance(4) else []
        return [*found, "group=group"] if len(self.group) < self.size else found

    def bucket(self):
        """Return how many bytes go at a time: any, or some rows of a leaf.

        With a row more than a shard has, small parts go beside one in one stretch.
        """
        shape, dtype = self.pick(self.shared) if self.shared else ((), "uint8")
        if not math.prod(shape) or not shape or self.chance(3):
            return self.pick(BUCKETS)
        row = math.prod(shape[1:]) * getattr(torch, dtype).itemsize
        over = -(-shape[0] // 2) + 1
        return row * self.pick((1 + self.below(shape[0]), over))

    def one_odd(self, value, other):
        found = [value] * self.size
        found[self.pick(self.group)] = other
        return found

    def gather(self):
        group = self.group
        if self.chance(30):
            ranks = self.one_odd(self.pick((None, group[0])), group[-1])
            group = ", group=group" if len(self.group) < self.size else ""
            return f"gather(ranks=by({', '.join(map(str, ranks))}){group})"
        choices = (None, None, None, "balanced", "balanced", group[0], group[-1])
        choices += ([group[0]], group[::-1], "in_length", "pair_in_length")
        ranks = self.pick(choices)
        is_function = isinstance(ranks, str) and ranks != "balanced"
        found = (
            [f"ranks={ranks if is_function else repr(ranks)}"]
            if ranks is not None
            else []
        )
        found += ["into=tree('v')"] if self.chance(3) else []
        return f"gather({', '.join([*found, *self.common()])})"

    def deliver(self, verb, target):
        how = "into" if self.below(2) else "like"
        found = [f"{how}=tree('{target}')"]
        if verb == "broadcast":
            src = self.pick(self.group)
            found += [f"src={src}"] if src or 0 not in self.group else []
        if verb != "redistribute" and self.chance(3):
            found += ["strict=False"]
        return f"{verb}({', '.join([*found, *self.common()])})"

    def local(self):
        drop = f"drop('{self.pick(('w', 'b', '0', '1'))}', missing_ok=True)"
        texts = "copy()", "offload()", "whole(under)", drop, drop
        dtypes = (f"cast(dtype=torch.{self.pick(FLOATS)})",) * 2
        return self.pick((*texts, *dtypes))

    def steps(self):
        """Return the tree to start with, and steps that follow from one another."""
        verb = self.pick(("gather", *VERBS, "gather"))
        if self.chance(12):
            return "a", (self.pick(("equal(tree('c'))", "differ(tree('c'))")),)
        start = "w" if verb in ("broadcast", "distribute") else "a"
        before = [self.local()] if self.chance(5) else []
        main = self.gather() if verb == "gather" else self.deliver(verb, "b")
        after = [self.local()] if self.chance(4) else []
        more = [self.again(verb)] if self.chance(5) else []
        if self.chance(20) and "strict=False" not in str(more):
            after += [f"stop({self.pick(self.group)})"]  # what is left out is not run
        return start, (*before, main, *after, *more)

    def again(self, verb):
        if verb != "gather":
            return self.gather()
        return self.deliver(self.pick(("broadcast", "distribute")), "b")


@st.composite
def programs(draw, size=WORLD):
    """Return programs on so many ranks."""
    pen = Pen(draw, size)
    if size > 2 and pen.chance(6):
        found = tuple(rank for rank in range(size) if pen.below(2))
        pen.group = found or (1,)
    trees = pen.world()
    start, steps = pen.steps()
    used = {
        t: text for t, text in trees.items() if t == start or f"'{t}'" in str(steps)
    }
    texts = [*used.values(), *pen.lines]
    lines = [
        x for x in pen.lines if any(x.partition(" = ")[0] in y for y in texts if y != x)
    ]
    group = pen.group if len(pen.group) < size else ()
    return Program(
        tuple(lines), used, start, steps, size, group, *map(pen.below, (2, 3))
    )
