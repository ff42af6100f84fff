"""Layouts as JSON data, and back from data that anyone may have written.

Ranks that hold the same boxes stand together, so that replicas are told once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from sdtree.layout.boxes import Box, Offsets, shown
from sdtree.text.strict_json import FAR, Json, count, expect, parts_in, shortly

MOST_DIMS: Final = 64
"""How many dimensions torch has room for."""

Held = Mapping[int, tuple[Box, ...]]


class Fields(NamedTuple):
    """What a document tells of a layout."""

    shape: tuple[int, ...]
    boxes: Held
    is_partial: bool
    doubt: str


def dump(fields: Fields) -> Json:
    """Return the JSON data of a layout."""
    together: dict[tuple[Box, ...], list[int]] = {}
    for rank, boxes in fields.boxes.items():  # which a layout has in order
        together.setdefault(boxes, []).append(rank)
    return {
        "shape": fields.shape,
        "boxes": [[ranks, boxes] for boxes, ranks in together.items()],
        "partial": fields.is_partial,
        "doubt": fields.doubt,
    }


def load(data: Json) -> Fields:
    """Return what ``dump`` was given; raise ``ValueError`` for any other data."""
    found = expect(data, dict)
    if {*found} != {"shape", "boxes", "partial", "doubt"}:
        raise ValueError(
            f"shape, boxes, partial and doubt were expected, not {shortly([*found])}"
        )
    shape = _shape(found["shape"])
    boxes = _held(found["boxes"], shape)
    return Fields(
        shape, boxes, expect(found["partial"], bool), expect(found["doubt"], str)
    )


def _shape(data: Json) -> tuple[int, ...]:
    if len(expect(data, list)) > MOST_DIMS:
        raise ValueError(f"a tensor has {MOST_DIMS} dimensions at most")
    shape = tuple(map(count, data))
    if math.prod(filter(None, shape)) >= FAR:
        raise ValueError(f"no tensor is as large as {shortly(data)}")
    return shape


def _held(data: Json, shape: tuple[int, ...]) -> Held:
    found: dict[int, tuple[Box, ...]] = {}
    for each in expect(data, list):
        ranks, told = parts_in(each, 2)
        boxes = tuple(_box(one, shape) for one in expect(told, list))
        if any(box.tensor >= len(boxes) for box in boxes):
            raise ValueError(f"{len(boxes)} boxes cannot lie in so many local tensors")
        for rank in map(count, expect(ranks, list)):
            if rank in found:
                raise ValueError(f"rank {rank} is told twice")
            found[rank] = boxes
    return found


def _box(data: Json, shape: tuple[int, ...]) -> Box:
    tensor, *sides = parts_in(data, 4)
    local, offset, size = (_offsets(side, len(shape)) for side in sides)
    ends = (*map(int.__add__, local, size), *map(int.__add__, offset, size))
    if max(ends, default=0) >= FAR or any(map(int.__gt__, ends[len(shape) :], shape)):
        raise ValueError(
            f"the box {shortly(shown(offset, size))} lies outside a tensor of shape "
            f"{shortly(shape)}"
        )
    return Box(count(tensor), local, offset, size)


def _offsets(data: Json, dims: int) -> Offsets:
    return tuple(map(count, parts_in(data, dims)))
