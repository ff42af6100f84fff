"""What a selection remembers of the last tree does not show."""

import pickle
from collections import OrderedDict

import meaning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same

import sdtree as sd
from sdtree.testing import trees
from sdtree.transform.stages import SelectStage

WHICH = ("**.w", "*.0", "**.[!0]*", "**")


@given(st.lists(trees(), min_size=1, max_size=3), st.sampled_from(WHICH))
def test_what_came_before_does_not_show(found, which):
    """Law: of each tree comes what came of it if it were the first."""
    f, g = sd.select(which, missing_ok=True), sd.drop(which, missing_ok=True)
    for tree in [tree for tree in found for _ in range(2)]:
        assert_same(f(tree), meaning.select(which, True)(tree))
        assert_same(g(tree), meaning.drop(which, True)(tree))


TWINS = {
    "a key of another type": ({1: 0, "b": 0}, {True: 0, "b": 0}),
    "another order": ({"a": 0, "b": 1}, {"b": 1, "a": 0}),
    "another container": ({"a": [0], "b": 1}, {"a": (0,), "b": 1}),
    "another nesting": ({"a.b": 0}, {"a": {"b": 0}}),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_tree_that_is_nearly_the_last_is_another(name):
    f = sd.select("**")
    for tree in (*TWINS[name], *TWINS[name]):
        assert_same(f(tree), tree)


def test_what_stands_beside_the_leaves_is_that_of_the_tree():
    """Changed in place, it is equal to itself."""
    f, state = sd.drop("bias"), torch.nn.Linear(2, 2).state_dict()
    for version in (1, 2, 2):
        state._metadata[""]["version"] = version
        assert f(state)._metadata == {"": {"version": version}}
    f, made = sd.drop("b"), OrderedDict(w=0, b=1)
    for note in ([1], [2], [2]):
        made.note = note
        assert sd.drop("b")(made).note is f(made).note is note


def test_it_is_no_part_of_the_value():
    f = sd.select("**")
    plain = pickle.dumps(f)
    assert f({"a": [1]}) == {"a": [1]}
    assert pickle.dumps(f) == plain
    assert pickle.loads(plain) == f == sd.select("**")
    assert pickle.loads(plain)({"b": 2}) == {"b": 2}


def test_what_was_pickled_earlier_selects():
    [stage] = sd.select("a").stages
    old = SelectStage.__new__(SelectStage)
    old.__setstate__([stage.text, stage.selector, True, False])
    assert sd.Transform((old,))({"a": 1, "b": 2}) == {"a": 1}
