"""What is on its way: looked at, waited for, held until it has come."""

import pytest
import torch

import sdtree as sd
from sdtree.stage.flight import Flight, Streams
from sdtree.stage.staged import Staged
from sdtree.tensors.counting import Count


class Event:
    """An event of a device that comes after so many looks."""

    def __init__(self, looks):
        self.looks = looks

    def query(self):
        self.looks -= 1
        return self.looks < 0

    def synchronize(self):
        self.looks = 0


def flight_of(*events):
    """Return a flight that waits for events, and holds a tensor until then."""
    device = torch.device("cuda")
    return Flight([(device, event) for event in events], [torch.ones(1)])


def test_sources_are_held_until_all_has_come():
    flight = flight_of(Event(0), Event(1))
    assert not flight.ready()
    assert flight.sources
    assert flight.ready()
    assert not flight.sources


def test_what_a_device_copies_is_told_of_when_it_is_there():
    told = []
    flight = flight_of(Event(1))
    flight.count = Count(lambda *at: told.append(at)).expect(4)
    assert not flight.ready()
    assert not told
    assert flight.ready()
    assert flight.wait()
    assert told == [(4, 4)]


def test_a_flight_is_waited_for_no_longer_than_that():
    flight = flight_of(Event(10**9))
    assert not flight.wait(timeout=0)
    assert flight.sources
    assert flight.wait()
    assert not flight.sources
    assert flight_of(Event(3)).wait(timeout=60)


def test_a_snapshot_is_not_given_out_before_it_has_come():
    given = []
    with sd.Stager() as stager:
        buffers = stager._lend([torch.ones(1)], Staged(print))
    staged = Staged(lambda _, lent: given.append(lent)).take_off(
        buffers, "tree", flight_of(Event(2)), None
    )
    with pytest.raises(TimeoutError, match="0 seconds"):
        staged.wait(timeout=0)
    assert not staged.ready()
    assert staged.wait(timeout=60) == "tree"
    staged.release()
    assert given == [buffers]


def test_what_another_thread_has_released_meanwhile_is_not_given_out():
    """It is told, and no ``None`` comes in the place of the snapshot."""
    event = Event(1)
    with sd.Stager() as stager:
        buffers, _ = stager._lend([torch.ones(1)], Staged(print))
    staged = Staged(lambda *_: None).take_off(buffers, "tree", flight_of(event), None)
    event.synchronize = staged.release
    event.query = lambda: True
    with pytest.raises(RuntimeError, match="was released"):
        staged.wait()


def test_what_goes_wrong_in_the_copy_is_raised_by_wait(monkeypatch):
    """The buffers are whole, and serve the next."""
    tree = {"w": torch.ones(2)}
    with sd.Stager(buffers=1, when_full="raise") as stager:
        with monkeypatch.context() as broken:
            broken.setattr(Streams, "copy", fail)
            staged = stager.stage(tree)
        with pytest.raises(RuntimeError, match="no copy"):
            staged.wait()
        staged.release()
        assert sd.equal(stager.stage(tree).wait(), tree)


def fail(*_):
    raise RuntimeError("no copy")
