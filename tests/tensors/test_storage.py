"""Which tensors share memory, said as naively as can be."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdtree.tensors.storage import repeated, tie_groups
from sdtree.transform.into import written

View = tuple[int, int, int]
views = st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=8)
"""Of which storage, from where on, and how many elements."""


def made(found: list[View]) -> list[Tensor]:
    storages = [torch.zeros(4) for _ in range(3)]
    return [storages[which][start : start + size] for which, start, size in found]


@given(views)
def test_ties_are_the_tensors_that_have_memory_in_one_storage(found: list[View]):
    """Law: two of more than no elements are in one group iff their storage is one."""
    held = [(which, i) for i, (which, _, size) in enumerate(found) if size]
    groups = [[i for which, i in held if which == k] for k in range(3)]
    wanted = [group for group in groups if len(group) > 1]
    assert sorted(tie_groups(made(found))) == sorted(wanted)


@given(views)
def test_what_is_written_is_each_view_once(found: list[View]):
    """Law: of tensors that are one and the same view the first is written."""
    held = [view if view[2] else (view[2],) for view in found]  # no memory, no place
    wanted = [i for i, view in enumerate(held) if view not in held[:i]]
    assert [*written(made(found))] == wanted


@given(st.lists(st.integers(0, 4)))
def test_repeated_is_what_stands_more_than_once(keys: list[int]):
    assert repeated(keys) == {key for key in keys if keys.count(key) > 1}
