"""Messages between pairs of ranks: how many are under way, and how much scratch."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdtree.wire import transport
from sdtree.wire.collectives import RankGroup
from sdtree.wire.messages import Chunk, Message

ROOM = 100


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2 * ROOM)), max_size=40))
def test_no_more_is_under_way_than_there_is_room_for(messages):
    """Each way by itself; one that is larger than all the room goes alone."""
    queue, done = transport.P2PQueue(RankGroup(None, (0, 1), 0), ROOM), list[int]()
    with (
        mock.patch.object(transport.dist, "isend"),
        mock.patch.object(transport.dist, "irecv"),
    ):
        for k, (is_send, scratch) in enumerate(messages):
            queue.make_room(is_send, scratch)
            data, then = torch.empty(1), (lambda k=k: done.append(k))
            queue.post(is_send, 1, data, (), scratch, then)
            under_way = messages[len(done) : k + 1]
            assert len(under_way) <= transport.IN_FLIGHT
            for way in (True, False):
                sizes = [size for at, size in under_way if at is way and size]
                assert sum(sizes) <= ROOM or len(sizes) == 1
        queue.drain()
    assert done == [*range(len(messages))]


def test_a_message_is_named_after_the_first_leaf_in_it():
    message, part = Message(), Chunk((1,), torch.float32, 1, None, (0,))
    for path in ((), ("a",), ("b",)):
        message.add(part, path)
    assert message.path == ("a",)


@pytest.mark.parametrize("way", [True, False])
def test_what_fits_does_not_wait(way):
    queue, done = transport.P2PQueue(RankGroup(None, (0, 1), 0), ROOM), list[int]()
    with mock.patch.object(transport.dist, "isend" if way else "irecv"):
        for k in range(4):
            queue.make_room(way, ROOM // 4)
            then = lambda k=k: done.append(k)  # noqa: E731
            queue.post(way, 1, torch.empty(1), (), ROOM // 4, then)
        assert not done
        queue.make_room(way, 1)
    assert done == [0]
