"""The pool of ranks itself: order, errors, hangs and deaths."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RanksFailed, RanksStuck, StandIn, mesh, pool

import sdtree as sd


class Refusal(ValueError):
    """An error of our own."""


def total(x):
    found = torch.tensor(x + dist.get_rank())
    dist.all_reduce(found)
    return dist.get_rank(), found.item()


def assert_works(ranks):
    """Assert that the ranks of a pool still work together, and return who they are."""
    assert ranks.run(total, 0) == [(rank, 6) for rank in range(4)]
    return ranks.run(os.getpid)


# -- values ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sum"), [(4, 46), (2, 21)])
def test_each_rank_answers_in_its_place(size, sum):
    assert pool(size).run(total, 10) == [(rank, sum) for rank in range(size)]


def transposed(tree):
    return {"ties": sd.ties(tree), "tree": {"w": tree["w"], "t": tree["w"].t()}}


def test_ties_go_to_the_ranks_and_come_back():
    w = torch.arange(6.0).view(2, 3)
    tree = {"w": w, "row": w[1], "bias": torch.ones(0), "flat": w.view(-1)}
    for found in pool(4).run(transposed, tree):
        assert found["ties"] == sd.ties(tree)
        assert sd.equal(found["tree"], {"w": w, "t": w.t()})
        assert sd.ties(found["tree"]) == [[("w",), ("t",)]]


def coordinates(sizes, names):
    assert mesh(sizes, names) is mesh(sizes, names)
    place = mesh(sizes, names).get_coordinate()
    return place and tuple(place)


def test_a_mesh_is_of_the_first_ranks():
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert pool(4).run(coordinates, (2, 2), ("dp", "tp")) == places
    assert pool(4).run(coordinates, (3,), None) == [(0,), (1,), (2,), None]


# -- errors ------------------------------------------------------------------------


def refuse(ranks):
    if dist.get_rank() in ranks:
        error = Refusal("not this")
        error.path = ("a", 0)
        error.add_note("noted")
        raise error
    return "fine"


def test_an_error_on_one_rank_is_told_and_the_same_ranks_go_on():
    before = assert_works(pool(4))
    with pytest.raises(RanksFailed, match=r"(?s)ranks \[1, 3\].*in refuse.*not this"):
        pool(4).run(refuse, (1, 3))
    assert assert_works(pool(4)) == before


def test_an_error_comes_back_as_it_was():
    first, second, *_ = pool(4).outcomes(refuse, (1,))
    assert (first.value, first.error) == ("fine", None)
    assert type(second.error) is Refusal
    assert second.error.args == ("not this",)
    assert second.error.path == ("a", 0)
    assert second.error.__notes__ == ["noted"]
    assert "in refuse" in second.trace


def refuse_locally():
    class Local(ValueError):
        pass

    raise Local("not here")


def test_an_error_that_cannot_be_pickled_has_a_stand_in():
    error = pool(2).outcomes(refuse_locally)[1].error
    assert type(error) is StandIn
    assert error.name == "refuse_locally.<locals>.Local"
    assert error.text == "not here"


def unpicklable():
    return lambda: None


def test_a_value_that_cannot_be_pickled_is_an_error_of_its_rank():
    with pytest.raises(RanksFailed, match=r"ranks \[0, 1\].*"):
        pool(2).run(unpicklable)


def leave_a_broadcast():
    if dist.get_rank() > 0:
        raise Refusal("too early")
    dist.broadcast(torch.ones(1), src=0, async_op=True)


def test_ranks_that_are_out_of_step_give_way_to_fresh_ones():
    before = assert_works(pool(4))
    pool(4).outcomes(leave_a_broadcast)
    assert not set(before) & set(assert_works(pool(4)))


# -- hangs and deaths --------------------------------------------------------------


def wait_for_rank_0():
    dist.recv(torch.ones(1), src=0)


def fall_asleep():
    time.sleep(1000)


def hang():
    match dist.get_rank():
        case 0:
            raise Refusal("the cause")
        case 1:
            wait_for_rank_0()
        case 2:
            fall_asleep()


def test_a_hang_is_a_failure_with_the_stacks_of_those_that_are_stuck():
    start = time.monotonic()
    with pytest.raises(RanksStuck) as caught:
        pool(4).run(hang, timeout=2)
    assert time.monotonic() - start < 6
    told = str(caught.value)
    zero, one, two, three = (told.index(f"rank {n} ") for n in range(4))
    assert told.startswith("hang()")
    assert "the cause" in told[zero:one]
    assert "wait_for_rank_0" in told[one:two]
    assert "fall_asleep" in told[two:three]
    assert "has answered" in told[three:]
    assert_works(pool(4))


def raise_or_wait():
    if dist.get_rank() == 0:
        raise Refusal("the cause")
    wait_for_rank_0()


def test_once_a_rank_has_raised_the_others_have_little_time_left(monkeypatch):
    monkeypatch.setattr("ranks.GRACE", 0.5)
    start = time.monotonic()
    with pytest.raises(RanksStuck, match=r"(?s)the cause.*wait_for_rank_0"):
        pool(2).run(raise_or_wait)
    assert time.monotonic() - start < 5


def die():
    if dist.get_rank() == 2:
        os._exit(3)
    dist.barrier()


def test_a_death_is_told_and_fresh_ranks_take_over():
    with pytest.raises(RanksStuck, match="rank 2 died: 3"):
        pool(4).run(die)
    processes = assert_works(pool(4))
    os.kill(processes[1], signal.SIGKILL)
    with pytest.raises(RanksStuck, match="rank 1 died: -9"):
        pool(4).run(total, 0)
    assert_works(pool(4))
