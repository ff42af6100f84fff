"""Streams end well, however they end: exhausted, closed, left half way, forgotten."""

import gc
import weakref
from itertools import islice

import pytest
import torch
from lines import lines_of
from ranks import mesh
from shards import assert_works, me, over, said, shard, together, whole
from torch.distributed.tensor import Replicate, Shard

import sdtree as sd
from sdtree.errors import RankFailed
from sdtree.transform.window import sharing
from sdtree.wire.collectives import forced, record

NAMES = [f"l{k}" for k in range(6)]
FULL = {name: whole(8, 4, start=100 * k) for k, name in enumerate(NAMES)}


def sharded():
    return {name: shard(leaf) for name, leaf in FULL.items()}


def gathering(**options):
    return sd.gather(bucket_bytes=128, **options)


def assert_right(pairs, names=NAMES):
    """Assert that these leaves came, in order, with their values."""
    pairs = list(pairs)
    assert [path for path, _ in pairs] == [(name,) for name in names]
    for (name,), leaf in pairs:
        assert torch.equal(leaf, FULL[name])


def assert_over(stream, was_cut_off):
    """Nothing is left; a stream that was closed before its end says so."""
    if was_cut_off:
        with pytest.raises(ValueError, match="closed before its end"):
            next(stream)
    else:
        assert list(stream) == []


# -- among ranks -------------------------------------------------------------------


def exhaust():
    stream = gathering().stream(sharded())
    assert iter(stream) is stream
    assert_right(stream)
    assert list(stream) == []
    stream.close()
    stream.close()
    assert_works()
    with gathering().stream(sharded()) as stream:
        assert_right(stream)
    assert_works()


def test_a_stream_is_exhausted_and_may_be_closed_then():
    together(exhaust)


def leave_half_way(wire, leaver, count):
    with forced(wire), record() as traffic:
        with gathering().stream(sharded()) as stream:
            if me() == leaver:
                assert_right(islice(stream, count), NAMES[:count])
            else:
                assert_right(stream)
        assert_over(stream, was_cut_off=me() == leaver)
    assert_works()
    return traffic.messages["send"] + traffic.messages["all_to_all"]


@pytest.mark.parametrize("wire", ["pairs", "collective"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_if_one_rank_leaves_half_way_the_others_get_all(wire, count):
    """It does its part to the end, as many messages as it would have sent."""
    found = together(leave_half_way, wire, 2, count)
    assert len({*found}) == 1


def close_before_the_first(closers):
    stream = gathering().stream(sharded())
    if me() in closers:
        stream.close()
        assert_over(stream, was_cut_off=True)
    else:
        assert_right(stream)
    assert_works()


@pytest.mark.parametrize("closers", [(0,), (1, 2), (0, 1, 2, 3)])
def test_a_stream_may_be_closed_before_its_first_leaf(closers):
    together(close_before_the_first, closers)


def forget(forgetter):
    stream = gathering().stream(sharded())
    if me() == forgetter:
        next(stream)
        del stream
        gc.collect()
    else:
        assert_right(stream)
    assert_works()


def test_a_stream_that_is_forgotten_does_its_part():
    together(forget, 3)


def forget_unseen(forgetter):
    """A stream that was never so much as kept."""
    if me() == forgetter:
        gathering().stream(sharded())
    else:
        assert_right(gathering().stream(sharded()))
    assert_works()


def test_a_stream_that_nobody_kept_does_its_part():
    together(forget_unseen, 0)


class Refusal(ValueError):
    """An error of our own."""


def raise_in_the_block(raiser):
    seen = []
    error = None
    try:
        with gathering().stream(sharded()) as stream:
            for path, leaf in stream:
                seen.append((path, leaf))
                if me() == raiser and len(seen) == 2:
                    raise Refusal("in the block")
    except Refusal as found:
        error = found
    assert_right(seen, NAMES[: len(seen)])
    assert_works()
    return str(error), len(seen)


def test_an_error_in_the_block_of_one_rank_is_its_own_affair():
    """It is raised there as it is, and the others get all."""
    found = together(raise_in_the_block, 1)
    assert found == [("None", 6), ("in the block", 2), ("None", 6), ("None", 6)]


def raise_in_a_loop(raiser):
    """Without a block the stream lives as long as the traceback does."""
    error = None
    try:
        for k, _ in enumerate(gathering().stream(sharded())):
            if me() == raiser and k == 1:
                raise Refusal("in the loop")
    except Refusal as found:
        error = str(found)
    assert_works()
    return error


def test_an_error_in_a_loop_ends_the_stream_with_it():
    assert together(raise_in_a_loop, 2) == [None, None, "in the loop", None]


def fail_and_leave(failer, leaver):
    """One rank fails in a stage, another has left before it hears of that."""

    def refuse(path, leaf):
        if me() == failer and path == ("l3",):
            raise Refusal("not this one")
        return leaf

    error = None
    try:
        with (gathering() | sd.map_with_path(refuse)).stream(sharded()) as stream:
            if me() == leaver:
                next(stream)
            else:
                list(stream)
    except Exception as found:
        error = found
    assert_works()
    return error


@pytest.mark.parametrize("leaver", [0, 2])
def test_one_that_has_left_hears_of_a_failure_when_it_closes(leaver):
    """Also the rank that fails: its stages run on, though nobody sees what they do."""
    errors = together(fail_and_leave, 2, leaver)
    assert [type(e) for e in errors] == [RankFailed, RankFailed, Refusal, RankFailed]


# -- while a stream is open --------------------------------------------------------


def call_meanwhile(call):
    tree = sharded()
    stream = gathering().stream(tree)
    first = next(stream)
    text = None
    try:
        CALLS[call](tree)
    except RuntimeError as found:
        text = said(found)
    assert_right([first, *stream])
    assert_works()
    return text


CALLS = {
    "gather": lambda tree: sd.gather(tree),
    "stream": lambda tree: sd.gather().stream(tree),
    "distribute": lambda tree: sd.distribute(FULL, like=tree),
    "broadcast": lambda tree: sd.broadcast(FULL, like=tree),
    "redistribute": lambda tree: sd.redistribute(tree, like=tree),
    "chain": lambda tree: (sd.map(lambda x: x) | sd.gather())(tree),
    "where": lambda tree: sd.where("l1", sd.gather())(tree),
    "equal": lambda tree: sd.equal(tree, tree),
    "diff": lambda tree: sd.diff(tree, tree),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_other_collective_runs_while_a_stream_is_open(call):
    """It raises, says what to do, and the stream goes on as if nothing had been."""
    for text in together(call_meanwhile, call):
        assert text is not None
        assert "stream" in text
        assert "open" in text
        assert "close" in text


def call_on_one_rank():
    """The others neither hear of it nor wait."""
    stream = gathering().stream(sharded())
    first = next(stream)
    if me() == 1:
        with pytest.raises(RuntimeError, match="open"):
            sd.gather(sharded())
    assert_right([first, *stream])
    assert_works()


def test_a_call_meanwhile_on_one_rank_is_its_own_error():
    together(call_on_one_rank)


def work_meanwhile():
    tree = sharded()
    with gathering().stream(tree) as stream:
        for _, leaf in stream:
            copied = sd.copy({"x": leaf})
            assert sd.equal(copied, {"x": leaf})
            assert not sd.diff(copied, {"x": leaf})
            assert dict(sd.cast(dtype=torch.half).stream({"y": leaf}))
    assert_works()


def test_local_work_goes_on_while_a_stream_is_open():
    """Also local streams, and comparing what is not sharded."""
    together(work_meanwhile)


def open_the_next_when_one_has_ended():
    first = gathering().stream(sharded())
    assert_right(first)
    second = gathering().stream(sharded())
    next(second)
    del first
    gc.collect()
    with pytest.raises(RuntimeError, match="open"):
        sd.gather(sharded())
    second.close()
    assert_works()


def test_one_stream_after_the_other():
    """That an ended one is forgotten does not end the next."""
    together(open_the_next_when_one_has_ended)


# -- order, and what is alive ------------------------------------------------------


def stream_over_sets():
    sets = [(0, 1), (1, 2), (0, 1, 2, 3), (2, 3)]
    tree = {}
    for k in range(12):
        ranks = sets[k % 4]
        leaf = shard(whole(8, 4, start=k), over(*ranks))
        if me() in ranks:
            tree[f"{k:02}"] = leaf
    tree["05 plain"] = torch.ones(2)
    tree["00 text"] = "x"
    with gathering().stream(tree) as stream:
        found = list(stream)
    names = [path[0] for path, _ in found]
    assert names == sorted(tree)
    for (name,), leaf in found:
        if name.isdigit():
            assert torch.equal(leaf, whole(8, 4, start=int(name)))
    assert_works()


def test_a_stream_is_sorted_by_path_whatever_travels_with_what():
    together(stream_over_sets)


def stream_equals_call(wire):
    tree = {
        **sharded(),
        "tie": shard(FULL["l0"]),
        "rep": shard(FULL["l1"], mesh((2, 2)), Replicate(), Shard(1)),
        "n": me(),
    }
    tree["tied"] = tree["tie"]
    with forced(wire):
        whole_tree = gathering()(tree)
        found = dict(gathering().stream(tree))
    assert sd.equal({path[0]: leaf for path, leaf in found.items()}, whole_tree)


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_what_streams_is_what_the_call_returns(wire):
    together(stream_equals_call, wire)


# -- on one rank alone -------------------------------------------------------------

LOCAL = {"b": torch.ones(2), "a": [1, torch.zeros(3)]}


def flatten_behind_a_gather():
    """Gather a nested tree to rank 0 under its names, and then all of it at once."""
    tree = {"model": sharded(), "step": [3]}
    chain = gathering(ranks=0) | sd.flatten(sep="/")
    called = chain(tree)
    with chain.stream(tree) as stream:
        streamed = {path[0]: leaf for path, leaf in stream}
    counted = (chain | sd.whole(lambda flat: {"names": list(flat)}))(tree)
    assert_works()
    kinds = {type(leaf).__name__ for leaf in called.values()}
    same = streamed.keys() == called.keys() and sd.equal(streamed, dict(called))
    return [*called], kinds, same, counted


def test_names_behind_a_gather():
    """Every rank has them; off rank 0 the tensors are there in form alone."""
    names = [*(f"model/{name}" for name in NAMES), "step/0"]
    for rank, found in enumerate(together(flatten_behind_a_gather)):
        kinds = {"int", "Abstract" if rank else "Tensor"}
        assert found == (names, kinds, True, {"names": names})


def test_local_streams_are_context_managers_too():
    """They can be left half way, closed twice and before the first leaf."""
    f = sd.map(lambda x: x)
    with f.stream(LOCAL) as stream:
        path, _ = next(stream)
        assert path == ("b",)
    assert_over(stream, was_cut_off=True)
    stream = f.stream(LOCAL)
    stream.close()
    stream.close()
    assert_over(stream, was_cut_off=True)
    assert [path for path, _ in f.stream(LOCAL)] == [("b",), ("a", 0), ("a", 1)]


def test_a_local_stream_holds_no_leaf_that_it_has_yielded():
    """What passed in one window with others is free when the next is asked for."""
    stream = sd.map(torch.clone).stream({"a": torch.ones(2), "b": torch.ones(2)})
    first = weakref.ref(next(stream)[1])
    assert next(stream)[0] == ("b",)
    assert first() is None


def test_an_error_in_the_block_of_a_local_stream_is_raised():
    def leave():
        with sd.identity.stream(LOCAL) as stream:
            next(stream)
            raise Refusal("in the block")

    with pytest.raises(Refusal):
        leave()


def test_a_gather_of_nothing_sharded_streams_without_ranks():
    """Sorted, as a stream that communicates; another call is refused meanwhile."""
    with sd.gather().stream(LOCAL) as stream:
        assert [path for path, _ in islice(stream, 1)] == [("a", 0)]
        assert sd.equal(sd.copy(LOCAL), LOCAL)
    assert sd.equal(sd.gather(LOCAL), LOCAL)


def test_leaves_that_are_tied_in_a_chain_are_looked_at_a_few_times_each():
    """Each to the next, and the last pair first: all travel together."""

    def lines(count):
        pairs = [(k + 1, k) for k in reversed(range(count - 1))]
        ts = [t for _ in pairs for t in [torch.ones(1)] * 2]
        owners = [k for pair in pairs for k in pair]
        assert [*sharing(ts, owners, count)] == [[*range(count)]]
        return lines_of(sharing, ts, owners, count)

    assert lines(400) < 3 * lines(200)


def test_what_goes_leaf_by_leaf_is_far_ahead_of_nothing():
    """Of leaves that are large a few have passed when the first one is asked for."""
    seen = []
    mark = sd.map_with_path(lambda path, x: seen.append(path) or x)
    tree = {name: torch.zeros(2**18) for name in NAMES}
    with (mark | mark).stream(tree) as stream:
        for k in range(1, len(NAMES) + 1):
            next(stream)
            assert 2 * k <= len(seen) <= 2 * k + 2
