"""Conversions of sharded leaves, for laws on ranks: worlds of rules, laid out."""

import math

import torch
from conversions import World, worlds
from hypothesis import strategies as st
from shards import locals_of

from sdtree.testing import Boxed, blocks, layouts

WORLD = 4
EVERYONE = range(WORLD)


@st.composite
def ways(draw, shape, on_all):
    """Draw how a leaf lies: on all ranks or none in particular, or on some."""
    found = [layouts(WORLD, shape=shape, ranks=EVERYONE if on_all else None)]
    if math.prod(shape) and shape:
        found += [blocks(WORLD, shape=shape)]
    way = draw(st.one_of(*found, *found, *([st.none()] if on_all else [])))
    return Boxed(way) if way is not None and draw(st.booleans()) else way


@st.composite
def laid_out(draw):
    """Draw a world of rules, and of each of its leaves how it lies on ranks."""
    world = draw(worlds())
    on_all = draw(st.booleans())
    shapes = {
        name: tuple(index.shape)
        for side in (world.source, world.target)
        for name, index in world.index(side).items()
    }
    return world, {name: draw(ways(shapes[name], on_all)) for name in sorted(shapes)}


def here(full, way):
    """Return what this rank has of a tensor that lies in some way."""
    return full.clone() if way is None else way.distribute(full)


def sharded(leaves, how):
    """Return leaves as they lie, each in its way."""
    return {name: here(t, how[name]) for name, t in leaves.items()}


def spoiled(leaves):
    """Return other tensors of the same form."""
    return {
        name: torch.full_like(t, torch.nan if t.is_floating_point() else 1)
        for name, t in leaves.items()
    }


def numbers(world: World, side, how):
    """Return of each leaf of a side which elements this rank has, by number."""
    found = sharded(world.index(side), how)
    return {
        name: {n for t in locals_of(x) for n in t.flatten().tolist()}
        for name, x in found.items()
    }
