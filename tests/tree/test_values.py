"""Public values: they pickle, copy, compare and hash by what they are."""

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.kinds.calls import Call
from sdtree.layout.layout import Split, mesh_layout, whole
from sdtree.testing import assert_same, trees
from sdtree.tree.moved import MOVED


def double(x):
    return x * 2


def shout(name):
    return name.upper()


def is_long(path, leaf):
    return len(path) > 1


BUFFERS = [{"w": torch.zeros(2)}, {"w": torch.zeros(2)}]


class Called(NamedTuple):
    """A call as data: it can be made any number of times."""

    function: Any
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def made(self):
        options = {name: made(x) for name, x in self.options}
        return self.function(*map(made, self.args), **options)

    @property
    def pickles(self) -> bool:
        """Whether it means the same in another process: it writes into nothing."""
        parts = (*self.args, *(x for _, x in self.options))
        inner = all(x.pickles for x in parts if isinstance(x, Called))
        return inner and self.function is not buffers


def made(x):
    return x.made() if isinstance(x, Called) else x


def full(value):
    return {"w": torch.full((2,), value), "n": 1}


def buffers(k):
    return BUFFERS[k]


def calls(function, *args, **options):
    """Draw calls of a function with arguments that are drawn."""
    drawn = st.tuples(*args)
    named = st.tuples(*(st.tuples(st.just(name), x) for name, x in options.items()))
    return st.builds(Called, st.just(function), drawn, named)


globs = st.sampled_from(["a.**", "**", "*.w", "a"])
plain_selectors = st.one_of(
    globs,
    st.sampled_from([int, (int, float), (float, int), None]),
    st.sampled_from([re.compile("a"), re.compile("a", re.IGNORECASE), is_long]),
)
selectors = st.recursive(
    calls(sd.selector, plain_selectors),
    lambda inner: st.one_of(
        calls(type(sd.selector("a")).__and__, inner, inner),
        calls(type(sd.selector("a")).__or__, inner, inner),
        calls(type(sd.selector("a")).__invert__, inner),
    ),
    max_leaves=3,
)
rules = st.sampled_from(
    [
        ("a.**", "b.**"),
        (re.compile("a"), "b"),
        (re.compile("a", re.IGNORECASE), "b"),
        shout,
    ]
)
mappings = st.sampled_from([{"a": "b", "b": "c"}, {"b": "c", "a": "b"}, {"a": "b"}])
segments = st.sampled_from(["a", "b", "a.b"])
flags = st.booleans()
specs = st.sampled_from([{1: 0}, {True: 0}, {"a": [0, 0]}, [{0.0: 0}], [{-0.0: 0}]])
likes = calls(full, st.sampled_from([0.0, -0.0, 1.0]))
LOCAL = [
    calls(sd.copy),
    calls(sd.copy, into=calls(buffers, st.integers(0, 1))),
    calls(sd.offload, share=flags),
    calls(sd.empty_like, share=flags),
    calls(sd.to, st.sampled_from(["cpu", "meta"])),
    calls(sd.cast, dtype=st.sampled_from([torch.half, torch.float64])),
    calls(sd.cast, like=likes),
    calls(sd.wait),
    calls(sd.map, st.sampled_from([double, abs])),
    calls(sd.map_with_path, st.sampled_from([is_long, max])),
    calls(sd.select, selectors, missing_ok=flags),
    calls(sd.drop, selectors, missing_ok=flags),
    calls(sd.rename, rules | mappings, missing_ok=flags),
    calls(sd.prefix, segments),
    calls(sd.flatten, sep=st.sampled_from(["/", "."])),
    calls(sd.unflatten, spec=calls(sd.structure, specs), sep=st.sampled_from("/.")),
    calls(sd.whole, st.sampled_from([sd.leaves, sd.structure])),
    calls(sd.strip_prefix, segments, segments, missing_ok=flags),
]
COLLECTIVE = [
    calls(sd.gather, ranks=st.sampled_from([None, 0, (0, 1), "balanced", is_long])),
    calls(sd.gather, into=calls(buffers, st.integers(0, 1))),
    calls(sd.distribute, like=likes, strict=flags),
    calls(sd.distribute, into=calls(buffers, st.integers(0, 1))),
    calls(sd.broadcast, like=likes, src=st.integers(0, 1)),
    calls(sd.redistribute, like=likes, verify=flags),
]
stages = st.recursive(
    st.one_of(LOCAL + COLLECTIVE),
    lambda inner: calls(sd.where, selectors, inner, missing_ok=flags),
    max_leaves=2,
)
chains = st.lists(stages, max_size=3).map(tuple).map(lambda x: Called(sd.chain, x))


@given(chains)
def test_a_transform_is_what_it_was_made_of(recipe):
    """Made twice by the same calls it is equal, and hashes alike; so are its copies."""
    one, other = recipe.made(), recipe.made()
    assert one == other
    assert hash(one) == hash(other)
    assert copy.copy(one) == one
    if recipe.pickles:
        check_value(one)


def in_pairs(strategies):
    """Draw two of one strategy, for those are easily taken for each other."""
    return st.sampled_from(strategies).flatmap(lambda one: st.tuples(one, one))


@given(in_pairs([*LOCAL, *COLLECTIVE, chains]))
def test_transforms_of_different_calls_differ(pair):
    """They are equal if and only if they are made by the same calls."""
    a, b = pair
    assert (a.made() == b.made()) == (repr(a) == repr(b))


@given(selectors, selectors)
def test_selectors_and_rules_of_different_calls_differ(a, b):
    """As transforms do; they come back from a pickle as well."""
    assert (a.made() == b.made()) == (repr(a) == repr(b))
    check_value(a.made())


def check_value(x: object) -> None:
    """Check that a value pickles, copies, compares and hashes by what it is."""
    for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        assert type(other) is type(x)
        assert other == x
        assert hash(other) == hash(x)
        assert repr(other) == repr(x)


@given(trees(portable=False))
def test_values_that_tell_of_a_tree(tree):
    """TreeSpec, Abstract, Diff and Plan."""
    check_value(sd.structure(tree))
    for form in sd.leaves(sd.spec(tree)):
        check_value(form)
    check_value(sd.diff(tree, [tree]))
    check_value(sd.explain(sd.copy(), tree))


@given(trees(portable=False))
def test_a_copied_spec_makes_what_the_spec_makes(tree):
    """Pickled or copied deep, its leaves and holes are where they were."""
    leaves, spec = sd.leaves(tree), sd.structure(tree)
    for other in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert_same(other.make(leaves), tree, "made by a copy of the spec")


def test_layouts():
    """Also those that no leaf has."""
    halves = mesh_layout((4,), (2,), (Split(0, 0),), lambda c: c[0])
    for layout in (halves, whole((2, 3), (0, 1)), whole((), (0,))):
        check_value(layout)
    assert halves != whole((4,), (0, 1))


def test_calls_differ_in_each_of_their_parts():
    """In the function, in what is given by place and by name, and in its type."""
    every = [Call(max, 1), Call(min, 1), Call(max, 1.0), Call(max), Call(max, key=abs)]
    every.append(Call(max, key=len))
    for i, one in enumerate(every):
        assert [one == other for other in every] == [i == k for k in range(len(every))]


def test_a_transform_with_a_function_of_a_function_does_not_pickle():
    """It is for the function to pickle; equal it is to itself alone."""
    f = sd.map(lambda x: x)
    assert f == f | sd.identity
    assert f != sd.map(lambda x: x)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(f)


CHILD = """
import pickle, sys
spec, transform = pickle.load(sys.stdin.buffer)
tree = spec.make([1, 2])
pickle.dump((tree, transform(tree), spec), sys.stdout.buffer)
"""


def test_another_process_takes_a_spec_and_a_transform():
    """A spawned worker, say: leaves are where they were, the chain does the same."""
    tree = {"a": 1, "b": [{"c": 2}, ()], "d": (sd.ABSENT,)}
    spec = sd.structure(tree)
    transform = sd.drop("b.1.**", missing_ok=True) | sd.rename(("a", "x"))
    given = pickle.dumps((spec, transform))
    run = subprocess.run(
        [sys.executable, "-c", CHILD], input=given, capture_output=True, check=True
    )
    back, moved, same = pickle.loads(run.stdout)
    assert_same(back, tree, "made there")
    assert_same(moved, transform(tree), "transformed there")
    assert same == spec


STATE = {"model": {"w": torch.ones(2, 3)}, "b": [1, 2]}
SPEC = sd.structure(STATE)
PLAN = sd.explain(sd.copy(), STATE)
GETTERS = {
    "TreeSpec.paths": SPEC.paths,
    "TreeSpec.names": SPEC.names,
    "TreeSpec.unique_names": SPEC.unique_names,
    "Abstract.forms": sd.Abstract.of(torch.ones(2)).forms,
    "Plan.peak": PLAN.peak,
    "Plan.spreads": PLAN.spreads,
    "Plan.traffic": lambda: PLAN.traffic().messages,
    "Plan.tables": lambda: next(iter(PLAN.tables())).rows,
    "paths": lambda: sd.paths(STATE),
    "ties": lambda: sd.ties([STATE, STATE]),
}


@pytest.mark.parametrize("name", GETTERS)
def test_nothing_kept_is_handed_out(name):
    """What is returned may be changed: it is asked for again, and is as it was."""
    get = GETTERS[name]
    found, before = get(), copy.deepcopy(get())
    if isinstance(found, list):
        found.reverse()
        found.append(None)
    else:
        found.clear()
        found["x"] = 1
    assert get() == before
    assert SPEC.make([1, 2, 3]) == {"model": {"w": 1}, "b": [2, 3]}


def test_what_values_hold_stays():
    """Tuples, and dicts that refuse: many hold the same layout."""
    layout = whole((2, 3), (0, 1))
    for held in (layout.boxes, PLAN.messages, PLAN.nbytes, PLAN.peaks, PLAN.streamed):
        with pytest.raises(TypeError, match="stays"):
            held["x"] = 1
        with pytest.raises(TypeError, match="stays"):
            held.clear()
    for held in (PLAN.rows, PLAN.notes, PLAN.ranks, sd.diff(1, 2).differences):
        assert type(held) is tuple
    for held in (sd.copy().stages, sd.selector("a").globs, SPEC.every_path):
        assert type(held) is tuple


# -- what was pickled before -------------------------------------------------------


def test_what_was_pickled_under_older_names_of_modules_still_loads():
    found = pickle.loads((Path(__file__).parent / "earlier.pickle").read_bytes())
    tree = {"model": OrderedDict(a=torch.ones(2), b=[torch.zeros(3), 1]), 0: ()}
    assert found["spec"] == sd.structure(tree)
    assert found["abstract"] == sd.spec(torch.ones(2))
    assert found["absent"][0] is sd.ABSENT
    assert found["layout"].ranks == (0, 1)
    assert found["diff"].differences == sd.diff({"a": 1}, {"a": 2}).differences
    assert sd.names(sd.drop(tree, found["selector"])) == []
    assert sd.names(found["local"](tree)) == ["p.w"]


@pytest.mark.parametrize(
    "f", [sd.copy(), sd.gather(), sd.rename({"a": "b"}), sd.where("*", sd.copy())]
)
def test_a_stage_that_was_pickled_earlier_knows_what_it_does_by_default(f):
    """It was told less of: the last of what it tells today was not there."""
    [stage] = f.stages
    told = [getattr(stage, field.name) for field in dataclasses.fields(stage)]
    bare = [field.default is dataclasses.MISSING for field in dataclasses.fields(stage)]
    earlier = object.__new__(type(stage))
    earlier.__setstate__(told[: sum(bare)])
    later = pickle.loads(pickle.dumps(earlier))
    for field in dataclasses.fields(stage)[sum(bare) :]:
        assert getattr(later, field.name) == field.default


def test_a_module_that_has_moved_is_the_one_of_today():
    for old, new in MOVED.items():
        assert import_module(old) is import_module(new)
