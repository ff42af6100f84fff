"""Leaves without data, empty parts, and interrupts: all ranks hear, none waits."""

import re
from functools import partial

import pytest
import shards
import torch
from hypothesis import assume, given, settings
from ranks import mesh
from shards import me, pieces, said, shard, together, whole
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import sdtree as sd
from sdtree.errors import RankFailed, SpecMismatch
from sdtree.kinds.handler import tensors_of
from sdtree.layout import layout
from sdtree.testing import leaves
from sdtree.wire.collectives import forced

FULL = whole(8, 4)


caught = partial(shards.caught, kind=BaseException)  # be it an interrupt


# -- meta --------------------------------------------------------------------------


def meta_on(ranks, tree):
    """Return a tree whose leaf ``w`` has no data on some ranks."""
    return {**tree, "w": sd.to(tree["w"], "meta") if me() in ranks else tree["w"]}


def exchange(verb, tree, target):
    if verb is sd.gather:
        return sd.gather(tree)
    return verb(tree, like=target)


def without_data(verb, ranks, before):
    part, plain = {"b": 1, "w": shard(FULL)}, {"b": 1, "w": FULL.clone()}
    source = part if verb in (sd.gather, sd.redistribute) else plain
    if before is None:
        return caught(lambda: exchange(verb, meta_on(ranks, source), part))
    f = sd.map(
        lambda x: x.to("meta") if me() in ranks and isinstance(x, torch.Tensor) else x
    )
    if verb is sd.gather:
        return caught(lambda: (f | sd.gather())(source))
    return caught(lambda: (f | verb(like=part))(source))


@pytest.mark.parametrize("ranks", [(0, 1, 2, 3), (0,)], ids=["all", "one"])
@pytest.mark.parametrize("before", [None, "map"])
@pytest.mark.parametrize(
    "verb", [sd.gather, sd.distribute, sd.broadcast, sd.redistribute]
)
def test_a_source_without_data(verb, before, ranks):
    """Its rank says at which path, the others hear of it."""
    for rank, error in enumerate(together(without_data, verb, ranks, before)):
        has = rank in ranks and (verb is not sd.broadcast or rank == 0)
        assert type(error) is (SpecMismatch if has else RankFailed), error
        assert "w: " in said(error)
        assert "meta" in said(error)


def worlds():
    """Return trees whose leaf ``w`` goes by ways of its own: alone, alike, tied."""
    one = shard(FULL)
    turned = DTensor.from_local(one.to_local().t(), mesh((4,)), [Shard(1)])
    halves = [((0, 0), (4, 4), 0), ((4, 0), (4, 4), 1)]
    return {
        "one": {"w": one},
        "alike": {"w": one, "v": shard(FULL)},
        "tied": {"a": one, "w": one},
        "turned": {"a": turned, "w": one},
        "pieces": {"w": pieces(FULL, halves), "v": shard(FULL)},
    }


def exchanges(tree):
    """Return transforms in which the data of ``w`` on rank 1 is to move."""
    full = {name: torch.zeros(x.shape) for name, x in tree.items()}
    columns = {k: shard(x, mesh((4,)), Shard(1)) for k, x in full.items()}
    return {
        "to all": sd.gather(),
        "to one": sd.gather(ranks=0),
        "to another": sd.gather(ranks=1),
        "balanced": sd.gather(ranks="balanced"),
        "into": sd.gather(into=full),
        "in pieces": sd.gather(ranks=0, bucket_bytes=8),
        "like": sd.redistribute(like=columns),
        "into columns": sd.redistribute(into=columns),
        "converted": sd.convert([sd.rule(k, k) for k in tree], like=columns),
    }


def without(tree):
    """Return a tree, which on rank 1 has no data."""
    return sd.to(tree, "meta") if me() == 1 else tree


STEPS = {
    "function": lambda tree: (sd.map(without), tree),
    "choice": lambda tree: (sd.where("w", sd.map(without)), tree),
    "nothing": lambda tree: (sd.identity, without(tree)),
    "copy": lambda tree: (sd.copy(), without(tree)),
}
"""What comes before an exchange, and where it begins."""


def each_without_data(world, step):
    """Return what exchanges raise, in one call and as a stream, each by its wire."""
    found, (before, tree) = {}, STEPS[step](worlds()[world])
    for name, f in exchanges(worlds()[world]).items():
        bare = before | f
        stream = lambda tree, g=bare: [*g.stream(tree)]  # noqa: E731
        for wire, call in (("pairs", bare), ("collective", stream)):
            with forced(wire):
                error = caught(lambda run=call: run(tree))
            found[name, wire] = type(error), said(error) if error else ""
    return found


@pytest.mark.parametrize(
    ("world", "step"),
    [
        *(("one", "copy"), ("alike", "function"), ("tied", "choice")),
        *(("turned", "copy"), ("pieces", "nothing")),
    ],
)
def test_no_data_on_one_rank_after_a_step(world, step):
    """However a leaf would have gone: its rank says at which path, the others hear."""
    for rank, found in enumerate(together(each_without_data, world, step)):
        for way, (cls, text) in found.items():
            assert cls is (SpecMismatch if rank == 1 else RankFailed), (way, text)
            assert re.search("w: " if step == "choice" else "[awv]: ", text), way
            assert "has no data" in text, (way, text)


def terms_without_data(before, verify):
    tree = {"w": DTensor.from_local(FULL, mesh((4,)), [Partial()])}
    bare = meta_on({1}, tree)
    f = before | sd.gather(ranks=0, verify=verify)
    calls = [lambda: f(bare), lambda: run(bare), lambda: f.prepare(bare)(bare)]
    with f.prepare(tree) as run:
        found = [*map(caught, calls)]
    return [(type(x), said(x)) for x in found]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("before", [sd.identity, sd.copy()], ids=["none", "copy"])
def test_terms_without_data_are_not_reduced(before, verify):
    """Torch reduces what is meta by itself: the others would wait, or be aborted."""
    for rank, found in enumerate(together(terms_without_data, before, verify)):
        for cls, text in found:
            assert cls in ((SpecMismatch,) if rank == 1 else (RankFailed, SpecMismatch))
            assert "w: " in text


def replicas_without_data():
    """Return what becomes of a leaf that need not move, and is followed by a plan."""
    tree = {"w": sd.to(shard(FULL, mesh((4,)), Replicate()), "meta")}
    plan = sd.explain(sd.gather(), {"w": sd.to(shard(FULL), "meta")})
    return sd.gather(tree)["w"].is_meta, plan.rows[0].path


def test_what_need_not_move_may_be_without_data():
    """As in a plan, which needs none."""
    assert set(together(replicas_without_data)) == {(True, ("w",))}


def nothing_without_data():
    """What has no elements, and no data, goes from a rank to another."""
    empty = torch.empty(0, 3, device="meta")
    lay = layout.whole((0, 3), (2,))
    tree = {"w": sd.Shards(empty, lay)} if me() == 2 else {}
    made = sd.gather(tree, ranks=0)
    return {x.device.type for x in made.values() if isinstance(x, torch.Tensor)}


def test_what_has_no_elements_is_made_where_there_is_room():
    """A device that another rank tells of need not be here; ``meta`` holds nothing."""
    assert together(nothing_without_data) == [{"cpu"}, set(), set(), set()]


def like_no_leaf(verb, into):
    source = {"w": shard(FULL) if verb is sd.redistribute else FULL}
    options = {"into" if into else "like": sd.spec({"w": shard(FULL)})}
    return caught(lambda: verb(source, **options))


@pytest.mark.parametrize(
    ("verb", "into"),
    [(v, False) for v in (sd.distribute, sd.broadcast, sd.redistribute)]
    + [(sd.distribute, True), (sd.broadcast, True), (sd.gather, True)],
)
def test_a_target_that_is_abstract(verb, into):
    """Nothing can be made like it: a leaf is wanted, with or without data."""
    for error in together(like_no_leaf, verb, into):
        assert type(error) is SpecMismatch
        assert "w: " in said(error) or "at w" in said(error)


# -- empty parts -------------------------------------------------------------------


def into_empty_parts(verb, verify, tied):
    """Return whether leaves arrive of which the last rank holds nothing."""
    fulls = {k: whole(3, 2, start=n) for n, k in enumerate("abc")}
    into = {k: shard(torch.zeros(3, 2)) for k in fulls}
    if tied:
        into["c"], fulls["c"] = into["a"], fulls["a"]
    verb(
        fulls if verb is sd.distribute or me() == 0 else None, into=into, verify=verify
    )
    back = sd.gather(into)
    return all(torch.equal(back[k], fulls[k]) for k in fulls)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("verb", [sd.distribute, sd.broadcast])
def test_parts_that_are_empty_are_no_tie(verb, verify, tied):
    """Two leaves of one layout of which a rank holds nothing go each its own way."""
    assert together(into_empty_parts, verb, verify, tied) == [True] * 4


# -- interrupts --------------------------------------------------------------------


def interrupted(kind, verb):
    """Return what ranks raise if the function of a map is interrupted on one."""

    def fail(x):
        if me() == 1:
            raise kind
        return x

    tree = {"w": shard(FULL), "v": shard(FULL)}
    f = sd.gather() | sd.map(fail) if verb == "after" else sd.map(fail) | sd.gather()
    return caught(lambda: f(tree))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("verb", ["after", "before"])
def test_an_interrupt_is_told_to_the_others(kind, verb):
    """They raise at once, and name the rank; nobody waits for its time-out."""
    for rank, error in enumerate(together(interrupted, kind, verb)):
        assert type(error) is (kind if rank == 1 else RankFailed)
        assert rank == 1 or "rank 1 failed" in said(error)


# -- one process -------------------------------------------------------------------


@settings(max_examples=60)
@given(leaves())
def test_what_stands_for_a_leaf_is_no_target_and_no_source(leaf):
    """Of whatever kind, one error at its path; and buffers like it are a target."""
    tree = {"a": {"w": leaf}}
    forms = sd.spec(tree)
    assume(forms["a"]["w"].dtype is not None)
    assume(forms["a"]["w"].layout is None)
    for load in (sd.distribute, sd.broadcast, sd.redistribute):
        with pytest.raises(SpecMismatch, match=r"^a\.w: the target is an Abstract"):
            load(tree, like=forms)
        with pytest.raises(SpecMismatch, match=r"^a\.w: the leaf is meta or abstract"):
            load(forms, like=tree)
    if not any(t.is_meta for t in tensors_of(leaf)):
        assert sd.equal(sd.distribute(tree, like=sd.empty_like(tree)), tree)


TO_BUFFERS = (
    lambda buffers: sd.copy(into=buffers),
    lambda buffers: sd.copy() | sd.copy(into=buffers),
    lambda buffers: sd.copy() | sd.select(torch.Tensor) | sd.copy(into=buffers),
)


@pytest.mark.parametrize("made", TO_BUFFERS)
def test_buffers_are_planned_for_leaves_without_data_and_not_written(made):
    tree = {"a": {"w": torch.ones(2)}, "w": torch.ones(3)}
    buffers = sd.empty_like(tree)
    assert sd.explain(made(buffers), sd.spec(tree)).rows
    tree["w"] = sd.spec(tree["w"])
    sd.copy({"a": torch.zeros(2)}, into={"a": buffers["a"]["w"]})
    with pytest.raises(SpecMismatch, match=r"w: one of .* is Abstract"):
        made(buffers)(tree)
    assert not buffers["a"]["w"].any()
