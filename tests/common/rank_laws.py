"""What the laws of ranks are tried on: trees, layouts, wires, and how a law is run."""

import itertools
import math
import os
import zlib
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from ranks import pool

import sdtree as sd
from sdtree.exchange import windows as batches
from sdtree.testing import (
    Boxed,
    Sketch,
    blocks,
    layouts,
    sharded_trees,
    sketches,
)
from sdtree.tree.spec import take
from sdtree.wire import messages as shipping
from sdtree.wire.collectives import forced

WORLD = 4


EVERYONE = range(WORLD)


laws = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
)


buckets = st.sampled_from([1, 24, 200, 2**25])


options = st.fixed_dictionaries({"bucket_bytes": buckets, "verify": st.booleans()})


trees = sharded_trees()


on_all = sharded_trees(
    st.one_of(
        sketches(ranks=EVERYONE),
        (blocks() | blocks().map(Boxed)).map(
            lambda x: Sketch(x.shape, x, torch.float32, 3)
        ),
    )
)
"""Trees of which every leaf lies on all ranks, and so can go to any."""


WAYS = [*itertools.product(("pairs", "collective"), (True, False))]
"""The wires, and whether all sizes are made small."""


def by_each_wire(law, *args, **options):
    """Run a law on all ranks, by each wire, and again with all sizes made small.

    In CI the sizes are small by the one wire or by the other, as the example has it.
    """
    ways = WAYS
    if os.environ.get("CI"):
        k = zlib.crc32(repr((args, options)).encode()) % 2
        ways = [WAYS[k], WAYS[3 - k]]
    pool(WORLD).run(_by_each_wire, ways, law, args, options)


def _by_each_wire(ways, law, args, options):
    errors = []
    for wire, is_small in ways:
        usual = shipping.LARGE, batches.STATUS_BYTES
        large, status = (16, 64) if is_small else usual
        with (
            forced(wire),
            patch.object(shipping, "LARGE", large),
            patch.object(batches, "STATUS_BYTES", status),
        ):
            try:
                law(*args, **options)
            except Exception as error:
                error.add_note(f"by {wire}, regions of {large} bytes go alone")
                errors.append(error)
    if errors:
        raise errors[0]


def me():
    return dist.get_rank()


def others(tree, are_tied=True):
    """Return a tree of the same layouts with other bits, and the same ties or none."""
    leaves, spec = take(tree)
    steps = [100 if are_tied else 100 * k for k in range(1, 1 + len(leaves))]
    return spec.make(
        [
            replace(x, number=x.number + step) if isinstance(x, Sketch) else x
            for x, step in zip(leaves, steps, strict=True)
        ]
    )


def untied(tree):
    """Return a tree of the same leaves, each in memory of its own."""
    leaves, spec = take(tree)
    return spec.make([*map(sd.copy, leaves)])


def in_length(path):
    return len(str(path)) % WORLD


def pair_in_length(path):
    return {in_length(path), 1}


def _boxed(way):
    return way and Boxed(way)


@st.composite
def moves(draw):
    """Return two trees of the same leaves in layouts over the same ranks."""
    here, there = {}, {}
    for k in range(draw(st.integers(1, 4))):
        x = draw(sketches(draw(st.integers(1, WORLD)), max_side=9))
        ranks = sorted(x.layout.ranks)
        ways = [layouts(shape=x.shape, ranks=ranks)]
        if len(ranks) == WORLD:
            ways += [st.none()]
            ways += [blocks(shape=x.shape)] if math.prod(x.shape) else []
        if draw(st.booleans()):
            ways = [way.map(_boxed) for way in ways]
        layout = draw(st.one_of(ways))
        parameter = x.is_parameter and hasattr(layout, "mesh")
        here[f"w{k}"] = replace(x, is_parameter=parameter)
        there[f"w{k}"] = replace(here[f"w{k}"], layout=layout)
        if draw(st.booleans()):
            here[f"tied{k}"], there[f"tied{k}"] = here[f"w{k}"], there[f"w{k}"]
        if draw(st.booleans()):
            here[f"w{k}"], there[f"w{k}"] = there[f"w{k}"], here[f"w{k}"]
    return {"step": 3, **here}, {"step": 4, **there}
