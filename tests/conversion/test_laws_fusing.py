"""Two conversions in a row are one pass: what it comes to is what two come to."""

import itertools
from functools import partial

import pytest
import torch
from conversions import literal, same, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.conversion import making
from sdtree.conversion.assembly import Assembly
from sdtree.conversion.fusing import Digit, meeting
from sdtree.layout.layout import Box, Layout
from sdtree.testing import assert_same, check_transform


@st.composite
def digits(draw):
    """Draw axes that lie in a dim as those of a rule may: steps, and how many."""
    found, least = [], 1
    for _ in range(draw(st.integers(0, 3))):
        step = least * draw(st.sampled_from([1, 1, 2])) + draw(st.integers(0, 1))
        found.append((step, draw(st.integers(0, 4))))
        least = step * max(1, found[-1][1])
    return found[::-1]


def elements(start, axes):
    """Return for each element of a part the values of its axes."""
    every = itertools.product(*(range(size) for _, size in axes))
    steps = [step for step, _ in axes]
    return {start + sum(map(int.__mul__, steps, at)): at for at in every}


def told(side, met, count, at):
    """Return the values of a part's axes where the axes in common have some."""
    found = [0] * count
    ways = zip(met.ways[side], at, strict=True)
    for axis, by in (*met.starts[side], *((k, by * i) for (k, by), i in ways)):
        found[axis] += by
    return tuple(found)


@given(digits(), digits(), st.integers(-9, 9))
def test_parts_meet_in_each_element_that_they_share_once(here, there, gap):
    """However their axes cut the dim, and where its parts begin."""
    axes = [
        tuple(Digit(*each, (k, 1)) for k, each in enumerate(own))
        for own in (here, there)
    ]
    one, other = elements(0, here), elements(gap, there)
    found = [
        tuple(told(side, met, len(axes[side]), at) for side in (0, 1))
        for met in meeting(gap, *axes)
        for at in itertools.product(*map(range, met.sizes))
    ]
    assert sorted(found) == sorted((one[n], other[n]) for n in one.keys() & other)


# -- rules in a row ----------------------------------------------------------------


@st.composite
def cut(draw, size, letters):
    """Draw how a dim is cut up: its text on both sides, and the sizes that it takes."""
    n, m, k = next(letters), next(letters), next(letters)
    divisors = [by for by in range(2, size) if size % by == 0]
    way = draw(st.sampled_from(["whole", "product", "sum", "inner"]))
    if way == "product" and divisors:
        return f"({n} {m})", f"({m} {n})", {m: draw(st.sampled_from(divisors))}
    if way == "sum" and size:
        return f"({n} + {m})", f"({m} + {n})", {m: draw(st.integers(0, size))}
    if way == "inner" and size:
        by = draw(st.sampled_from([1, *divisors]))
        sizes = {k: by, m: draw(st.integers(0, size // by))}
        return f"({k} ({n} + {m}))", f"(({n} + {m}) {k})", sizes
    return n, n, {}


@st.composite
def recut(draw, name, shape):
    """Draw a rule that cuts a leaf up, turns it, and may fill, repeat or unstack it."""
    letters = iter("abcdefghijklmnopqrstuvwxy")
    each = [draw(cut(size, letters)) for size in shape]
    sizes = {axis: n for *_, own in each for axis, n in own.items()}
    there = list(draw(st.permutations([to for _, to, _ in each])))
    name = literal(name)
    options, head = {}, f"u.{name}"
    if there and draw(st.booleans()):
        options = draw(st.sampled_from([{"fill": {"z": 1}}, {"agree": "z"}]))
        sizes["z"] = draw(st.integers(1, 2))
        there[-1] = f"({there[-1]}{' +' * ('fill' in options)} z)"
    if 0 not in shape and there and draw(st.booleans()):
        head = f"v.{name}.{{{there.pop(0)}}}"
    source = " ".join(here for here, _, _ in each)
    return sd.rule(
        f"{name} [{source}]", f"{head} [{' '.join(there)}]", **options, **sizes
    )


def in_turn(tree, *steps):
    for step in steps:
        tree = step(tree)
    return tree


DTYPES = [torch.float32, torch.int8, torch.bfloat16, torch.complex64]


@settings(max_examples=30)
@given(st.data(), worlds(), st.sampled_from(DTYPES))
def test_two_in_a_row_are_one_after_the_other(data, world, dtype):
    """Whatever cuts the leaves between up, and back through both to the very first."""
    tree = sd.map(torch.clone, world.leaves(world.source, dtype))
    bound = world.rule().bind(tree)
    middle = sd.convert(tree, bound)
    rules = [data.draw(recut(name, t.shape)) for name, t in middle.items()]
    then = [rule.bind(middle) for rule in rules]
    steps = [sd.convert(bound), sd.convert(then)]
    steps += [sd.convert([rule.inverse() for rule in then])]
    steps += [sd.convert(bound.inverse())]
    for count in (2, 3, 4):
        fused, wanted = sd.chain(*steps[:count]), in_turn(tree, *steps[:count])
        assert list(fused(tree)) == list(wanted)
        assert_same(fused(tree), wanted, "fused")
    assert_same(dict(sorted(fused(tree).items())), dict(sorted(tree.items())), "back")


# -- one pass ----------------------------------------------------------------------

EXPERT = "experts.{e}"
STACK = sd.rule([f"{EXPERT}.w1 [f c]", f"{EXPERT}.w3 [g c]"], "up [e (f + g) c]")
UNSTACK = sd.rule("up [(e half) (f two) c]", "{e}.{half:a|b}.w [c (two f)]", two=2)
EXPERTS = {
    f"experts.{e}.{w}": torch.randn(3, 5) for e in range(4) for w in ("w1", "w3")
}


@pytest.fixture
def made(monkeypatch):
    """Return a list to which each leaf comes that is put together."""
    found, put = [], Assembly.put_together
    monkeypatch.setattr(Assembly, "put_together", lambda x: found.append(x) or put(x))
    return found


@pytest.mark.parametrize(
    "between",
    [sd.identity, sd.prefix("n"), sd.drop("up.x", missing_ok=True), sd.unflatten()],
)
def test_nothing_lies_between(made, between):
    """What only moves leaves may stand there; a run, a stream and a plan have none."""
    rename = [sd.convert(sd.rule("n.{x:**}", "{x:**}"))] * (between == sd.prefix("n"))
    chain = sd.chain(sd.convert(STACK), between, *rename, sd.convert(UNSTACK))
    result = chain(EXPERTS)
    assert len(made) == len(sd.leaves(result)) == 4
    wanted = in_turn(EXPERTS, sd.convert(STACK), sd.convert(UNSTACK))
    same(sd.flatten(result), wanted)
    assert {".".join(path) for path, _ in chain.stream(EXPERTS)} == wanted.keys()
    whole = sum(t.nbytes for t in EXPERTS.values())
    assert sd.explain(chain, EXPERTS).peak() == {"cpu": whole}
    check_transform(chain, st.just(EXPERTS), examples=1)


def test_what_looks_at_leaves_has_them_made(made):
    halved = sd.convert(STACK) | sd.cast(dtype=torch.half) | sd.convert(UNSTACK)
    assert halved(EXPERTS)["0.a.w"].dtype == torch.half
    assert len(made) == 5


def test_what_is_cut_too_fine_is_made(made, monkeypatch):
    """Its bits are the same; each leaf between is made once."""
    monkeypatch.setattr(making, "through", lambda made, between: None)
    fused = (sd.convert(STACK) | sd.convert(UNSTACK))(EXPERTS)
    assert len(made) == 5
    same(fused, in_turn(EXPERTS, sd.convert(STACK), sd.convert(UNSTACK)))


def test_a_leaf_in_thousands_of_parts_is_made_and_not_fused(made):
    """Steps of 499 and of 501 have no other measure in common."""
    first = sd.rule("w [(a b) c]", "w [(b a) c]", b=499)
    then = sd.rule("w [(a b) c]", "v [(b a) c]", b=499)
    tree = {"w": torch.arange(499 * 501).view(-1, 1)}
    fused = (sd.convert(first) | sd.convert(then))(tree)
    assert len(made) == 2
    same(fused, in_turn(tree, sd.convert(first), sd.convert(then)))


# -- ties, and what is refused -----------------------------------------------------

w = torch.arange(6.0).view(2, 3)
turn = sd.rule("{x}.w [r c]", "{x}.w [c r]")
TWICE = sd.rule("w [r c]", "{p:a|b}.w [c r]", alias="p")
GROUPS = [
    sd.rule("{i}.q [a c]", "{i}.q [c a]"),
    sd.rule("{i}.k [b c]", "{i}.k [c b]"),
]
FUSE = sd.rule(["{i}.q [c a]", "{i}.k [c b]"], "{i}.qk [c (a + b)]")
CASES = {
    "made twice, one way": ({"w": w}, TWICE, turn),
    "made twice, and one again": ({"w": w}, TWICE, TWICE.inverse()),
    "made twice, two ways": ({"w": w}, TWICE, sd.rule("a.w [r c]", "a.w [c r]")),
    "meta, two ways": (
        {"w": w.to("meta")},
        TWICE,
        [sd.rule("a.w [r c]", "a.w [c r]"), sd.rule("b.w [r c]", "b.v [(r c)]")],
    ),
    "no bytes, two ways": (
        {"w": w[:0]},
        TWICE,
        [sd.rule("a.w [r c]", "a.w [c r]"), sd.rule("b.w [r c]", "b.v [(r c)]")],
    ),
    "tied before": ({"a.w": w, "b.w": w}, turn, turn),
    "tied in part": (
        {"0.q": w, "0.k": w + 1, "1.q": w, "1.k": w + 2},
        GROUPS,
        FUSE,
    ),
    "tied throughout": ({f"{i}.{n}": w for i in "01" for n in "qk"}, GROUPS, FUSE),
    "agreeing": (
        {"k": torch.ones(6, 2)},
        sd.rule("k [(a b) c]", "k [(b a) c]", b=2),
        sd.rule("k [(h r) c]", "k [h c]", agree="r", r=2),
    ),
    "not agreeing": (
        {"k": torch.arange(12.0).view(6, 2)},
        sd.rule("k [(a b) c]", "k [(b a) c]", b=2),
        sd.rule("k [(h r) c]", "k [h c]", agree="r", r=2),
    ),
    "dtypes": (
        {"0.q": w, "0.k": w.half()},
        GROUPS,
        FUSE,
    ),
    "devices": ({"0.q": w, "0.k": w.to("meta")}, GROUPS, FUSE),
    "no data": (sd.spec({"0.q": w, "0.k": w}), GROUPS, FUSE),
    "data in part": ({"0.q": w, "0.k": sd.Abstract.of(w)}, GROUPS, FUSE),
    "no partner": ({"0.q": w}, GROUPS[0], FUSE),
    "sizes": ({"a.w": w}, turn, sd.rule("a.w [(r two) c]", "w [r two c]", two=2)),
    "no name": ({"a.w": w}, turn, sd.rule("a.v [r c]", "w [r c]")),
    "a value that the dtype has not": (
        {"a.w": w.to(torch.int8)},
        turn,
        sd.rule("a.w [r c]", "w [(r + z) c]", fill={"z": 0.5}, z=1),
    ),
    "a value in both": (
        {"a.w": w},
        sd.rule("a.w [r c]", "a.w [(z + r) c]", fill={"z": 0.5}, z=1),
        sd.rule("a.w [(r two) c]", "w [(y + two) c r]", fill={"y": 2}, two=3, y=1),
    ),
    "plain values": ({"n": 3, "w": w}, [sd.rule("n", "m"), TWICE], sd.rule("m", "k")),
    "parameters": (
        {"a.w": torch.nn.Parameter(w), "b.w": w},
        [sd.rule("a.w", "a.w"), sd.rule("b.w [r c]", "b.w [c r]")],
        sd.rule(["a.w [r c]", "b.w [c s]"], "w [(r + s) c]"),
    ),
}


def outcome(function):
    """Return what a function returns, or what is told of what does not fit."""
    try:
        return function()
    except sd.errors.ConvertError as error:
        return str(error)


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("rest", ["refuse", "keep"])
def test_ties_and_errors_are_those_of_two_steps(what, rest):
    """Memory that is shared, what fits and what is told of what does not."""
    tree, first, then = CASES[what]
    steps = sd.convert(first, rest=rest), sd.convert(then, rest=rest)
    wanted = outcome(partial(in_turn, tree, *steps))
    found = outcome(partial(sd.chain(*steps), tree))
    if isinstance(wanted, str):
        assert found == wanted
        return
    assert list(found) == list(wanted)
    assert [*map(type, found.values())] == [*map(type, wanted.values())]
    assert_same(found, wanted, "fused")


def test_a_leaf_to_be_made_joins_one_that_ranks_share():
    """It is whole on each rank, and made for that."""
    layout = Layout((2, 3), {0: (Box(0, (0, 0), (0, 0), (2, 3)),)})
    tree = {"0.q": w, "0.k": sd.Shards(w + 1, layout)}
    steps = (
        sd.convert(GROUPS[0], rest="keep"),
        sd.convert(sd.rule(["0.q [c a]", "0.k [b c]"], "qk [c (a + b)]")),
    )
    found, wanted = sd.chain(*steps)(tree), in_turn(tree, *steps)
    assert_same(found, wanted, "fused")


def test_buffers_that_overlap_the_first_source_are_written_after_it(made):
    """What is written into is read no more: that is the step before."""
    tree = {"a.w": w.clone()}
    buffers = {"a.w": tree["a.w"]}
    (sd.convert(turn) | sd.convert(turn, into=buffers))(tree)
    assert torch.equal(buffers["a.w"], w)
