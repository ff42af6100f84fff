"""Leaves that are seen together are what each is by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.errors import UnknownLeaf
from sdtree.kinds.abstract import grouped, look_at, sight_of
from sdtree.testing import tensors

BASE = torch.arange(12.0)
DENSE = {
    "one": lambda: torch.ones(2, 3),
    "other": lambda: torch.ones(2),
    "half": lambda: torch.ones(2, 3).half(),
    "part": lambda: BASE[2:8].view(2, 3),
    "transposed": lambda: torch.ones(3, 2).t(),
    "lazy": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "marked": lambda: torch.ones(2, 3).requires_grad_(),
    "empty": lambda: torch.ones(0, 3),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "foreign": lambda: torch.frombuffer(bytearray(24), dtype=torch.float32),
}
few = st.lists(st.sampled_from(["one", "other", "half"]), max_size=4)
many = st.lists(st.sampled_from([*DENSE]), max_size=4)
made = (few | many).map(lambda names: [DENSE[name]() for name in names])


@given(made | st.lists(tensors(), max_size=3), st.lists(st.integers(0, 3), max_size=2))
def test_what_is_seen_together_is_what_each_is(leaves, again):
    """Those that stand alone have their data, and no two are tied."""
    leaves += [leaves[k] for k in again if k < len(leaves)]
    sight = sight_of(leaves)
    for leaf, form, held in zip(leaves, sight.forms, sight.held, strict=True):
        (alone, _), (ts, _) = look_at([leaf, "beside it"])
        assert form == alone
        assert [x.stride for x in form.tensors] == [x.stride for x in alone.tensors]
        assert [*map(torch.Tensor.data_ptr, held)] == [*map(torch.Tensor.data_ptr, ts)]
    if sight.stand_alone:
        assert not sd.ties(leaves)
        assert all(x.numel() and not x.is_meta for x in leaves)
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in leaves)


def test_dense_tensors_stand_alone():
    """And what is tied, or a part, or lacks data, does not."""
    assert sight_of([DENSE[name]() for name in ("one", "other", "half")]).stand_alone
    t = torch.ones(2)
    for leaves in (
        [t, t],
        [t, t[:1]],
        [BASE[2:]],
        [DENSE["meta"]()],
        [DENSE["empty"]()],
    ):
        assert not sight_of(leaves).stand_alone
    t.untyped_storage().resize_(4)
    with pytest.raises(UnknownLeaf, match="its memory was freed"):
        sight_of([t])


@given(st.lists(st.sampled_from("ab")), st.lists(st.sampled_from("cd")))
def test_positions_are_grouped_by_what_stands_there(first, second):
    rows = [*zip(first, second, strict=False)]
    groups = grouped(*zip(*rows, strict=True)) if rows else grouped([])
    assert [rows[groups.first[k]] for k in groups.of] == rows
    assert groups.first == sorted({rows.index(row) for row in rows})
