"""Tensors that tell what is done to them: where each axis goes, and no data.

What cuts, joins, turns and regroups them is written down as a polynomial of axes. What
computes with elements is no such thing, and raises ``Inexact``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from sdtree.conversion.text import Axis, Expr, Product, Sum


class Inexact(Exception):
    """An operation is no map of elements, or none that is known."""


@dataclass(slots=True)
class Book:
    """The axes of some tensors: their sizes, and what they have turned out to be."""

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    known: dict[str, Expr] = field(default_factory=dict[str, Expr])

    def axis(self, size: int) -> Axis:
        """Return a new axis."""
        name = f"x{len(self.sizes)}"
        self.sizes[name] = size
        return Axis(name)

    def told(self, expr: Expr) -> Expr:
        """Return an expression by what is known of its axes."""
        if isinstance(expr, Axis):
            found = self.known.get(expr.name)
            return expr if found is None else self.told(found)
        if isinstance(expr, Sum):
            return Sum(tuple(map(self.told, expr.parts)))
        factors = [factor for part in expr.parts for factor in self.factors(part)]
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def factors(self, expr: Expr) -> Sequence[Expr]:
        """Return what an expression is the product of."""
        told = self.told(expr)
        return told.parts if isinstance(told, Product) else (told,)

    def size(self, expr: Expr) -> int:
        """Return the size of an expression."""
        if isinstance(expr, Axis):
            return self.sizes[expr.name]
        each = [self.size(part) for part in expr.parts]
        return sum(each) if isinstance(expr, Sum) else prod(each)

    def equate(self, a: Expr, b: Expr) -> None:
        """Write down that two dims are the same."""
        a, b = self.told(a), self.told(b)
        if a == b:
            return
        if self.size(a) != self.size(b):
            raise Inexact(f"dims of {self.size(a)} and {self.size(b)} are joined")
        for one, other in ((b, a), (a, b)):
            if isinstance(one, Axis):
                self.known[one.name] = other
                return
        raise Inexact("dims that are made in different ways are joined")

    def cut(self, expr: Expr, sizes: Sequence[int]) -> list[Expr]:
        """Return the parts of a dim that is cut into such sizes."""
        first, *rest = self.factors(expr)
        below = prod(map(self.size, rest))
        if any(size % below for size in sizes):
            raise Inexact(f"a dim is cut into {list(sizes)} where it is merged")
        own = [size // below for size in sizes]
        if isinstance(first, Sum) and [*map(self.size, first.parts)] == own:
            parts = first.parts
        elif isinstance(first, Axis):
            parts = tuple(map(self.axis, own))
            self.known[first.name] = Sum(parts)
        else:
            raise Inexact("a dim is cut where it is made of others")
        return [Product((part, *rest)) if rest else part for part in parts]

    def regrouped(self, dims: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
        """Return dims of another shape that have the same elements in a row."""
        left = [f for dim in dims for f in self.factors(dim) if self.size(f) != 1][::-1]
        found: list[Expr] = []
        for size in shape:
            row: list[Expr] = []
            while prod(map(self.size, row)) < size:
                row.append(self._taken(left, size // prod(map(self.size, row))))
            found.append(row[0] if len(row) == 1 else Product(tuple(row)))
        return found

    def _taken(self, left: list[Expr], most: int) -> Expr:
        """Take a factor of a size at most, or what of it is that large."""
        factor = left.pop()
        size = self.size(factor)
        if size <= most:
            return factor
        if not isinstance(factor, Axis) or size % most:
            raise Inexact("a dim is cut where it is made of others")
        outer, inner = self.axis(most), self.axis(size // most)
        self.known[factor.name] = Product((outer, inner))
        left.append(inner)
        return outer


class Symbol(Tensor):
    """A tensor without data that knows of what its dims are made.

    ``picked`` is, for a part of a dim of which each index is apart, the axis and which.
    """

    book: Book
    dims: list[Expr]
    picked: tuple[tuple[Axis, int], ...]

    @staticmethod
    def of(
        book: Book,
        dims: Sequence[Expr],
        dtype: torch.dtype,
        picked: tuple[tuple[Axis, int], ...] = (),
    ) -> Symbol:
        """Return the symbol of these dims."""
        shape = [book.size(dim) for dim in dims]
        bare = torch.empty(shape, dtype=dtype, device="meta")
        made = Tensor._make_subclass(Symbol, bare)
        made.book, made.dims, made.picked = book, [*dims], picked
        return made

    def like(
        self, dims: Sequence[Expr], picked: tuple[tuple[Axis, int], ...] = ()
    ) -> Symbol:
        """Return a symbol of the same book over other dims."""
        return Symbol.of(self.book, dims, self.dtype, self.picked + picked)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ACTS:
            return ACTS[name](*args, **(kwargs or {}))
        if name in LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise Inexact(f"{name} is no map of elements that is known")


LOOKS: Final = frozenset({"__get__", "size", "dim", "numel", "__len__", "stride"})
"""What only looks at the form of a tensor."""


def _transposed(x: Symbol, dim0: int, dim1: int) -> Symbol:
    dims = [*x.dims]
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return x.like(dims)


def _split(x: Symbol, split_size: Sequence[int] | int, dim: int = 0) -> list[Symbol]:
    """Return parts of a tensor; of single indices each remembers which it is."""
    whole = x.shape[dim]
    sizes = split_size
    if isinstance(sizes, int):
        full, rest = divmod(whole, sizes)
        sizes = [sizes] * full + [rest] * bool(rest)
    here = x.book.told(x.dims[dim])
    if len(sizes) > 1 and {*sizes} == {1} and isinstance(here, Axis):
        one: Expr = Product(())
        return [x.like(_replaced(x.dims, dim, one), ((here, i),)) for i in range(whole)]
    return [x.like(_replaced(x.dims, dim, p)) for p in x.book.cut(here, sizes)]


def _replaced(dims: Sequence[Expr], dim: int, expr: Expr) -> list[Expr]:
    found = [*dims]
    found[dim] = expr
    return found


def _chunked(x: Symbol, chunks: int, dim: int = 0) -> list[Symbol]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _joined(xs: Sequence[Symbol], dim: int = 0) -> Symbol:
    first, *others = xs
    for other in others:
        for k, (a, b) in enumerate(zip(first.dims, other.dims, strict=True)):
            if k != dim % len(first.dims):
                first.book.equate(a, b)
    return first.like(_replaced(first.dims, dim, Sum(tuple(x.dims[dim] for x in xs))))


def _reshaped(x: Symbol, *shape: Any) -> Symbol:
    wanted = [*shape[0]] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    known = prod(size for size in wanted if size != -1)
    sizes = [x.numel() // known if size == -1 else size for size in wanted]
    return x.like(x.book.regrouped(x.dims, sizes))


def _squeezed(x: Symbol, dim: int) -> Symbol:
    dims = [*x.dims]
    if x.shape[dim] == 1:
        del dims[dim]
    return x.like(dims)


def _same(x: Symbol, **_: Any) -> Symbol:
    return x


ACTS: Final[dict[str, Callable[..., Any]]] = {
    "transpose": _transposed,
    "chunk": _chunked,
    "split": _split,
    "cat": _joined,
    "reshape": _reshaped,
    "view": _reshaped,
    "squeeze": _squeezed,
    "contiguous": _same,
    "clone": _same,
}
"""What is known to move elements, by its name in torch."""
