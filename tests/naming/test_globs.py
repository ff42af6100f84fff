"""Globs, against Python's regular expressions; and what no glob may cost."""

import copy
import operator
import pickle
import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meaning import WILD, globbed

import sdtree as sd
from sdtree.naming import closest
from sdtree.naming.globs import escape, match_glob, segments_of

segments = st.text("ab", max_size=4)
names = st.lists(segments, min_size=1, max_size=6).map(".".join)
wildcards = ("a", "b", "*", "?", "[a-c]", "[!b]", "{ab,b}", "{a,,bb}")
starred = st.lists(st.sampled_from(wildcards), max_size=4).map("".join)
starred = starred.filter(lambda segment: "**" not in segment)
globs = st.lists(starred | st.just("**"), min_size=1, max_size=5).map(".".join)
globs = globs.filter(lambda glob: glob.count("{") < 6)


@settings(max_examples=400)
@given(globs, names)
def test_a_glob_is_the_regex_that_it_stands_for(glob, name):
    """It matches the same names, and its wildcards take what greedy groups take."""
    expected = globbed(glob, name)
    found = match_glob(glob, segments_of(name))
    chosen = sd.select({name: 0}, glob, missing_ok=True)
    assert (found is None, chosen) == (
        (True, {}) if expected is None else (False, {name: 0})
    )
    if expected is not None:
        wild = [each[0] for each in WILD.finditer(glob)]
        taken = zip(wild, expected.groups(), strict=True)
        assert [capture.taken for capture in found] == [
            tuple(text.split(".")[:-1]) if each == "**" else (text,)
            for each, text in taken
        ]


BESIDE = (
    *(("a", "a"), ("*", ""), ("*", "a]"), ("?", "]"), (".", "."), ("[]", "[]")),
    *(("[!]", "[!]"), ("[!]", "a"), ("[.]", "."), ("[.]", "a"), ("[!a]", "]")),
    *(("[]a]", "]"), ("[]]", "]"), ("[[]", "["), ("[!]]", "\n"), ("[!b-a]", "\n")),
)
"""What stands in a glob, and in a name that it may match."""


@settings(max_examples=200)
@given(st.lists(st.sampled_from(BESIDE), min_size=1, max_size=5))
def test_what_a_glob_selects_is_what_it_renames(drawn):
    """Where there are no dots that is what ``fnmatch`` takes."""
    glob, name = map("".join, zip(*drawn, strict=True))
    glob, tree = re.sub(r"\*+", "*", glob), {name: 0}
    chosen = sd.select(tree, glob, missing_ok=True)
    moved = sd.rename(tree, (glob, "new"), missing_ok=True)
    assert (moved == {"new": 0}) is (chosen == tree)
    if "." not in glob + name:
        assert (chosen == tree) is fnmatchcase(name, glob)


@given(st.text("ab.*?[]{},!-", min_size=1, max_size=8))
def test_an_escaped_name_matches_itself_alone(name):
    tree = {name: 0, f"{name}a": 1, "a": 2}
    assert sd.select(tree, escape(name)) == {
        name: 0,
        **({"a": 2} if name == "a" else {}),
    }


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("{a,{b,c}d}", ["a", "bd", "cd"]),
        ("{a.b,c}", ["a.b", "c"]),
        ("{a}", ["{a}"]),
        ("{a,b", ["{a,b"]),
        ("[a", ["[a"]),
        ("[]a]", ["]", "a"]),
        ("{a*,?}", ["]", "a", "ab", "c", "q"]),
        ("[b-a]", []),
        ("a[.]b", []),
        ("x[]", ["x[]"]),
        ("*[]", ["x[]"]),
        ("[!]", ["[!]"]),
        ("[{]a[}]", ["{a}"]),
    ],
)
def test_brackets_and_braces_as_in_a_shell(glob, found):
    names = ["a", "ab", "a.b", "bd", "cd", "c", "{a}", "{a,b", "[a", "]", "q"]
    names += ["x[]", "[!]"]
    tree = dict.fromkeys(names, 0)
    assert sorted(sd.select(tree, glob, missing_ok=True)) == sorted(found)


def test_brackets_that_are_none_stay_where_stars_move():
    for name, rule, moved in (
        ("a[]b", ("a[]*", "z*"), "zb"),
        ("ba[]", ("*[]", "*"), "ba"),
        ("x[!]y", ("*[!]*", "*-*"), "x-y"),
        ("x.a[]", ("**.a[]", "**.b"), "x.b"),
        ("[!]", ("[!]", "b"), "b"),
    ):
        assert sd.rename({name: 0}, rule) == {moved: 0}


def test_what_is_wild_moves():
    tree = {"layers": [{"q": 1, "k": 2}, {"q": 3, "k": 4}]}
    moved = sd.rename(tree, ("layers.[01].{q,k}", "layers.*.attn.*_proj"))
    assert moved["layers"][1] == {"attn": {"q_proj": 3, "k_proj": 4}}
    for rule, words in (
        (("a.{q,k}", "b.{q,k}"), "write one in place of 'k'"),
        (("{a.b,c}.*", "x.*"), "a rule for each"),
        (("?", "*.*"), "more stars than '?', 2 and 1"),
        (("?.**", "x.**"), "write '*' for it before"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            sd.rename(tree, rule)


def test_braces_are_bounded():
    """Ten to the twelfth choices are told at once, and a thousand are made."""
    with pytest.raises(ValueError, match="more than 1000 choices"):
        sd.selector("{0,1,2,3,4,5,6,7,8,9}" * 12)
    tree = {f"{i:03}": i for i in range(1000)}
    assert sd.select(tree, "{0,1,2,3,4,5,6,7,8,9}" * 3) == tree


def test_a_tuple_is_any_of_its_parts():
    tree = {"q": torch.ones(1), "k": 2, "v": 3.0, "n": "x"}
    parts = ("{q,k}", re.compile("n"), float, lambda path, leaf: False)
    assert sd.select(tree, parts) == tree
    assert sd.selector(("a", int)) == sd.selector("a") | int
    with pytest.raises(TypeError, match=re.escape("a tuple: ('a', 'b')")):
        sd.select(tree, ["a", "b"])


HARD = {
    "stars in a segment": ("*a" * 40 + "b", "a" * 90),
    "stars in many segments": (".".join(["*a*a*"] * 30), ".".join(["a" * 40] * 31)),
    "stars that take none": ("*" + "a*" * 60 + "b", "a" * 61),
    "many segments": ("**.a." * 30 + "b", ".".join("a" * 90)),
    "many segments, and stars": ("**.*a*a*." * 30 + "b", ".".join(["a" * 30] * 90)),
}


@pytest.mark.parametrize("form", HARD)
def test_no_glob_goes_back(form):
    """Tried in all ways, any of these would take longer than the sun has left."""
    glob, name = HARD[form]
    assert match_glob(glob, segments_of(name)) is None
    assert sd.select({name: 0}, glob, missing_ok=True) == {}
    below = f"{glob.removesuffix('b')}**" if glob.endswith(".b") else f"{glob}**"
    if "**" in glob:
        assert sd.rename({name: 0}, (below, below), missing_ok=True) == {name: 0}


def test_what_is_near_is_found_among_many(monkeypatch):
    """The closest of very many siblings, without comparing all of them in all ways."""
    compared = []

    def close(word, keys, **options):
        compared.append(len(keys))
        return get_close_matches(word, keys, **options)

    monkeypatch.setattr(closest, "get_close_matches", close)
    many = {f"layer_{i}_of_many": i for i in range(20_000)} | {"embedding": 0}
    for glob, near in (("embeding", "embedding"), ("layer_77_of_many_", "layer_77_of")):
        for call in (sd.select, sd.drop, lambda tree, old: sd.rename(tree, (old, "x"))):
            with pytest.raises(sd.errors.NoMatch, match=near):
                call(many, glob)
    assert compared == [200] * 6


def test_a_glob_that_goes_on_below_the_leaves_is_told():
    for glob, words in (("a.b.c", "nothing lies under 'a'"), ("a", "ends above")):
        with pytest.raises(sd.errors.NoMatch, match=words):
            sd.select({"a": {"b": 1} if words == "ends above" else 1}, glob)


def test_of_many_globs_that_fail_a_few_are_told():
    wrong = sd.selector("x0")
    for i in range(1, 50):
        wrong |= f"x{i}"
    with pytest.raises(sd.errors.NoMatch) as error:
        sd.select({"a": 1, "b": 2}, wrong)
    assert str(error.value).count("where there is") == 3


def test_where_none_is_alike_the_first_are_told():
    words = r"where there is 'a', 'b', 'c', 'd', 'e'\. missing_ok"
    with pytest.raises(sd.errors.NoMatch, match=words):
        sd.select(dict.fromkeys("hgfedcba", 1), "xyz")


def test_a_mapping_of_very_many_names_is_looked_up():
    """Tried on each name, one rule for each would take long; the first still counts."""
    tree = {f"old.{i}": i for i in range(20_000)}
    moved = sd.rename(tree, {f"old.{i}": f"new.{i}" for i in range(20_000)})
    assert moved == {f"new.{i}": i for i in range(20_000)}
    rules = {"old.1": "a", "old.*": "b.*", "old.2": "c", re.compile("3"): "d"}
    tree = {"old.1": 1, "old.2": 2, "x3": 3}
    want = {"a": 1, "b.2": 2, "xd": 3}
    assert sd.rename(tree, rules, missing_ok=True) == want
    with pytest.raises(sd.errors.NoMatch, match="what an earlier rule matches"):
        sd.rename(tree, rules)


@pytest.mark.parametrize("join", [operator.or_, operator.and_])
def test_selectors_are_joined_side_by_side(join):
    """In any order they are one and the same, and there may be any number of them."""
    a, b, c = map(sd.selector, ("a*", re.compile("b"), int))
    assert join(join(a, b), c) == join(a, join(b, c)) != join(join(b, a), c)
    assert hash(join(join(a, b), c)) == hash(join(a, join(b, c)))
    tree = {f"a{i}": i for i in range(400)}
    parts = [f"a{i}" if join is operator.or_ else "a*" for i in range(300)]
    many = reduce(join, parts[1:], sd.selector(parts[0]))
    found = sd.select(tree, many)
    assert len(found) == (300 if join is operator.or_ else 400)
    assert pickle.loads(pickle.dumps(many)) == copy.deepcopy(many) == many
    assert len(sd.select(tree, ~many, missing_ok=True)) == 400 - len(found)


def test_a_join_of_another_kind_is_one_part():
    a, b, c = map(sd.selector, ("*.a", "*.b", "x.*"))
    tree = {k: {"a": 1, "b": 2, "c": 3} for k in "xy"}
    assert sd.names(sd.select(tree, (a | b) & c)) == ["x.a", "x.b"]
    assert sd.names(sd.select(tree, a | (b & c))) == ["x.a", "x.b", "y.a"]
