"""Twins: which leaves are one, with their dimensions in another order."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from sdtree.exchange.twins import order_of, turn_of, turned, twins_of
from sdtree.kinds.abstract import Abstract
from sdtree.layout import Layout
from sdtree.layout.layout import Box

shapes = st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=4)


def replicated(shape, ranks=(0, 2)):
    zero = (0,) * len(shape)
    return Layout(shape, {rank: (Box(0, zero, zero, shape),) for rank in ranks})


@given(st.data())
def test_replicas_in_another_order_are_one(data):
    """Law: the turn makes the one of the other, as far as both see the same memory."""
    shape = tuple(data.draw(shapes))
    order = data.draw(st.permutations(range(len(shape))))
    first = torch.arange(torch.Size(shape).numel()).view(shape)
    first = first.permute(data.draw(st.permutations(range(len(shape)))))
    then = first.permute(order)
    layouts = [replicated(tuple(t.shape)) for t in (first, then)]
    turn = turn_of(*layouts, order_of([first]), order_of([then]))
    assert turn is not None
    assert torch.equal(first.permute(turn), then)
    assert turned(layouts[0], turn) == layouts[1]
    forms = [
        replace(Abstract.of(t), layout=layout)
        for t, layout in zip((first, then), layouts, strict=True)
    ]
    assert twins_of({0: [first], 1: [then]}, forms) == [[0, 1]]
