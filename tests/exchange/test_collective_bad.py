"""What collectives are asked that cannot be: the error says what, where and what to do.

In every case nothing is written, and the ranks exchange leaves at once afterwards.
"""

import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import mesh
from shards import assert_works, caught, me, over, pieces, said, shard, together, whole
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import sdtree as sd
from sdtree.errors import LayoutError, RankFailed, RankMismatch, SpecMismatch
from sdtree.layout.layout import Box, Layout
from sdtree.wire.collectives import forced

FULL = whole(8, 4)


def run(function: Callable, *args):
    """Return what a function raises on this rank; all is well then."""
    return caught(lambda: function(*args))


def assert_all(function, kind, *patterns, args=()):
    """Assert that every rank raises such an error, whose text has all of these."""
    for error in together(run, function, *args):
        assert type(error) is kind, (type(error), said(error) if error else None)
        for pattern in patterns:
            assert re.search(pattern, said(error)), (pattern, said(error))


# -- arguments of one rank -------------------------------------------------------------

RULE = sd.rule("w [a b]", "v [a b]")

ARGUMENTS = {
    "a bucket": lambda bad: sd.gather(
        {"w": shard(FULL)}, bucket_bytes=-1 if bad else 8
    ),
    "ranks": lambda bad: sd.gather({"w": shard(FULL)}, ranks="x" if bad else None),
    "a name": lambda bad: sd.gather({"w": shard(FULL)}, **({"rank": 0} if bad else {})),
    "no target": lambda bad: sd.distribute(
        {"w": FULL}, like=None if bad else {"w": shard(FULL)}
    ),
    "a source": lambda bad: sd.broadcast(
        {"w": FULL}, src="0" if bad else 0, like={"w": shard(FULL)}
    ),
    "progress": lambda bad: sd.redistribute(
        {"w": shard(FULL)}, like={"w": shard(FULL)}, on_progress=3 if bad else None
    ),
    "rules": lambda bad: sd.convert(
        {"w": shard(FULL)}, RULE, rest="x" if bad else "keep", like={"v": shard(FULL)}
    ),
}


def ask(name, ranks):
    return caught(lambda: ARGUMENTS[name](me() in ranks))


@pytest.mark.parametrize("ranks", [(1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_who_is_asked_what_cannot_be_tells_the_others(name, ranks):
    """Where the tree is given in the same call; all raise, and nobody waits."""
    for rank, error in enumerate(together(ask, name, ranks)):
        is_own = type(error) in (TypeError, ValueError)
        assert is_own if rank in ranks else type(error) is RankFailed, error


# -- before there are ranks --------------------------------------------------------


class Half:
    """Half of a tensor over two ranks, of a kind that needs no mesh."""

    def __init__(self, part):
        self.part = part


def layout_of(x):
    rows, *rest = x.part.shape
    boxes = {
        rank: (
            Box(0, (0,) * x.part.ndim, (rank * rows, *[0] * len(rest)), (rows, *rest)),
        )
        for rank in range(2)
    }
    return Layout((2 * rows, *rest), boxes)


sd.register_leaf(
    Half,
    flatten=lambda x: ((x.part,), None),
    unflatten=lambda _, ts: Half(ts[0]),
    layout=layout_of,
)

ALONE = {
    "gather": lambda x: sd.gather({"model": {"w": x}}),
    "broadcast": lambda x: sd.broadcast(
        {"model": {"w": torch.ones(4, 2)}}, like={"model": {"w": x}}
    ),
    "redistribute": lambda x: sd.redistribute(
        {"model": {"w": x}}, like={"model": {"w": torch.ones(4, 2)}}
    ),
    "stream": lambda x: sd.gather().stream({"model": {"w": x}}),
}


@pytest.mark.parametrize("call", ALONE)
def test_a_sharded_leaf_needs_a_process_group(call):
    """The error says which leaf, which ranks, and how to start them."""
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError) as error:
        ALONE[call](Half(torch.ones(2, 2)))
    for text in ("model.w", "(0, 1)", "torchrun", "init_process_group"):
        assert text in str(error.value)


def test_what_is_not_sharded_needs_none():
    """A tree of plain leaves is gathered, and comes back as from a collective."""
    tree = {"w": torch.ones(2), "n": 3}
    assert sd.equal(sd.gather(tree, ranks=0), tree)
    assert sd.equal(sd.broadcast(tree, like=tree), tree)
    assert sd.equal(sd.distribute(tree, like=tree), tree)
    assert sd.equal(sd.redistribute(tree, like=tree), tree)
    assert sd.gather({}) == {}


@pytest.mark.parametrize("call", ["gather", "broadcast"])
def test_another_rank_needs_a_process_group(call):
    """Rank 0 is the only one there is."""
    tree = {"w": torch.ones(2)}
    f = sd.gather(ranks=1) if call == "gather" else sd.broadcast(like=tree, src=1)
    with pytest.raises(ValueError, match=r"1.*not in.*\(0,\)"):
        f(tree)


# -- local tensors that ask for gradients ------------------------------------------


def move_what_requires_grad():
    """Small leaves, which share a message, and one that goes alone."""
    rows = {"a": 2, "b": 2, "large": 2**15}
    full = {k: whole(2 * n, 2) for k, n in rows.items()}
    part = {k: t.chunk(2)[me()].clone().requires_grad_() for k, t in full.items()}
    tree = {k: Half(t) for k, t in part.items()}
    for wire in ("pairs", "collective"):
        with forced(wire):
            assert sd.equal(sd.gather(tree), full)
            for t in part.values():
                t.detach().zero_()
            sd.broadcast(full, into=tree)
            assert sd.equal(sd.gather(tree), full)
    assert all(x.part is part[k] and x.part.is_leaf for k, x in tree.items())


def test_no_gradient_is_kept_of_what_moves():
    together(move_what_requires_grad, size=2)


# -- ranks -------------------------------------------------------------------------


def gather_to(ranks):
    return sd.gather({"model": {"w": shard(FULL)}}, ranks=ranks)


@pytest.mark.parametrize("ranks", [7, -1, (0, 7), [4]], ids=str)
def test_ranks_outside_the_group(ranks):
    assert_all(gather_to, ValueError, "model.w", "not in the group", args=(ranks,))


def gather_by(choice):
    chosen = {"far": 9, "text": "balanced", "float": 1.5, "bool": True, "none": [None]}
    return gather_to(lambda path: chosen[choice])


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ("far", ValueError),
        *[(name, TypeError) for name in ("text", "float", "bool", "none")],
    ],
)
def test_a_function_that_chooses_what_is_no_rank(choice, kind):
    """The error has the path and what was chosen."""
    assert_all(gather_by, kind, "model.w", "ranks", args=(choice,))


def broadcast_from(src, tree):
    return sd.broadcast(tree, like=tree, src=src)


@pytest.mark.parametrize("src", [4, -1])
@pytest.mark.parametrize("tree", [{"n": 1}, {"w": FULL}], ids=["plain", "tensor"])
def test_a_source_outside_the_group(src, tree):
    """Also where only plain values are to come."""
    texts = (f"src={src}", "not in the group", "global")
    assert_all(broadcast_from, ValueError, *texts, args=(src, tree))


@pytest.mark.parametrize("ranks", ["all", 1.5, True, [0, "1"], b"0", ...], ids=str)
def test_ranks_of_other_types(ranks):
    """As soon as the transform is made."""
    with pytest.raises(TypeError, match="ranks="):
        sd.gather(ranks=ranks)


def gather_to_an_iterator():
    made = sd.gather({"w": shard(FULL)}, ranks=(rank for rank in (0, 2)))
    return type(made["w"]) is torch.Tensor


def test_ranks_may_come_from_an_iterator():
    assert together(gather_to_an_iterator) == [True, False, True, False]


# -- options -----------------------------------------------------------------------

OPTIONS = {
    "neither": (lambda: sd.distribute(), "like= or into="),
    "both": (lambda: sd.broadcast(like={}, into={}), "like= or into="),
    "device": (lambda: sd.distribute(into={}, device="cpu"), "device="),
    "on_mismatch": (lambda: sd.broadcast(like={}, on_mismatch=3), "on_mismatch=3"),
    "src": (lambda: sd.broadcast(like={}, src="0"), "src='0'"),
    "src bool": (lambda: sd.broadcast(like={}, src=True), "src=True"),
    "src none": (lambda: sd.broadcast(like={}, src=None), "src=None"),
    "tree": (lambda: sd.gather(torch.float32), r"sd\.gather\(tree"),
    "transform": (lambda: sd.gather(sd.identity), r"identity \| sd\.gather"),
    "unknown": (lambda: sd.gather({}, rank=0), "rank"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_checked_when_the_transform_is_made(option):
    make, pattern = OPTIONS[option]
    with pytest.raises(TypeError, match=pattern):
        make()


@pytest.mark.parametrize("size", [0, -1, 1.5, None, "1", True], ids=str)
def test_buckets_have_a_size(size):
    for make in (
        lambda: sd.gather(bucket_bytes=size),
        lambda: sd.redistribute(like={}, bucket_bytes=size),
    ):
        with pytest.raises(ValueError, match=f"bucket_bytes={size!r}"):
            make()


# -- layouts -----------------------------------------------------------------------


def broken(start, size):
    """Return a leaf whose metadata has another second shard than there is."""
    x = pieces(FULL, [((0, 0), (4, 4), 0), ((4, 0), (4, 4), 1)])
    assert_works()
    sd.spec(x)
    own = [shard.metadata for shard in x.local_shards() if me() == 1]
    for region in (x.metadata().shards_metadata[1], *own):
        region.shard_offsets[0], region.shard_sizes[0] = start, size
    return {"model": {"w": x}}


BROKEN = {
    (3, 4): r"overlap.*0:4.*3:7",
    (5, 3): r"4 of 32 elements.*no box",
    (5, 4): r"outside a tensor of shape \(8, 4\)",
}


def gather_broken(*rows):
    return sd.gather(broken(*rows))


def distribute_broken(*rows):
    return sd.distribute({"model": {"w": FULL}}, like=broken(*rows))


@pytest.mark.parametrize("rows", BROKEN, ids=["overlap", "missing", "outside"])
@pytest.mark.parametrize("call", [gather_broken, distribute_broken])
def test_shards_that_overlap_or_are_missing(rows, call):
    """The error says which boxes overlap, or how much is missing."""
    assert_all(call, LayoutError, r"model\.w: ", BROKEN[rows], args=rows)


def of_rows(count):
    """Return a leaf of eight rows, two for each rank, with others on rank 1."""
    rows = count if me() == 1 else 2
    local = whole(rows, 4, start=8 * me())
    return {
        "model": {
            "w": DTensor.from_local(
                local,
                mesh((4,)),
                [Shard(0)],
                run_check=False,
                shape=(8, 4),
                stride=(4, 1),
            )
        }
    }


ROWS = {
    "gather": lambda n: sd.gather(of_rows(n)),
    "distribute": lambda n: sd.distribute({"model": {"w": FULL}}, like=of_rows(n)),
    "broadcast": lambda n: sd.broadcast({"model": {"w": FULL}}, into=of_rows(n)),
    "redistribute": lambda n: sd.redistribute(
        of_rows(n), like={"model": {"w": shard(FULL, mesh((4,)), Replicate())}}
    ),
}


def exchange_rows(call, count):
    return ROWS[call](count)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("call", ROWS)
def test_a_local_tensor_of_another_size_than_its_layout_says(call, count):
    """What is beyond would be cut off without a word; the error has both sizes."""
    errors = together(run, exchange_rows, call, count)
    assert type(errors[1]) is LayoutError
    for text in ("model.w: rank 1", f"({count}, 4)", "(2, 4)", "(8, 4)"):
        assert text in said(errors[1])
    assert {type(error) for error in errors} == {LayoutError, RankFailed}


def deliver_to_partial(verb):
    like = {"model": {"w": shard(FULL, mesh((4,)), Partial())}}
    tree = {"model": {"w": shard(FULL) if verb == "redistribute" else FULL}}
    return getattr(sd, verb)(tree, like=like)


@pytest.mark.parametrize("verb", ["distribute", "broadcast", "redistribute"])
def test_a_partial_target(verb):
    texts = (r"model\.w", "partial", "shards or replicas")
    assert_all(deliver_to_partial, LayoutError, *texts, args=(verb,))


def redistribute_elsewhere():
    one, other = over(0, 1), over(2, 3)
    del one
    return sd.redistribute({"w": shard(FULL)}, like={"w": shard(FULL, other)})


def test_a_target_on_other_ranks():
    """A redistribution stays within the ranks of the leaf."""
    texts = ("w: ", r"\[0, 1, 2, 3\]", r"\[2, 3\]", "gather and broadcast")
    assert_all(redistribute_elsewhere, LayoutError, *texts)


def deliver_what_is_sharded(verb):
    return getattr(sd, verb)({"w": shard(FULL)}, like={"w": shard(FULL)})


def test_a_source_that_is_sharded_itself():
    """The error names the operation that would do."""
    texts = ("w: ", "sharded", r"sd\.redistribute", r"sd\.gather")
    assert_all(deliver_what_is_sharded, LayoutError, *texts, args=("distribute",))
    first, *others = together(run, deliver_what_is_sharded, "broadcast")
    assert type(first) is LayoutError
    assert {type(error) for error in others} == {RankFailed}


# -- meshes without this rank ------------------------------------------------------


def deliver_off_the_mesh(verb, is_into):
    target = {"w": shard(FULL * 0, over(1, 3)), "v": shard(whole(4) * 0)}
    source = {"w": FULL, "v": whole(4)}
    options = {"into" if is_into else "like": target}
    made = getattr(sd, verb)(source, **options)
    if me() in (1, 3):
        assert torch.equal(made["w"].to_local(), FULL[4 * (me() == 3) :][:4])
    else:
        assert made["w"].to_local().numel() == 0
        assert made["w"].shape == (8, 4)
        assert made["w"].device_mesh == target["w"].device_mesh
    assert made["v"].to_local().tolist() == [me()]
    assert_works()


@pytest.mark.parametrize("is_into", [False, True], ids=["like", "into"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_a_rank_outside_the_mesh_of_a_target_keeps_its_leaf(verb, is_into):
    """It takes part all the same: the source may be one of these."""
    together(deliver_off_the_mesh, verb, is_into)


# -- targets that do not fit -------------------------------------------------------


def misfits():
    source = {"a": {"x": FULL, "only": FULL, "n": 1}, "shape": FULL, "dtype": FULL}
    target = {
        "a": {"x": shard(FULL * 0), "n": 0},
        "lacks": shard(FULL * 0),
        "shape": shard(whole(9, 4) * 0),
        "dtype": shard(FULL.double() * 0),
    }
    return source, target


EVERY = (
    r"1 missing: lacks",
    r"1 unexpected: a\.only",
    r"2 mismatched: .*shape .*\(8, 4\).*\(9, 4\)",
    r"dtype .*float32.*float64",
    "nothing was moved",
)


def deliver_misfits(verb, is_into, strict):
    source, target = misfits()
    before = sd.copy(target)
    options = {"into" if is_into else "like": target, "strict": strict}
    if verb == "broadcast" and me() > 0:
        source = None
    try:
        getattr(sd, verb)(source, **options)
    finally:
        for (path, leaf), (_, old) in zip(
            sd.items(target), sd.items(before), strict=True
        ):
            if isinstance(leaf, DTensor):
                assert torch.equal(leaf.to_local(), old.to_local()), path


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("is_into", [False, True], ids=["like", "into"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_all_that_does_not_fit_is_listed_together_on_every_rank(verb, is_into, strict):
    """Other shapes and dtypes are no matter of strictness; nothing is written."""
    args = (verb, is_into, strict)
    assert_all(deliver_misfits, SpecMismatch, *EVERY, args=args)


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ({"w": FULL.double()}, "for other dtypes put sd.cast(like=target) before it"),
        ({"w": FULL[:1]}, "select or drop those leaves, or give a target of their"),
        ({"w": FULL, "v": FULL}, "skip the rest: strict=False"),
    ],
)
def test_what_to_do_about_what_does_not_fit_is_told(target, advice):
    with pytest.raises(SpecMismatch, match=re.escape(advice)):
        sd.distribute({"w": FULL}, like=target)


def redistribute_misfits():
    source = {"w": shard(FULL), "only": shard(FULL)}
    return sd.redistribute(source, like={"w": shard(FULL.half()), "v": shard(FULL)})


def test_redistribute_lists_them_too():
    texts = ("1 missing: v", "1 unexpected: only", "1 mismatched: w .*float16")
    assert_all(redistribute_misfits, SpecMismatch, *texts)


def deliver_loosely(verb, is_into):
    source = {"w": FULL, "only": FULL, "n": 1}
    target = {"w": shard(FULL * 0), "v": shard(FULL + 7), "m": 5, "n": 0}
    told = []
    made = getattr(sd, verb)(
        source if verb == "distribute" or me() == 0 else None,
        **{"into" if is_into else "like": target},
        strict=False,
        on_mismatch=told.append,
    )
    assert list(made) == ["w", "v", "m", "n"]
    assert (made["n"], made["m"]) == (1, 5)
    assert made["v"] is target["v"]
    assert torch.equal(made["w"].to_local(), shard(FULL).to_local())
    assert torch.equal(made["v"].to_local(), shard(FULL + 7).to_local())
    assert (made["w"] is target["w"]) == is_into
    assert_works()
    [misfit] = told
    return misfit


@pytest.mark.parametrize("is_into", [False, True], ids=["like", "into"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_not_strict_keeps_what_the_source_lacks(verb, is_into):
    """And leaves what only the source has; every rank is told of both, once."""
    for misfit in together(deliver_loosely, verb, is_into):
        assert misfit.missing == (("v",), ("m",))
        assert misfit.unexpected == (("only",),)
        assert misfit.mismatched == ()
        assert str(misfit) == "2 missing: v, m; 1 unexpected: only"


def tell_before_data(verb):
    target = {"w": shard(FULL * 0), "v": shard(FULL * 0)}
    seen = []

    def tell(misfit):
        seen.append(bool(target["w"].to_local().any()))

    error = run(lambda: getattr(sd, verb)({"w": FULL}, into=target, on_mismatch=tell))
    return type(error), seen, bool(target["w"].to_local().any())


@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_the_difference_is_told_before_data_moves(verb):
    """Strict, it is told and raised; nothing is written."""
    assert together(tell_before_data, verb) == [(SpecMismatch, [False], False)] * 4


class Refusal(ValueError):
    """An error of our own."""


def refuse_misfit(verb, rank):
    target = {"w": shard(FULL * 0), "v": shard(FULL * 0)}

    def tell(misfit):
        if me() == rank:
            raise Refusal("not with me")

    def deliver():
        options = {"into": target, "strict": False, "on_mismatch": tell}
        return getattr(sd, verb)({"w": FULL}, **options)

    error = run(deliver)
    assert not target["w"].to_local().any()
    return error


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_one_rank_that_refuses_a_difference_stops_all(verb, rank):
    """Before anything moved: it raises its own error, the others ``RankFailed``."""
    for k, error in enumerate(together(refuse_misfit, verb, rank)):
        assert type(error) is (Refusal if k == rank else RankFailed)
        assert "on_mismatch=" in said(error)
        if k != rank:
            assert error.ranks == (rank,)
            assert "before anything moved" in str(error)


def broadcast_to_unlike_trees(strict):
    like = {"w": shard(FULL * 0), "n": 0}
    if me() == 2:
        like["m"] = 0
    made = None

    def deliver():
        nonlocal made
        made = sd.broadcast({"w": FULL, "n": 1}, like=like, strict=strict)

    error = run(deliver)
    return error, made and sorted(made)


def test_a_misfit_that_one_rank_sees_is_raised_by_all():
    """Plain leaves are no part of the agreement, and yet nobody is left waiting."""
    for error, _ in together(broadcast_to_unlike_trees, True):
        assert type(error) is SpecMismatch
        assert "1 missing: m" in str(error)


def test_a_misfit_that_one_rank_sees_may_be_allowed_by_all():
    names = [made for error, made in together(broadcast_to_unlike_trees, False)]
    assert names == [["n", "w"], ["n", "w"], ["m", "n", "w"], ["n", "w"]]


def deliver_to_one_that_differs(verb, what):
    other = {"dtype": FULL.half(), "shape": whole(8, 5), "plain": 3}[what]
    like = shard(FULL)
    if me() == 1:
        like = shard(other) if what != "plain" else other
    return getattr(sd, verb)({"w": FULL}, like={"w": like})


@pytest.mark.parametrize("what", ["dtype", "shape", "plain"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_a_target_that_differs_on_one_rank(verb, what):
    """Each rank says so in its way, and none waits."""
    errors = together(run, deliver_to_one_that_differs, verb, what)
    for error in errors:
        assert type(error) in (SpecMismatch, RankMismatch, RankFailed)
        assert re.search(r"\bw\b", said(error))


# -- a rank without a tree ---------------------------------------------------------


def without_a_tree(verb):
    tree = None if me() == 2 else {"w": shard(FULL) if verb == "gather" else FULL}
    if verb == "gather":
        return sd.gather(tree)
    return sd.distribute(tree, like={"w": shard(FULL)})


def test_a_rank_with_no_tree_where_each_has_one():
    """None is a leaf of its own: all say that this rank has nothing to exchange."""
    assert_all(without_a_tree, RankMismatch, "rank 2 has nothing", args=("gather",))
    errors = together(run, without_a_tree, "distribute")
    assert type(errors[2]) is SpecMismatch
    assert "1 missing: w" in str(errors[2])
    del errors[2]
    assert {type(error) for error in errors} == {RankFailed}


def no_tree_at_the_source():
    tree = None if me() == 0 else {"w": FULL}
    return sd.broadcast(tree, like={"w": shard(FULL)})


def test_a_source_with_no_tree():
    assert_all(no_tree_at_the_source, SpecMismatch, "1 missing: w", "<root>")


def stages_run_on_the_source_alone():
    ran = []

    def seen(x):
        ran.append(x)
        return x

    chosen = sd.map(seen) | sd.select(torch.Tensor)
    like = {"w": shard(FULL * 0)}
    made = (chosen | sd.broadcast(like=like, src=1))(
        {"w": FULL, "n": 1} if me() == 1 else None
    )
    assert torch.equal(made["w"].to_local(), shard(FULL).to_local())
    assert_works()
    return len(ran)


def test_stages_before_a_broadcast_run_on_the_source_alone():
    """Also those that must see the leaves before it is known which are left."""
    assert together(stages_run_on_the_source_alone) == [0, 2, 0, 0]


# -- targets to write into ---------------------------------------------------------


def write_to_meta(verb):
    into = {"w": shard(FULL).to("meta"), "v": torch.empty(4, device="meta")}
    return getattr(sd, verb)({"w": FULL, "v": whole(4)}, into=into)


@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_a_meta_target_holds_nothing(verb):
    assert_all(write_to_meta, SpecMismatch, r"at w\b", "meta", args=(verb,))


def make_of_meta(verb, device):
    like = {"w": shard(FULL).to("meta"), "v": torch.empty(4, device="meta")}
    made = getattr(sd, verb)({"w": FULL, "v": whole(4)}, like=like, device=device)
    assert torch.equal(made["w"].to_local(), shard(FULL).to_local())
    assert made["w"].to_local().device.type == "cpu"
    assert torch.equal(made["v"], whole(4))
    assert_works()


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_a_meta_tree_to_be_like_gets_data_where_its_mesh_is(verb, device):
    together(make_of_meta, verb, device)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it may be there")
def test_a_device_that_is_asked_for_is_not_passed_over():
    """Not even where the target has data elsewhere."""
    for like in (torch.zeros(4), torch.empty(4, device="meta")):
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            sd.distribute({"v": whole(4)}, like={"v": like}, device="cuda")


def write_to_expanded(verb):
    into = {"w": shard(FULL * 0), "v": torch.zeros(1).expand(4)}
    tree = {"w": FULL, "v": whole(4)}
    try:
        if verb == "gather":
            return sd.gather({"v": shard(whole(4))}, into={"v": into["v"]})
        return getattr(sd, verb)(tree, into=into)
    finally:
        assert not into["w"].to_local().any()
        assert not into["v"].any()


@pytest.mark.parametrize("verb", ["gather", "distribute", "broadcast"])
def test_an_expanded_target_is_refused(verb):
    assert_all(write_to_expanded, SpecMismatch, r"\bv\b", "expanded", args=(verb,))


def write_to_shared(verb, case):
    """Two targets over one storage, from sources that are tied, equal, or neither."""
    one = shard(FULL * 0)
    into = {"a": one, "b": one, "c": shard(FULL * 0)}
    a = FULL.clone()
    b = {"tied": a, "equal": FULL.clone(), "other": FULL + 1}[case]
    tree = {"a": a, "b": b, "c": FULL}
    made = None

    def deliver():
        nonlocal made
        made = getattr(sd, verb)(tree, into=into)

    error = run(deliver)
    written = torch.equal(one.to_local(), shard(FULL).to_local())
    return error, written, bool(one.to_local().any() or into["c"].to_local().any())


@pytest.mark.parametrize("case", ["tied", "equal"])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_targets_that_share_storage_take_sources_that_are_equal(verb, case):
    for error, written, _ in together(write_to_shared, verb, case):
        assert error is None
        assert written


@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_targets_that_share_storage_refuse_sources_that_differ(verb):
    """Before anything is written."""
    for k, (error, _, touched) in enumerate(together(write_to_shared, verb, "other")):
        kinds = (
            (SpecMismatch, RankFailed) if verb == "broadcast" and k else SpecMismatch
        )
        assert isinstance(error, kinds)
        assert re.search(r"\ba\b.*\bb\b", said(error))
        assert not touched


def write_to_views(verb):
    """Targets that overlap in part, where the sources do not."""
    base = torch.zeros(6)
    into = {"a": base[:4], "b": base[2:]}
    tree = {"a": whole(4), "b": whole(4)}
    if verb == "gather":
        tree = {name: shard(leaf) for name, leaf in tree.items()}
    try:
        return getattr(sd, verb)(tree, into=into)
    finally:
        assert not base.any()


@pytest.mark.parametrize("verb", ["gather", "distribute", "broadcast"])
def test_targets_that_overlap_in_part(verb):
    texts = ("overlap", r"\ba\b.*\bb\b", "nothing was moved")
    assert_all(write_to_views, SpecMismatch, *texts, args=(verb,))


def gather_unlike_ties():
    one = torch.zeros(8, 4)
    into = {"a": one, "b": one}
    try:
        return sd.gather({"a": shard(FULL), "b": shard(FULL + 1)}, into=into)
    finally:
        assert not one.any()


def test_buffers_of_a_gather_that_share_storage_where_the_leaves_do_not():
    assert_all(gather_unlike_ties, SpecMismatch, r"\ba\b.*\bb\b", "nothing was moved")


def gather_ties_into():
    x, w = shard(FULL), whole(4)
    tree = {"a": x, "b": x, "plain": w, "tied": w, "view": w[:2]}
    fresh = sd.copy(sd.gather(tree))
    into = sd.map(torch.zeros_like, fresh)
    into["b"], into["tied"], into["view"] = into["a"], into["plain"], into["plain"][:2]
    made = sd.gather(tree, into=into)
    assert sd.equal(made, fresh)
    assert sd.ties(made) == sd.ties(fresh)
    assert_works()


def test_buffers_of_a_gather_may_be_tied_as_the_leaves_are():
    """Those that travel, those that stay, and views among these."""
    together(gather_ties_into)


def write_over_the_source(verb):
    full = FULL.clone()
    if verb == "gather":
        leaf = shard(FULL, mesh((4,)), Replicate())
        into = {"w": leaf.to_local()}
        return sd.gather({"w": leaf}, into=into)
    into = {"w": DTensor.from_local(full[:2], mesh((4,)), [Shard(0)], run_check=False)}
    try:
        return getattr(sd, verb)({"w": full}, into=into)
    finally:
        assert torch.equal(full, FULL)


def test_a_target_that_overlaps_the_source():
    for verb in ("gather", "distribute"):
        assert_all(
            write_over_the_source, SpecMismatch, r"\bw\b", "overlap", args=(verb,)
        )
    first, *others = together(run, write_over_the_source, "broadcast")
    assert type(first) is SpecMismatch
    assert {type(error) for error in others} <= {RankFailed, SpecMismatch}


def gather_into_misfits():
    tree = {"a": shard(FULL), "b": shard(FULL), "c": shard(FULL), "n": 1}
    into = {
        "a": torch.zeros(8, 5),
        "b": torch.zeros(8, 4, dtype=torch.half),
        "c": torch.zeros(8, 4),
        "n": 0,
    }
    try:
        return sd.gather(tree, into=into)
    finally:
        assert not into["c"].any()


def test_all_buffers_that_do_not_fit_are_listed_together():
    texts = (r"a: shape \(8, 4\).*\(8, 5\)", "b: dtype .*float32.*float16", "nothing")
    assert_all(gather_into_misfits, SpecMismatch, *texts)


def gather_into_other_names():
    return sd.gather({"a": shard(FULL)}, into={"b": torch.zeros(8, 4)})


def test_buffers_of_another_structure():
    assert_all(gather_into_other_names, SpecMismatch, "into=", r"\ba\b")


def cast_too_late():
    """The map makes another dtype of it than can be known before its window."""
    tree = {"a": FULL, "w": FULL} if me() == 0 else None
    into = {"a": shard(FULL * 0), "w": shard(FULL * 0)}
    late = sd.map_with_path(lambda p, x: x.double() if p == ("w",) else x)
    return (late | sd.broadcast(into=into, bucket_bytes=128))(tree)


def test_what_a_map_makes_is_checked_in_its_window():
    """The source says what is wrong, and all that targets are partly written."""
    first, *others = together(run, cast_too_late)
    assert type(first) is SpecMismatch
    assert "float64" in str(first)
    for error in (first, *others):
        assert re.search(r"\bw\b", said(error))
        assert "partly written" in said(error)
    assert {type(error) for error in others} == {RankFailed}


def fill_ties_of_other_dimensions():
    tied = shard(whole(8, 3))
    buffers = {"a": torch.zeros(24), "b": torch.zeros(24)}
    return caught(lambda: sd.gather({"a": tied, "b": tied}, into=buffers))


def test_buffers_of_other_dimensions_do_not_fit_a_tie():
    for error in together(fill_ties_of_other_dimensions):
        assert type(error) in (SpecMismatch, RankFailed)
