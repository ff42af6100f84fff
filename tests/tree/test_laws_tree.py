"""The laws of trees: structure, names and paths, to flat form and text and back."""

import io
import pickle
from collections import UserDict, UserList, deque
from dataclasses import is_dataclass

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, mark

import sdtree as sd
from sdtree.testing import trees
from sdtree.testing.growing import siblings
from sdtree.tree.shape import LEAF, from_rows, rows_of, same_shape


@given(trees(unique_names=True))
def test_unflatten_inverts_flatten(tree):
    """unflatten(flatten(t), spec=structure(t)) = t."""
    back = sd.unflatten(sd.flatten(tree), spec=sd.structure(tree))
    assert_same(back, tree, "unflatten inverts flatten")


@given(trees())
def test_a_shape_stands_in_a_row_of_its_parts(tree):
    """from_rows(rows_of(s)) = s; if they lack a leaf, or have one more, none does."""
    rows = rows_of(sd.structure(tree).shape)
    assert same_shape(from_rows(rows), sd.structure(tree).shape)
    for k in [k for k, row in enumerate(rows) if row is LEAF][:3]:
        for wrong in (rows[:k] + rows[k + 1 :], [*rows[:k], LEAF, *rows[k:]]):
            with pytest.raises(ValueError, match=r"do not come|in the row of one"):
                from_rows(wrong)


@given(trees(unique_names=True))
def test_spec_goes_through_json(tree):
    """unflatten(flatten(t), spec=from_json(to_json(structure(t)))) = t."""
    spec = sd.TreeSpec.from_json(sd.structure(tree).to_json())
    assert spec == sd.structure(tree)
    assert_same(sd.unflatten(sd.flatten(tree), spec=spec), tree, "through JSON")


@given(trees(portable=False))
def test_paths_are_unique_and_pair_with_leaves(tree):
    """Paths are unique, and items pairs them with the leaves."""
    paths = sd.paths(tree)
    assert len(set(paths)) == len(paths) == len(sd.leaves(tree))
    assert all(isinstance(path, tuple) for path in paths)
    assert [path for path, _ in sd.items(tree)] == paths
    meant = list(oracle.items(tree))
    assert mark([path for path, _ in meant]) == mark(paths)
    assert [id(x) for _, x in meant] == [id(x) for x in sd.leaves(tree)]


@given(trees(portable=False))
def test_identity_rebuilds_the_tree(tree):
    """identity(t) = t, in new containers, with the same leaves."""
    back = sd.identity(tree)
    assert_same(back, tree, "identity")
    pairs = zip(sd.leaves(back), sd.leaves(tree), strict=True)
    assert all(a is b for a, b in pairs)


@given(trees(portable=False))
def test_colliding_names_are_refused_by_what_goes_by_name(tree):
    """Two paths with one name raise NameCollision from flatten, names, unflatten."""
    found = [oracle.name_of(path) for path, _ in oracle.items(tree)]
    spec = sd.structure(tree)
    if len(set(found)) == len(found):
        assert sd.names(tree) == found
        return
    for call in (
        lambda: sd.flatten(tree),
        lambda: sd.names(tree),
        lambda: sd.unflatten(dict.fromkeys(found), spec=spec),
    ):
        with pytest.raises(sd.errors.NameCollision):
            call()


@given(trees(portable=False), st.sampled_from(["/", "::", "->-"]))
def test_names_are_the_keys_joined_by_any_separator(tree, sep):
    """names(t, sep) = sep.join(p) for each path p; so, too, flatten and unflatten."""
    spec = sd.structure(tree)
    found = [sep.join(map(str, path)) for path, _ in oracle.items(tree)]
    assert spec.names(sep) == found
    if len(set(found)) == len(found):
        flat = sd.flatten(tree, sep=sep)
        assert list(flat) == found
        assert_same(sd.unflatten(flat, spec=spec, sep=sep), tree, "by a separator")


@given(trees(portable=False), st.integers(1, 3))
def test_a_spec_makes_trees_of_as_many_leaves_as_it_has(tree, count):
    """Fewer and more are refused, in a list and as they come."""
    spec, leaves = sd.structure(tree), sd.leaves(tree)
    for wrong in (leaves[:-count], [*leaves, *leaves, *range(count)]):
        for given_leaves in (wrong, iter(wrong)) if leaves or wrong else ():
            with pytest.raises(ValueError, match=f"{len(wrong)} came"):
                spec.make(given_leaves)


@given(st.dictionaries(st.text("ab.", max_size=4), st.integers(), max_size=4))
def test_unflatten_without_spec_inverts_flatten_of_str_keys(flat):
    """flatten(unflatten(f)) = f for every f in which no leaf is above another."""
    try:
        tree = sd.unflatten(flat)
    except sd.errors.NameCollision:
        return
    assert sd.flatten(tree) == flat


# -- keys --------------------------------------------------------------------------


def told(tree):
    """Tell of a tree, by Python alone, its types, its keys in order, and its leaves."""
    if isinstance(tree, dict):
        parts = [(type(key), repr(key), told(x)) for key, x in dict.items(tree)]
    elif isinstance(tree, (list, tuple, deque)):
        parts = list(map(told, tree))
    elif isinstance(tree, (UserDict, UserList)):
        parts = told(tree.data)
    elif is_dataclass(tree):
        parts = list(map(told, vars(tree).values()))
    else:
        parts = id(tree)
    return type(tree), parts


@given(siblings(trees(portable=False, max_leaves=2), portable=False))
def test_keys_stay_what_they_are(tree):
    """Type, sign and order of keys stay, whatever other keys are equal to them."""
    leaves, spec = sd.leaves(tree), sd.structure(tree)
    assert told(sd.identity(tree)) == told(tree)
    assert told(pickle.loads(pickle.dumps(spec)).make(leaves)) == told(tree)
    assert told(sd.map_with_path(lambda _, x: x, tree)) == told(tree)
    kept = dict(sd.items(sd.drop(is_long, missing_ok=True)(tree)))
    expected = {p: x for p, x in sd.items(tree) if not is_long(p, x)}
    assert [(told([*p]), x) for p, x in kept.items()] == [
        (told([*p]), x) for p, x in expected.items()
    ]


def is_long(path, leaf):
    return len(path) > 2


@given(siblings(trees(max_leaves=2)))
def test_keys_stay_what_they_are_in_text(tree):
    """As in memory, so in JSON."""
    spec = sd.TreeSpec.from_json(sd.structure(tree).to_json())
    assert told(spec.make(sd.leaves(tree))) == told(tree)


@given(siblings(st.just(0), portable=False))
def test_keys_that_are_equal_and_not_the_same_are_told_apart(tree):
    """By structure; and up to order by all that compares or pairs two trees."""
    a, b, *_ = tree
    here, there = told(a)[1], told(b)[1]
    assert (sd.structure(a) == sd.structure(b)) == (here == there)
    read = [pickle.loads(pickle.dumps(sd.structure(x))) for x in (a, b)]
    assert (read[0] == read[1]) == (here == there)
    same = sorted(here, key=repr) == sorted(there, key=repr)
    for x, y in ((a, b), ([{"in": a}], [{"in": b}])):
        assert sd.similar(x, y) == same
        assert sd.equal(x, y) == same
        assert (not sd.diff(x, y)) == same
        if same:
            assert sd.map(max, x, y) == x
        else:
            with pytest.raises(sd.errors.SpecMismatch):
                sd.map(max, x, y)
            with pytest.raises(sd.errors.SpecMismatch):
                sd.copy(x, into=y)


def test_siblings_one_by_one():
    """Keys of another type, and keys in another order, beside each other."""
    zeros = [{0: 0}, {False: 0}, {-0.0: 0}, {0.0: 0}]
    assert repr(sd.identity(zeros)) == repr(zeros)
    assert repr(sd.paths(zeros)) == "[(0, 0), (1, False), (2, -0.0), (3, 0.0)]"
    turned = {"x": {"a": 1, "b": 2}, "y": {"b": 3, "a": 4}}
    assert repr(sd.identity(turned)) == repr(turned)
    assert str(sd.diff({1: {}}, {True: {}})) == (
        "name  differs in  a        b\n"
        "1     container   dict     nothing\n"
        "True  container   nothing  dict"
    )
    moved = sd.rename([{False: 0}, {0: 1}], ("0.**", "**"))
    assert repr(moved) == "{False: 0, 1: {0: 1}}"
    with pytest.raises(sd.errors.NameCollision, match="the keys 1 and True are equal"):
        sd.combine({1: {"a": 0}}, {True: {"b": 0}})
    with pytest.raises(sd.errors.SpecMismatch, match=r"missing: '\(1,\)'.*\('1',\)"):
        sd.map(max, {1: 0}, {"1": 0})


@pytest.mark.parametrize("key", [io.BytesIO(), float("nan")], ids=["buffer", "nan"])
def test_a_key_that_no_other_is_stays_and_has_no_text(key):
    """In memory it is the very key; read from text, it would be none of the tree's."""
    assert sd.paths(sd.identity({key: 0}))[0][0] is key
    with pytest.raises(TypeError, match="JSON cannot say the key"):
        sd.structure({key: 0}).to_json()
