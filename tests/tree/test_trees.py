"""Trees by example: containers, holes, names, and what is refused with a path."""

import collections
import io
import os
import pickle
import sys
import time
import types
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
import torch
from hypothesis import given

import sdtree as sd
from sdtree.testing import trees
from sdtree.testing.samples import Boxed, Mirror, Settings


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


def refuses(*_, **__):
    raise AssertionError("it is not to be run")


FILLING = ("__init__", "__setitem__", "__missing__", "__ior__", "__iadd__", "update")
FILLING += ("setdefault", "append", "extend", "insert", "appendleft", "copy", "items")
READING = ("__getitem__", "__iter__", "keys", "values", "get", "__contains__")


@pytest.mark.parametrize(
    "base", [dict, collections.OrderedDict, list, collections.deque]
)
@pytest.mark.parametrize(
    "base_of", [lambda cls: cls, lambda cls: type("A", (cls,), {})]
)
def test_nothing_of_a_class_is_run_to_take_it_apart_or_to_make_it(base, base_of):
    """What it does to keys or elements that it is given was done when it was filled."""
    own = dict.fromkeys((*FILLING, *READING), refuses)
    cls = type("Own", (base_of(base),), own)
    filled = base.__new__(cls)
    keyed = issubclass(base, dict)
    for key in ("w", "b"):
        base.__setitem__(filled, key, [key]) if keyed else base.append(filled, [key])
    back = same(filled)
    assert type(back) is cls
    held = [*base.items(back)] if keyed else [*base.__iter__(back)]
    assert held == ([("w", ["w"]), ("b", ["b"])] if keyed else [["w"], ["b"]])


def test_metadata_of_a_state_dict_stays_and_batch_norm_loads():
    """A lost _metadata changes what BatchNorm loads as num_batches_tracked."""
    norm = torch.nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(7)
    state = sd.copy(norm.state_dict())
    assert state._metadata == norm.state_dict()._metadata
    fresh = torch.nn.BatchNorm1d(2)
    fresh.load_state_dict(state)
    assert fresh.num_batches_tracked == 7


@pytest.mark.parametrize("op", [sd.copy, sd.identity | sd.map(lambda x: x)])
def test_what_is_made_of_a_state_dict_has_a_metadata_of_its_own(op):
    """load_state_dict writes into that of what it is given, as far as it is dicts."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    state = model.state_dict()
    before, spec = deepcopy(state._metadata), sd.structure(state)
    made = op({"model": state})["model"]
    assert made._metadata == before
    assert type(made._metadata) is type(before)
    model.load_state_dict(made, assign=True)
    assert made._metadata != before
    made._metadata["0"].clear()
    del made._metadata["1"]
    assert state._metadata == before
    assert sd.structure(state) == spec


@given(trees())
def test_a_structure_stays_as_it_was_taken(tree):
    """Whoever writes into the tree, as load_state_dict does into its _metadata."""
    state = collections.OrderedDict(tree=tree)
    state._metadata = collections.OrderedDict({"": {"version": 1}, "tree": {}})
    before, found = deepcopy(state._metadata), sd.structure([state, tree])
    state._metadata["tree"]["assign_to_params_buffers"] = True
    del state._metadata[""]
    state._metadata, written = before, state._metadata
    assert found == sd.structure([state, tree])
    state._metadata = written
    assert found != sd.structure([state, tree])


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


@sd.register_container
class Behaved(collections.OrderedDict):
    """A mapping of which a class says what it is made by, and what it is called."""

    maker = dict
    version = 1

    @property
    def title(self):
        return vars(self).get("title")


NAMES = [*filter(str.isidentifier, dir(Behaved)), "maker", "version", "title", "note"]


@pytest.mark.parametrize("name", [x for x in NAMES if not x.startswith("__")])
@pytest.mark.parametrize("kind", [collections.OrderedDict, Behaved])
def test_text_that_tells_an_attribute_is_read(tmp_path, kind, name):
    """What no text may tell is refused when it is written: a file would be lost."""
    inner = kind(w=torch.ones(2))
    vars(inner)[name] = 3
    tree, file = {"m": inner}, tmp_path / "state.safetensors"
    if name in ("version", "note"):
        spec = sd.structure(tree)
        assert sd.TreeSpec.from_json(spec.to_json()) == spec
        sd.save(tree, file)
        assert sd.structure(sd.load(file)) == spec
        return
    if not hasattr(kind, name):  # it is the other that means something by it
        return
    for act in (sd.TreeSpec.to_json, lambda _: sd.save(tree, file)):
        with pytest.raises(TypeError, match=rf"m: .* attribute {name} of this"):
            act(sd.structure(tree))
    assert not file.exists()
    del vars(inner)[name]
    sd.save(tree, file)
    assert sd.equal(sd.load(file), tree)


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
    for depth, end in ((11, "k10.again:"), (12, "k11...:")):
        inner = tree = {}
        for k in range(depth):
            inner[f"k{k}"] = inner = {}
        inner["again"] = tree
        with pytest.raises(ValueError, match="container holds itself") as caught:
            sd.flatten(tree)
        assert end in str(caught.value), "a long path is cut"
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


# -- what a container is beside its children ---------------------------------------


def attributes_hold(tree, test):
    """Return whether a test holds of every mapping in a tree that has attributes."""
    found = [tree]
    for x in found:
        if isinstance(x, (dict, list)):
            found.extend(x.values() if isinstance(x, dict) else x)
    return all(test(x) for x in found if hasattr(x, "__dict__"))


def are_items(x):
    return all(x[name] is value for name, value in vars(x).items())


def test_a_dict_whose_items_are_its_attributes():
    """Each keeps its own: what a transform makes of an item, the attribute is."""
    tree = {"a": [Settings(w=torch.ones(2), lr=0.1)], "b": Mirror(w=torch.ones(2), n=1)}
    for f in (
        sd.identity,
        sd.copy(),
        sd.map(lambda x: x * 2),
        sd.drop("**.w"),
        sd.rename(("a.0.lr", "a.0.rate")),
        sd.cast(dtype=torch.half),
        sd.where("**.n", sd.map(lambda x: x + 1)),
    ):
        back = f(tree)
        assert attributes_hold(back, are_items)
        assert vars(back["a"][0]) is back["a"][0]
        assert type(back["b"]) is Mirror
    back = sd.copy(tree)
    assert back["b"].w.data_ptr() != tree["b"].w.data_ptr()
    assert sd.copy(tree, into=back)["b"].w is back["b"]["w"]
    assert sd.similar(tree, sd.map(lambda x: x * 2, tree))


class Owner(dict):
    """Refers to itself, and to a child under another name."""


def test_attributes_that_are_children_or_the_container_itself():
    """They are so in the copy."""
    tree = Owner(w=torch.ones(2), sub={"n": 1}, n=1)
    tree.me, tree.first, tree.inner, tree.n = tree, tree["w"], tree["sub"], 7
    back = sd.copy(tree)
    assert back.me is back
    assert back.first is back["w"]
    assert back.inner is back["sub"]
    assert back.n == 7
    assert not hasattr(sd.drop(tree, "w"), "first")


@pytest.mark.parametrize(
    "held",
    [
        torch.ones(2),
        np.ones(2),
        [torch.ones(2)],
        {"x": ({"y": torch.ones(2)},)},
        Frozen(torch.ones(2), "x"),
        io.BytesIO(b"x"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_data_in_attributes_is_refused(held):
    """No path leads to it, so no transform would see it: it is not kept in silence."""
    tree = Owner(w=1)
    tree.buffer = held
    for call in (sd.copy, sd.leaves, sd.structure):
        with pytest.raises(sd.errors.UnknownContainer, match=r"^a\.0: .* buffer of"):
            call({"a": [tree]})


def test_a_list_of_children_in_an_attribute_is_refused():
    tree = Owner(sub={"n": 1})
    tree.order = [tree["sub"]]
    with pytest.raises(sd.errors.UnknownContainer, match="order of this Owner"):
        sd.copy(tree)


def test_hidden_fields_of_named_tuples():
    """What is no item of the tuple stays, and no two paths are one."""
    now = time.struct_time(range(9), {"tm_zone": "CET", "tm_gmtoff": 3600})
    back = same({"t": now})["t"]
    assert type(back) is time.struct_time
    assert (back.tm_zone, back.tm_gmtoff) == ("CET", 3600)
    stat = os.stat(__file__)
    back = sd.identity(stat)
    assert back.__reduce__() == stat.__reduce__()
    assert len({*sd.names(stat)}) == len(stat)
    with pytest.raises(sd.errors.UnknownContainer, match=r"^v: version_info"):
        sd.identity({"v": sys.version_info})


def test_wrappers_keep_what_they_wrap():
    """Also wrapped twice; JSON tells of it where the classes are registered."""
    inner = collections.OrderedDict(b=1, a=[2])
    inner._metadata = {"": {"version": 1}}
    tree = collections.UserDict()
    tree.data = collections.UserDict()
    tree.data.data = inner
    back = same(tree)
    assert type(back.data.data) is collections.OrderedDict
    assert back.data.data._metadata == {"": {"version": 1}}
    grown = collections.UserDict()
    grown.data = collections.defaultdict(list, a=1)
    assert sd.copy(grown).data["new"] == []
    spec = sd.structure(Boxed.around(inner))
    assert sd.TreeSpec.from_json(spec.to_json()) == spec
    for odd in (range(2), "ab", None):
        wrapped = collections.UserList()
        wrapped.data = odd
        with pytest.raises(sd.errors.UnknownContainer, match=r"^w: (UserList|range)"):
            sd.copy({"w": wrapped})


class Counts(dict):
    """Says that it holds something else than it does."""

    def __len__(self):
        return 7


@pytest.mark.parametrize(
    "tree",
    [
        types.MappingProxyType({"a": 1}),
        collections.ChainMap({"a": 1}, {"b": 2}),
        types.SimpleNamespace(a=1),
        collections.UserString("ab"),
        Counts(a=1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_containers_are_refused_by_name(tree):
    """At their path; and never as another type."""
    kinds = (sd.errors.UnknownContainer, sd.errors.UnknownLeaf)
    with pytest.raises(kinds, match=rf"^x: .*{type(tree).__qualname__}"):
        sd.copy({"x": tree})


def test_a_key_is_named_as_it_is_printed():
    """Not as it would be formatted: a number of numpy's is rounded there, or is not."""
    third = np.float32(0.1)
    for tree in ({third: 1}, {third: {"w": 1}}, {"a": {third: 1}}):
        [name], [path] = sd.names(tree), sd.paths(tree)
        assert name == ".".join(map(str, path))
        assert sd.select(tree, name) == tree


# -- pairing by path ---------------------------------------------------------------


class Config(dict):
    """Another mapping."""


@pytest.mark.parametrize(
    "other",
    [collections.OrderedDict, Config, collections.UserDict],
    ids=lambda cls: cls.__name__,
)
def test_pairing_by_path_asks_for_no_type_of_mapping(other):
    """The result has the containers of the tree; those of the other do not matter."""
    state = torch.nn.Linear(2, 2).state_dict()
    tree = {"model": state, "n": [1]}
    like = other(n=[2], model=other(reversed(state.items())))
    for result in (
        sd.cast(tree, like=sd.cast(like, dtype=torch.half)),
        sd.copy(tree, into=sd.empty_like(like)),
        sd.gather(tree, into=sd.empty_like(like)),
        sd.map(lambda x, _: x, tree, like),
        sd.combine(like, spec=sd.structure(tree)),
    ):
        spec = sd.structure(result)
        assert spec == sd.structure(tree)
        assert spec.shape.children[0].aux == sd.structure(state).shape.aux
    assert not sd.similar(tree, like)
    assert sd.diff(tree, like)
    with pytest.raises(sd.errors.SpecMismatch, match=r"n: expected list, got tuple"):
        sd.map(lambda x, _: x, tree, {"model": state, "n": (1,)})


class Bag:
    """A container of a kind that is registered, rightly or wrongly."""

    def __init__(self, *things):
        self.things = list(things)


def bag_of(flatten=None, unflatten=None):
    sd.register_container(
        Bag,
        flatten=flatten or (lambda bag: (bag.things, None)),
        unflatten=unflatten or (lambda _, things: Bag(*things)),
    )
    return {"x": [Bag(torch.ones(2), torch.ones(2))]}


WRONG = {
    "gives one entry twice": (lambda bag: (bag.things, None, "aa"), None),
    "3 entries for 2 children": (lambda bag: (bag.things, None, "abc"), None),
    "unhashable": (lambda bag: (bag.things, None, [["a"], ["b"]]), None),
    "returned a list": (lambda bag: bag.things, None),
    "makes one of others": (None, lambda _, xs: Bag(*reversed(xs))),
    "2 children its unflatten": (None, lambda _, xs: Bag(*xs[1:])),
    "": (None, lambda _, xs: xs[0]),
    "returned a tuple": (None, lambda _, xs: xs),
}


@pytest.mark.parametrize("told", WRONG)
def test_functions_that_do_not_make_the_container_again_are_refused(told):
    """At the path of the first that is met, whatever is to be done with it."""
    tree = bag_of(*WRONG[told])
    for act in (sd.leaves, sd.copy, sd.structure, sd.cast(dtype=torch.half)):
        with pytest.raises(sd.errors.UnknownContainer, match=rf"^x\.0: Bag .*{told}"):
            act(tree)
    assert len(sd.leaves(bag_of())) == 2


def test_functions_may_ask_what_children_are_and_keys_may_be_equal():
    """Then they are tried with those that they had; paths tell 1 and True apart."""
    tree = bag_of(
        lambda bag: (bag.things, None, (1, True)),
        lambda _, things: Bag(*(1 * x for x in things)),
    )
    assert sd.equal(sd.copy(tree), tree)
    assert len(sd.paths(tree)) == 2


def test_an_error_of_a_container_tells_its_path():
    tree = bag_of(lambda bag: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        sd.leaves(tree)
    assert caught.value.__notes__ == ["at x.0, where a Bag comes apart"]
