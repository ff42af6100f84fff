"""Forms of tensors that come again are found as if they came for the first time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdtree.tensors.forms import Forms, Ground, Lay, One, Recurring, guard_of

BASE = torch.arange(12.0)
KINDS = {
    "dense": lambda: torch.ones(2, 3),
    "view": lambda: BASE[3:9].view(2, 3),
    "part": lambda: BASE[2:8].view(2, 3),
    "transposed": lambda: torch.ones(3, 2).t(),
    "other": lambda: torch.ones(3),
    "double": lambda: torch.ones(2, 3).double(),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "marked": lambda: torch.ones(2, 3).requires_grad_(),
    "lazy": lambda: torch.ones(2, 3, dtype=torch.complex64).conj(),
    "empty": lambda: torch.ones(0, 3),
}
rows = st.lists(st.sampled_from([*KINDS]), min_size=1, max_size=3)


@given(st.lists(rows, min_size=1, max_size=6))
def test_forms_do_not_depend_on_what_came_before(rows):
    """However often, and in whatever order, they come."""
    recurring = Recurring()
    for names in [row for row in rows for _ in range(3)]:
        ts = [KINDS[name]().detach() for name in names]
        assert recurring.of(ts) == Forms.of(ts)


@given(rows, st.integers(0, 3))
def test_where_what_is_empty_begins_is_no_form(names, at):
    """It has an address where it is a part of something, and else it has none."""
    ts = [KINDS[name]() for name in names]
    empty = torch.ones(0, 3)
    found = [Forms.of([*ts[:at], x, *ts[at:]]) for x in (empty, BASE[:0].view(0, 3))]
    assert found[0] == found[1]
    assert found[0] != Forms.of([*ts[:at], empty.to("meta"), *ts[at:]])


CHANGES = {
    "size": lambda t: t.resize_(3, 3),
    "memory": lambda t: t.set_(torch.zeros(2, 3)),
    "strides": lambda t: t.t_(),
    "what is under it": lambda t: setattr(t, "data", torch.zeros(3, 2).t()),
    "storage": lambda t: t.untyped_storage().resize_(64),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_and_the_same_object_is_looked_at_again(name):
    """Whatever was done to it."""
    t = torch.zeros(2, 3)
    recurring = Recurring()
    first = [recurring.of([t]) for _ in range(3)][-1]
    ground = Ground([t])
    ground.lay = ground.lay_of([t])
    assert all(ground.lay_of([t]) is ground.lay for _ in range(3))
    assert recurring.of([t]) is first
    CHANGES[name](t)
    assert ground.lay_of([t]) is not ground.lay
    assert recurring.of([t]) == Forms.of([t])


def test_memory_of_others_may_lie_in_several_storages():
    """What begins where others did may be tied, though those were not."""
    array = np.zeros(8)
    apart = [torch.from_numpy(array[:4]), torch.from_numpy(array[4:])]
    tied = [*torch.from_numpy(array).split(4)]
    recurring = Recurring()
    for ts in [apart, tied] * 2:
        assert [recurring.of(ts) for _ in range(4)] == [Forms.of(ts)] * 4


class Meanwhile(Ground):
    """One that another thread asks of other tensors while it is asked of some."""

    others = None

    def _hold(self, *args):
        others, self.others = self.others, None
        if others is not None:
            self.lay = self.lay_of(others)
        return super()._hold(*args)


def test_a_ground_may_be_asked_by_several_threads():
    """Each hears where its own tensors lie."""
    ts, others = [torch.ones(2)], [torch.ones(2)]
    ground = Meanwhile(ts)
    for _ in range(3):
        ground.lay = ground.lay_of(ts)
    assert ground.place is not None
    ground.others = others
    assert ground.lay_of(ts) == Lay.of(ts)
    assert ground.lay_of(others) is ground.lay


def test_a_block_that_differs_is_seen_among_many():
    ts = [torch.ones(2) for _ in range(600)]
    ground = Ground(ts)
    ground.lay = ground.lay_of(ts)
    assert all(ground.lay_of(ts) is ground.lay for _ in range(3))
    others = [[*ts[:i], torch.ones(2), *ts[i + 1 :]] for i in (0, 300, 599)]
    assert all(ground.lay_of(other) != ground.lay for other in others)
    assert ground.lay_of(ts) is ground.lay
    assert ground.lay_of(ts[:512]) is None


def test_torch_has_what_tells_all_at_once():
    """Else all is as right, and slower."""
    assert guard_of([torch.ones(2)])([torch.zeros(2)])
    assert not guard_of([torch.ones(2)])([torch.zeros(3)])
    assert not guard_of([])([])


@given(st.lists(st.lists(st.integers(0, 2), max_size=2)))
def test_of_what_is_equal_there_is_one(rows):
    """Law: equal things are one object, and all stay what they are, in order."""
    made = [tuple(row) for row in rows]
    found = [*One().of(made)]
    assert found == made
    assert all((x is y) == (x == y) for x in found for y in found)


def test_of_sizes_and_strides_that_are_equal_one_is_kept():
    forms = Forms.of([torch.ones(2, 3) for _ in range(300)])
    assert len({*map(id, forms.sizes)}) == len({*map(id, forms.strides)}) == 1


def test_a_place_is_one_only_in_the_same_storages():
    """Where tensors begin does not tell: the memory may be that of another by now."""
    array = np.zeros(4)
    ts, others = [torch.from_numpy(array)], [torch.from_numpy(array)]
    ground = Ground(ts)
    ground.lay = ground.lay_of(ts)
    assert ground.place is None
    places = []
    for held in (ts, ts, [ts[0].detach()], others, others):
        assert ground.lay_of(held) is ground.lay
        places.append(ground.place)
    first, last = places[0], places[-1]
    assert first is not last
    assert [place is first for place in places] == [True, True, True, False, False]
    assert places[3] is last
    assert ground.lay_of([torch.zeros(4).double()]) is not ground.lay
    assert ground.place is None
