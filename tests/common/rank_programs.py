"""Programs on several ranks: text, that can be sent there and pasted into a test.

The ``lines`` of one make leaves and its ``trees`` are made of them, on each rank by
itself; ``steps`` begin with the tree ``start``. What the code may call is here, too.
"""

import ast
import itertools
import math
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from rank_leaves import Part, Way, pieces_of

from sdtree.testing import Pair

WORLD = 4

VERBS = ("gather", "distribute", "broadcast", "redistribute")


@dataclass(frozen=True)
class Program:
    """Steps on what each rank has; ``group`` are the ranks that take part, if not all.

    ``small``: regions of few bytes go alone, and ranks ask each other often. ``ways``
    tells by which wire a call goes, and by which a stream.
    """

    lines: tuple[str, ...]
    trees: dict[str, str]
    start: str
    steps: tuple[str, ...]
    size: int = WORLD
    group: tuple[int, ...] = ()
    small: bool = False
    ways: int = 0

    @property
    def ranks(self):
        """Return the ranks that take part."""
        return self.group or tuple(range(self.size))

    def exchanges(self):
        """Return the steps that ranks take together."""
        return [step for step in self.steps if step.partition("(")[0] in VERBS]

    def ends_alone(self):
        """Return whether ranks have met for the last time before the last steps."""
        verbs = [step.partition("(")[0] for step in self.steps]
        last = max((k for k, verb in enumerate(verbs) if verb in VERBS), default=0)
        return "whole" in verbs[last:]

    def laid(self):
        """Return how leaves lie, in one order, whichever rank sees them."""
        every = (node for line in self.lines for node in ast.walk(ast.parse(line)))
        calls = [ast.unparse(node) for node in every if isinstance(node, ast.Call)]
        return [eval(text, NAMES) for text in calls if text.startswith("Way(")]

    def build(self, name, rank):
        """Return a tree as a rank has it, made anew."""
        names = {**NAMES, "rank": rank, "part": partial(part, rank)}
        exec("\n".join(self.lines), names)
        return eval(self.trees[name], names)


# -- what the code may call --------------------------------------------------------


def data(shape, dtype, seed):
    """Return numbers that tell an element from those around it, finite in any dtype."""
    count = math.prod(shape)
    found = (torch.arange(count) * 7 + seed * 13) % 251
    if dtype is torch.bool:  # what reads as True may be any byte but 0
        return (found % 2 * 171).to(torch.uint8).view(shape).view(dtype)
    return found.to(dtype).view(shape)


def dressed(t, how):
    """Return a tensor in memory of its own, which it fills in some way."""
    if t.dtype is torch.bool:  # whose copies by torch have no other bytes than 0 and 1
        return dressed(t.view(torch.uint8), how).view(t.dtype)
    if how == "strided":
        return torch.empty(*t.shape, 2, dtype=t.dtype)[..., 1].copy_(t)
    if how == "padded":
        return (
            torch.empty(t.numel() + 3, dtype=t.dtype)[: t.numel()]
            .view(t.shape)
            .copy_(t)
        )
    if how == "turned":
        return (
            torch.empty(t.shape[::-1], dtype=t.dtype)
            .permute([*range(t.dim())][::-1])
            .copy_(t)
        )
    if how == "mapped" and t.numel():
        with tempfile.NamedTemporaryFile() as file:
            torch.empty(0)
            found = torch.from_file(file.name, True, t.numel(), dtype=t.dtype)
            return found.view(t.shape).copy_(t)
    if how == "lazy" and t.is_complex():
        return t.conj().resolve_conj().conj()
    if how == "lazy" and t.dtype.is_signed and t.itemsize > 1:
        return torch._neg_view(-t)
    if how == "meta":
        return t.to("meta")
    return t.clone(memory_format=torch.contiguous_format)


def full(shape, dtype, seed, how="", grad=False):
    """Return a whole leaf."""
    return dressed(data(shape, dtype, seed), how).requires_grad_(grad)


def scaled(shape, dtype, seed, scale):
    """Return a leaf that has a number beside its tensor."""
    return Part(None, dtype, [data(shape, dtype, seed)], beside=scale)


def part(rank, ways, dtype, seed, how="", grad=False):
    """Return what a rank holds of a sharded leaf, which may lie on several sets.

    A rank that is in none of them sees it as the first does.
    """
    every = ways if isinstance(ways, tuple) else (ways,)
    first = min(every, key=lambda way: sorted(way.ranks))
    way = next((way for way in every if rank in way.ranks), first)
    pieces = way.cut(data(way.shape, dtype, seed), rank)
    for axis in way.terms:
        pieces = [t * (1 + way.place(rank)[axis]) for t in pieces]
    grad = grad and not way.boxed
    return Part(way, dtype, [dressed(t, how) for t in pieces], grad)


def alias(x, is_tied=True, moved=0):
    """Return the same leaf in the same memory, or if not tied in its own, moved on."""

    def make(t):
        t = t.detach()
        return t if is_tied else t.reshape(-1).roll(moved).view(t.shape)

    if isinstance(x, Part):
        pieces = [make(t) for t in x.pieces]
        return Part(x.way, x.dtype, pieces, x.requires_grad, x.beside)
    return make(x).requires_grad_(x.requires_grad)


def met(x, other, at_any=False):
    """Return another leaf, in the memory of one where ranks hold the same of both.

    ``at_any``: where they hold as much of both, whatever it is.
    """
    mine, theirs = [*map(pieces_of, (x, other))]
    sizes = [[t.size() for t in pieces] for pieces in (mine, theirs)]
    if not mine or sizes[0] != sizes[1] or mine[0].is_meta:
        return other
    if not (at_any or all(map(torch.equal, mine, theirs))):
        return other
    held = [t.detach() for t in mine]
    if not isinstance(other, Part):
        return held[0]
    if other.way.blocks and not all(map(torch.Tensor.is_contiguous, mine)):
        return other  # torch takes no others
    return Part(other.way, other.dtype, held, other.requires_grad, other.beside)


def turned(x, is_tied=True):
    """Return the transpose of a leaf, in the same memory or if not tied in its own."""
    x = alias(x, is_tied)

    def turn(t):
        return t.detach().permute([*range(t.dim())][::-1])

    if isinstance(x, Part):
        pieces = [*map(turn, x.pieces)]
        return Part(x.way.turned(), x.dtype, pieces, x.requires_grad, x.beside)
    return turn(x).requires_grad_(x.requires_grad)


def ordered(*pairs):
    new = OrderedDict(pairs)
    new._metadata = OrderedDict({"": {"version": 1}})
    return new


def in_length(path):
    return len(str(path)) % 2


def pair_in_length(path):
    return {in_length(path), 1}


def under(tree):
    return {"x": tree}


CALLED = (OrderedDict, Pair, Way, alias, full, in_length, ordered, pair_in_length)
CALLED += (met, scaled, turned, under)
NAMES = {x.__name__: x for x in CALLED} | {"torch": torch, "COUNT": itertools.count()}
