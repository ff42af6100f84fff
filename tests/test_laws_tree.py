"""The laws of trees: structure, names and paths, to flat form and text and back."""

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, mark

import sdtree as sd
from sdtree.testing import trees


@given(trees(unique_names=True))
def test_unflatten_inverts_flatten(tree):
    """unflatten(flatten(t), spec=structure(t)) = t."""
    back = sd.unflatten(sd.flatten(tree), spec=sd.structure(tree))
    assert_same(back, tree, "unflatten inverts flatten")


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
    assert mark([path for path, _ in sd.items(tree)]) == mark(paths)
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
