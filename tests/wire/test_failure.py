"""A rank fails in the middle: it raises its own error, the others tell of it.

What was yielded before is right, junk is never yielded, and nobody hangs.
"""

import os
import time
from datetime import timedelta
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from ranks import RanksStuck, mesh, pool
from shards import assert_works, me, over, said, shard, together, whole
from torch.distributed.tensor import Partial, Replicate, Shard

import sdtree as sd
from sdtree.errors import RankFailed
from sdtree.exchange import windows as batches
from sdtree.wire.collectives import RankGroup, forced, greatest, record

NAMES = [f"l{k}" for k in range(6)]
SMALL = {name: whole(8, 4, start=100 * k) for k, name in enumerate(NAMES)}
"""Leaves of 128 bytes each: in buckets of as many, each is a window of its own."""

BIG = {name: whole(200, 1024, start=k) for k, name in enumerate(NAMES[:3])}
"""Leaves of 800 KB, of which each rank's part goes alone."""


class Refusal(ValueError):
    """An error of our own."""


def refusing(rank, name):
    """Return the transform that fails at one leaf of one rank."""

    def refuse(path, leaf):
        if me() == rank and path[-1] == name:
            raise Refusal("not this one")
        return leaf

    return sd.map_with_path(refuse)


def outcome(call):
    """Return what a call raises, and what it had seen till then; all is well then."""
    seen, error = {}, None
    try:
        for path, leaf in call():
            seen[path[-1]] = leaf
    except Exception as found:
        error = found
    assert_works()
    return error, seen


def assert_told(outcomes, rank, *texts, kind=Refusal):
    """Assert that one rank raised its own error, and that all others tell of it."""
    for k, (error, _) in enumerate(outcomes):
        assert type(error) is (kind if k == rank else RankFailed), (k, error)
        for text in texts:
            assert text in said(error), (k, said(error))
        if k != rank:
            assert error.ranks == (rank,)
            assert f"rank {rank} failed" in str(error)


# -- gather ------------------------------------------------------------------------


def stop_progress(ranks, rank, at_end):
    def stop(done, total):
        if me() == rank and (done == total or not at_end):
            raise Refusal("no more of it")

    tree = {name: shard(leaf) for name, leaf in SMALL.items()}
    f = sd.gather(ranks=ranks, bucket_bytes=128, on_progress=stop)
    return outcome(lambda: f(tree).items())


@pytest.mark.parametrize("ranks", [None, 0])
@pytest.mark.parametrize("at_end", [True, False])
def test_whoever_is_told_may_stop_it(ranks, at_end):
    """Its error is that of its rank: also of one that gets nothing, and at the end."""
    outcomes = pool(2).run(stop_progress, ranks, 1, at_end)
    assert_told(outcomes, 1, "no more of it")


def gather_and_fail(wire, full, ranks, bucket_bytes, rank, name):
    tree = {name: shard(leaf) for name, leaf in full.items()}
    f = sd.gather(ranks=ranks, bucket_bytes=bucket_bytes) | refusing(rank, name)
    with forced(wire):
        error, seen = outcome(lambda: f.stream(tree))
    for key, leaf in seen.items():
        if ranks is None or me() in ranks:
            assert torch.equal(leaf, full[key])
        else:
            assert type(leaf) is sd.Abstract
    return error, list(seen)


WIRES = pytest.mark.parametrize("wire", ["pairs", "collective"])


@WIRES
@pytest.mark.parametrize("ranks", [None, (0, 2)], ids=["all", "two"])
@pytest.mark.parametrize("name", ["l0", "l3", "l5"])
def test_a_stage_after_a_gather_fails_in_a_window(wire, ranks, name):
    """At first, half way or at last; on a rank that gets data."""
    found = together(gather_and_fail, wire, SMALL, ranks, 128, 2, name)
    assert_told(found, 2, name, "not this one")
    before = NAMES[: NAMES.index(name)]
    assert found[2][1] == before
    for error, seen in found:
        assert seen == NAMES[: len(seen)]
        assert len(seen) >= len(before)
        if type(error) is RankFailed:
            assert error.paths == ((name,),)


class Silent(Exception):
    """An error that cannot say what it is."""

    def __str__(self):
        raise AttributeError("it has no reason")


def fail_without_a_text(is_before):
    def refuse(path, leaf):
        if me() == 2 and path[-1] == "l2":
            raise Silent
        return leaf

    fail, gather = sd.map_with_path(refuse), sd.gather(bucket_bytes=128)
    f = fail | gather if is_before else gather | fail
    tree = {name: shard(leaf) for name, leaf in SMALL.items()}
    return outcome(lambda: f(tree).items())


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "in a window"])
def test_an_error_whose_text_cannot_be_told_is_told_by_its_type(is_before):
    errors = [error for error, _ in together(fail_without_a_text, is_before)]
    assert type(errors.pop(2)) is Silent
    for error in errors:
        assert type(error) is RankFailed
        assert "rank 2 failed" in str(error)
        assert "Silent" in str(error)
        assert "at l2" in str(error)


@WIRES
def test_the_rank_that_fails_need_not_receive(wire):
    """It had an Abstract at hand when its stage failed."""
    found = together(gather_and_fail, wire, SMALL, (0,), 128, 3, "l2")
    assert_told(found, 3, "l2")
    assert found[3][1] == ["l0", "l1"]
    # What is sound leaves the rank in the window in which it fails, junk in the next.
    assert len(found[0][1]) <= 4


@WIRES
@pytest.mark.parametrize("bucket_bytes", [2**20, 300_000, 2**14])
@pytest.mark.parametrize("name", ["l0", "l1", "l2"])
def test_large_leaves_fail_as_small_ones_do(wire, bucket_bytes, name):
    """Alone on their way, or cut into slabs of at most a bucket."""
    found = together(gather_and_fail, wire, BIG, None, bucket_bytes, 1, name)
    assert_told(found, 1, name)


def fail_before_the_stage(wire, full, bucket_bytes, rank, name):
    """The leaf cannot be had on one rank, in its window."""
    tree = {name: shard(leaf) for name, leaf in full.items()}
    f = sd.gather(bucket_bytes=bucket_bytes)
    made = torch.empty
    count = NAMES.index(name)

    def scarce(*size, **options):
        nonlocal count
        first, shape = size[0], full[name].shape
        if isinstance(first, tuple) and first[-2:] == shape:  # of a column, or of one
            count -= 1
            if count == -1:
                raise MemoryError("no room")
        return made(*size, **options)

    with forced(wire):
        if me() == rank:
            torch.empty = scarce
        try:
            error, seen = outcome(lambda: f.stream(tree))
        finally:
            torch.empty = made
    for key, leaf in seen.items():
        assert torch.equal(leaf, full[key])
    return error, list(seen)


@WIRES
@pytest.mark.parametrize(
    ("full", "bucket_bytes"), [(SMALL, 128), (BIG, 2**20), (BIG, 2**14)]
)
def test_there_is_no_room_for_a_result(wire, full, bucket_bytes):
    """What this rank sends is junk from then on: no other yields a later window.

    A large leaf has its room before it comes, so no other yields that one either.
    """
    found = together(fail_before_the_stage, wire, full, bucket_bytes, 1, "l1")
    assert_told(found, 1, "l1", "no room", kind=MemoryError)
    assert found[1][1] == ["l0"]
    most = ["l0"] if full is BIG else ["l0", "l1"]
    assert all(seen == most for k, (_, seen) in enumerate(found) if k != 1)


def fail_to_make_a_bucket(wire):
    tree = {name: shard(leaf) for name, leaf in SMALL.items()}
    made = torch.empty

    def scarce(*size, **options):
        if options.get("dtype") is torch.uint8 and size == (2 * 128,):
            raise MemoryError("no room for two buckets")
        return made(*size, **options)

    with forced(wire):
        if me() == 1:
            torch.empty = scarce
        try:
            sd.gather(tree, bucket_bytes=128)
        finally:
            torch.empty = made


@WIRES
def test_there_is_no_room_for_a_bucket(wire):
    """That is seen before the agreement, so that the others hear of it."""
    outcomes = pool(4).outcomes(fail_to_make_a_bucket, wire)
    assert [type(outcome.error) for outcome in outcomes] == [
        *(RankFailed, MemoryError, RankFailed, RankFailed)
    ]


def fail_to_gather_into(wire, name):
    tree = {name: shard(leaf) for name, leaf in SMALL.items()}
    into = {name: torch.full_like(leaf, -1) for name, leaf in SMALL.items()}
    f = sd.gather(into=into, bucket_bytes=128) | refusing(2, name)
    with forced(wire):
        error, seen = outcome(lambda: f.stream(tree))
    for key in seen:
        assert torch.equal(into[key], SMALL[key])
    untouched = [key for key, t in into.items() if bool((t == -1).all())]
    return error, untouched


@WIRES
def test_buffers_are_partly_written_then_and_every_error_says_so(wire):
    found = together(fail_to_gather_into, wire, "l2")
    assert_told(found, 2, "l2", "partly written", "into=")
    assert all("l0" not in untouched for _, untouched in found)


# -- broadcast and distribute ------------------------------------------------------


def broadcast_and_fail(wire, full, hsdp, bucket_bytes, src, rank, name, is_before):
    where = mesh((2, 2)) if hsdp else mesh((4,))
    how = (Replicate(), Shard(0)) if hsdp else (Shard(0),)
    likes = {name: shard(leaf * 0, where, *how) for name, leaf in full.items()}
    parts = {name: shard(leaf, where, *how) for name, leaf in full.items()}
    f = sd.broadcast(like=likes, src=src, bucket_bytes=bucket_bytes)
    f = refusing(rank, name) | f if is_before else f | refusing(rank, name)
    with forced(wire):
        error, seen = outcome(lambda: f.stream(full if me() == src else None))
    for key, leaf in seen.items():
        assert torch.equal(leaf.to_local(), parts[key].to_local())
    assert not any(leaf.to_local().any() for leaf in likes.values())
    return error, list(seen)


@WIRES
@pytest.mark.parametrize("hsdp", [False, True], ids=["fsdp", "hsdp"])
@pytest.mark.parametrize(
    ("full", "bucket_bytes"), [(SMALL, 128), (BIG, 2**20), (BIG, 2**14)]
)
def test_a_map_before_a_broadcast_fails_at_the_source(wire, hsdp, full, bucket_bytes):
    """Nobody yields what came from it, nor what a replica passed on."""
    args = (wire, full, hsdp, bucket_bytes, 1, 1, "l1", True)
    found = together(broadcast_and_fail, *args)
    assert_told(found, 1, "at l1")
    assert [seen for _, seen in found] == [["l0"]] * 4


@WIRES
@pytest.mark.parametrize("hsdp", [False, True], ids=["fsdp", "hsdp"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_stage_after_a_broadcast_fails_where_data_is_passed_on(wire, hsdp, rank):
    args = (wire, SMALL, hsdp, 128, 1, rank, "l2", False)
    found = together(broadcast_and_fail, *args)
    assert_told(found, rank, "at l2")
    assert found[rank][1] == ["l0", "l1"]


def broadcast_into_and_fail(is_before):
    into = {name: shard(leaf * 0 - 1) for name, leaf in SMALL.items()}
    f = sd.broadcast(into=into, bucket_bytes=128)
    refusal = refusing(0, "l2")
    f = refusal | f if is_before else f | refusal
    return outcome(lambda: f.stream(SMALL if me() == 0 else None))


@pytest.mark.parametrize("is_before", [True, False])
def test_targets_are_partly_written_then_and_every_error_says_so(is_before):
    found = together(broadcast_into_and_fail, is_before)
    assert_told(found, 0, "l2", "into= are partly written")


def distribute_into_and_fail():
    into = {name: shard(leaf * 0 - 1) for name, leaf in SMALL.items()}
    f = refusing(0, "l2") | sd.distribute(into=into, bucket_bytes=128)
    error = None
    try:
        f(SMALL)
    except Exception as found:
        error = found
    assert_works()
    return error, not bool((into["l0"].to_local() == -1).all())


def test_where_nothing_travels_a_failure_is_told_of_too():
    """All raise; the targets are partly written, and that is said."""
    found = together(distribute_into_and_fail)
    assert_told(found, 0, "l2", "into= are partly written")
    assert found[1][1]


def redistribute_and_fail(wire, name):
    tree = {name: shard(leaf) for name, leaf in SMALL.items()}
    like = {name: shard(leaf, mesh((4,)), Shard(1)) for name, leaf in SMALL.items()}
    f = sd.redistribute(like=like, bucket_bytes=128) | refusing(3, name)
    with forced(wire):
        error, seen = outcome(lambda: f.stream(tree))
    for key, leaf in seen.items():
        assert torch.equal(leaf.to_local(), like[key].to_local())
    return error, list(seen)


@WIRES
def test_a_stage_after_a_redistribute_fails(wire):
    found = together(redistribute_and_fail, wire, "l3")
    assert_told(found, 3, "at l3")


# -- partial leaves ----------------------------------------------------------------


def gather_partial_and_fail(wire, name, is_before):
    terms = {
        name: shard(leaf * (me() + 1), mesh((4,)), Partial())
        if k % 2
        else shard(leaf, mesh((4,)), Shard(0))
        for k, (name, leaf) in enumerate(SMALL.items())
    }
    if is_before:

        def refuse(path, leaf):
            if me() == 2 and path[-1] == name:
                raise Refusal("not this one")
            return leaf

        f = sd.map_with_path(refuse) | sd.gather(bucket_bytes=128)
    else:
        f = sd.gather(bucket_bytes=128) | refusing(2, name)
    with forced(wire):
        error, seen = outcome(lambda: f.stream(terms))
    for key, leaf in seen.items():
        factor = 10 if int(key[1]) % 2 else 1
        assert torch.equal(leaf, SMALL[key] * factor)
    return error, list(seen)


@WIRES
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_partial_leaves_fail_as_others_do(wire, name):
    """The reduction goes on, with zeros, on the rank that has failed."""
    found = together(gather_partial_and_fail, wire, name, False)
    assert_told(found, 2, name)
    assert found[2][1] == NAMES[: int(name[1])]


# -- words on the way --------------------------------------------------------------


def fail_early(status_bytes, rank, count):
    """Gather leaves over sets that overlap; one rank fails in its first window."""
    batches.STATUS_BYTES = status_bytes
    try:
        sets = [(0, 1), (1, 2), (2, 3), (0, 1, 2, 3)]
        tree = {"first": whole(2)}  # it stays, and nobody is told of it
        for k in range(count):
            for n, ranks in enumerate(sets):
                leaf = shard(whole(8, 4, start=k), over(*ranks))
                if me() in ranks:
                    tree[f"l{k}", n] = leaf
        f = sd.gather(bucket_bytes=128) | sd.map_with_path(
            lambda path, leaf: leaf if "first" in path else refuse_here(rank, leaf)
        )
        with record() as traffic:
            error, seen = outcome(lambda: f.stream({"t": tree}))
    finally:
        batches.STATUS_BYTES = 256 * 2**20
    del seen["first"]
    for (k, _), leaf in seen.items():
        assert torch.equal(leaf, whole(8, 4, start=int(k[1:])))
    return error, len(seen), traffic.messages["send"]


def refuse_here(rank, leaf):
    if me() == rank:
        raise Refusal("not this one")
    return leaf


@pytest.mark.parametrize("rank", [0, 2])
def test_after_so_many_bytes_the_ranks_of_a_set_stop_if_one_failed(rank):
    """Each set asks for itself; a set without the rank that failed goes on."""
    never = together(fail_early, 2**20, rank, 12)
    often = together(fail_early, 256, rank, 12)
    for found in (never, often):
        assert_told([(error, seen) for error, seen, _ in found], rank)
    for k in range(4):
        assert often[k][2] <= never[k][2]
    assert often[rank][2] < never[rank][2] / 2
    spared = 3 if rank == 0 else 0
    assert often[spared][1] >= 12


# -- ranks that are gone -----------------------------------------------------------


def gone(how, after):
    """One rank dies, or never calls, before or in the middle; the others say what."""
    tree = {name: shard(leaf) for name, leaf in BIG.items()}
    assert_works()
    if me() == 2 and not after:
        os._exit(3)
    f = sd.gather(bucket_bytes=2**20)
    start = time.monotonic()
    try:
        with f.stream(tree) as stream:
            for k, _ in enumerate(stream):
                if me() == 2 and k == 0:
                    os._exit(3)
    except Exception as error:
        text = f"{type(error).__name__}: {said(error)}"
        how.put((me(), text, time.monotonic() - start))
        raise
    how.put((me(), "no error", 0))


def write_gone(folder, after):
    """As ``gone``, with the outcome in a file: a rank that died ends the pool."""
    gone(Folder(folder), after)


class Folder:
    """Keeps what ranks came to, beyond their end."""

    def __init__(self, path):
        self.path = path

    def put(self, found):
        """Write it whole or not at all: the process may be killed meanwhile."""
        rank, text, spent = found
        part = self.path.with_name(f"{self.path.name} {rank}")
        part.write_text(f"{spent}\n{text}")
        part.replace(self.path / f"{rank}")


@pytest.mark.parametrize("after", [False, True], ids=["before", "midway"])
def test_a_rank_that_dies_is_the_backends_own_error(after, tmp_path, monkeypatch):
    """With the rank that was waited for, and at which path, where one is known."""
    monkeypatch.setattr("ranks.GRACE", 3)
    with pytest.raises(RanksStuck, match="rank 2 died: 3"):
        pool(4).run(write_gone, tmp_path, after, timeout=6)
    texts = {}
    for file in tmp_path.iterdir():
        spent, _, texts[file.name] = file.read_text().partition("\n")
        assert float(spent) < 3
    assert texts
    for text in texts.values():
        assert text.startswith(("RuntimeError", "DistBackendError"))
        if after:
            assert "at l" in text
            assert "waiting for rank" in text
        else:
            assert "gather()" in text


def impatient():
    """Return a group of all ranks that waits three seconds."""
    return dist.new_group([0, 1, 2, 3], timeout=timedelta(seconds=3))


def absent():
    """One rank does not call, again and again."""
    found = {}
    for verb, prepare in CALLS.items():
        group = impatient()
        call = prepare({"w": shard(SMALL["l0"])}, group)
        start, text = time.monotonic(), "no error"
        if me() != 3:
            try:
                call()
            except RuntimeError as error:
                text = said(error)
        found[verb] = text, time.monotonic() - start
        dist.barrier()
    return found


def prepared(tree, group):
    """Return the call of what was prepared, which begins with one word to all."""
    return partial(sd.gather(ranks=0, group=group).prepare(tree), tree)


CALLS = {
    "gather()": lambda tree, group: partial(sd.gather, tree, group=group),
    "gather(ranks=0)": prepared,
    "equal": lambda tree, group: partial(sd.equal, tree, tree, group=group),
}


def test_a_rank_that_never_calls_is_the_backends_time_out():
    """It says in which call the ranks did not meet."""
    *every, _ = pool(4).run(absent, timeout=30)
    pool(4).stop()
    for found in every:
        for verb, (text, spent) in found.items():
            assert verb in text
            assert "(0, 1, 2, 3)" in text
            assert spent < 8


def gone_while_comparing(folder):
    """One rank dies in its own work; those that wait for its verdict say for what."""
    group, tree = impatient(), {"w": shard(SMALL["l0"])}
    if me() == 2:
        patch("sdtree.ops.differing._find", lambda *_: os._exit(3)).start()
    start = time.monotonic()
    try:
        sd.diff(tree, tree, group=group)
    except RuntimeError as error:
        Folder(folder).put((me(), said(error), time.monotonic() - start))
        raise


def test_a_rank_that_dies_while_comparing_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("ranks.GRACE", 3)
    with pytest.raises(RanksStuck, match="rank 2 died: 3"):
        pool(4).run(gone_while_comparing, tmp_path, timeout=6)
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert texts
    for text in texts.values():
        assert "waiting for the ranks (0, 1, 2, 3) to meet in diff" in text


def waits_in_part():
    """Two ranks of a group that is impatient meet in one of their own, but for one."""
    group = impatient()
    team = RankGroup.of(group).of_ranks((0, 1)) if me() < 2 else None
    start = time.monotonic()
    if me() == 0:
        with pytest.raises(RuntimeError):
            greatest(team, [0])
    return time.monotonic() - start


def test_a_group_that_is_made_waits_as_long_as_that_of_which_it_is_a_part():
    assert max(pool(4).run(waits_in_part, timeout=20)) < 8
    pool(4).stop()


def absent_midway():
    """One rank leaves after the agreement; the others wait for its part in vain."""
    group = impatient()
    tree = {"model": {"w": shard(BIG["l0"])}}
    stream = sd.gather(group=group).stream(tree)
    if me() == 3:
        stream._drain = lambda: None
        return None
    start = time.monotonic()
    try:
        with stream:
            list(stream)
    except RuntimeError as error:
        return said(error), time.monotonic() - start
    return "no error", 0


def test_a_rank_that_leaves_midway_is_named_with_the_path():
    *found, none = pool(4).run(absent_midway, timeout=20)
    pool(4).stop()
    assert none is None
    for text, spent in found:
        assert "model.w" in text
        assert spent < 8
    assert any("waiting for rank 3" in text for text, _ in found)
