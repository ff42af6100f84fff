"""Selecting and renaming by example, and their refusals."""

import re
from collections import OrderedDict
from typing import Union

import numpy as np
import pytest
import torch

import sdtree as sd

TREE = {
    "model": {"encoder": {"0": {"weight": 1, "bias": 2}}, "head": {"weight": 3}},
    "optimizer": {
        "state": {0: {"step": 4}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
    },
}
BETAS = ["optimizer.param_groups.0.betas.0", "optimizer.param_groups.0.betas.1"]


GLUED = [("**ead**", "**.*ead*.**"), ("mod**t", "mod*.**.*t"), ("**t", "**.*t")]
"""What people write who know one star, and what they mean."""


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ("model.head.weight", ["model.head.weight"]),
        ("model.*.weight", ["model.head.weight"]),
        ("model.**.weight", ["model.encoder.0.weight", "model.head.weight"]),
        ("**.weight", ["model.encoder.0.weight", "model.head.weight"]),
        ("model.enc*.**", ["model.encoder.0.weight", "model.encoder.0.bias"]),
        ("optimizer.state.0.step", ["optimizer.state.0.step"]),
        (
            "**.betas.*",
            BETAS,
        ),
        (re.compile(r"bias$"), ["model.encoder.0.bias"]),
        (sd.selector("model.**") & ~sd.selector("**.weight"), ["model.encoder.0.bias"]),
        (
            sd.selector("**.lr") | "**.step",
            ["optimizer.state.0.step", "optimizer.param_groups.0.lr"],
        ),
        (lambda path, leaf: path[-1] == "step", ["optimizer.state.0.step"]),
        (float | str, ["optimizer.param_groups.0.lr", *BETAS]),
        (Union[float, str], ["optimizer.param_groups.0.lr", *BETAS]),  # noqa: UP007
    ],
)
def test_selectors(which, names):
    """Each sort of selector finds what it says, in path order."""
    assert sd.names(sd.select(TREE, which)) == names


def test_a_glob_finds_leaves_in_nested_and_flat_trees():
    """Dots inside a key are separators to a glob."""
    flat = sd.flatten(TREE)
    for glob in ("model.*.weight", "**.weight", "optimizer.state.*.step", "model.**"):
        assert list(sd.select(flat, glob)) == sd.names(sd.select(TREE, glob))


def test_a_dropped_key_leaves_and_a_dropped_element_does_not():
    """A mapping forgets the key, a list keeps the place, an emptied branch goes."""
    tree = sd.drop(TREE, "**.lr")
    assert tree["optimizer"]["param_groups"] == [{"betas": (0.9, 0.99)}]
    assert sd.drop(TREE, "**.betas.0")["optimizer"]["param_groups"][0]["betas"] == (
        sd.ABSENT,
        0.99,
    )
    assert sd.select(TREE, "model.head.**") == {"model": {"head": {"weight": 3}}}


@pytest.mark.parametrize(
    ("glob", "word"),
    [
        ("modle.**", "'model'"),
        ("model.encodr.**", "'encoder'"),
        ("model.*.wieght", "'weight'"),
        ("optimizer.state.1.**", "'0'"),
        ("**.wight", "'weight'"),
        ("model.head", "'model.head.**'"),
    ],
)
def test_no_match_names_the_closest_keys(glob, word):
    """The message walks the glob to the first segment that fails."""
    for call in (sd.select, sd.drop):
        with pytest.raises(sd.errors.NoMatch, match=re.escape(word)):
            call(TREE, glob)
    with pytest.raises(sd.errors.NoMatch, match=re.escape(word)):
        sd.where(glob, sd.copy())(TREE)
    assert sd.select(TREE, glob, missing_ok=True) == {}


def test_selectors_that_are_none():
    """What is no selector is refused when the transform is made."""
    for wrong in (5, ["a"], {"a": 1}, ()):
        with pytest.raises(TypeError, match="not a selector"):
            sd.select(wrong)
    with pytest.raises(ValueError, match="whole segments"):
        sd.select("a**b")


@pytest.mark.parametrize(
    "glob", ["head", "encoder.0", "model", "optimizer.state.0-1.*", "*.{0..9}.w*"]
)
def test_what_a_glob_was_meant_to_be_is_told(glob):
    """And takes as many leaves as it says: what lies deeper, or below, or a range."""
    with pytest.raises(sd.errors.NoMatch) as caught:
        sd.select({"net": TREE, **TREE}, glob)
    meant, count = re.findall(r"'([^']*)' takes (\d+) lea", str(caught.value))[0]
    found = sd.select({"net": TREE, **TREE}, meant)
    assert len(sd.leaves(found)) == int(count) > 0


@pytest.mark.parametrize(("glued", "apart"), GLUED)
def test_stars_that_are_glued_are_taken_apart(glued, apart):
    with pytest.raises(ValueError, match=re.escape(f"write {apart!r} for {glued!r}")):
        sd.select(TREE, glued)
    assert sd.select(TREE, apart, missing_ok=True) is not None


def test_a_regex_in_quotes_is_told_to_be_compiled():
    with pytest.raises(sd.errors.NoMatch, match=r"re\.compile\('head\|encoder'\)"):
        sd.select(TREE, "head|encoder")
    with pytest.raises(sd.errors.NoMatch) as caught:  # it is the predicate that fails
        sd.select(TREE, sd.selector("model.**") & (lambda path, leaf: False))
    assert "takes" not in str(caught.value)


def test_an_error_of_a_predicate_tells_its_path():
    """The exception keeps its type and gets the path as a note."""
    with pytest.raises(ZeroDivisionError) as caught:
        sd.select(TREE, lambda path, leaf: 1 / 0)
    assert "model.encoder.0.weight" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError) as caught:
        sd.map(lambda x: 1 / 0, {"a": {"b": 1}})
    assert caught.value.__notes__ == ["at a.b"]


def stop(*_):
    """Do what an iterator does at its end, by a ``next(it)`` too many."""
    return next(iter(()))


@pytest.mark.parametrize("f", [sd.map(stop), sd.select(stop), sd.whole(stop)], ids=str)
def test_a_function_that_raises_stop_iteration_ends_no_iterator(f):
    """It is told where, called or streamed, and nothing is taken for complete."""
    for chain in (f, sd.copy() | f, f | sd.copy(), sd.copy() | f | sd.copy()):
        for call in (chain, lambda t, chain=chain: [*chain.stream(t)]):
            with pytest.raises(RuntimeError, match=r"StopIteration.*default") as caught:
                call(TREE)
            [note] = caught.value.__notes__
            assert re.search("model.encoder.0.weight|in the stage whole", note)


# -- rename ------------------------------------------------------------------------


def test_what_comes_under_a_text_stands_in_a_list_that_goes_on():
    """An index is one, however it is written; who leaves it has a hole left."""
    tree = {"l": [[1, 2, 3]], "m": {"0": {"1": 9}}}
    rules = {"l.0.1": "y", "l.0.2": "z", "m.**": "l.**"}
    assert sd.rename(tree, rules) == {"l": [[1, 9, sd.ABSENT]], "y": 2, "z": 3}


def test_a_rename_is_shown_as_it_is_written():
    """A function by its name."""
    assert repr(sd.rename(str.upper) | sd.rename(("a", "b"))) == (
        "rename(upper) | rename(('a', 'b'))"
    )


@pytest.mark.parametrize(
    ("rule", "tree", "expected"),
    [
        (
            ("a.**", "b.**"),
            {"a": {"x": 1, "y": {"z": 2}}},
            {"b": {"x": 1, "y": {"z": 2}}},
        ),
        (("a.**", "**"), {"a": {"x": 1}}, {"x": 1}),
        (("**", "m.**"), {"a": {"x": 1}}, {"m": {"a": {"x": 1}}}),
        (("**", "m.**"), {"a.x": 1}, {"m.a.x": 1}),
        (("{a.b,c.d}.w", "x.w"), {"c": {"d": {"w": 1}}}, {"x": {"w": 1}}),
        (("**", "m.**"), {"a": 1, "b": 2}, {"m.a": 1, "m.b": 2}),
        (("*.w", "*.weight"), {"a.w": 1, "b": 2}, {"a.weight": 1, "b": 2}),
        (("layer*.w", "layers.*.w"), {"layer0.w": 1}, {"layers.0.w": 1}),
        (
            ("s.*.a", "s.*.b"),
            {"s": {0: {"a": 1, "c": 2}}},
            {"s": {0: {"b": 1, "c": 2}}},
        ),
        (
            ("g.*.lr", "g.*.rate"),
            {"g": [{"lr": 1}, {"lr": 2}]},
            {"g": [{"rate": 1}, {"rate": 2}]},
        ),
        (("g.**", "groups.**"), {"g": [1, (2, 3)]}, {"groups": [1, (2, 3)]}),
        (("g.0", "first"), {"g": [1, 2]}, {"first": 1, "g": [sd.ABSENT, 2]}),
        (("*.*", "*.x_*"), {"a": {"b": 1}}, {"a": {"x_b": 1}}),
        ({"a": "b", "b": "a"}, {"a": 1, "b": 2}, {"b": 1, "a": 2}),
        (
            (re.compile(r"^enc\."), "encoder."),
            {"enc.w": 1, "dec.w": 2},
            {"encoder.w": 1, "dec.w": 2},
        ),
        (str.upper, {"a": {"b": 1}}, {"A": {"B": 1}}),
        (
            lambda name: name.replace("a.", "c.").replace(".b", ".d"),
            {"a": [{"b": 1}, {"b": 2}]},
            {"c": [{"d": 1}, {"d": 2}]},
        ),
        (
            lambda name: name.removeprefix("3."),
            {"a": 0, np.int64(3): {(0, "w"): {"x": 1}}},
            {"a": 0, (0, "w"): {"x": 1}},
        ),
        (lambda name: "c.e.0.d", {"a": [{"b": 1}]}, {"c": {"e": [{"d": 1}]}}),
        (("m.a.**", "m.b.**"), {"m": {"a.0.w": 1}}, {"m": {"b.0.w": 1}}),
        (("m.a.**", "m.x.y.**"), {"m": {"a.0.w": 1}}, {"m": {"x.y.0.w": 1}}),
        (("m.**", "m.x.**"), {"m": {"a.w": 1}}, {"m": {"x": {"a.w": 1}}}),
        (("**.w", "**.w.g"), {"m": {"a.w": 1}}, {"m": {"a.w.g": 1}}),
        (("**.a.**", "**.b.**"), {"a.a.x": 1}, {"a.b.x": 1}),
        (("s.0.**", "s.5.**"), {"s": {0: {"a": 1}}}, {"s": {5: {"a": 1}}}),
        ({"0": "1", "1": "0"}, [1, 2, 3], [2, 1, 3]),
        (("g.0", "g.5"), {"g": [1, 2]}, {"g": {5: 1, 1: 2}}),
        (("g.0", "g.x"), {"g": [1, sd.ABSENT]}, {"g": {"x": 1}}),
        (("a", "g.1"), {"g": [1, sd.ABSENT], "a": 2}, {"g": [1, 2]}),
        (
            ("m.**.w", "net.**.weight"),
            {"m": {"layers": [{"w": 1}, {"w": 2}]}},
            {"net": {"layers": [{"weight": 1}, {"weight": 2}]}},
        ),
    ],
)
def test_rename(rule, tree, expected):
    """Stars carry over in order; key types, flat trees and whole lists stay."""
    got = sd.rename(tree, rule)
    assert got == expected
    assert sd.structure(got) == sd.structure(expected)


@pytest.mark.parametrize(
    "rule",
    [
        ("state_dict.module.**", "state_dict.**"),
        {
            "state_dict.module.*": "state_dict.*",
            "state_dict.module.**": "state_dict.**",
        },
        (re.compile(r"\bmodule\."), ""),
        lambda name: name.replace("module.", ""),
    ],
)
def test_a_prefix_of_a_nested_state_dict(rule):
    """The keys change, and the state dict stays where it is, with all that it has."""
    model = torch.nn.DataParallel(torch.nn.BatchNorm1d(2))
    tree = {"epoch": 90, "state_dict": model.state_dict()}
    want = model.module.state_dict()
    within = sd.where("state_dict.**", sd.rename(rule, missing_ok=True))
    for found in (sd.rename(tree, rule, missing_ok=True), within(tree)):
        assert found.keys() == tree.keys()
        assert sd.structure(found["state_dict"]) == sd.structure(want)


def test_metadata_of_modules_that_are_parted_or_united():
    """Both parts know what the whole did; what differs is not united."""
    tree = OrderedDict({"a.w": 1, "a.b": 2, "c.w": 3})
    tree._metadata = OrderedDict({"": {}, "a": {"version": 2}, "c": {"version": 1}})
    parted = sd.rename(tree, ("a.b", "d.bias"))._metadata
    two, one = {"version": 2}, {"version": 1}
    assert parted == {"": {}, "a": two, "d": two, "c": one}
    with pytest.raises(sd.errors.NameCollision, match="'a' and 'c' would both be 'a'"):
        sd.rename(tree, ("c.w", "a.v"))
    tree._metadata["c"] = {"version": 2}
    assert sd.rename(tree, ("c.w", "a.v"))._metadata == {"": {}, "a": {"version": 2}}
    for odd in (None, {1: 2}, 3):
        tree._metadata = odd
        assert sd.rename(tree, ("c.w", "a.v"))._metadata == odd


def test_metadata_moves_with_the_names():
    """The module paths in _metadata follow their leaves, versions in hand."""
    state = torch.nn.Sequential(OrderedDict(enc=torch.nn.BatchNorm1d(2))).state_dict()
    renamed = sd.rename(state, ("enc.**", "encoder.**"))
    assert list(renamed._metadata) == ["", "encoder"]
    assert renamed._metadata["encoder"] == {"version": 2}
    back = sd.rename(renamed, ("encoder.**", "enc.**"))
    assert sd.structure(back) == sd.structure(state)
    assert "enc" not in renamed._metadata
    assert state._metadata["enc"] == {"version": 2}
    inside = sd.prefix(state, "module")
    assert inside._metadata["module.enc"] == {"version": 2}
    assert sd.strip_prefix(inside, "module")._metadata == state._metadata


def test_prefixes():
    """Whole segments only, each taken off once, in whatever order they lead."""
    assert sd.strip_prefix({"module.a": 1, "modules.a": 2}, "module") == {
        "a": 1,
        "modules.a": 2,
    }
    assert sd.strip_prefix({"_orig_mod.module.a": 1}, "module", "_orig_mod") == {"a": 1}
    assert sd.strip_prefix({"a.a.w": 1}, "a") == {"a.w": 1}
    ordered = OrderedDict(w=1)
    assert type(sd.strip_prefix({"module": ordered}, "module")) is OrderedDict
    with pytest.raises(sd.errors.NoMatch):
        sd.strip_prefix({"a": 1}, "module")
    with pytest.raises(
        sd.errors.NameCollision, match=r"module\.a and a would both stand at a"
    ):
        sd.strip_prefix({"module.a": 1, "a": 2}, "module")


def test_a_function_of_rename_is_asked_once_for_each_name():
    asked: list[str] = []

    def rule(name: str) -> str:
        asked.append(name)
        return name.replace("w", "weight")

    moved = sd.rename({"a": {"w": 1, "b": 2}, "c": []}, rule)
    assert moved == {"a": {"weight": 1, "b": 2}, "c": []}
    assert asked == ["a.w", "a.b", "c"]


def test_renames_that_are_refused():
    """Merged leaves, patterns without match, stars that do not add up."""
    with pytest.raises(sd.errors.NameCollision, match="a and b would both stand at c"):
        sd.rename({"a": 1, "b": 2}, (re.compile("[ab]"), "c"))
    with pytest.raises(sd.errors.NameCollision):
        sd.rename({"a": 1, "b": {"c": 2}}, {"b.c": "a.x"})
    with pytest.raises(sd.errors.NameCollision, match="n\\.w and m\\.w would both"):
        sd.rename({"n": {"w": 1}, "m.w": 2}, ("n.**", "m.**"))
    with pytest.raises(sd.errors.NameCollision, match="each other's way"):
        sd.rename({"a": {1: {"x": 1}}, "b": {True: {"y": 2}}}, ("b.**", "a.**"))
    with pytest.raises(sd.errors.NameCollision, match="each other's way"):
        sd.rename([{0: 1}, {False: {"y": 2}}], ("1.**", "**"))
    with pytest.raises(sd.errors.NoMatch, match="'encoder'"):
        sd.rename(TREE["model"], ("encodr.**", "e.**"))
    with pytest.raises(ValueError, match="stars"):
        sd.rename(("a.*", "b.*.*"))
    with pytest.raises(ValueError, match=r"'\*\*'"):
        sd.rename(("a.**", "b.*"))
    for glued in ("x**", "**.x**", "**x.y"):
        with pytest.raises(ValueError, match="and alone between dots"):
            sd.rename(("a.**.*.b.**", glued))
    with pytest.raises(TypeError, match="no str"):
        sd.rename({"a": 1}, lambda name: 3)
    with pytest.raises(TypeError, match="rename takes"):
        sd.rename(["a", "b"])


def test_combine_refuses_what_would_lose_a_leaf():
    """Two leaves at one path, a leaf under a branch, lists of other lengths."""
    with pytest.raises(sd.errors.NameCollision, match=r"a\.b: two of the trees"):
        sd.combine({"a": {"b": 1}}, {"a": {"b": 2}})
    with pytest.raises(sd.errors.NameCollision, match="a: a leaf in one"):
        sd.combine({"a": {"b": 1}}, {"a": 2})
    with pytest.raises(sd.errors.SpecMismatch, match="list of 2"):
        sd.combine([1, sd.ABSENT], [sd.ABSENT])
    with pytest.raises(TypeError, match="at least one"):
        sd.combine()


# -- call forms --------------------------------------------------------------------


def test_both_call_forms():
    """With a tree now, without one a transform; None is a tree."""
    assert sd.copy(None) is None
    assert sd.cast(None, dtype=torch.float16) is None
    assert sd.prefix(None, "a") == {"a": None}
    tree = {"a": torch.ones(1)}
    for moved in (sd.to(tree, "meta"), sd.to(tree, device="meta"), sd.to("meta")(tree)):
        assert moved["a"].is_meta
    assert repr(sd.to(device="meta")) == "to('meta')"
    assert repr(
        sd.select("model.**") | sd.cast(dtype=torch.bfloat16) | sd.offload()
    ) == ("select('model.**') | cast(dtype=torch.bfloat16) | offload()")
    assert repr(sd.identity) == "identity"


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: sd.cast(torch.bfloat16), "sd.cast(tree, dtype=torch.bfloat16)"),
        (lambda: sd.offload(torch.device("cpu")), "device="),
        (lambda: sd.cast(dtype="half"), "torch.float16"),
        (lambda: sd.to({"a": 1}), "sd.to(tree, device)"),
        (lambda: sd.copy(torch.nn.Linear(1, 1)), "state_dict()"),
        (lambda: sd.copy(sd.identity), "identity | sd.copy(...)"),
        (lambda: sd.identity(sd.copy()), "identity | copy()"),
        (lambda: sd.select("a", "b"), "sd.select(tree, 'a')"),
        (lambda: sd.prefix("a", "b"), "sd.prefix(tree, 'a')"),
        (lambda: sd.chain(lambda x: x), "sd.map(fn)"),
        (lambda: sd.where("a", print), "sd.map(fn)"),
        (lambda: sd.map({"a": 1}, print), "sd.map(fn, tree)"),
    ],
)
def test_a_wrong_call_is_shown_the_right_one(call, shown):
    """TypeErrors name the call that was meant."""
    with pytest.raises(TypeError, match=re.escape(shown)):
        call()


# -- combine -----------------------------------------------------------------------


def test_very_many_trees_are_combined_at_once():
    """Pair by pair, the keys of the first would be looked at for each of the others."""
    trees = [{"l": {f"w{i}": i}, i: i} for i in range(20_000)]
    found = sd.combine(*trees)
    assert found["l"] == {f"w{i}": i for i in range(20_000)}
    assert len(found) == 20_001
    holes = [[sd.ABSENT] * i + [i] + [sd.ABSENT] * (99 - i) for i in range(100)]
    assert sd.combine(*holes) == list(range(100))


def test_metadata_that_is_combined():
    """Of all trees, if they agree; what is none is compared as any attribute."""

    def known(metadata, **leaves):
        tree = OrderedDict(leaves)
        tree._metadata = metadata
        return tree

    one, two = {"version": 1}, {"version": 2}
    trees = [known({"": one, key: two}, **{key: 0}) for key in "abc"]
    combined = sd.combine(*trees)
    assert combined._metadata == {"": one, "a": two, "b": two, "c": two}
    with pytest.raises(sd.errors.SpecMismatch, match=r"'a': .*2.* and .*1"):
        sd.combine(*trees, known({"a": one}, d=0))
    assert sd.combine(known(None, a=1), known(None, b=2))._metadata is None
    with pytest.raises(sd.errors.SpecMismatch, match="<root>: the containers"):
        sd.combine(known(None, a=1), known({"": one}, b=2))


def test_a_deep_tree_is_renamed():
    """As deep as any tree may be, and no deeper."""
    tree = 1
    for i in range(900):
        tree = {"a": tree} if i % 2 else [tree]
    moved = sd.rename(tree, lambda name: name.replace("a", "b"))
    assert sd.names(moved) == [sd.names(tree)[0].replace("a", "b")]
    assert sd.structure(sd.rename(moved, lambda name: name.replace("b", "a"))) == (
        sd.structure(tree)
    )
