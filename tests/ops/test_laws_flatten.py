"""The laws of one level of names as a step, and of any function as one."""

from collections import OrderedDict

import moving
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same

import sdtree as sd
from sdtree.testing import selectors_of, trees

separators = st.sampled_from([".", "/", "::", "a"])


def attempt(call):
    """Return what a call returns, or the type of the error of ours that it raises."""
    try:
        return call()
    except sd.errors.NameCollision:
        return sd.errors.NameCollision


def assert_meant(found, meant):
    """Raise unless a tree is what it is to be, or both are the same error."""
    if isinstance(meant, type) or isinstance(found, type):
        assert found is meant
    else:
        assert not oracle.difference(found, meant)


@given(trees(portable=False), separators)
def test_flatten_as_a_step_is_flatten(tree, sep):
    """flatten(sep)(t) = flatten(t, sep) = the names and their leaves, or neither is."""
    step = sd.flatten(sep=sep)
    meant = attempt(lambda: moving.flatten(sep)(tree))
    for call in (
        lambda: step(tree),
        lambda: sd.flatten(tree, sep),
        lambda: sd.flatten(tree, sep=sep),
        lambda: (sd.identity | step)(tree),
    ):
        assert_meant(attempt(call), meant)
    if isinstance(meant, oracle.Box):
        streamed = {path: id(leaf) for path, leaf in step.stream(tree)}
        assert streamed == {(name,): id(leaf) for name, leaf in meant.pairs}


@given(st.dictionaries(st.text("ab./", max_size=5), trees(max_leaves=2)), separators)
def test_unflatten_as_a_step_is_unflatten(flat, sep):
    """unflatten(sep)(f) = unflatten(f, sep=sep), whatever stands at the names."""
    step = sd.unflatten(sep=sep)
    plain = attempt(lambda: sd.unflatten(flat, sep=sep))
    assert_meant(attempt(lambda: step(flat)), plain)
    assert_meant(attempt(lambda: sd.unflatten(flat, None, sep)), plain)
    if not any(isinstance(leaf, (dict, list, tuple)) for leaf in flat.values()):
        numbers = dict(zip(flat, range(len(flat)), strict=True))
        meant = attempt(lambda: moving.unflatten(sep)(numbers))
        assert_meant(attempt(lambda: step(numbers)), meant)


@given(trees(portable=False, unique_names=True), separators)
def test_flatten_and_back_is_the_identity(tree, sep):
    """flatten() | unflatten(spec=structure(t)) is the identity on t, _metadata too."""
    both = sd.flatten(sep=sep) | sd.unflatten(spec=sd.structure(tree), sep=sep)
    if attempt(lambda: sd.names(tree, sep=sep)) is not sd.errors.NameCollision:
        assert_same(both(tree), tree, "there and back")
        assert_same(sd.identity(both(tree)), tree, "there and back")
        assert dict(both.stream(tree)).keys() == dict(sd.items(tree)).keys()


@given(st.data())
def test_flatten_where_a_selector_matches(data):
    """where(s, flatten()) has the names of t, those that match in one level."""
    tree = data.draw(trees(st.integers(), unique_names=True))
    which = data.draw(selectors_of(tree))
    matched, rest = sd.partition(tree, which)
    try:
        found = sd.where(which, sd.flatten(), missing_ok=True)(tree)
        want = sd.combine(sd.flatten(matched), rest)
    except (sd.errors.SpecMismatch, sd.errors.NameCollision):
        return
    assert_same(found, want, "where flattens")


def test_a_chain_that_flattens():
    """Streamed, fused and explained; what is dropped is not cast; names are unique."""
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(2, 2))).state_dict()
    state = {"model": {"net": model}, "opt": [1, 2]}
    chain = sd.gather(ranks=0) | sd.flatten(sep="/") | sd.drop("opt/*")
    assert list(chain(state)) == ["model/net/fc.weight", "model/net/fc.bias"]
    assert type(chain(state)) is dict
    assert dict(chain.stream(state)).keys() == {(name,) for name in chain(state)}
    plan = sd.explain(sd.cast(dtype=torch.half) | sd.flatten(), state)
    assert [row.to for row in plan.rows][:1] == [("model.net.fc.weight",)]
    assert plan.peak() == {"cpu": 12}
    assert (
        repr(sd.flatten() | sd.unflatten(sep="/")) == "flatten() | unflatten(sep='/')"
    )
    spec = sd.structure({"a": [1]})
    assert repr(sd.unflatten(spec=spec)) == "unflatten(spec=TreeSpec({'a': [*]}))"
    with pytest.raises(sd.errors.NameCollision, match=r"'0' is the name of two paths"):
        (sd.copy() | sd.flatten())({0: 1, "0": 2})
    with pytest.raises(sd.errors.SpecMismatch, match=r"1 missing: 'a\.0'"):
        (sd.flatten() | sd.unflatten(spec=spec))({"b": 1})
    assert sd.flatten("word") == {"": "word"}
    assert sd.flatten(None) == {"": None}


# -- any function --------------------------------------------------------------------


def under(tree):
    return {"x": tree}


def double(x):
    return 2 * x if isinstance(x, int) else x


@given(trees(portable=False))
def test_whole_is_the_function(tree):
    """whole(f)(t) = f(t), and in a chain it gets what comes before, all of it."""
    assert sd.whole(under)(tree)["x"] is tree
    chain = sd.map(double) | sd.whole(under) | sd.map(double) | sd.prefix("m")
    want = sd.prefix(sd.map(double, {"x": sd.map(double, tree)}), "m")
    assert_same(chain(tree), want, "whole in a chain")
    assert dict(chain.stream(tree)).keys() == dict(sd.items(want)).keys()
    inside = sd.where(torch.Tensor, sd.whole(under), missing_ok=True)
    matched, rest = sd.partition(tree, torch.Tensor)
    try:
        want = sd.combine({"x": matched}, rest)
    except (sd.errors.SpecMismatch, sd.errors.NameCollision):
        return
    assert_same(inside(tree), want, "whole in where")


def test_whole_in_a_plan():
    """It is called on leaves without data; what it makes itself is counted."""

    def mixed(tree):
        return {"b": tree["a"], "new": torch.zeros(3), "n": tree["n"]}

    state = {"a": torch.ones(2), "dropped": torch.ones(9), "n": 1}
    plan = sd.explain(sd.cast(dtype=torch.half) | sd.whole(mixed) | sd.copy(), state)
    found = [(row.path, row.to, row.after and row.after.shape) for row in plan.rows]
    assert found == [
        (("a",), ("b",), (2,)),
        (("new",), ("new",), (3,)),
        (("n",), ("n",), ()),
        (("dropped",), None, None),
    ]
    assert plan.notes == ("whole(mixed): called on leaves without data",)


def test_an_error_in_a_function_tells_the_stage():
    def broken(tree):
        return tree["nothing"]

    for call in (
        lambda: sd.whole(broken)({"a": 1}),
        lambda: list((sd.copy() | sd.whole(broken)).stream({"a": 1})),
        lambda: sd.explain(sd.whole(broken), {"a": 1}),
        lambda: sd.where("a", sd.whole(broken))({"a": 1}),
    ):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value.__notes__ == ["in the stage whole(broken)"]
    with pytest.raises(TypeError, match="a dict cannot be called"):
        sd.whole({})
    assert sd.whole(sd.copy()) == sd.copy()
