"""The table in the README: what torch's private functions do, and what ours do."""

from collections import OrderedDict

import pytest
import torch
from torch.distributed import _state_dict_utils as theirs

import sdtree as sd


def module_state():
    """Return a state dict with ``_metadata``."""
    return torch.nn.BatchNorm1d(2).state_dict()


def test_flatten_and_unflatten_keep_structure():
    tree = {"t": (1, 2), "od": OrderedDict(x=1), 0: torch.ones(1), "empty": {}}
    flat, mapping = theirs._flatten_state_dict(tree)
    back = theirs._unflatten_state_dict(flat, mapping)
    assert back["t"] == [1, 2]
    assert type(back["od"]) is dict
    assert "0" in back
    assert "empty" not in back
    ours = sd.unflatten(sd.flatten(tree), spec=sd.structure(tree))
    assert sd.structure(ours) == sd.structure(tree)
    assert sd.equal(ours, tree)


def test_offload_copies_and_keeps_containers():
    state = module_state()
    aliased = theirs._offload_state_dict_to_cpu(state)
    copied = sd.offload(state)
    state["weight"].zero_()
    assert aliased["weight"].sum() == 0
    assert copied["weight"].sum() == 2
    assert type(aliased) is dict
    assert copied._metadata == state._metadata


def test_empty_like_keeps_ties_strides_kinds_and_meta():
    w = torch.ones(3, 4)
    tree = {
        "a": w,
        "t": w.t(),
        "p": torch.nn.Parameter(torch.ones(2)),
        "m": torch.empty(2, device="meta"),
        "e": torch.ones(1).expand(1000, 1000),
    }
    made = theirs._create_cpu_state_dict(tree)
    assert made["a"].data_ptr() != made["t"].data_ptr()
    assert made["t"].stride() != w.t().stride()
    assert type(made["p"]) is torch.Tensor
    assert not made["m"].is_meta
    assert made["e"].untyped_storage().nbytes() == 4_000_000
    ours = sd.empty_like(tree)
    assert sd.ties(ours) == [[("a",), ("t",)]]
    assert ours["t"].stride() == w.t().stride()
    assert type(ours["p"]) is torch.nn.Parameter
    assert ours["m"].is_meta
    assert ours["e"].untyped_storage().nbytes() == 4


def test_copy_into_checks_before_it_writes():
    source = {"w": torch.ones(2), "v": torch.ones(2)}
    buffers = {"w": torch.zeros(2), "v": torch.zeros(2, 2)}
    theirs._copy_state_dict(source, buffers)
    assert buffers["v"].sum() == 4
    halves = {"w": torch.zeros(2).half(), "v": torch.zeros(2)}
    assert theirs._copy_state_dict(source, halves)["w"].dtype == torch.half
    for wrong in (buffers, halves):
        before = sd.copy(wrong)
        with pytest.raises(sd.errors.SpecMismatch):
            sd.copy(source, into=wrong)
        assert sd.equal(wrong, before)


def test_similar_is_pure_and_tells_types_apart():
    a, b = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    theirs._check_state_dict_similarity(a, b)
    assert b["w"].sum() == 2
    assert theirs._check_state_dict_similarity({"x": [1]}, {"x": (1,)})
    assert theirs._check_state_dict_similarity({"x": 1}, {"x": "1"})
    c = {"w": torch.zeros(2)}
    assert sd.similar(a, c)
    assert c["w"].sum() == 0
    assert not sd.similar({"x": [1]}, {"x": (1,)})
    assert not sd.similar({"x": 1}, {"x": "1"})
