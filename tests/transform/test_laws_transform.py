"""The laws of transforms, of choosing and of renaming."""

import meaning
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import assert_same, difference, items

import sdtree as sd
from sdtree.testing import check_transform_on, selectors_of, trees


def double(x):
    return x * 2 if isinstance(x, int) else x


def written(x):
    return type(x).__name__


def mark(path, x):
    return len(path) if isinstance(x, str) else x


def is_number(path, x):
    return isinstance(x, int)


TRANSFORMS = (
    sd.identity,
    sd.copy(),
    sd.offload(),
    sd.to("cpu"),
    sd.cast(dtype=torch.float16),
    sd.cast(dtype=torch.float64),
    sd.wait(),
    sd.map(double),
    sd.map_with_path(mark),
    sd.prefix("model"),
    sd.prefix("a.b"),
    sd.strip_prefix("module", "a", missing_ok=True),
    sd.select("**.w", missing_ok=True),
    sd.select(torch.Tensor, missing_ok=True),
    sd.drop("**.0", missing_ok=True),
    sd.drop(lambda path, leaf: isinstance(leaf, float), missing_ok=True),
    sd.where(torch.Tensor, sd.copy(), missing_ok=True),
    sd.where(is_number, sd.map(double)),
    sd.map(double) | sd.select(is_number),
    sd.copy() | sd.drop(int, missing_ok=True),
    sd.drop((str, torch.Tensor), missing_ok=True),
    sd.where("**.w", sd.drop("**.0.**", missing_ok=True), missing_ok=True),
    sd.rename(("**.w", "**.weight"), missing_ok=True),
    sd.rename(("**.a.b.**", "**.x.**"), missing_ok=True),
    sd.rename(lambda name: name.replace("0", "1").replace("module.", "")),
    sd.flatten(),
    sd.flatten(sep="::"),
    sd.flatten() | sd.unflatten(),
    sd.where("**.w", sd.flatten(), missing_ok=True),
    sd.whole(lambda tree: {"x": tree, "y": 0}),
)
transforms = st.sampled_from(TRANSFORMS)


def attempt(f, tree):
    """Return what f makes of a tree, or the error of ours that it raises."""
    try:
        return f(tree)
    except (
        sd.errors.NameCollision,
        sd.errors.NoMatch,
        sd.errors.SpecMismatch,
    ) as error:
        return error
    except sd.errors.UnknownLeaf as error:
        if "is not cast" not in str(error):
            raise
        return error


def failed(result):
    return isinstance(result, Exception)


@given(trees(portable=False), transforms)
def test_purity_identity_windows_and_streams(tree, f):
    """The input stays; identity is neutral; no window shows; streams equal calls."""
    if not failed(attempt(f, tree)):
        check_transform_on(f, tree)


DROPPED = {"w": 1, "b": "x"}, sd.drop("w")


@given(trees(portable=False), transforms, transforms)
@example(DROPPED[0], sd.where(is_number, sd.map(double)), DROPPED[1])
@example(DROPPED[0], sd.map(double) | sd.select(is_number), DROPPED[1])
@example(DROPPED[0], sd.map(double) | sd.drop(is_number), DROPPED[1])
@example(DROPPED[0], sd.gather() | sd.where(is_number, sd.map(double)), DROPPED[1])
@example(DROPPED[0], sd.gather() | sd.where("w", sd.map(double)), DROPPED[1])
@example(DROPPED[0], sd.gather() | sd.drop(is_number), DROPPED[1])
@example({"a": [1, "x"], "k": 2.0}, sd.copy() | sd.drop(int), sd.drop(str))
@example({"a": [1, "x"], "k": 2.0}, sd.copy() | sd.select(str), sd.select(str))
def test_a_chain_equals_its_steps(tree, f, g):
    """chain(f, g)(t) = g(f(t)) where the steps return."""
    first = attempt(f, tree)
    expected = first if failed(first) else attempt(g, first)
    if not failed(expected):
        assert_same(sd.chain(f, g)(tree), expected, f"{f} | {g}")


BY_NAME = (
    sd.prefix("model"),
    sd.select("**.[!0]*", missing_ok=True),
    sd.drop("**.{0,w}", missing_ok=True),
    sd.strip_prefix("model", missing_ok=True),
)


@settings(max_examples=25)
@given(trees(), st.lists(st.sampled_from(BY_NAME), max_size=4))
def test_no_step_acts_on_what_a_later_one_drops_by_name(tree, steps):
    """However many lie between that move leaves, or choose them by name."""
    seen = []
    mark = sd.map_with_path(lambda path, x: seen.append(path) or x)
    result = sd.chain(sd.copy(), mark, *steps)(tree)
    assert len(seen) == len([*items(result)])


@given(trees(), transforms, transforms, transforms)
def test_composition_is_associative(tree, f, g, h):
    """(f | g) | h = f | (g | h)."""
    left, right = attempt((f | g) | h, tree), attempt(f | (g | h), tree)
    assert failed(left) == failed(right)
    if not failed(left):
        assert_same(left, right, "associativity")
    assert repr((f | g) | h) == repr(f | (g | h))


@given(trees())
def test_map_of_a_composition(tree):
    """map(f) ; map(g) = map(g . f)."""

    def inc(x):
        return x + 1 if isinstance(x, int) else x

    steps = sd.map(inc, sd.map(double, tree))
    assert_same(sd.map(lambda x: inc(double(x)), tree), steps, "map composes")
    assert_same((sd.map(double) | sd.map(inc))(tree), steps, "map fuses")


@given(trees(portable=False))
def test_the_order_of_a_stream(tree):
    """A local stream goes in path order, a tie together at the place of its first."""
    order = {path: i for i, (path, _) in enumerate(items(tree))}
    first = {p: min(order[q] for q in tie) for tie in sd.ties(tree) for p in tie}
    streamed = [path for path, _ in sd.copy().stream(tree)]
    expected = sorted(order, key=lambda p: (first.get(p, order[p]), order[p]))
    assert streamed == expected


# -- where and partition -----------------------------------------------------------


@given(st.data())
def test_combine_inverts_partition(data):
    """combine(*partition(t, s)) = t up to key order, and with the spec that too."""
    tree = data.draw(trees(portable=False))
    which = data.draw(selectors_of(tree))
    matched, rest = sd.partition(tree, which)
    meant = meaning.combine(*(meaning.take(side) for side in (matched, rest)))
    assert not difference(sd.combine(matched, rest), meant)
    both = sd.combine(matched, rest, spec=sd.structure(tree))
    assert_same(both, tree, "combine inverts partition")
    count = len(sd.leaves(matched)) + len(sd.leaves(rest))
    assert count == len(sd.leaves(tree))


@given(st.data())
def test_select_and_drop_are_the_sides_of_partition(data):
    """partition(t, s) = (select(s)(t), drop(s)(t)); select(~s) has drop's leaves."""
    tree = data.draw(trees(portable=False))
    which = data.draw(selectors_of(tree))
    matched, rest = sd.partition(tree, which)
    assert_same(matched, meaning.select(which, True)(tree), "the matched side")
    assert_same(rest, meaning.drop(which, True)(tree), "the rest")
    assert_same(sd.select(which, missing_ok=True)(tree), matched, "select")
    assert_same(sd.drop(which, missing_ok=True)(tree), rest, "drop")
    other = sd.select(~sd.selector(which), missing_ok=True)(tree)
    assert dict(sd.items(other)).keys() == dict(sd.items(rest)).keys()


@given(st.data())
def test_where_acts_on_the_matched_side(data):
    """where(s, f)(t) = combine(f(matched), rest) with the order of t."""
    tree = data.draw(trees(portable=False))
    which = data.draw(selectors_of(tree))
    matched, rest = sd.partition(tree, which)
    got = sd.where(which, sd.map(double), missing_ok=True)(tree)
    expected = sd.combine(sd.map(double, matched), rest, spec=sd.structure(tree))
    assert_same(got, expected, "where")


@given(st.data())
def test_choosing_by_the_leaf_in_a_chain(data):
    """A selector that looks at leaves sees what the stages before have made of them."""
    tree = data.draw(trees(portable=False))
    a = sd.selector(data.draw(selectors_of(tree)))
    b = sd.selector(data.draw(st.sampled_from([int, torch.Tensor, (float, bytes)])))
    last = data.draw(st.sampled_from([sd.map(double), sd.prefix("x"), sd.copy()]))
    for which in (a, a | b, a & ~b):
        for choose in (sd.select, sd.drop):
            f = sd.map(written) | choose(which, missing_ok=True)
            steps = choose(which, missing_ok=True)(sd.map(written)(tree))
            assert_same((f | last)(tree), last(steps), f"{f} | {last}")


KINDS = (1, "x", 2.0, torch.ones(1))
BY_LOOK = st.builds(
    lambda choose, kinds: choose(kinds, missing_ok=True),
    st.sampled_from([sd.drop, sd.drop, sd.select]),
    st.sampled_from([int, str, (int, float), (str, torch.Tensor)]),
)


@given(trees(st.sampled_from(KINDS)), st.lists(BY_LOOK, min_size=2, max_size=3))
def test_choices_by_the_leaf_in_a_row(tree, choices):
    """What loses all it holds to one of them goes then, and not if it takes two."""
    expected = tree
    for choose in choices:
        expected = choose(expected)
    assert_same(sd.chain(sd.copy(), *choices)(tree), expected, str(choices))


# -- renaming ----------------------------------------------------------------------


@given(trees(portable=False), st.sampled_from(["model", "a.b", "0", ""]))
def test_strip_prefix_inverts_prefix(tree, segment):
    """strip_prefix(prefix(t, s), s) = t."""
    inside = sd.prefix(segment)(tree)
    if sd.leaves(tree):
        assert_same(sd.strip_prefix(segment)(inside), tree, "strip_prefix")


@given(trees(portable=False))
def test_rename_by_the_identity_changes_nothing(tree):
    """rename(** -> **) and rename(name -> name) are the identity."""
    for rule in (("**", "**"), lambda name: name):
        same = sd.rename(rule, missing_ok=True)(tree)
        assert_same(same, tree, "rename by the identity")


@given(trees(portable=False, unique_names=True))
def test_rename_moves_names_and_keeps_leaves(tree):
    """names(rename(t, f)) are f(name) for each name of t, the leaves unchanged."""
    flat = sd.flatten(tree)
    if "" in flat:
        return
    moved = sd.flatten(sd.rename(lambda name: f"new.{name}")(tree))
    assert moved.keys() == {f"new.{name}" for name in flat}
    assert all(moved[f"new.{name}"] is leaf for name, leaf in flat.items())


@given(trees())
def test_rename_and_back(tree):
    """rename(x.** -> **) after rename(** -> x.**) is the identity, key types too."""
    if sd.leaves(tree):
        there = sd.rename(("**", "x.**"))(tree)
        assert_same(sd.rename(("x.**", "**"))(there), tree, "there and back")
