"""Twins: which leaves are one, with their dimensions in another order."""

from dataclasses import replace
from itertools import permutations

import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import shard, together, whole

import sdtree as sd
from sdtree.exchange.twins import order_of, turn_between, turn_of, turned, twins_of
from sdtree.kinds.abstract import Abstract
from sdtree.layout import Layout
from sdtree.layout.layout import Box
from sdtree.testing import layouts

shapes = st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=4)


def replicated(shape, ranks=(0, 2)):
    zero = (0,) * len(shape)
    return Layout(shape, {rank: (Box(0, zero, zero, shape),) for rank in ranks})


@given(st.data())
def test_replicas_in_another_order_are_one(data):
    """Law: the turn makes the one of the other, as far as both see the same memory.

    What lies there as its own conjugate, or negative, is another.
    """
    shape = tuple(data.draw(shapes))
    order = data.draw(st.permutations(range(len(shape))))
    count = torch.Size(shape).numel()
    first = torch.complex(torch.arange(1.0, count + 1), torch.ones(count)).view(shape)
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
    as_read = st.sampled_from([torch.Tensor.clone, torch.conj, torch._neg_view])
    read = data.draw(as_read | st.none())
    if read is None:
        assert twins_of({0: [first], 1: [then]}, forms) == [[0, 1]]
    else:
        assert twins_of({0: [first], 1: [read(then)]}, forms) == []


@given(st.lists(st.sampled_from([1, 2, 4]), max_size=4).map(tuple), st.data())
def test_parts_in_another_order_are_one_if_one_order_alone_makes_them_so(shape, data):
    """Law: it is the first of those that do, which differ in sides of one alone."""
    here = data.draw(layouts(shape=shape)).layout()
    there = turned(here, data.draw(st.permutations(range(len(shape)))))
    there = data.draw(st.sampled_from([there, there, replicated(shape)]))
    every = permutations(range(len(shape)))
    found = [turn for turn in every if turned(here, turn) == there]
    told = {tuple(k for k in turn if shape[k] > 1) for turn in found}
    wanted = found[0] if len(told) == 1 and not here.is_partial else None
    if here == there:
        wanted = tuple(range(len(shape)))
    assert turn_between(here, there) == wanted


def test_orders_of_many_dimensions_are_told_at_once():
    """Of so many as there are, nobody could go through all."""
    t = torch.zeros(1, *[2] * 12)
    turns = [*range(13)][::-1]
    numbers = order_of([t]), order_of([t.permute(turns)])
    here = replicated(tuple(t.shape))
    assert turn_of(here, turned(here, turns), *numbers) is not None
    shape = tuple(range(2, 20))
    zero = (0,) * len(shape)
    halves = {k: (Box(0, zero, (k, *zero[1:]), (1, *shape[1:])),) for k in range(2)}
    rows, turn = Layout(shape, halves), (*range(1, 18), 0)
    assert turn_between(rows, turned(rows, turn)) == turn


def gather_conjugates():
    x = shard(torch.complex(whole(4, 2), torch.ones(4, 2)))
    made = sd.gather({"it": x, "again": x, "conjugate": x.conj()})
    return made["conjugate"], x.full_tensor(), sd.ties(made)


def test_a_conjugate_is_no_twin():
    for made, full, ties in together(gather_conjugates, size=2):
        assert torch.equal(made, full.conj())
        assert ties == [[("it",), ("again",)]]
