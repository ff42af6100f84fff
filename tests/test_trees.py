"""Trees by example: containers, holes, names, and what is refused with a path."""

import collections
import pickle
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import pytest
import torch

import sdtree as sd


class Adam(NamedTuple):
    mu: Any
    nu: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    weight: Any
    name: str


class Attributed(dict):
    pass


class Ragged(collections.abc.Mapping):
    """A Mapping that nobody knows how to rebuild."""

    def __getitem__(self, key):
        return 1

    def __iter__(self):
        return iter(["a"])

    def __len__(self):
        return 1


def same(tree):
    back = sd.unflatten(sd.flatten(tree), spec=sd.structure(tree))
    assert sd.structure(back) == sd.structure(tree)
    return back


def test_containers_come_back_as_they_were():
    """Types, order, attributes, maxlen, default_factory; no __init__ is run."""
    tree = Attributed(b=[1, (2,)], a=Adam(3, Frozen(4, "x")))
    tree.note = {"kept": True}
    back = same(tree)
    assert type(back) is Attributed
    assert list(back) == ["b", "a"]
    assert back == tree
    assert back.note == {"kept": True}
    ring = same(collections.deque([1, 2], maxlen=5))
    assert ring == collections.deque([1, 2])
    assert ring.maxlen == 5
    grown = same(collections.defaultdict(list, a=[1]))
    assert grown["new"] == []
    assert same(collections.Counter("aab")) == collections.Counter("aab")
    assert same(collections.UserDict({"a": 1})) == {"a": 1}
    assert type(same(torch.ones(2).max(0))).__name__ == "max"


def test_metadata_of_a_state_dict_stays_and_batch_norm_loads():
    """A lost _metadata changes what BatchNorm loads as num_batches_tracked."""
    norm = torch.nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(7)
    state = sd.copy(norm.state_dict())
    assert state._metadata == norm.state_dict()._metadata
    fresh = torch.nn.BatchNorm1d(2)
    fresh.load_state_dict(state)
    assert fresh.num_batches_tracked == 7


def test_what_optree_knows_is_a_container():
    """A class that is registered with optree comes apart as optree says."""

    class Box:
        def __init__(self, inner):
            self.inner = inner

    optree.register_pytree_node(
        Box,
        lambda box: ((box.inner,), None, ("inner",)),
        lambda _, xs: Box(*xs),
        namespace="sdtree",
    )
    assert sd.flatten({"b": Box([1, 2])}) == {"b.inner.0": 1, "b.inner.1": 2}
    assert sd.map(lambda x: x + 1, Box(1)).inner == 2


def test_a_registered_container_goes_through_json():
    """register_container makes a class known to specs that are read from text."""
    with pytest.raises(TypeError, match=r"register_container\(Frozen\)"):
        sd.structure(Frozen(1, "x")).to_json()
    text = sd.structure(sd.register_container(Frozen)(1, "x")).to_json()
    assert sd.unflatten(
        {"weight": 5, "name": "y"}, spec=sd.TreeSpec.from_json(text)
    ) == Frozen(5, "y")
    with pytest.raises(sd.errors.UnknownContainer, match="register_container"):
        sd.TreeSpec.from_json(text.replace("Frozen", "Stranger"))


def test_what_cannot_be_rebuilt_is_named():
    """Never silently a leaf: the error names the class, the path and the call."""
    with pytest.raises(
        sd.errors.UnknownContainer, match=r"^a\.0: Ragged .*register_container\(Ragged"
    ):
        sd.leaves({"a": [Ragged()]})
    with pytest.raises(
        sd.errors.UnknownLeaf,
        match=r"^a\.b: no handler for object.*register_leaf\(object",
    ):
        sd.copy({"a": {"b": object()}})


def test_cycles_and_bottomless_trees():
    """A container that holds itself is told with the path back to it."""
    tree = {"a": {"b": []}}
    tree["a"]["b"].append(tree["a"])
    with pytest.raises(ValueError, match=r"a\.b\.0: the container holds itself.*at a"):
        sd.flatten(tree)
    shared = [1]
    assert sd.paths([shared, shared]) == [(0, 0), (1, 0)]
    deep: Any = 1
    for _ in range(100):
        deep = {"x": deep}
    assert sd.leaves(sd.copy(deep)) == [1]


def test_absent_is_structure():
    """ABSENT has no path, stays through transforms, pickling and JSON, and is one."""
    tree = [sd.ABSENT, 1, {"a": (sd.ABSENT,)}]
    assert sd.paths(tree) == [(1,)]
    assert sd.map(lambda x: x + 1, tree) == [sd.ABSENT, 2, {"a": (sd.ABSENT,)}]
    assert pickle.loads(pickle.dumps(tree))[0] is sd.ABSENT
    assert deepcopy(tree)[0] is sd.ABSENT
    spec = sd.TreeSpec.from_json(sd.structure(tree).to_json())
    assert spec.make([5])[2]["a"][0] is sd.ABSENT


def test_unflatten_lists_what_does_not_fit():
    """Missing and unexpected names together, in one message."""
    spec = sd.structure({"a": {"b": 1, "c": 2}})
    with pytest.raises(
        sd.errors.SpecMismatch, match=r"1 missing: 'a\.c'; 1 unexpected: 'x'"
    ):
        sd.unflatten({"a.b": 1, "x": 2}, spec=spec)
    with pytest.raises(TypeError, match="mapping"):
        sd.unflatten([1], spec=spec)
    with pytest.raises(sd.errors.NameCollision):
        sd.unflatten({"a": 1, "a.b": 2})
    assert sd.unflatten({"a/b": 1}, sep="/") == {"a": {"b": 1}}


def test_a_spec_that_is_no_spec():
    """Bad JSON and wrong JSON are one ValueError."""
    for text in (
        "",
        "{",
        "[]",
        '{"type": "dict"}',
        '{"type": "list", "size": -1}',
        "7",
    ):
        with pytest.raises(ValueError, match="TreeSpec"):
            sd.TreeSpec.from_json(text)


def test_specs_compare_and_show():
    """Specs are equal by structure, hash alike, and read like the tree."""
    a, b = sd.structure({"x": [1, (2,)]}), sd.structure({"x": [3, (4,)]})
    assert a == b
    assert len({a, b}) == 1
    assert repr(a) == "TreeSpec({'x': [*, (*,)]})"
    assert a != sd.structure({"x": [1, [2]]})
    assert sd.structure({"a": 1, "b": 2}) != sd.structure({"b": 1, "a": 2})
