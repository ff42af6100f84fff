"""What goes wrong on some ranks alone: all hear of it, and none waits for another."""

from unittest.mock import patch

import pytest
import shards
import torch
from shards import assert_works, me, over, said, shard, together, whole
from torch.distributed.tensor import DTensor, Partial

import sdtree as sd
from sdtree.errors import RankFailed
from sdtree.exchange.exchange import Exchange
from sdtree.layout import layout
from sdtree.wire.collectives import record

FULL = whole(8, 3)


def caught(call):
    """Return what a call raises, be it an interrupt, once the ranks still work."""
    error = shards.caught(call, BaseException)
    return type(error), "" if error is None else said(error)


def are_heard(found, *, own):
    """Assert that some ranks raise their own errors, and that all others hear."""
    for rank, (cls, text) in enumerate(found):
        assert (cls is RankFailed) is (rank not in own), (rank, cls, text)
        assert cls is not type(None), rank


def interrupted_within():
    """Return what is sent after an interrupt in the midst of a window, on all ranks."""
    stream = sd.gather(ranks=0, bucket_bytes=1).stream({k: shard(FULL) for k in "abc"})
    found, sent = [], []

    def interrupt(*_):
        patch.stopall()
        sent.append(traffic.messages.total())
        raise KeyboardInterrupt

    with record() as traffic:
        try:
            with stream:
                for path, _ in stream:
                    found.append(path)
                    patch.object(Exchange, "_ship", side_effect=interrupt).start()
        except KeyboardInterrupt:
            sent.append(traffic.messages.total())
    patch.stopall()
    assert len({*sent}) < 2
    assert_works()
    return found


def test_nothing_moves_after_an_interrupt_in_the_midst_of_a_window():
    """Who is interrupted does not know what was sent, and what would be next."""
    for found in together(interrupted_within):
        assert len(found) == 1


def over_two_groups(rank, at):
    """Fail in an exchange of two ranks before one of all four."""
    pair = [over(0, 1), over(2, 3)][me() // 2]

    def choose(path):
        if me() == rank:
            raise ValueError(path)

    fail = sd.map(lambda x: choose(()) or x)
    first = sd.gather(group=pair.get_group(), ranks=choose if at == "planned" else None)
    f = {"planned": first, "before": fail | first, "after": first | fail}[at]
    last = sd.redistribute(like={"w": shard(FULL)})
    split = sd.map(lambda x: shard(x))
    return caught(lambda: (f | split | last)({"w": shard(FULL, pair)}))


@pytest.mark.parametrize("at", ["before", "planned", "after"])
@pytest.mark.parametrize("rank", [0, 3])
def test_ranks_that_wait_in_the_next_group_hear(rank, at):
    """Those that are in no exchange with the one that fails wait for it in a later."""
    are_heard(together(over_two_groups, rank, at), own={rank})


def interrupted_when_told(kind):
    def told(_):
        if me() == 0:
            raise kind

    source = {"w": FULL, "v": FULL} if me() == 0 else None
    like = {"w": torch.zeros(8, 3)}
    return caught(
        lambda: sd.broadcast(source, like=like, strict=False, on_mismatch=told)
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupt_of_what_is_told_of_a_misfit(kind):
    are_heard(together(interrupted_when_told, kind), own={0})


class Key:
    """A key that cannot go to another rank."""

    def __str__(self):
        return "key"

    def __reduce__(self):
        raise TypeError("no bytes of a key")


def asked_for_a_key():
    """Only a rank that is not the source asks what the source has."""
    key, full = Key(), torch.ones(3)
    held = full if me() == 1 else full[:0]
    like = {key: torch.zeros(2), "m": sd.Shards(held, layout.whole((3,), (1,)))}
    source = {key: torch.ones(2), "m": full}
    return caught(lambda: sd.broadcast(source if me() == 0 else None, like=like))


def test_a_source_that_cannot_tell_what_others_ask_for():
    for cls, text in together(asked_for_a_key):
        assert issubclass(cls, Exception)
        assert "no bytes of a key" in text


def not_reduced(kind):
    """Terms on some ranks that torch does not reduce, of a leaf for all."""
    pair = over(0, 1)
    terms = torch.ones(4, dtype=kind)
    x = DTensor.from_local(terms, pair, [Partial()], run_check=False)
    return caught(lambda: sd.gather({"w": x} if me() < 2 else {}, ranks=2))


def test_terms_that_cannot_be_reduced():
    """All that have some raise the same, and who is to get them hears of it."""
    are_heard(together(not_reduced, torch.uint16), own={0, 1})


def unknown(verb):
    """Compare a tree whose first leaf no kind serves, on one rank."""
    tree = {"a": object() if me() == 0 else 1, "w": shard(FULL)}
    return caught(lambda: verb(tree, tree))


@pytest.mark.parametrize("verb", [sd.equal, sd.diff])
def test_a_leaf_that_no_kind_serves_before_one_that_is_sharded(verb):
    are_heard(together(unknown, verb), own={0})
