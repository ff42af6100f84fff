"""How far tensors are apart, where that was counted more than once."""

from hypothesis import given
from hypothesis import strategies as st

from sdtree.tensors.bits import Gap

COUNTS, SIZES = st.integers(0, 9), st.floats(0, 9)
GAPS = st.builds(Gap, COUNTS, COUNTS | SIZES, st.just(9), SIZES, SIZES, COUNTS)


@given(GAPS, GAPS)
def test_the_worse_of_two_gaps_has_the_greater_of_each(a, b):
    assert a.worse_of(b) == tuple(map(max, a, b)) == b.worse_of(a)
