"""The law of progress: what is told grows to its end, and not too often."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdtree.tensors.counting import STEPS, Count, counting

AMOUNTS = st.lists(st.integers(0, 100) | st.integers(0, 2**20), max_size=400)


@given(AMOUNTS, st.integers(-3, 3))
def test_what_is_told_grows_to_its_end(amounts, more):
    """Also where more is done than was expected, or less: once all, then no more."""
    told, total = [], max(0, sum(amounts) + more)
    with counting(lambda *at: told.append(at)) as count:
        count.expect(total)
        for amount in amounts:
            count.add(amount)
    assert told == sorted(set(told))
    assert {whole for _, whole in told} == {total}
    assert told[-1] == (total, total)
    assert len(told) <= STEPS + 1
    assert not told[1:] or told[0][0] > 0


def test_what_is_raised_is_raised_as_it_is_and_nothing_more_is_told():
    told = []

    def refuse(done, total):
        told.append(done)
        raise KeyError("mine")

    def misread():
        with counting(refuse) as count:
            count.expect(2)
            for _ in range(2):
                with suppress(KeyError):
                    count.add(1)
            raise OSError("a damaged file")

    with pytest.raises(KeyError, match="mine"):
        misread()
    assert told == [1]


def test_who_cannot_be_called_is_refused_at_once():
    with pytest.raises(TypeError, match="lambda done, total"):
        Count(5)
