"""Conversions of sharded leaves by example: what moves, what does not, what is told."""

import pytest
import torch
from ranks import mesh
from shards import caught, fake, me, over, shard, together
from shards import whole as count
from torch.distributed.tensor import Replicate, Shard

import sdtree as sd
from sdtree.errors import ConvertError, RankFailed, RankMismatch, SpecMismatch
from sdtree.layout import Box, Layout
from sdtree.layout import whole as whole_on
from sdtree.wire.collectives import forced, record

QKV = sd.rule(
    ["q [(g h d) ...]", "k [(g k d) ...]", "v [(g v d) ...]"],
    "qkv [(g (h + k + v) d) ...]",
    g=8,
    k=1,
    v=1,
    d=4,
)
ROPE = sd.rule("w [(h two d) ...]", "w [(h d two) ...]", h=12, two=2)


def rows(shape, ranks):
    """Return the layout of rows over so many ranks, as even as torch cuts them."""
    step, rest = -(-shape[0] // ranks), (0,) * (len(shape) - 1)
    cuts = [
        (min(r * step, shape[0]), min((r + 1) * step, shape[0])) for r in range(ranks)
    ]
    boxes = {
        r: (Box(0, (0, *rest), (a, *rest), (b - a, *shape[1:])),)
        for r, (a, b) in enumerate(cuts)
    }
    return Layout(shape, boxes)


def on_rank_0(shape, ranks):
    """Return the part that the first of so many ranks has of rows."""
    layout = rows(shape, ranks)
    return sd.Shards(torch.zeros(layout.boxes[0][0].size), layout)


def lacking(tree, rule, target, ranks):
    """Return how many elements ranks lack of their rows, told element by element."""
    total, numbers = 0, {}
    for name, n in tree.items():
        numbers[name] = torch.arange(total, total + n)
        total += n
    wanted = sd.convert(numbers, rule)[target]
    has = [set[int]() for _ in range(ranks)]
    for index in numbers.values():
        for rank, part in enumerate(index.chunk(ranks)):
            has[rank].update(part.tolist())
    parts = enumerate(wanted.chunk(ranks))
    return sum(len({*part.tolist()} - has[rank]) for rank, part in parts)


@pytest.mark.parametrize(
    ("rule", "sizes", "target", "ranks", "moves"),
    [
        (QKV, {"q": 128, "k": 32, "v": 32}, "qkv", 8, False),
        (QKV, {"q": 128, "k": 32, "v": 32}, "qkv", 4, False),
        (QKV, {"q": 128, "k": 32, "v": 32}, "qkv", 6, True),
        (ROPE, {"w": 144}, "w", 6, False),
        (ROPE, {"w": 144}, "w", 5, True),
    ],
)
def test_only_what_crosses_a_boundary_moves(rule, sizes, target, ranks, moves):
    """Megatron's groups and RoPE's halves, told for more ranks than there are."""
    tree = {name: on_rank_0((n, 3), ranks) for name, n in sizes.items()}
    total = sum(sizes.values())
    like = {target: on_rank_0((total, 3), ranks)}
    plan = sd.explain(sd.convert(rule, like=like), tree)
    [row] = [row for row in plan.rows if row.to]
    assert row.moves == lacking(sizes, rule, target, ranks) * 3 * 4
    assert bool(row.moves) is moves
    assert sd.convert(tree, rule)[target].shape == (total, 3)


# -- ranks that hold other leaves --------------------------------------------------

EXPERTS = sd.rule(["e.{e}.w1 [f c]", "e.{e}.w3 [g c]"], "experts.gate_up [e (f + g) c]")


def expert(e, w):
    return count(3 + w, 2, start=100 * e + 10 * w)


def experts_are_stacked(wire):
    tree, layouts = {}, {}
    for e in range(8):
        for w, name in ((0, "w1"), (1, "w3")):
            own = e // 2 == me()
            tree[f"e.{e}.{name}"] = expert(e, w) if own else torch.empty(0)
            layouts[f"e.{e}.{name}"] = whole_on((3 + w, 2), (e // 2,))
    tree = sd.shards(tree, layouts)
    full = torch.stack([torch.cat([expert(e, 0), expert(e, 1)]) for e in range(8)])
    for placement, sends in ((Shard(0), False), (Shard(1), True), (Replicate(), True)):
        like = {"experts.gate_up": shard(full * torch.nan, mesh((4,)), placement)}
        with forced(wire), record() as traffic:
            made = sd.convert(tree, EXPERTS, like=like)
        assert bool(traffic.nbytes["send"] + traffic.nbytes["all_to_all"]) is sends
        wanted = {"experts.gate_up": shard(full, mesh((4,)), placement)}
        assert sd.equal(made, wanted)
        bare = sd.to(tree, "meta")
        back = sd.convert(made, EXPERTS.bind(tree).inverse(), like=bare)
        assert sd.equal(back, tree)
    views = sd.convert(tree, EXPERTS)
    assert torch.equal(sd.gather(views)["experts.gate_up"], full)


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_experts_that_each_lie_on_one_rank_are_stacked(wire):
    """Nothing moves where each rank is to have those that it has."""
    together(experts_are_stacked, wire)


def other_ranks():
    tree = {"w": shard(count(6, 2), over(0, 1), Shard(0))}
    turned = sd.rule("w [a b]", "t [b a]")
    like = {"t": shard(count(2, 6) * torch.nan, over(2, 3), Shard(1))}
    made = sd.convert(tree, turned, like=like)
    return sd.equal(
        made, {"t": shard(count(6, 2).T.contiguous(), over(2, 3), Shard(1))}
    )


def test_leaves_go_to_other_ranks_than_have_them():
    assert together(other_ranks) == [True] * 4


# -- filled, dropped, agreed, tied -------------------------------------------------


def vocabulary():
    pad = sd.rule("emb [v c]", "emb [(v + pad) c]", fill={"pad": -1.0}, pad=3)
    full = count(10, 2)
    wanted = torch.cat([full, torch.full((3, 2), -1.0)])
    for rank_layout in (Shard(0), Shard(1), Replicate()):
        tree = {"emb": shard(full, mesh((4,)), rank_layout)}
        like = {"emb": shard(wanted * torch.nan, mesh((4,)), rank_layout)}
        made = sd.convert(tree, pad, like=sd.to(like, "meta"))
        assert sd.equal(made, {"emb": shard(wanted, mesh((4,)), rank_layout)})
        assert torch.equal(sd.gather(sd.convert(tree, pad))["emb"], wanted)
        assert sd.equal(sd.convert(made, pad.inverse(), like=tree), tree)
    plan = sd.explain(sd.convert(pad, like=like), {"emb": shard(full)})
    [row] = [row for row in plan.rows if row.to]
    assert row.moves == 3 * full.nbytes  # each lacks three quarters, and no padding


def test_what_is_filled_is_never_sent():
    together(vocabulary)


def optimizer(step):
    moments = sd.rule(
        ["q{s:.w|.m} [a ...]", "k{s:.w|.m} [b ...]"], "qk{s:.w|.m} [(a + b) ...]"
    )
    steps = sd.rule("{n:q|k}.step", "qk.step", agree="n")
    tree = {
        f"{name}.{s}": shard(count(n, 2, start=start))
        for name, n in (("q", 8), ("k", 4))
        for s, start in (("w", 0), ("m", 50))
    }
    tree |= {"q.step": torch.tensor(7.0), "k.step": torch.tensor(step)}
    like = {
        **{f"qk.{s}": shard(torch.full((12, 2), torch.nan)) for s in ("w", "m")},
        "qk.step": torch.tensor(0.0),
    }
    made = sd.convert(tree, [moments, steps], like=like)
    fused = torch.cat([count(8, 2), count(4, 2)])
    assert torch.equal(sd.gather(made)["qk.w"], fused)
    assert made["qk.step"].item() == 7.0
    back = [rule.bind(tree).inverse() for rule in (moments, steps)]
    assert sd.equal(sd.convert(made, back, like=tree), tree)


def test_the_state_of_an_optimizer_follows():
    together(optimizer, 7.0)


def steps_differ():
    return caught(lambda: optimizer(7.0 if me() != 2 else 8.0))


def differ_at_home():
    """Gather what was made without like=, on one rank of leaves that differ."""
    steps = [torch.tensor(7.0), torch.tensor(7.0 + (me() == 2))]
    tree = dict(zip(("q.step", "k.step"), steps, strict=True))
    agree = sd.convert(sd.rule("{p:q|k}.step", "qk.step", agree="p"))
    chain = agree | sd.gather(ranks=0)
    return caught(lambda: chain(tree))


def test_a_chain_tells_all_what_does_not_agree_on_one_rank():
    errors = together(differ_at_home)
    assert isinstance(errors[2], ConvertError)
    assert all(isinstance(errors[r], RankFailed) for r in (0, 1, 3))
    assert all("k.step: it is to agree with q.step" in str(error) for error in errors)


def test_what_is_to_agree_is_compared_on_each_rank_before_anything_moves():
    errors = together(steps_differ)
    assert isinstance(errors[2], ConvertError)
    assert all(isinstance(error, RankFailed) for error in errors[:2])
    assert all("k.step: it is to agree with q.step" in str(error) for error in errors)


TIE = sd.rule("emb", "{t:emb|head}", alias="t")


def ties(differ):
    full = count(8, 2)
    tree = {"emb": shard(full)}
    one = shard(torch.full((8, 2), torch.nan))
    made = sd.convert(tree, TIE, like={"emb": one, "head": sd.copy(one)})
    assert sd.ties(made) == [[("emb",), ("head",)]]
    both = {name: sd.copy(one) for name in ("emb", "head")}
    sd.convert(tree, TIE, into=both)
    assert sd.equal(both, {"emb": tree["emb"], "head": tree["emb"]})
    if differ and me() == 1:
        both["head"].to_local()[0] += 1
    back = sd.convert(both, TIE.inverse(), like=tree)
    assert sd.equal(back, tree)
    renamed = sd.rule("{t:emb|head}", "m.{t:emb|head}")
    tied = sd.convert(made, renamed, like={"m.emb": one, "m.head": one})
    assert sd.ties(tied) == [[("m.emb",), ("m.head",)]]


def test_ties_are_made_and_kept():
    together(ties, False)


def turned_ties():
    """Turn a tie of which the last rank has nothing, onto rows that it has."""
    emb = shard(count(6, 4))
    like = {name: shard(torch.full((4, 6), torch.nan)) for name in ("emb", "head")}
    turn = sd.rule("{n} [a b]", "{n} [b a]")
    made = sd.convert({"emb": emb, "head": emb}, turn, like=like)
    assert sd.ties(made) == [[("emb",), ("head",)]]
    assert torch.equal(sd.gather(made)["head"], count(6, 4).T)


def test_a_rank_that_has_nothing_of_a_tie_agrees_to_it():
    together(turned_ties)


def halves_differ():
    return caught(lambda: ties(True))


def test_what_is_tied_no_more_is_told():
    errors = together(halves_differ)
    assert isinstance(errors[1], ConvertError)
    assert all("head: it is to agree with emb" in str(error) for error in errors)


def one_buffer(buffer):
    """Convert leaves that, and whose buffers, are one on rank 0 alone."""
    full, rest = count(8, 2), count(8, 2, start=50)
    a, b = shard(full), shard(torch.cat([full[:2], rest[2:]]))
    tree = {"a": a, "b": a if me() == 0 else b}
    made = shard(torch.full((8, 2), torch.nan), mesh((4,)), buffer)
    into = {"m.a": made, "m.b": made if me() == 0 else sd.copy(made)}
    rule = sd.rule("{n}", "m.{n}")
    error = caught(lambda: sd.convert(tree, rule, into=into))
    assert bool(made.to_local().isnan().all()) or me() > 0
    return type(error), str(error)


def test_leaves_that_differ_elsewhere_do_not_go_to_one_buffer():
    """What comes from other ranks is not one, whatever this rank has itself."""
    found = together(one_buffer, Shard(1))
    assert [kind for kind, _ in found] == [SpecMismatch, *[RankFailed] * 3]
    for _, text in found:
        assert "one and the same buffer at m.a and m.b, and other ranks have" in text


def other_parts():
    tree = {"a": shard(count(8, 4)), "b": shard(count(8, 4), mesh((4,)), Shard(1))}
    rule = sd.rule("{n:a|b}", "c", agree="n")
    return caught(lambda: sd.convert(tree, rule))


def test_what_is_to_agree_lies_alike():
    for error in together(other_parts):
        assert "b: it is to agree with a" in str(error)
        assert "sd.redistribute before" in str(error)


def test_what_other_ranks_have_is_to_lie_alike_too():
    """Else one goes on alone, to where it waits for those that have raised."""
    a = on_rank_0((8, 4), 4)
    held = dict(a.layout.boxes)
    swapped = Layout(a.shape, held | {2: held[3], 3: held[2]})
    tree = {"a": a, "b": sd.Shards(a.tensors, swapped)}
    with pytest.raises(ConvertError, match="ranks hold other parts of b"):
        sd.convert(tree, sd.rule("{n:a|b}", "c", agree="n"))


# -- what does not fit, on every rank ----------------------------------------------


def unlike(kind):
    """Convert with a fault on rank 1 alone."""
    tree = {"a": shard(count(8, 8)), "b": shard(count(4, 8))}
    like = {"ab": shard(torch.full((12, 8), torch.nan))}
    rule = sd.rule(["a [x ...]", "b [y ...]"], "ab [(x + y) ...]")
    if me() == 1 and kind == "rule":
        rule = sd.rule(["a [x ...]", "b [y ...]"], "ab [(y + x) ...]")
    if me() == 1 and kind == "leaf":
        del tree["b"]
    if me() == 1 and kind == "group":
        tree, like = {}, {}
    if me() == 1 and kind == "layout":
        tree["b"] = shard(count(4, 8), mesh((4,)), Shard(1))
    if me() == 1 and kind == "dtype":
        tree["b"] = shard(count(4, 8).double())
    into = {"ab": shard(torch.full((12, 8), torch.nan))}
    error = caught(lambda: sd.convert(tree, rule, like=like, group=sd_group()))
    other = caught(lambda: sd.convert(tree, rule, into=into, group=sd_group()))
    assert type(error) is type(other) or kind == "group"
    assert bool(into["ab"].to_local().isnan().all())
    return error


def sd_group():
    return torch.distributed.group.WORLD


@pytest.mark.parametrize("kind", ["rule", "leaf", "group", "layout", "dtype"])
def test_a_fault_on_one_rank_is_told_on_all(kind):
    """By name, before a byte moves, and they go on working."""
    errors = together(unlike, kind)
    assert all("ab" in str(e) or "b: " in str(e) or "a" in str(e) for e in errors)
    wanted = {"rule": RankMismatch, "layout": RankMismatch}.get(kind)
    if wanted:
        assert all(isinstance(error, wanted) for error in errors)
        assert all("ab" in str(error) for error in errors)
    else:
        assert isinstance(errors[1], ConvertError)
        assert all(isinstance(errors[r], RankFailed) for r in (0, 2, 3))


def not_covered():
    layout = Layout((4,), {r: (Box(0, (0,), (r,), (1,)),) for r in range(4)})
    tree = {"w": sd.Shards(torch.ones(1), layout)}
    like = {"w": shard(torch.ones(2, 2))}
    split = sd.rule("w [(a b)]", "w [a b]")
    assert torch.equal(
        sd.gather(sd.convert(tree, split, like=like))["w"], torch.ones(2, 2)
    )
    wide = {"w": shard(torch.ones(3, 2))}
    return caught(lambda: sd.convert(tree, split, like=wide))


def test_sizes_that_do_not_fit_are_told():
    assert all("w" in str(error) for error in together(not_covered))


def sets(source, target):
    """Turn a leaf that two sets of ranks each have, or are to have, for themselves."""
    each = over(0, 2), over(1, 3)
    where = {"all": mesh((4,)), "own": each[me() % 2]}
    tree = {"w": shard(count(8, 2), where[source], Shard(0))}
    like = {"t": shard(count(2, 8) * torch.nan, where[target], Shard(1))}
    turn = sd.rule("w [a b]", "t [b a]")
    error = caught(lambda: sd.convert(tree, turn, like=like))
    if error is not None:
        assert "sd.convert(rules) | sd.redistribute(like=...)" in str(error)
    made = (sd.convert(turn) | sd.redistribute(like=like))(tree)
    assert sd.equal(made, {"t": shard(count(8, 2).T, where[target], Shard(1))})
    return type(error)


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("all", "own", RankMismatch),
        ("own", "all", RankMismatch),
        ("own", "own", type(None)),
    ],
)
def test_a_leaf_of_several_sets_of_ranks_is_brought_there_by_what_is_advised(
    source, target, told
):
    assert together(sets, source, target) == [told] * 4


# -- one process -------------------------------------------------------------------


def test_boxes_that_would_be_too_many_are_refused():
    """Every element of an interleaved dim would be a box; onto a tree it goes."""
    rule = sd.rule("w [(two n)]", "w [(n two)]", two=2)
    tree = {"w": on_rank_0((20_000,), 2)}
    with pytest.raises(ConvertError, match=r"more than 4096 boxes .* give like="):
        sd.convert(tree, rule)
    plan = sd.explain(sd.convert(rule, like=tree), tree)
    assert [row.moves for row in plan.rows] == [40_000]


def test_whole_targets_alone_do_not_make_ranks_meet():
    tree = {"w": on_rank_0((4, 2), 1)}
    turned = sd.rule("w [a b]", "w [b a]")
    with pytest.raises(ConvertError, match="it is sharded, and no target is"):
        sd.convert(tree, turned, like={"w": torch.zeros(2, 4)})
    with pytest.raises(TypeError, match="group= is for like= or into="):
        sd.convert(turned, group=object())


@pytest.mark.parametrize("lies", ["whole", "sharded"])
def test_what_is_made_lies_on_the_ranks_of_its_parts_and_its_target_alone(lies):
    """Two of four have any of it: the others are not told to hold a whole one."""
    turned = sd.rule("w [a b]", "w [b a]")
    tree = {"w": on_rank_0((4, 2), 2)}
    like = {"w": on_rank_0((2, 4), 2) if lies == "sharded" else torch.zeros(2, 4)}
    with fake(4) as group:
        plan = sd.explain(sd.convert(turned, like=like, group=group), tree)
    assert [row.ranks for row in plan.rows] == [(0, 1)]
    peaks = [plan.peak(rank)["cpu"] for rank in range(4)]
    assert min(peaks[:2]) >= sd.nbytes(like)
    assert peaks[2:] == [0, 0]


def test_alone_a_sharded_target_is_filled():
    full = count(4, 2)
    layout = whole_on((4, 2), (0,))
    into = {"w": sd.Shards(torch.full((4, 2), torch.nan), layout)}
    made = sd.convert({"w": full.T}, sd.rule("w [a b]", "w [b a]"), into=into)
    assert made["w"] is into["w"]
    assert torch.equal(made["w"].tensors[0], full)


def test_what_is_partial_is_refused():
    layout = Layout((2,), {0: (Box(0, (0,), (0,), (2,)),)}, is_partial=True)
    form = sd.Abstract(sd.Shards, (2,), torch.float32, (), layout)
    with pytest.raises(ConvertError, match="it is partial"):
        sd.convert({"w": form}, sd.rule("w [(a b)]", "w [a b]", a=2))


def test_plain_values_and_leaves_that_stay_go_along():
    tree = {"w": on_rank_0((4, 2), 1), "step": 3, "rest": torch.ones(2)}
    like = {"v": on_rank_0((2, 4), 1), "step": 0, "rest": torch.zeros(2)}
    made = sd.convert(tree, sd.rule("w [a b]", "v [b a]"), like=like, rest="keep")
    assert made["step"] == 3
    assert made["rest"] is tree["rest"]
    assert [*made] == ["v", "step", "rest"]


def test_what_stays_is_written_window_by_window():
    with fake(2):
        tree = {name: shard(count(4, 3, start=k)) for k, name in enumerate("ab")}
        into = {name: shard(count(4, 3, start=100)) for name in "xy"}
        rules = [sd.rule("a", "x"), sd.rule("b", "y")]
        made = sd.convert(tree, rules, into=into, bucket_bytes=1, verify=False)
        assert made["x"] is into["x"]
        assert torch.equal(made["x"].to_local(), tree["a"].to_local())
        assert torch.equal(made["y"].to_local(), tree["b"].to_local())


def test_steps_before_and_after_pass_with_it():
    tree = {"w": on_rank_0((4, 2), 1)}
    like = {"w": sd.cast(on_rank_0((2, 4), 1), dtype=torch.float64)}
    turned = sd.convert(sd.rule("w [a b]", "w [b a]"), like=like)
    made = (sd.cast(dtype=torch.float64) | turned | sd.cast(dtype=torch.half))(tree)
    assert made["w"].dtype is torch.half
    [(path, leaf)] = turned.stream(sd.cast(tree, dtype=torch.float64))
    assert path == ("w",)
    assert leaf.shape == (2, 4)
