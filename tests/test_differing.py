"""What ``diff`` says of two trees: how far apart they are, and what it did not see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.testing import trees
from sdtree.testing.strategies import DTYPES, VIEWS, dense


def elements(t):
    """Return the bytes and the value of each element, as Python has them."""
    own = t.detach().resolve_conj().resolve_neg().flatten()
    whole = torch.empty(t.numel(), dtype=t.dtype).copy_(own)
    size = t.dtype.itemsize
    raw = whole.view(torch.uint8).tolist()
    if t.is_complex():
        whole = whole.to(torch.complex128)
    elif t.is_floating_point():
        whole = whole.to(torch.float64)
    elif t.dtype is torch.bool:
        whole = whole.to(torch.uint8)
    return [(raw[i * size : (i + 1) * size], x) for i, x in enumerate(whole.tolist())]


def apart(x, y):
    """Return how far two numbers are apart; nan is not from nan."""
    if isinstance(x, complex):
        return math.hypot(apart(x.real, y.real), apart(x.imag, y.imag))
    return 0 if x == y or (x != x and y != y) else abs(x - y)


def said(distance):
    if not distance:
        return "in bits that mean the same"
    return f"by at most {distance if isinstance(distance, int) else f'{distance:.3g}'}"


@st.composite
def two_of_one_form(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    dtype, view = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(VIEWS))
    pair = [dense(shape, dtype, draw(st.integers(0, 99))) for _ in range(2)]
    for t in pair:
        raw = t.view(-1).view(torch.uint8)
        kept = draw(st.integers(0, raw.numel()))
        raw[kept:] = draw(st.sampled_from([0, 1]))
    return [view(t) for t in pair]


@given(two_of_one_form())
def test_how_far_tensors_are_apart(pair):
    """Each element that differs in a bit is counted; of integers nothing is rounded."""
    a, b = map(elements, pair)
    count = sum(x != y for (x, _), (y, _) in zip(a, b, strict=True))
    found = [*sd.diff({"w": pair[0]}, {"w": pair[1]})]
    if not count:
        assert found == []
        return
    most = [apart(x, y) for (_, x), (_, y) in zip(a, b, strict=True)]
    worst = math.nan if any(map(math.isnan, most)) else max(most)
    told = f"{count} of {len(a)} elements differ"
    assert found == [(("w",), "value", told, said(worst))]


@pytest.mark.parametrize(
    ("a", "b", "most"),
    [
        (2**62, 2**62 + 1, "1"),
        (2**63 - 1, -(2**63), "18446744073709551615"),
        (math.inf, -math.inf, "inf"),
        (math.nan, 1.0, "nan"),
        (True, False, "1"),
        (complex(math.inf, 1), complex(math.inf, 4), "3"),
    ],
)
def test_by_how_much(a, b, most):
    [found] = sd.diff({"w": torch.tensor([a])}, {"w": torch.tensor([b])})
    assert found.b == f"by at most {most}"


def test_two_values_in_a_byte():
    """A float4 has none of its own operations; 0 and -6 are in one byte here."""
    a = torch.zeros(2, dtype=torch.uint8)
    b = torch.tensor([0xF0, 0], dtype=torch.uint8)
    a, b = (t.view(torch.float4_e2m1fn_x2) for t in (a, b))
    [found] = sd.diff({"w": a}, {"w": b})
    assert found.b == "by at most 6"


# -- what was not compared -----------------------------------------------------------


def has_data(leaf):
    return isinstance(leaf, torch.Tensor) or hasattr(leaf, "dtype")


def other_than(leaf):
    """Return another leaf of the same form, as far as one is thought of here."""
    if type(leaf) is torch.Tensor and leaf.dtype in DTYPES and not leaf.is_meta:
        return dense(leaf.shape, leaf.dtype, seed=7)
    if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
        return leaf + 1
    return leaf + "x" if isinstance(leaf, str) else leaf


@st.composite
def a_tree_and_another(draw):
    """Draw two trees that are alike, but for some of their leaves."""
    tree = draw(trees())
    changes = [other_than, other_than, lambda leaf: leaf, lambda leaf: None]
    return tree, sd.map(lambda leaf: draw(st.sampled_from(changes))(leaf), tree)


@given(a_tree_and_another())
def test_what_was_not_compared_is_not_called_equal(pair):
    """Without values, what does not differ is the same, or is told to be unseen."""
    a, b = pair
    found = sd.diff(a, b, values=False)
    every = sd.diff(a, b)
    assert not every or found or found.unseen
    assert {d.path for d in every} - {d.path for d in found} <= set(found.unseen)
    assert {d.path for d in found} <= {d.path for d in every}
    leaves = dict(sd.items(a))
    assert all(has_data(leaves[path]) for path in found.unseen)
    assert bool(found.unseen) == ("was not compared" in str(found))


def test_plain_values_are_compared_in_any_case():
    a = {"w": torch.ones(2), "step": 1, "name": "a"}
    b = {"w": torch.ones(2), "step": 3, "name": "a"}
    found = sd.diff(a, b, values=False)
    assert [d.path for d in found] == [("step",)]
    assert found.unseen == (("w",),)
    assert str(found).endswith("\nthe data of 1 leaf was not compared")
    assert str(sd.diff({"n": 1}, {"n": 1}, values=False)) == "no differences"


def test_where_there_is_no_data_that_is_told():
    t = torch.ones(2)
    for other in (t.to("meta"), sd.spec(t)):
        [found] = sd.diff({"w": t}, {"w": other})
        assert found.what == "value"
        assert found.a != found.b
        assert "without data" in found.b
