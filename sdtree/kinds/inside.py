"""What is in a sharded leaf whose local tensor is a wrapper over others.

Where that is cut, so are they. Those that are cut in proportion are parts of a whole,
each by boxes of its own; those that are left as they are each rank has whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import string_at
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Any

from torch import Tensor

from sdtree.errors import LayoutError
from sdtree.kinds.asking import Sizes, Untold, asked, resized
from sdtree.kinds.handler import Makeup, handler_of
from sdtree.layout.layout import Box, Layout, Parts, whole
from sdtree.tensors.bits import bits_of


@dataclass(frozen=True, slots=True)
class Inside:
    """A local tensor that is not dense: its size, and those of what it is over.

    ``cut`` tells which of these are cut as it is, None where nobody can tell, ``why``.
    ``has_size``: what it is beside them tells its size. ``alike`` is what ranks must
    have in common, the bits of those that are not cut.
    """

    kind: type
    size: Sizes
    sizes: tuple[Sizes, ...]
    cut: tuple[bool, ...] | None
    why: str = ""
    has_size: bool = False
    alike: str = ""


def look_inside(local: Any, dims: Sequence[int]) -> Inside | None:
    """Return what is in a local tensor that is cut along ``dims``, None if it is dense.

    So it is, too, while it is on its way.
    """
    handler = handler_of(local)
    if not handler.keeps_type:
        return None
    ts, aux = handler.flatten(local)
    if handler.is_dense(aux):
        return None
    size, sizes = tuple(local.size()), tuple(tuple(t.size()) for t in ts)
    if not dims:
        return Inside(type(local), size, sizes, (False,) * len(ts))
    try:
        cut, has_size = asked(local, ts, aux, dims)
    except Untold as error:
        return Inside(type(local), size, sizes, None, str(error))
    left = [t for t, is_cut in zip(ts, cut, strict=True) if not is_cut]
    return Inside(type(local), size, sizes, cut, "", has_size, _bits_of(left))


def _bits_of(ts: Sequence[Tensor]) -> str:
    held = [bits_of(t).cpu().contiguous() for t in ts if not t.is_meta]
    raw = b"".join(string_at(t.data_ptr(), t.nbytes) for t in held)
    return blake2b(raw, digest_size=4).hexdigest() if raw else ""


def parts_of(layout: Layout, inside: Inside, dims: Sequence[int]) -> Parts:
    """Return how each inner tensor lies on the ranks; raise ``LayoutError`` if unknown.

    Those that are not cut lie whole on each.
    """
    if inside.cut is None:
        raise LayoutError(inside.why)
    layouts = [
        _scaled(layout, inside.size, size, dims) if cut else whole(size, layout.ranks)
        for size, cut in zip(inside.sizes, inside.cut, strict=True)
    ]
    return Parts(inside.kind, tuple(layouts), inside.alike)


def _scaled(layout: Layout, size: Sizes, inner: Sizes, dims: Sequence[int]) -> Layout:
    """Return the layout of an inner tensor that is cut as the outer one is.

    It has the same dimensions, or one: then it is in blocks of the outer one's rows.
    """
    if len(inner) == 1 and len(size) > 1 and [*dims] == [0]:
        rows = Fraction(inner[0], size[0])
        scale = _scaling(layout, [rows], dims, inner)
    elif len(inner) == len(size):
        ratios = [Fraction(a, b) for a, b in zip(inner, size, strict=True)]
        scale = _scaling(layout, ratios, dims, inner)
    else:
        raise LayoutError(f"where {inner} of {size} is cut along {tuple(dims)}")
    boxes = {
        rank: tuple(
            Box(0, scale(box.local), scale(box.offset), scale(box.size, is_size=True))
            for box in held
        )
        for rank, held in layout.boxes.items()
    }
    return Layout(scale(layout.shape, is_size=True), boxes)


def _scaling(
    layout: Layout, ratios: Sequence[Fraction], dims: Sequence[int], inner: Sizes
) -> Callable[..., Sizes]:
    """Return what makes places in an inner tensor of those in the outer one."""

    def scale(places: Sizes, is_size: bool = False) -> Sizes:
        found = [
            places[d] * ratio if d in dims else inner[d] if is_size else 0
            for d, ratio in enumerate(ratios)
        ]
        if any(Fraction(x).denominator != 1 for x in found):
            raise LayoutError(
                f"whose inner tensor of shape {inner} is in blocks, and other ranks "
                "hold parts of these"
            )
        return tuple(map(int, found))

    return scale


def whole_makeup(
    local: Any, inside: Inside, shape: Sizes, requires_grad: bool
) -> Makeup:
    """Return what the whole is beside its tensors, of which a rank has this part."""
    aux = handler_of(local).flatten(local)[1]
    if hasattr(aux, "requires_grad"):
        aux = replace(aux, requires_grad=requires_grad)
    if inside.size == shape:
        return Makeup(inside.kind, aux)
    return Makeup(inside.kind, resized(aux, inside.has_size, inside.size, shape))
