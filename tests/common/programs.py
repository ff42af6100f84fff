"""Programs: chains of operations, drawn as code, on drawn worlds.

``running.check`` runs one in many ways and compares with what it means.
"""

import re
from dataclasses import dataclass

import oracle
import torch
from hypothesis import strategies as st
from worlds import ODD, Pen, World, worlds

import sdtree as sd
from sdtree.testing import Color


@dataclass(frozen=True)
class Program:
    """Steps on a tree; ``mode`` is what holds around every call."""

    world: World
    steps: tuple[str, ...]
    mode: str = "plain"
    which: str = "'**'"
    runs: tuple[str, ...] = ()


# -- what the code may call --------------------------------------------------------


def double(x):
    return x * 2 if type(x) in (int, float) else x


def negate(x):
    is_float = isinstance(x, torch.Tensor) and x.dtype is torch.float32
    return -x.detach() if is_float and is_dense(x) else x


def first(x):
    """Return a view of what a tensor holds."""
    return x[:1] if isinstance(x, torch.Tensor) and is_dense(x) and x.dim() else x


def is_dense(x):
    """Return whether a tensor is bare, and can be read: none of its memory is freed."""
    if type(x) is not torch.Tensor or x.layout is not torch.strided:
        return False
    steps = zip(x.shape, x.stride(), strict=True)
    most = 1 + sum((size - 1) * step for size, step in steps) + x.storage_offset()
    is_held = x.is_meta or most * x.itemsize <= x.untyped_storage().nbytes()
    return is_held or not x.numel()


def invert(tensors):
    """Turn every bit that dense tensors read from the memory that they lie in.

    So those that read alike still do, if some of them read negatives or conjugates.
    """
    usable = [t for t in tensors if is_dense(t) and not (t.is_meta or t.is_inference())]
    for t in {t.untyped_storage()._cdata: t for t in usable}.values():
        memory = t.untyped_storage()
        turn = [torch.Tensor.neg_] * t.is_neg()
        turn += [torch.Tensor.conj_physical_] * t.is_conj()
        for act in (*turn, torch.Tensor.bitwise_not_, *turn):
            kind = t.dtype if act in turn else torch.uint8
            act(torch.empty(0, dtype=kind).set_(memory))


def boxed(x):
    return [x] if isinstance(x, str) else x


def shout(path, x):
    return f"{len(path)}!" if isinstance(x, str) else x


def is_even(path, x):
    return len(path) % 2 == 0


def is_large(path, x):
    return isinstance(x, torch.Tensor) and x.numel() > 3


def is_odd(path, x):
    """Return what the data of a leaf says, or its mark: two of one form may differ."""
    if not is_dense(x) or x.is_meta or not x.numel():
        return type(x) is int and x % 2 == 1
    return x.requires_grad or bool(x.detach().reshape(-1)[0].item())


def under(tree):
    return {"x": tree, "y": 0}


def longer(name):
    return f"{name}.x"


def shorter(name):
    return name.partition(".")[2] or name


FUNCTIONS = (double, negate, first, boxed, shout, is_even, is_large, is_odd)
FUNCTIONS += (under, longer, shorter)
NAMES = {fn.__name__: fn for fn in FUNCTIONS}
NAMES |= {"torch": torch, "re": re, "Color": Color}
OPERATIONS = (
    *("copy", "offload", "to", "cast", "empty_like", "wait", "select", "drop", "where"),
    *("rename", "prefix", "strip_prefix", "map", "map_with_path", "selector"),
    *("flatten", "whole"),
)
OURS_BY_NAME = {name: getattr(sd, name) for name in OPERATIONS}
OURS_BY_NAME["identity"] = lambda: sd.identity

# -- drawing -----------------------------------------------------------------------

MODES = ("plain", "plain", "meta", "float64", "inference", "no_grad", "vmap")
RUNS = (
    *(
        "call",
        "prepare",
        "reuse",
        "stream",
        "windows",
        "pickle",
        "threads",
        "value",
        "plan",
        "order",
    ),
    *("parts", "names", "comparing", "memory", "pt", "safetensors", "every name"),
)
FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e5m2")
MAPPED = (
    "map(double)",
    "map(negate)",
    "map(first)",
    "map(boxed)",
    "map_with_path(shout)",
)
INTO = (
    *("alike", "copied", "apart", "strided", "repeating", "gaps", "slab", "source"),
    *("shorter", "redressed", "heap", "heap", "gaps", "lazy", "opposed"),
)


def bare(text):
    """Return a text as a choice among others, without braces of its own."""
    return re.sub(r"[{},*?\[\]]", "", text)


class Hand(Pen):
    """Writes the code of programs."""

    def __init__(self, draw, names):
        super().__init__(draw)
        self.names = names or ["none"]

    def glob(self):
        name = self.pick(self.names)
        head, _, tail = name.partition(".")
        last = name.rpartition(".")[2]
        return self.pick(
            (
                *(name, "**", f"{head}.**", f"**.{last}", "*", f"*.{tail}", "nothing"),
                *(f"{head[:1]}*.**", "**.*", "*.**.*", f"**.{last}.**", "**.**.w"),
                *(
                    f"?{head[1:]}.**",
                    f"**.[!z]{last[1:]}",
                    "**.[0-3a-w].**",
                    "?",
                    "**.??",
                ),
                *(f"{{{bare(head)},zz}}.**", f"**.{{{bare(last)},w,bb}}"),
            )
        )

    def selector(self):
        which = self.below(10)
        if which < 4:
            return repr(self.glob())
        if which < 6:
            tests = ("torch.Tensor", "int", "float | str", "is_even", "is_large")
            tests = (*tests, "(float, str)", "is_odd", "is_odd")
            return self.pick((*tests, f"({self.glob()!r}, int, {self.glob()!r})"))
        if which < 7:
            return f"re.compile({re.escape(self.pick(self.names)[-3:])!r})"
        sign = self.pick("&|")
        if which < 9:
            return f"selector({self.selector()}) {sign} selector({self.selector()})"
        return f"~selector({self.selector()})"

    def rule(self):
        name = self.pick(self.names)
        head, _, tail = name.partition(".")
        last = name.rpartition(".")[2]
        second = f"{head}.{tail.partition('.')[0]}"
        forms = (
            *((f"{second}.**", f"{head}.**"), (f"**.{head}.**", f"**.{head[1:]}.**")),
            *(("**", "**"), (f"{head}.**", "z.**"), (f"{head}.**", "**")),
            *((f"**.{last}", "**.new"), (name, f"{name}.x"), (name, f"x.{tail}")),
            *(("*.**", "*.q.**"), ("**", "x.y.**"), (name, "w"), (f"*.{tail}", "*")),
            *((f"{head[:1]}*.**", "*.**"), (f"{head}.*.**", f"{head}.*.q.**")),
            *((f"[!z]{head[1:]}.**", "*.**"), (f"*.{{{bare(last)},zz}}", "*.q*")),
            *((f"**.?{last[1:]}", "**.*v"), (f"{{{bare(head)},w}}.[0-9].**", "*.*.**")),
        )
        which = self.below(5)
        if which < 2:
            return repr(self.pick(forms))
        if which == 2:
            return repr(dict([self.pick(forms), self.pick(forms)]))
        if which == 3:
            return self.pick(("longer", "shorter"))
        return self.pick(
            (
                f"(re.compile({re.escape(last)!r} + '$'), 'new')",
                "(re.compile('^([^.]*)'), r'\\1.mid')",
                "(re.compile('w'), 'v')",
                f"(re.compile('^' + {re.escape(head)!r}), 'z')",
            )
        )

    def local(self):
        """Return the code of a step that acts on leaves."""
        which = self.below(9)
        if which < 3:
            return self.pick(("copy()", "offload()", "identity()", "wait()"))
        if which < 4:
            return self.pick(("to('cpu')", "to('cpu')", "to('meta')", "empty_like()"))
        if which < 6:
            return f"cast(dtype=torch.{self.pick(FLOATS)})"
        return self.pick((*MAPPED, "map_with_path(shout)"))

    def segment(self):
        name = self.pick(self.names)
        return self.pick(("module", "a.b", name.partition(".")[0], "0")).strip(".")

    def step(self):
        which = self.below(17)
        ok = self.pick(("", ", missing_ok=True", ", missing_ok=True"))
        if which < 5:
            return self.local()
        if which < 7:
            return f"{self.pick(('select', 'drop'))}({self.selector()}{ok})"
        if which < 8:
            inner = self.local() if self.below(3) else f"drop({self.selector()}{ok})"
            return f"where({self.selector()}, {inner}{ok})"
        if which < 11:
            return f"rename({self.rule()}{ok})"
        if which < 12:
            return f"prefix({self.segment()!r})"
        if which < 13:
            return f"strip_prefix({self.segment()!r}{ok})"
        if which < 15:
            return f"copy(into=into({self.pick(INTO)!r}))"
        if which < 16:
            return self.pick(("flatten()", "flatten(sep='::')", "whole(under)"))
        return f"cast(like=like(torch.{self.pick(FLOATS)}))"


def odd_programs():
    """Return programs on worlds with leaves that no kind serves."""
    return programs(runs=(), more=ODD)


@st.composite
def programs(draw, runs=RUNS, most=3, more=()):
    """Return programs on drawn worlds, to be run in some of the ways."""
    world = draw(worlds(more=more))
    names = [oracle.name_of(path) for path, _ in oracle.items(world.build())]
    hand = Hand(draw, names)
    steps = tuple(hand.step() for _ in range(1 + hand.below(most)))
    mode = hand.pick(MODES)
    ways = tuple(hand.some(runs, 4)) if runs else ()
    return Program(world, steps, mode, hand.selector(), ways)
