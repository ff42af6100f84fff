"""Sharded trees side by side: all ranks look at their parts and come to one verdict."""

import math
from functools import cache

import pytest
import torch
import torch.distributed as dist
from ranks import mesh
from shards import caught, me, over, pieces, said, shard, together, whole
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import sdtree as sd
from sdtree.errors import LayoutError, RankFailed, RankMismatch, UnknownLeaf
from sdtree.wire.collectives import RankGroup, record

LAYOUTS = {
    "rows": ((4,), (Shard(0),)),
    "columns": ((4,), (Shard(1),)),
    "hsdp": ((2, 2), (Replicate(), Shard(0))),
    "replicas last": ((2, 2), (Shard(1), Replicate())),
    "both": ((2, 2), (Shard(0), Shard(1))),
    "rows twice": ((2, 2), (Shard(0), Shard(0))),
    "strided": ((2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    "everywhere": ((4,), (Replicate(),)),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def laid(full, name):
    """Return a tensor's part in one of the layouts."""
    sizes, placements = LAYOUTS[name]
    return shard(full, mesh(sizes), *placements)


def told(a, b, **options):
    """Return what ``equal`` and ``diff`` say of two trees."""
    return sd.equal(a, b, **options), [*sd.diff(a, b, **options)]


def one_of(every):
    """Return what all ranks say."""
    for found in every[1:]:
        assert found == every[0]
    return every[0]


# -- one verdict -------------------------------------------------------------------


def differ_on(rank, name):
    a = {"v": laid(whole(5, 4), name), "w": laid(whole(5, 7), name), "n": 1}
    b = sd.copy(a)
    assert told(a, b) == (True, [])
    local = b["w"].to_local()
    touched = me() == rank and local.numel() > 0
    if touched:
        local.view(-1)[-1] += 2
    return touched, told(a, b)


@every_layout
@pytest.mark.parametrize("rank", range(4))
def test_one_element_on_one_rank_differs_for_all(rank, name):
    """A rank that finds nothing says as the one that does; and so where it is alone."""
    every = together(differ_on, rank, name)
    same, rows = one_of([found for _, found in every])
    if any(touched for touched, _ in every):
        row = (("w",), "value", "1 of 35 elements differ", "by at most 2")
        assert (same, rows) == (False, [row])
    else:
        assert (same, rows) == (True, [])


def count_differences(shape, name):
    """Return how many elements differ in truth, and what is told, seed by seed."""
    found = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(3, shape, generator=draw).float()
        y = torch.randint(3, shape, generator=draw).float()
        x[x == 2] = y[y == 2] = math.nan
        bits = x.view(torch.int32) != y.view(torch.int32)
        a, b = {"w": laid(x, name)}, {"w": laid(y, name)}
        found.append((int(bits.sum()), bits.numel(), told(a, b)))
    return found


@every_layout
@pytest.mark.parametrize("shape", [(5, 7), (3, 2), (9, 1)])
def test_diff_counts_what_differs_in_the_whole_tensors(shape, name):
    """Whatever the layout: each element once, however many ranks hold it."""
    for count, total, (same, rows) in one_of(together(count_differences, shape, name)):
        assert same == (count == 0)
        if count:
            [row] = rows
            assert row.a == f"{count} of {total} elements differ"
            assert row.b == "by at most nan"


def differ_on_replicas():
    """Change one element on rank 0, two others on rank 2, which holds the same."""
    a = {"w": laid(whole(4, 3), "hsdp")}
    b = sd.copy(a)
    local = b["w"].to_local()
    if me() == 0:
        local[0, 0] = math.nan
    if me() == 2:
        local[1, :2] += 5
    return told(a, b)


def test_of_replicas_that_differ_the_worse_counts():
    """The most elements, and the greatest distance, which may be another's."""
    same, [row] = one_of(together(differ_on_replicas))
    assert not same
    assert row[2:] == ("2 of 12 elements differ", "by at most nan")


def differ_here_and_there():
    a = {"x": shard(whole(8, 2)), "y": shard(whole(8, 2)), "z": shard(whole(8, 2))}
    b = sd.copy(a)
    for name, rank in (("x", 3), ("y", 0), ("z", 1)):
        if me() == rank:
            b[name].to_local().add_(1)
    return told(a, b)


def test_all_tell_of_differences_in_one_order():
    same, rows = one_of(together(differ_here_and_there))
    assert not same
    assert [row.path for row in rows] == [("x",), ("y",), ("z",)]


def traffic_of(call):
    with record() as traffic:
        call()
    return traffic.messages, traffic.nbytes


def compare_on_the_way():
    """Return what goes on for trees that are equal, and for such as are not."""
    a = {f"l{k}": shard(whole(8, 2)) for k in range(10)}
    b = sd.copy(a)
    before = traffic_of(lambda: sd.equal(a, b))
    b["l0"].to_local().add_(1)
    return before, traffic_of(lambda: sd.equal(a, b))


def test_ranks_exchange_words_and_no_data():
    """As much if the first leaf differs as if none does: there is no short cut."""
    for before, after in together(compare_on_the_way):
        assert before == after
        messages, nbytes = before
        assert messages == {"all_gather": 1, "all_reduce": 1}
        assert nbytes.total() < 500


# -- numbers -----------------------------------------------------------------------


def numbers_of(shape, name):
    """Return the numbers of a difference, whole and sharded, exact and within."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=draw)
    y = torch.where(torch.rand(shape, generator=draw) < 0.5, x, x * 1.01)
    found = []
    for options in ({}, {"rtol": 0.005}, {"rtol": 0.05}, {"atol": 9.0}):
        for one in (lambda t: t, lambda t: laid(t, name)):
            diff = sd.diff({"w": one(x)}, {"w": one(y)}, **options)
            stat = diff.stat()[-1]
            rows = [(d.numbers(), d.a, d.b) for d in (*diff, *diff.within)]
            found.append((len(diff), rows, stat.leaves, stat.of))
    return found


@every_layout
def test_numbers_are_those_of_the_whole_tensors(name):
    """Without a gather: each region counts once, whoever holds it, close or not."""
    found = one_of(together(numbers_of, (5, 7), name))
    for (count, rows, *stat), (other, sharded, *its) in batched(found):
        assert (count, stat) == (other, its)
        for (numbers, *texts), (same, *others) in zip(rows, sharded, strict=True):
            assert texts == others
            assert numbers == pytest.approx(same, rel=1e-12)
    assert [count for count, *_ in found] == [1, 1, 1, 1, 0, 0, 0, 0]


def batched(found):
    return zip(found[::2], found[1::2], strict=True)


def close_here_and_far_there():
    """Be within the tolerance on three ranks, and beyond it on one."""
    a = {"w": shard(whole(8, 2)), "v": shard(whole(8, 2))}
    b = sd.copy(a)
    b["w"].to_local().add_(0.5 if me() != 2 else 5)
    b["v"].to_local().add_(0.5)
    found = sd.diff(a, b, atol=1)
    return [*found], [d.path for d in found.within]


def test_a_leaf_is_close_if_it_is_on_all_ranks():
    rows, within = one_of(together(close_here_and_far_there))
    assert rows == [(("w",), "value", "16 of 16 elements differ", "by at most 5")]
    assert within == [("v",)]


def tolerate_differently():
    a = {"w": shard(whole(8, 2))}
    return caught(lambda: sd.diff(a, a, rtol=0.1 if me() == 1 else 0.2))


def test_ranks_agree_on_the_tolerance():
    assert {*map(type, together(tolerate_differently))} == {RankMismatch}


def rename_sharded():
    """Rename three leaves of one form; on rank 1 one of them is another besides."""
    full = [shard(whole(8, 2, start=k)) for k in range(3)]
    a = dict(zip(("x", "y", "z"), full, strict=True))
    b = dict(zip(("n", "m", "z"), sd.copy([full[1], full[0], full[2]]), strict=True))
    renamed = sd.diff(a, b).renamed
    if me() == 1:
        b["m"].to_local().add_(1)
    return renamed, sd.diff(a, b).renamed


def test_a_leaf_is_renamed_if_it_is_on_all_ranks():
    """One rank with other bits is enough for two leaves that have nothing in common."""
    renamed, other = one_of(together(rename_sharded))
    assert renamed == ((("x",), ("m",)), (("y",), ("n",)))
    assert other == ((("y",), ("n",)),)


# -- what else may differ ----------------------------------------------------------


def differ_in_form():
    full = whole(8, 4)
    rows, columns = laid(full, "rows"), laid(full, "columns")
    return (
        told({"w": rows}, {"w": full}),
        told({"w": rows}, {"w": columns}),
        told({"w": rows}, {"w": shard(whole(8, 5))}),
        told({"w": rows}, {"w": shard(full.double())}),
        told({"w": rows}, {"v": rows}),
        told({"w": rows}, {"w": {"x": rows}}),
        told({"w": rows}, {}),
    )


def test_forms_and_structures_differ_on_all_ranks():
    for found in together(differ_in_form):
        assert [same for same, _ in found] == [False] * 7
        whats = [[row.what for row in rows] for _, rows in found]
        assert whats[:4] == [["kind"], ["layout"], ["shape"], ["dtype"]]
        assert whats[4] == ["leaf", "leaf"]
        assert whats[6] == ["leaf"]


def differ_beside():
    """Have values beside the sharded leaf that are each rank's own."""
    a = {"n": 1, "w": shard(whole(8, 2)), "own": torch.full((3,), float(me()))}
    b = {**sd.copy(a), "n": 2} if me() == 2 else sd.copy(a)
    if me() == 1:
        b["own"][0] = 9
        b["more"] = 5
    return told(a, b)


def test_what_differs_on_another_rank_is_told_with_it():
    every = together(differ_beside)
    assert [same for same, _ in every] == [False] * 4
    for rank, (_, rows) in enumerate(every):
        here, there = (" on rank 1", " on rank 2")
        on = {
            1: "" if rank == 1 else f",{here}",
            2: "" if rank == 2 else f",{there}",
        }
        found = {(row.path, row.what): row.a for row in rows}
        assert found == {
            (("own",), f"value{on[1]}"): "1 of 3 elements differ",
            (("more",), f"leaf{on[1]}"): "nothing",
            (("n",), f"value{on[2]}"): "int 1",
        }


def without_values():
    a = {"w": shard(whole(8, 2))}
    b = {"w": shard(whole(8, 2, start=1))}
    return [*sd.diff(a, b, values=False)], len(sd.diff(a, b))


def test_without_values_the_data_is_not_looked_at():
    assert together(without_values) == [([], 1)] * 4


def differ_in_pieces():
    cuts = [((0, 0), (3, 4), 0), ((3, 0), (5, 1), 2), ((3, 1), (5, 3), 1)]
    a, b = ({"w": pieces(whole(8, 4), cuts)} for _ in range(2))
    for piece in b["w"].local_shards():
        piece.tensor[-1] += 1
    return told(a, a), told(a, b)


def test_pieces_are_compared_as_they_lie():
    """Of a ShardedTensor, which one rank holds no piece of."""
    same, differing = one_of(together(differ_in_pieces))
    assert same == (True, [])
    row = (("w",), "value", "8 of 32 elements differ", "by at most 1")
    assert differing == (False, [row])


def differ_in_terms(rank):
    local = torch.full((3, 2), float(me()))
    a = {"w": shard(local, None, Partial())}
    b = sd.copy(a)
    if me() == rank:
        b["w"].to_local()[0, 0] += 1
    return told(a, b)


def test_terms_are_compared_unreduced():
    same, [row] = one_of(together(differ_in_terms, 2))
    assert not same
    assert row[2:] == ("1 of 6 elements differ", "by at most 1")


# -- who takes part ----------------------------------------------------------------


def plain_on_rank_0():
    """Return what goes on where rank 0 compares alone."""
    if me() != 0:
        return None
    a = {"w": torch.ones(2), "n": 1}
    with record() as traffic:
        assert told(a, sd.copy(a)) == (True, [])
        assert not sd.equal(a, {**a, "n": 2})
    return traffic.messages.total()


def test_plain_trees_are_compared_by_one_rank_alone():
    assert together(plain_on_rank_0) == [0, None, None, None]


def look_alone():
    """Ask rank 3 alone about sharded trees, and return its answers."""
    w = laid(whole(6, 4), "hsdp")
    a = {"w": w, "tied": w, "b": shard(whole(3)), "n": torch.ones(3), "step": 1}
    dist.barrier()
    if me() != 3:
        return None
    with record() as traffic:
        assert sd.similar(a, sd.copy(a))
        assert not sd.similar(a, {**a, "w": laid(whole(6, 4), "rows")})
        assert sd.similar(a, sd.spec(a))
        assert sd.spec(a)["w"].layout.ranks == (0, 1, 2, 3)
        assert sd.spec(a)["w"].shape == (6, 4)
        assert sd.ties(a) == [[("w",), ("tied",)]]
        sizes = sd.nbytes(a), sd.nbytes(a, whole=True)
    return traffic.messages.total(), sizes


def test_looking_asks_nobody():
    """``similar``, ``spec``, ``ties`` and ``nbytes``: one rank may call them alone.

    It holds half of ``w`` and nothing of ``b``; whole, each part counts once.
    """
    sizes = (4 * (12 + 3), 4 * (24 + 3 + 3))
    assert together(look_alone) == [None, None, None, (0, sizes)]


@cache
def first_two():
    """Return their group, by a name that does not hang on what was made before."""
    return RankGroup.of().of_ranks((0, 1)).group


def compare_in_a_group():
    where = over(0, 1)
    if me() > 1:
        return None
    a = {"w": shard(whole(5, 2), where)}
    b = sd.copy(a)
    assert sd.equal(a, b, group=first_two())
    if me() == 1:
        b["w"].to_local()[0, 0] += 1
    return told(a, b, group=first_two())


def test_a_group_compares_alone():
    first, second, *others = together(compare_in_a_group)
    row = (("w",), "value", "1 of 10 elements differ", "by at most 1")
    assert first == second == (False, [row])
    assert others == [None, None]


def compare_with_nothing():
    where = over(0, 1)
    a = {"n": 1} if me() > 1 else {"w": shard(whole(5, 2), where)}
    b = sd.copy(a)
    if me() == 1:
        b["w"].to_local()[0, 0] += 1
    return told(a, b, group=dist.group.WORLD)


def test_a_rank_that_holds_nothing_takes_part_by_its_group():
    """It hears of the verdict of those that hold something."""
    row = (("w",), "value", "1 of 10 elements differ", "by at most 1")
    assert one_of(together(compare_with_nothing)) == (False, [row])


def compare_off_the_mesh():
    a = {"w": shard(whole(5, 2), over(0, 1))}
    b = sd.copy(a)
    if me() == 0:
        b["w"].to_local()[0, 0] += 1
    return told(a, b)


def test_ranks_off_a_mesh_hear_of_it():
    row = (("w",), "value", "1 of 10 elements differ", "by at most 1")
    assert one_of(together(compare_off_the_mesh)) == (False, [row])


def compare_in_too_small_a_group(verb):
    a = {"w": shard(whole(8, 2))}
    if me() > 1:
        return caught(lambda: None)
    return caught(lambda: getattr(sd, verb)(a, a, group=first_two()))


VERBS = pytest.mark.parametrize("verb", ["equal", "diff"])


@VERBS
def test_a_group_without_ranks_of_a_layout_is_refused(verb):
    first, second, *_ = together(compare_in_too_small_a_group, verb)
    for error in (first, second):
        assert type(error) is LayoutError
        assert "w: its layout names the ranks [2, 3]" in str(error)


# -- what goes wrong ---------------------------------------------------------------


def compare_other_trees(verb, what):
    a = {"v": shard(whole(8, 2)), "w": shard(whole(8, 2)), "n": 1}
    if me() == 2:
        a = {
            "shape": {**a, "w": shard(whole(8, 3))},
            "dtype": {**a, "w": shard(whole(8, 2).double())},
            "path": {**a, "w": {"x": a["w"]}},
            "lacks": {"v": a["v"]},
            "order": {"n": 1, "w": a["w"], "v": a["v"]},
        }[what]
    return caught(lambda: getattr(sd, verb)(a, sd.copy(a)))


@VERBS
@pytest.mark.parametrize("what", ["shape", "dtype", "path", "lacks"])
def test_ranks_with_different_trees_all_raise(verb, what):
    """The message has the first path, and who has what there."""
    for error in together(compare_other_trees, verb, what):
        assert type(error) is RankMismatch
        assert "at w" in str(error)
        assert f"{verb} of DTensor" in str(error)


@VERBS
def test_the_order_of_keys_is_free(verb):
    assert together(compare_other_trees, verb, "order") == [None] * 4


def do_this_and_that():
    a = {"w": shard(whole(8, 2))}
    verb = sd.diff if me() == 1 else sd.equal
    return caught(lambda: verb(a, a))


def test_some_ask_for_the_one_and_some_for_the_other():
    for error in together(do_this_and_that):
        assert type(error) is RankMismatch


class Unequal:
    """A value that cannot be compared."""

    def __eq__(self, other):
        raise ZeroDivisionError("no use")

    __hash__ = None


sd.register_leaf(Unequal, flatten=lambda x: ((), x), unflatten=lambda aux, ts: aux)


def compare_and_fail(verb, rank):
    a = {"w": shard(whole(8, 2)), "n": 1}
    b = dict(a)
    if me() == rank:
        a["n"], b["n"] = Unequal(), Unequal()
    return caught(lambda: getattr(sd, verb)(a, b))


@VERBS
@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_fails_is_heard_of(verb, rank):
    """It raises its own error, the others tell of it."""
    for k, error in enumerate(together(compare_and_fail, verb, rank)):
        assert type(error) is (ZeroDivisionError if k == rank else RankFailed)
        if k != rank:
            assert f"rank {rank} failed" in str(error)
            assert "no use" in str(error)
            assert error.ranks == (rank,)


class NoLeaf:
    """A value that no kind serves."""


def compare_what_is_no_leaf(verb, rank, side):
    trees = [{"w": shard(whole(8, 2)), "n": 1} for _ in range(2)]
    if me() == rank:
        trees[side]["n"] = NoLeaf()
    return caught(lambda: getattr(sd, verb)(*trees))


@VERBS
@pytest.mark.parametrize("side", [0, 1])
def test_a_rank_that_cannot_take_a_tree_apart_is_heard_of(verb, side):
    for k, error in enumerate(together(compare_what_is_no_leaf, verb, 1, side)):
        assert type(error) is (UnknownLeaf if k == 1 else RankFailed)
        assert "NoLeaf" in said(error)
