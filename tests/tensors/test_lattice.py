"""Addresses by arithmetic against all of them written out."""

from itertools import combinations

from hypothesis import example, given
from hypothesis import strategies as st

from sdtree.tensors.lattice import _cut, clash, lattice, meet, repeats

DIM = st.tuples(st.integers(1, 4), st.integers(0, 12))


@st.composite
def nested(draw):
    """Return dimensions of which each goes on outside the ones before, as views do."""
    dims, step = [(draw(st.integers(1, 2)), 1)], draw(st.integers(2, 4))
    for size in draw(st.lists(st.integers(1, 3), max_size=4)):
        dims.append((size, step))
        step *= draw(st.integers(1, 4))
    return draw(st.permutations(dims))


VIEW = st.tuples(st.integers(0, 25), nested() | st.lists(DIM, max_size=4))
LONG = st.tuples(st.integers(1, 20), st.just(1))
RUN = st.tuples(st.integers(0, 25), st.tuples(LONG))


def addresses(start, dims):
    """Return the address of every index."""
    found = [start]
    for size, step in dims:
        found = [a + k * step for a in found for k in range(size)]
    return found


@given(VIEW)
def test_the_shortest_form_has_the_same_addresses(view):
    """lattice(v) is v as a set, and stops behind its last address."""
    found = addresses(*view)
    short = lattice(*view)
    assert {*addresses(*short)} == {*found}
    assert short.stop == max(found) + 1


@given(VIEW)
def test_whether_a_view_repeats_an_address(view):
    """repeats is whether there are more indices than addresses."""
    found = addresses(*view)
    assert repeats(view[1]) == (len({*found}) < len(found))


@given(VIEW, VIEW)
def test_whether_two_views_meet(a, b):
    """meet is whether the sets of addresses do."""
    common = {*addresses(*a)} & {*addresses(*b)}
    assert meet(lattice(*a), lattice(*b)) == bool(common)


def coloured(views):
    return st.lists(st.tuples(views, st.integers(0, 3)), max_size=8)


@given(coloured(VIEW) | coloured(RUN))
@example([((0, [(10, 1)]), 0), ((1, [(2, 1)]), 0), ((5, [(2, 1)]), 1)])
@example([((0, [(10, 1)]), 0), ((1, [(8, 1)]), 0), ((9, [(2, 1)]), 1)])
def test_whether_any_of_different_colours_meet(items):
    """clash returns such two if and only if there are any."""
    found = [{*addresses(*view)} for view, _ in items]
    colours = [colour for _, colour in items]
    pairs = combinations(range(len(items)), 2)
    wanted = {
        (i, j) for i, j in pairs if colours[i] != colours[j] and found[i] & found[j]
    }
    clashing = clash([lattice(*view) for view, _ in items], colours)
    assert clashing in wanted if wanted else clashing is None


@given(VIEW, st.integers(1, 48))
@example((5, [(3, 2), (4, 8)]), 16)
def test_a_set_that_is_cut_into_rows(view, row):
    """The parts lie in rows as they say, or the set is in each in another way."""
    parts = _cut(lattice(*view), row)
    if parts is not None:
        found = [
            (k * row + address)
            for first, count, part in parts
            for k in range(first, first + count)
            for address in addresses(*part)
        ]
        assert {*found} == {*addresses(*view)}
        assert all(part.stop <= row for _, _, part in parts)


def test_tiles_of_a_large_matrix_are_looked_at_once():
    """What lies alike in a million rows costs as much as in one; nothing is written."""
    row = 2**22
    tiles = [
        lattice(i * 2**20 * row + j * 2**16, [(2**20, row), (2**15, 2)])
        for i in range(20)
        for j in range(50)
    ]
    assert clash(tiles, range(len(tiles))) is None
    one_more = lattice(19 * 2**20 * row + 2**17 + 8, [(3, row)])
    assert clash([*tiles, one_more], range(len(tiles) + 1)) == (952, 1000)
