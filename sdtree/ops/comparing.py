"""Two trees side by side: ``similar``, ``equal`` and ``diff``."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.kinds.abstract import Abstract
from sdtree.leaf import handler_of, of_type
from sdtree.path import name_of, where
from sdtree.shapes import differing_containers, mismatch, pair
from sdtree.treespec import take
from sdtree.typing import Leaf, Path, Tree
from sdtree.values import same_value


def similar(a: Tree, b: Tree, /) -> bool:
    """Return whether two trees are alike in all but the data.

    That is structure, leaf kinds, shapes, dtypes and layouts, and the types of plain
    values. The order of keys in mappings is free. An ``Abstract`` is like what it
    stands for.

    >>> sd.similar({"a": 1, "w": torch.ones(2)}, {"w": torch.zeros(2), "a": 5})
    True
    """
    sides = _paired(a, b)
    if sides is None:
        return False
    here, there = sides
    if not all(map(is_, map(type, here), map(type, there))):
        return all(map(_same_form, here, there))
    for cls in {*map(type, here)}:
        ours, theirs = of_type(cls, here), of_type(cls, there)
        handler = handler_of(ours[0])
        if handler.is_plain or handler.are_alike(ours, theirs):
            continue
        if not all(map(_same_form, ours, theirs)):
            return False
    return True


def equal(a: Tree, b: Tree, /) -> bool:
    """Return whether two trees are similar and hold the same bits; nan equals nan.

    Devices, strides, ``requires_grad`` and the order of keys do not count.

    >>> sd.equal({"w": torch.tensor(float("nan"))}, {"w": torch.tensor(float("nan"))})
    True
    """
    sides = _paired(a, b)
    return sides is not None and all(map(_same_leaf, sides[0], sides[1]))


def _paired(a: Tree, b: Tree) -> tuple[list[Leaf], list[Leaf]] | None:
    """Return the leaves of both trees in one order, None if the structures differ."""
    (here, spec), (there, other) = take(a), take(b)
    if spec != other:
        if mismatch(spec, other):
            return None
        there = [there[k] for k in pair(spec, other, "the second tree")]
    return here, there


def _form(leaf: Leaf) -> object:
    """Return what ``similar`` compares of a leaf."""
    found = Abstract.of(leaf)
    return found.kind, found.shape, found.dtype, found.forms()


def _same_form(x: Leaf, y: Leaf) -> bool:
    if _form(x) != _form(y):
        return False
    if type(x) is not type(y):  # one of them is abstract, and has no other form
        return True
    (ours, aux), (_, other) = handler_of(x).flatten(x), handler_of(y).flatten(y)
    return not ours or same_value(aux, other)


def _same_leaf(x: Leaf, y: Leaf) -> bool:
    if type(x) is not type(y):
        return False
    handler = handler_of(x)
    (ours, aux), (theirs, other) = handler.flatten(x), handler.flatten(y)
    return (
        len(ours) == len(theirs)
        and same_value(aux, other)
        and all(map(_same_bits, ours, theirs))
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta != b.is_meta:
        return False
    return a.is_meta or torch.equal(_bits(a), _bits(b).to(a.device))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(t: Tensor) -> Tensor:
    """Return the bits of a tensor as integers."""
    t = t.detach().resolve_conj().resolve_neg()
    if t.itemsize == 16:
        t = torch.view_as_real(t)
    return t.view(_INTEGERS[t.itemsize])


# -- diff --------------------------------------------------------------------------


class Difference(NamedTuple):
    """One place where two trees differ: what differs, and what each of them has."""

    path: Path
    what: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{where(self.path)}: {self.what}, {self.a} and {self.b}"


@dataclass(frozen=True, slots=True)
class Diff:
    """Where two trees differ. It is falsy if nowhere, and prints as a table."""

    differences: tuple[Difference, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def to_json(self) -> str:
        """Return the differences as a JSON list of objects."""
        rows = [
            {"name": name_of(d.path), "what": d.what, "a": d.a, "b": d.b}
            for d in self.differences
        ]
        return json.dumps(rows, indent=2)

    def __str__(self) -> str:
        if not self.differences:
            return "no differences"
        rows = [("name", "differs in", "a", "b")]
        rows += [(where(d.path), d.what, d.a, d.b) for d in self.differences]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    __repr__ = __str__


def diff(a: Tree, b: Tree, /, *, values: bool = True) -> Diff:
    """Return where two trees differ, falsy if ``equal``.

    That is in leaves that only one has, containers, kinds, shapes, dtypes and values;
    without ``values``, the data is not looked at. A difference in values tells how many
    elements differ and by how much at most.

    >>> print(sd.diff({"w": torch.ones(2), "n": 1}, {"w": torch.zeros(3)}))
    name  differs in  a      b
    w     shape       (2,)   (3,)
    n     leaf        int 1  nothing
    """
    (here, spec), (there, other) = take(a), take(b)
    theirs = dict(zip(other.paths(), there, strict=True))
    found: list[Difference] = []
    for path, x in zip(spec.paths(), here, strict=True):
        if path in theirs:
            found.extend(_differences(path, x, theirs.pop(path), values))
        else:
            found.append(Difference(path, "leaf", _described(x), "nothing"))
    for path, y in theirs.items():
        found.append(Difference(path, "leaf", "nothing", _described(y)))
    for path, ours, others in differing_containers(spec.shape, other.shape):
        found.append(Difference(path, "container", ours, others))
    return Diff(tuple(found))


def _described(leaf: Leaf) -> str:
    form = Abstract.of(leaf)
    if form.dtype is None:
        return f"{form.kind.__name__} {reprlib.repr(leaf)}"
    return f"{form.kind.__name__} {form.shape} {_name(form.dtype)}"


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _differences(path: Path, x: Leaf, y: Leaf, values: bool) -> Iterator[Difference]:
    """Yield in what two leaves differ: in kind, else in form, else in value."""
    a, b = Abstract.of(x), Abstract.of(y)
    if a.kind is not b.kind:
        yield Difference(path, "kind", _described(x), _described(y))
        return
    if a.shape != b.shape:
        yield Difference(path, "shape", str(a.shape), str(b.shape))
    if a.dtype != b.dtype:
        yield Difference(path, "dtype", _name(a.dtype), _name(b.dtype))
    elif a.shape == b.shape and not _same_form(x, y):
        yield Difference(path, "layout", _layout(x), _layout(y))
    elif a.shape == b.shape and values and not _same_leaf(x, y):
        yield Difference(path, "value", *_values(x, y))


def _layout(leaf: Leaf) -> str:
    """Return how the data of a leaf is laid out: in which tensors, and what beside."""
    _, aux = handler_of(leaf).flatten(leaf)
    return f"{Abstract.of(leaf).forms()} {aux}"


def _values(x: Leaf, y: Leaf) -> tuple[str, str]:
    """Return what tells two leaves of one form apart."""
    ours, theirs = handler_of(x).flatten(x)[0], handler_of(y).flatten(y)[0]
    if not ours or any(t.is_meta for t in (*ours, *theirs)):
        return _described(x), _described(y)
    pairs = list(zip(ours, theirs, strict=True))
    count = sum(_count(a, b) for a, b in pairs)
    most = _largest(_distance(a, b) for a, b in pairs)
    total = sum(t.numel() for t in ours)
    return f"{count} of {total} elements differ", f"by at most {most:.3g}"


def _count(a: Tensor, b: Tensor) -> int:
    return int((_bits(a) != _bits(b).to(a.device)).sum())


SLICE = 2**20
"""How many elements are widened at a time, so that a large leaf takes little room."""


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference; nan where only one of two is nan."""
    pairs = zip(
        a.detach().flatten().split(SLICE), b.flatten().split(SLICE), strict=True
    )
    return _largest(_distance_of_slices(x, y) for x, y in pairs if x.numel())


def _largest(distances: Iterable[float]) -> float:
    """Return the largest of the distances, nan if one of them is."""
    return float(torch.tensor([0.0, *distances], dtype=torch.float64).max())


def _distance_of_slices(a: Tensor, b: Tensor) -> float:
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.to(wide), b.detach().to(a.device, wide)
    apart_by = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
    return float(apart_by.max())
