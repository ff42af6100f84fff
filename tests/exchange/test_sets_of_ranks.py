"""One path on several sets of ranks: norms outside a TP plan, experts, pipeline stages.

No rank sees the layout of a set that it is not in. What each operation comes to is told
by torch's own functions, over the models of ``models``, and by hand.
"""

from collections import OrderedDict

import pytest
import torch
import torch.distributed as dist
from models import FSDP_PARTLY_TP, build, fresh
from rank_leaves import Scaled
from ranks import mesh
from shards import caught, me, over, said, shard, together, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.errors import LayoutError, RankFailed, RankMismatch, SpecMismatch
from sdtree.layout import layout
from sdtree.wire.collectives import forced, record

W, NORM, HEAD = whole(8, 4), whole(6, start=100), whole(5, 2, start=200)
WIRES = ("pairs", "collective")
by_each_wire = pytest.mark.parametrize("wire", WIRES)


def line(name):
    """Return the line that this rank is on along a dimension of a square of ranks."""
    return mesh((2, 2), ("dp", "tp"))[name]


def partly_planned(start=0.0):
    """Return a tree as FSDP over TP leaves it: what is not planned lies on ``dp``."""
    square = mesh((2, 2), ("dp", "tp"))
    return {
        "w": shard(W + start, square, Shard(0), Shard(1)),
        "norm": shard(NORM + start, line("dp")),
        "head": shard(HEAD + start, line("dp"), Replicate()),
        "step": me(),
    }


def on_all(start=0.0):
    """Return the same leaves in shards over all ranks."""
    return {
        "w": shard(W + start),
        "norm": shard(NORM + start),
        "head": shard(HEAD + start, mesh((4,)), Shard(1)),
        "step": me(),
    }


FULL = {"w": W, "norm": NORM, "head": HEAD}


def check_whole(tree, full, ranks):
    """Assert that leaves are whole on some ranks and abstract on the others."""
    for name, t in full.items():
        if me() in ranks:
            assert type(tree[name]) is torch.Tensor, name
            assert torch.equal(tree[name], t), name
        else:
            assert tree[name] == sd.Abstract.of(t), name


# -- gather ------------------------------------------------------------------------


def gather_to(ranks, wire):
    with forced(wire):
        made = sd.gather(partly_planned(), ranks=ranks, bucket_bytes=64)
    chosen = range(4) if ranks is None else [ranks] if type(ranks) is int else ranks
    check_whole(made, FULL, chosen)
    assert made["step"] == me()


@by_each_wire
@pytest.mark.parametrize("ranks", [None, 0, 1, 3, [0, 1], [1, 2, 3]])
def test_a_rank_takes_a_leaf_from_its_own_set(ranks, wire):
    together(gather_to, ranks, wire)


def gather_by_path(wire):
    chosen = {"w": 2, "norm": [1, 2], "head": None, "step": None}
    with forced(wire):
        made = sd.gather(partly_planned(), ranks=lambda path: chosen[path[0]])
    check_whole(made, {"w": W}, [2])
    check_whole(made, {"norm": NORM}, [1, 2])
    check_whole(made, {"head": HEAD}, range(4))


@by_each_wire
def test_each_leaf_goes_where_its_path_says(wire):
    together(gather_by_path, wire)


def gather_into(wire):
    tree = partly_planned()
    buffers = sd.gather(tree, ranks=0)
    with forced(wire):
        again = sd.gather(partly_planned(1), ranks=0, into=buffers)
    check_whole(again, {name: t + 1 for name, t in FULL.items()}, [0])
    assert me() or all(again[name] is buffers[name] for name in FULL)


@by_each_wire
def test_buffers_are_written_again(wire):
    together(gather_into, wire)


def gather_balanced(wire):
    with forced(wire):
        made = sd.gather(partly_planned(), ranks="balanced")
    mine = sd.drop(made, lambda path, x: isinstance(x, sd.Abstract), missing_ok=True)
    mine.pop("step")
    every = [None] * 4
    dist.all_gather_object(every, mine)
    assert sd.equal(sd.combine(*every), FULL)


@by_each_wire
def test_each_leaf_is_given_once(wire):
    """The parts of all ranks combine: none has a leaf that another has."""
    together(gather_balanced, wire)


# -- stages of a pipeline ----------------------------------------------------------


def stage(start=0.0):
    """Return the part of a model that this rank's stage holds: two ranks each."""
    k = me() // 2
    first = {"embed": shard(W + start, line("tp"))} if k == 0 else {}
    last = {"head": shard(HEAD + start, line("tp"), Shard(1))} if k else {}
    layers = OrderedDict({f"{k}.w": shard(NORM + k + start, line("tp")), "n": me()})
    tied = shard(NORM + 10 * k + start, line("tp"))
    pair = [sd.ABSENT, sd.ABSENT, tied, tied] if k else [tied, tied]
    return {**first, "layers": layers, "pair": pair, **last}


def gather_stages(ranks, wire):
    tree = stage()
    with forced(wire):
        made = sd.gather(tree, ranks=ranks)
    if me() != ranks:
        assert sd.structure(made) == sd.structure(tree)
        assert all(isinstance(x, (int, sd.Abstract)) for x in sd.leaves(made))
        return None
    k = me() // 2
    assert torch.equal(made["embed"], W)
    assert torch.equal(made["head"], HEAD)
    assert type(made["layers"]) is OrderedDict
    assert made["layers"]["n"] == me()
    for s in range(2):
        assert torch.equal(made["layers"][f"{s}.w"], NORM + s)
        assert torch.equal(made["pair"][2 * s], NORM + 10 * s)
    assert [*made["layers"]] == [f"{k}.w", "n", f"{1 - k}.w"]
    assert sd.ties(made) == [[("pair", 0), ("pair", 1)], [("pair", 2), ("pair", 3)]]
    return [*made]


@by_each_wire
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_stage_sends_its_leaves_to_a_rank_of_another(rank, wire):
    """They join the tree there, after its own keys, ties and all."""
    keys = together(gather_stages, rank, wire)[rank]
    own = ["embed", "layers", "pair"] if rank < 2 else ["layers", "pair", "head"]
    assert keys == [*own, "head" if rank < 2 else "embed"]


def gather_stages_into(wire):
    buffers = sd.gather(stage(), ranks=0)
    with forced(wire):
        again = sd.gather(stage(1), ranks=0, into=buffers)
    if me() == 0:
        assert torch.equal(again["head"], HEAD + 1)
        assert torch.equal(again["pair"][3], NORM + 11)
        assert again["head"] is buffers["head"]
    into = sd.drop(again, "head") if me() == 0 else None
    return said(caught(lambda: sd.gather(stage(1), ranks=0, into=into)))


@by_each_wire
def test_the_buffers_of_last_time_have_the_leaves_of_other_stages(wire):
    zero, *others = together(gather_stages_into, wire)
    assert "into= does not fit" in zero
    assert all("rank 0 failed" in text for text in others)


def gather_in_a_chain(wire):
    chain = sd.cast(dtype=torch.bfloat16) | sd.gather(ranks=0) | sd.offload()
    chain = chain | sd.prefix("model") | sd.drop("model.pair.**")
    with forced(wire):
        made = chain(stage())
        streamed = dict(chain.stream(stage()))
    assert {*streamed} == {*sd.paths(made)}
    if me() == 0:
        assert torch.equal(made["model"]["head"], HEAD.bfloat16())
        assert sd.equal([*map(streamed.get, sd.paths(made))], sd.leaves(made))


@by_each_wire
def test_what_comes_from_other_stages_passes_the_stages_after(wire):
    together(gather_in_a_chain, wire)


def gather_to_one_outside(tree, wire):
    """Gather a leaf of ranks 1 and 2; others have a part of none, or nothing at all."""
    x = shard(W, over(1, 2))
    with forced(wire):
        made = sd.gather({"w": x} if tree == "all" or me() in (1, 2) else {}, ranks=0)
    if me() == 0:
        assert torch.equal(made["w"], W)
    elif me() == 3 and tree == "some":
        assert made == {}
    else:
        assert made["w"] == sd.Abstract.of(W)


@by_each_wire
@pytest.mark.parametrize("tree", ["all", "some"])
def test_a_destination_may_hold_nothing(tree, wire):
    together(gather_to_one_outside, tree, wire)


def gather_a_tie_apart(wire):
    """Gather a tie of another stage into two buffers, and to two ranks."""
    x = shard(NORM, over(2, 3)) if me() > 1 else None
    over(2, 3)
    tree = {"a": x, "b": x} if me() > 1 else {}
    buffers = {"a": torch.zeros(6), "b": torch.zeros(6)} if me() == 0 else None
    with forced(wire):
        made = sd.gather(tree, ranks=0, into=buffers)
        apart = sd.gather(tree, ranks=lambda path: "ab".index(path[0]))
    if me() == 0:
        assert all(torch.equal(t, NORM) for t in made.values())
        assert made["b"] is buffers["b"]
    if me() < 2:
        assert [*apart] == ["ab"[me()]]
        assert torch.equal(apart["ab"[me()]], NORM)


def gather_a_tie_into_one(wire, turns):
    """Gather a tie of another stage into one buffer."""
    both, tree, rows = over(2, 3), {}, whole(5, 2)
    if me() > 1:
        a = b = shard(rows, both)
        if turns:
            t, sizes = a.to_local().t(), {"shape": rows.t().shape, "stride": (1, 2)}
            b = DTensor.from_local(t, both, [Shard(1)], run_check=False, **sizes)
        tree = {"a": a, "b": b}
    buffer = torch.zeros_like(rows)
    buffers = {"a": buffer, "b": buffer.t() if turns else buffer}
    with forced(wire):
        sd.gather(tree, ranks=0, into=buffers if me() == 0 else None)
    assert torch.equal(buffer, rows if me() == 0 else torch.zeros_like(rows))


@by_each_wire
@pytest.mark.parametrize("turns", [False, True])
def test_one_buffer_takes_a_tie_of_another_stage(wire, turns):
    together(gather_a_tie_into_one, wire, turns)


@by_each_wire
def test_the_members_of_a_tie_go_each_where_it_is_to(wire):
    together(gather_a_tie_apart, wire)


def gather_a_parameter(wire):
    over(1, 2)
    leaf = shard(NORM, over(1, 2)).requires_grad_() if me() in (1, 2) else None
    with forced(wire):
        made = sd.gather({} if leaf is None else {"w": leaf}, ranks=3)
    return made["w"].requires_grad if me() == 3 else None


@by_each_wire
def test_it_requires_grad_as_it_did(wire):
    assert together(gather_a_parameter, wire)[3] is True


# -- what is refused ---------------------------------------------------------------


def clashes(case):
    """Return what ranks raise whose trees cannot be gathered to rank 0."""
    dp, tp = line("dp"), line("tp")
    lower = me() < 2
    tree, ranks = {
        "other shape": ({"w": shard(whole(6 + me() % 2), dp)}, 0),
        "other dtype": ({"w": shard(W.half() if me() % 2 else W, dp)}, 0),
        "a plain tensor": ({"w": W.clone() if lower else shard(W, tp)}, 0),
        "a container": ({"w": {"x": 1} if lower else shard(W, tp)}, 0),
        "ranks": ({"w": shard(W, dp)}, me() % 2 * 2),
        "a list": ({"w": [1]} if lower else {"w": {0: shard(W, tp), "a": 1}}, 0),
    }[case]
    error = caught(lambda: sd.gather(tree, ranks=ranks))
    return type(error), said(error), getattr(error, "paths", ())


@pytest.mark.parametrize(
    "case",
    ["other shape", "other dtype", "a plain tensor", "a container", "a list", "ranks"],
)
def test_a_path_that_is_taken_otherwise_is_refused_on_all_ranks(case):
    for cls, text, paths in together(clashes, case):
        assert cls is RankMismatch, text
        assert paths[0][0] == "w"


def targets_of_two_kinds(case, src):
    """Return what ranks raise who do not have a leaf alike that is to come to them."""
    dp, tp = line("dp"), line("tp")
    lower = me() < 2
    like = {
        "a plain tensor": {"w": torch.zeros(8, 4) if lower else shard(W, tp)},
        "other shape": {"w": shard(whole(6 + me() % 2), dp)},
    }[case]
    full = {"w": W.clone()} if me() == src else None
    error = caught(lambda: sd.broadcast(full, like=like, src=src))
    return type(error), said(error)


@pytest.mark.parametrize("src", [0, 3])
@pytest.mark.parametrize("case", ["a plain tensor", "other shape"])
def test_targets_that_are_taken_otherwise_are_refused_on_all_ranks(case, src):
    for cls, text in together(targets_of_two_kinds, case, src):
        assert cls is RankMismatch, text
        assert "nothing was moved; at w" in text


# -- loads -------------------------------------------------------------------------


def broadcast(how, src, wire):
    like = partly_planned(1)
    full = {name: t + 7 for name, t in FULL.items()} | {"step": 5}
    source = full if me() == src else None
    with forced(wire), record() as traffic:
        made = sd.broadcast(source, src=src, bucket_bytes=64, **{how: like})
    assert made["step"] == 5
    for name, x in partly_planned(7).items():
        if name != "step":
            assert type(made[name]) is DTensor
            assert torch.equal(made[name].to_local(), x.to_local()), name
            assert how == "like" or made[name] is like[name]
    return traffic.nbytes["send"]


@by_each_wire
@pytest.mark.parametrize("src", [0, 3])
@pytest.mark.parametrize("how", ["like", "into"])
def test_a_load_serves_every_set(how, src, wire):
    sent = together(broadcast, how, src, wire)
    if wire == "pairs":
        words = 64 * 4 * 16
        assert sent[src] <= sd.nbytes(FULL) + words


def distribute():
    made = sd.distribute({**FULL, "step": 5}, like=partly_planned(1))
    assert sd.equal(made, {**partly_planned(), "step": 5})


def test_each_rank_takes_its_part_of_every_set():
    together(distribute)


def broadcast_stages(how, wire):
    like = stage()
    full = {
        "embed": W + 1,
        "head": HEAD + 1,
        "layers": {"0.w": NORM + 1, "1.w": NORM + 2, "n": 9},
        "pair": [NORM + 3, NORM + 3, NORM + 4, NORM + 4],
    }
    with forced(wire):
        made = sd.broadcast(full if me() == 1 else None, src=1, **{how: like})
    k = me() // 2
    assert sd.structure(made) == sd.structure(like)
    assert made["layers"]["n"] == 9
    expected = NORM.chunk(2)[me() % 2] + 3 + k
    assert torch.equal(made["pair"][2 * k].to_local(), expected)
    if k:
        assert torch.equal(made["head"].to_local(), HEAD.chunk(2, 1)[me() % 2] + 1)
    if me() == 1:
        assert "targets for what has none here: head" in str(
            sd.explain(sd.broadcast(src=1, like=like), full)
        )
    bad = caught(lambda: sd.broadcast({**full, "more": W}, src=1, like=like))
    assert "unexpected: more" in said(bad)
    lacks = {name: x for name, x in full.items() if name != "head"}
    bad = caught(lambda: sd.broadcast(lacks, src=1, like=like))
    assert "missing: head" in said(bad)
    kept = sd.broadcast(lacks, src=1, like=like, strict=False)
    assert not k or kept["head"] is like["head"]


@by_each_wire
@pytest.mark.parametrize("how", ["like", "into"])
def test_each_stage_takes_its_own_leaves_of_a_full_source(how, wire):
    """A name is unexpected if no rank has it, and missing if one has."""
    together(broadcast_stages, how, wire)


def broadcast_to_nobody(how, wire):
    like = {}
    if me() == 1:
        there = sd.Shards(torch.empty(0), layout.whole((4,), (2,)))
        like = {"w": there, "x": torch.zeros(2)}
    full = {"w": torch.ones(4), "x": torch.ones(2)}
    with forced(wire):
        made = sd.broadcast(full, src=1, strict=False, **{how: like})
    assert [*made] == [*like]
    if like:
        assert made["w"] is like["w"]
        assert torch.equal(made["x"], full["x"])


@by_each_wire
@pytest.mark.parametrize("how", ["like", "into"])
def test_what_its_ranks_have_not_asked_for_is_not_sent_to_them(how, wire):
    """Though the source knows of a target that is to lie there."""
    together(broadcast_to_nobody, how, wire)


def distribute_stages(how):
    like = stage()
    full = {
        "embed": W + 1,
        "head": HEAD + 1,
        "layers": {"0.w": NORM + 1, "1.w": NORM + 2, "n": 9},
        "pair": [NORM + 3, NORM + 3, NORM + 4, NORM + 4],
    }
    load = sd.distribute(**{how: like})
    supposed = "head" if me() < 2 else "embed"
    assert f"other ranks had targets for what has none here: {supposed}" in str(
        sd.explain(load, full)
    )
    made = load(full)
    assert sd.structure(made) == sd.structure(like)
    k = me() // 2
    assert torch.equal(
        made["layers"][f"{k}.w"].to_local(), NORM.chunk(2)[me() % 2] + k + 1
    )
    own = {**full, "more": W} if me() == 3 else full
    bad = caught(lambda: sd.distribute(own, **{how: like}))
    assert "1 unexpected: more;" in said(bad)
    assert type(bad) is SpecMismatch
    _, report = sd.distribute(own, strict=False, report=True, **{how: like})
    assert str(report) == "1 unexpected: more"
    lacks = {name: x for name, x in full.items() if name != "head"}
    bad = caught(lambda: sd.distribute(lacks, **{how: like}))
    assert type(bad) is (SpecMismatch if k else RankFailed)
    assert "1 missing: head" in said(bad)


@pytest.mark.parametrize("how", ["like", "into"])
def test_each_stage_takes_its_own_leaves_where_every_rank_has_all(how):
    """What has no target on any rank is unexpected, whoever has it."""
    together(distribute_stages, how)


def broadcast_state_of_stages():
    """Each stage has an optimizer of its own, and the source those of all."""

    def state(k, t):
        return {f"optim{k}": {"state": {"w": t}, "param_groups": [{"lr": 1.0}]}}

    k = me() // 2
    like = state(k, shard(NORM, line("tp")))
    full = state(0, NORM + 1) | state(1, NORM + 2)
    for made in (sd.broadcast(full, like=like), sd.distribute(full, like=like)):
        [found] = [made[f"optim{k}"]["state"]["w"].to_local()]
        assert torch.equal(found, NORM.chunk(2)[me() % 2] + k + 1)


def test_the_optimizers_of_other_stages_are_not_lost():
    together(broadcast_state_of_stages)


def broadcast_to_one_buffer():
    """Two leaves that differ are to go to one buffer, on a stage without the source."""
    one = shard(NORM * 0, over(2, 3))
    into = {"a": one, "b": one} if me() > 1 else {}
    source = {"a": NORM, "b": NORM + 1} if me() == 0 else None
    bad = caught(lambda: sd.broadcast(source, into=into))
    same = {"a": NORM, "b": NORM.clone()} if me() == 0 else None
    sd.broadcast(same, into=into)
    assert me() < 2 or torch.equal(one.to_local(), NORM.chunk(2)[me() % 2])
    return type(bad)


def test_leaves_that_differ_do_not_go_to_one_buffer_of_another_stage():
    kinds = together(broadcast_to_one_buffer)
    assert kinds == [SpecMismatch, *[RankFailed] * 3]


def broadcast_without_data():
    like = {"w": shard(NORM, over(2, 3))} if me() > 1 else {}
    over(2, 3)
    source = {"w": NORM.to("meta")} if me() == 0 else None
    return said(caught(lambda: sd.broadcast(source, like=like)))


def test_a_source_without_data_is_refused_before_anything_moves():
    for text in together(broadcast_without_data):
        assert "w: the leaf is meta" in text


def plain_stages(how, wire):
    """Every rank has leaves of its own, none of them sharded, and one that all have."""
    own = torch.full((3,), float(me()))
    like = {"all": torch.zeros(2), f"{me()}": own, f"tied {me()}": own, "n": me()}
    if me() == 3:
        like = {}
    full = {"all": torch.ones(2), "n": 7}
    for k in range(3):
        t = torch.full((3,), float(10 + k))
        full |= {f"{k}": t, f"tied {k}": t}
    with forced(wire):
        made = sd.broadcast(full if me() == 2 else None, src=2, **{how: like})
    assert [*made] == [*like]
    if me() < 3:
        assert made[f"{me()}"].tolist() == [10 + me()] * 3
        assert made["all"].tolist() == [1, 1]
        assert made["n"] == 7
        assert sd.ties(made) == sd.ties(like)


def tied_but_on_one_rank(wire):
    w = shard(NORM, mesh((4,)), Replicate())
    other = shard(NORM, mesh((4,)), Replicate()) if me() == 1 else w
    one = torch.zeros(6)
    into = {"a": one, "b": one}
    with forced(wire):
        sd.gather({"a": w, "b": other}, ranks=0, into=into)
    assert me() or torch.equal(one, NORM)


@by_each_wire
def test_one_buffer_takes_what_lies_whole_in_one_place_here(wire):
    """Whether others tie it does not matter, for nothing comes from them."""
    together(tied_but_on_one_rank, wire)


def others_have_it_sharded(ranks, wire):
    pair = over(0, 1)
    w = shard(NORM, pair)
    tree = {"a": w, "b": w} if me() < 2 else {"a": W + me(), "b": W - me()}
    with forced(wire):
        made = sd.gather(tree, ranks=ranks)
    if me() > 1:
        assert made["a"] is tree["a"]
        assert made["b"] is tree["b"]
    return sum(isinstance(x, torch.Tensor) for x in made.values())


@by_each_wire
@pytest.mark.parametrize("ranks", ["balanced", None])
def test_a_leaf_of_one_rank_stays_there_whatever_others_have(ranks, wire):
    """One that is not sharded is in none of the sets that hold its path."""
    first, second, *others = together(others_have_it_sharded, ranks, wire)
    assert first + second == (2 if ranks else 4)
    assert others == [2, 2]


def takes_more_than_tensors(wire):
    target = Scaled(torch.zeros(3), 0.5)
    like = {"w": target} if me() == 0 else {}
    full = {"w": Scaled(torch.ones(3), 0.5)} if me() == 2 else None
    for before in (sd.identity, sd.copy()):
        with forced(wire):
            made = (before | sd.broadcast(like=like, src=2))(full)
        assert [*made] == [*like]
        assert not made or torch.equal(made["w"].data, torch.ones(3))


@by_each_wire
def test_what_is_more_than_its_tensors_goes_where_it_alone_is_wanted(wire):
    """A step before may make it: who has the target has seen that it fits."""
    together(takes_more_than_tensors, wire)


@by_each_wire
@pytest.mark.parametrize("how", ["like", "into"])
def test_each_rank_takes_what_it_alone_has(how, wire):
    together(plain_stages, how, wire)


def plain_leaves_that_differ():
    like = {"w": torch.zeros(2 + me() % 2)}
    return type(caught(lambda: sd.broadcast({"w": torch.ones(2)}, like=like)))


def test_one_path_is_one_tensor_where_it_is_not_sharded_too():
    assert together(plain_leaves_that_differ) == [RankMismatch] * 4


# -- from layout to layout ---------------------------------------------------------


def redistribute(make, other, wire):
    with forced(wire):
        made = sd.redistribute(make(), like=other(1), bucket_bytes=64)
    for name, x in other().items():
        if name != "step":
            assert made[name].placements == x.placements
            assert torch.equal(made[name].to_local(), x.to_local()), name


@by_each_wire
@pytest.mark.parametrize(
    "ways", [(on_all, partly_planned), (partly_planned, on_all)], ids=["to", "from"]
)
def test_leaves_go_to_several_sets_and_back(ways, wire):
    together(redistribute, *ways, wire)


def redistribute_across(wire):
    """From two columns of the square to its two rows."""
    with forced(wire):
        made = sd.redistribute(
            {"w": shard(W, line("dp"))}, like={"w": shard(W + 1, line("tp"), Shard(1))}
        )
    assert torch.equal(made["w"].to_local(), W.chunk(2, 1)[me() % 2])


@by_each_wire
def test_leaves_go_from_sets_to_other_sets(wire):
    together(redistribute_across, wire)


def one_has_another(own, keyword, prepares, wire):
    """Redistribute what ranks 0, 2 and 3 share, where rank 1 has a leaf of its own."""
    first, last, all_three = over(0, 2), over(3), over(0, 2, 3)
    source = shard(W, last if me() == 3 else first)
    like = {"w": shard(W + 1, all_three, Replicate())}
    tree = {"w": own if me() == 1 else source}
    like = {"w": torch.zeros_like(own)} if me() == 1 else like
    f = sd.redistribute(**{keyword: like})
    with forced(wire):
        if prepares:
            with f.prepare(tree) as run:
                made = run(tree)["w"]
        else:
            made = f(tree)["w"]
    if me() == 1:
        assert made.dtype == own.dtype
        assert torch.equal(made, own)
    else:
        assert torch.equal(made.to_local(), W)


@by_each_wire
@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize("keyword", ["like", "into"])
@pytest.mark.parametrize(
    "own", [torch.tensor(3.0), (100 * W).long()], ids=["0d", "long"]
)
def test_a_leaf_of_one_rank_is_none_of_the_sets_that_share_its_path(
    own, keyword, prepares, wire
):
    """It goes where it is wanted as it is, whatever shape and dtype others have."""
    together(one_has_another, own, keyword, prepares, wire)


def redistribute_to_a_whole(keyword):
    """One target is plain and the other a DTensor: each rank has both whole."""
    w, one = shard(W), torch.zeros_like(W)
    like = {"a": one, "b": DTensor.from_local(one, mesh((4,)), [Replicate()])}
    made = sd.redistribute({"a": w, "b": w}, **{keyword: like})
    assert sd.ties(made) == sd.ties(like) != []
    assert type(made["b"]) is DTensor
    assert torch.equal(made["a"], W)
    apart = {"a": shard(W), "b": shard(W + 1)}
    made = sd.redistribute(apart, like=like)
    assert not sd.ties(made)
    return said(caught(lambda: sd.redistribute(apart, into=like)))


@pytest.mark.parametrize("keyword", ["into", "like"])
def test_a_plain_target_is_tied_to_a_replica_of_it(keyword):
    """So they are in the source, which is sharded: the plain one is whole there."""
    for text in together(redistribute_to_a_whole, keyword):
        assert "the leaves of the source differ" in text


def redistribute_elsewhere():
    pair = over(0, 1)
    source = {"w": shard(W, pair)} if me() < 2 else {"w": W.clone()}
    error = caught(lambda: sd.redistribute({"w": shard(W, pair)}, like={"w": shard(W)}))
    return type(error), said(error), type(source)


def test_the_sets_together_must_be_the_same_ranks():
    for cls, text, _ in together(redistribute_elsewhere):
        assert cls is LayoutError
        assert "w: " in text


# -- comparing ---------------------------------------------------------------------


def compare():
    a, b = partly_planned(), partly_planned()
    assert sd.equal(a, b)
    assert not sd.diff(a, b)
    assert not sd.equal(a, on_all())
    assert {d.path for d in sd.diff(a, on_all())} == {("w",), ("norm",), ("head",)}
    if me() == 3:
        b["norm"].to_local()[0] += 1
    assert not sd.equal(a, b)
    [found] = sd.diff(a, b)
    assert found.path == ("norm",)
    assert found.a == "1 of 6 elements differ"
    tree = stage()
    assert sd.equal(tree, sd.copy(tree))
    changed = sd.map(lambda x: x + (me() == 2) if isinstance(x, DTensor) else x, tree)
    assert not sd.equal(tree, changed)
    found = {d.path for d in sd.diff(tree, changed)}
    assert found == {("layers", "1.w"), ("pair", 2), ("pair", 3), ("head",)}


def test_trees_on_several_sets_are_compared():
    together(compare)


# -- real models -------------------------------------------------------------------

FULL_STATE = StateDictOptions(full_state_dict=True)


def check_model(wire):
    """Assert that ours comes to what torch's functions give, there and back."""
    model, _ = build(FSDP_PARTLY_TP)
    theirs = get_model_state_dict(model, options=FULL_STATE)
    with forced(wire):
        assert sd.equal(sd.gather(dict(model.state_dict())), theirs)
        ours = sd.gather(dict(model.state_dict()), ranks=1)
    if me() == 1:
        assert sd.equal(ours, theirs)
    elsewhere, _ = fresh(FSDP_PARTLY_TP)
    expected, _ = fresh(FSDP_PARTLY_TP)
    set_model_state_dict(
        expected,
        dict(theirs) if me() == 0 else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )
    with forced(wire):
        sd.broadcast(theirs if me() == 0 else None, into=elsewhere.state_dict())
    assert sd.equal(elsewhere.state_dict(), expected.state_dict())
    assert sd.equal(elsewhere.state_dict(), model.state_dict())


@by_each_wire
def test_a_model_partly_planned_is_served_as_torch_serves_it(wire):
    together(check_model, wire)


def staged_model():
    """Return the part of a model that this rank's stage has, sharded over its line."""
    k = me() // 2
    torch.manual_seed(k)
    parts = {f"layer{k}": nn.Linear(4, 3), f"norm{k}": nn.BatchNorm1d(3)}
    return fully_shard(nn.Sequential(OrderedDict(parts)), mesh=line("tp"))


def check_stages(wire):
    model = staged_model()
    theirs = get_model_state_dict(model, options=FULL_STATE)
    every = [None] * 4
    dist.all_gather_object(every, theirs)
    full = {**every[0], **every[2]}
    with forced(wire):
        ours = sd.gather(dict(model.state_dict()), ranks=0)
    if me() == 0:  # what is not sharded stays with its stage
        stays = {"running_mean", "running_var", "num_batches_tracked"}
        moved = {k: t for k, t in full.items() if k.rpartition(".")[2] not in stays}
        found = {k: ours[k] for k in moved}
        assert sd.equal(found, moved)
    changed = sd.map(lambda t: t + 1, full)
    with forced(wire):
        sd.broadcast(changed if me() == 0 else None, into=model.state_dict())
    now = get_model_state_dict(model, options=FULL_STATE)
    assert sd.equal(dict(now), {k: changed[k] for k in now})


@by_each_wire
def test_stages_of_a_model_are_served_as_torch_serves_them(wire):
    together(check_stages, wire)


def gather_with_metadata():
    meshes = [over(k) for k in range(4)]
    stage = OrderedDict({f"w{me()}": shard(whole(2), meshes[me()]), "n": 1})
    stage._metadata = {"": {"version": me()}, f"w{me()}": {"version": 7}}
    made = sd.gather({"model": stage}, ranks=0)["model"]
    every = range(4) if me() == 0 else [me()]
    assert {*made} == {"n", *(f"w{k}" for k in every)}
    named = {name: x for name, x in made._metadata.items() if name}
    assert named == {f"w{k}": {"version": 7} for k in every}
    assert made._metadata[""] == {"version": me()}


def test_what_comes_from_another_stage_brings_its_metadata():
    """And this rank's own stays, where both have some."""
    together(gather_with_metadata)
