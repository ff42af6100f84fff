"""Globs, against Python's regular expressions; and what no glob may cost."""

import copy
import operator
import pickle
import re
from difflib import get_close_matches
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.naming import globs as naming_globs
from sdtree.naming.globs import match_glob, segments_of

segments = st.text("ab", max_size=4)
names = st.lists(segments, min_size=1, max_size=6).map(".".join)
starred = st.text("ab*", max_size=5).filter(lambda segment: "**" not in segment)
globs = st.lists(starred | st.just("**"), min_size=1, max_size=5).map(".".join)


def translated(glob):
    """Return a glob as a regex that takes its time, each star a group."""
    parts = (
        r"((?:[^.]*\.)*)"
        if segment == "**"
        else re.escape(segment).replace(r"\*", "([^.]*)") + r"\."
        for segment in glob.split(".")
    )
    return re.compile("".join(parts))


@given(globs, names)
def test_a_glob_is_the_regex_that_it_stands_for(glob, name):
    """It matches the same names, and its stars take what greedy groups take."""
    expected = translated(glob).fullmatch(name + ".")
    found = match_glob(glob, segments_of(name))
    chosen = sd.select({name: 0}, glob, missing_ok=True)
    assert (found is None, chosen) == (
        (True, {}) if expected is None else (False, {name: 0})
    )
    if expected is not None:
        stars = re.findall(r"\*\*|\*", glob)
        taken = zip(stars, expected.groups(), strict=True)
        assert found == tuple(
            tuple(text.split(".")[:-1]) if star == "**" else (text,)
            for star, text in taken
        )


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

    monkeypatch.setattr(naming_globs, "get_close_matches", close)
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
