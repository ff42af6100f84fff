"""show: what a tree holds, with totals that add up."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.look.listing import Total
from sdtree.testing import trees


@given(trees(), st.integers(1, 3))
def test_totals_add_up(tree, depth):
    """Every leaf has a row and is counted once in each set of totals."""
    listing = sd.show(tree, depth=depth)
    count = len(sd.leaves(tree))
    assert len(listing.rows) == listing.total.leaves == count
    assert sum(total.leaves for total in listing.prefixes) == count
    assert sum(total.leaves for total in listing.kinds) == count
    assert listing.total.nbytes == sd.nbytes(tree)
    assert listing.total.parameters == sum(t.parameters for t in listing.prefixes) or (
        listing.ties
    )
    assert len(str(next(listing.tables())).splitlines()) == 1 + count


@pytest.mark.parametrize("depth", [-1, True, 1.0, "1"])
def test_a_depth_is_a_number_of_segments(depth):
    """Of totals and of a stat: another would count leaves below prefixes at random."""
    with pytest.raises(ValueError, match=f"depth={depth!r}: give how many segments"):
        sd.show({"a": 1}, depth=depth)
    with pytest.raises(ValueError, match=f"depth={depth!r}: give how many segments"):
        sd.diff({"a": 1}, {"a": 2}).stat(depth)


@given(trees())
def test_json_says_what_the_listing_does(tree):
    """The JSON is JSON, strictly, and has every leaf."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(sd.show(tree).to_json(), parse_constant=refuse)
    assert len(data["leaves"]) == data["total"]["leaves"] == len(sd.leaves(tree))
    assert len(data["ties"]) == len(sd.ties(tree))


def test_ties_are_numbered_and_count_once():
    w, v = torch.ones(2, 3), torch.ones(8)
    listing = sd.show({"a": {"w": w, "v": v[:4]}, "b": [w.t(), v[4:]], "n": 1})
    assert [row.tie for row in listing.rows] == [1, 2, 1, 2, None]
    assert listing.ties == [["a.w", "b.0"], ["a.v", "b.1"]]
    assert [(t.label, t.nbytes) for t in listing.prefixes] == [
        ("a", 24 + 16),
        ("b", 24 + 16),
        ("<root>", 0),
    ]
    assert listing.total.nbytes == 24 + 32
    assert sd.show({"a": [w, w]}).prefixes == [Total("a", 2, 24, 6)]


def test_prefixes_are_those_of_names():
    """A dotted key has as many segments as a nest of dicts."""
    flat = sd.show({"a.b.w": 1, "a.c.w": 2}, depth=2)
    nested = sd.show({"a": {"b": {"w": 1}, "c": {"w": 2}}}, depth=2)
    assert flat.prefixes == nested.prefixes
    assert [total.label for total in flat.prefixes] == ["a.b", "a.c"]


def test_plain_values_are_shown_shortly():
    text = str(sd.show({"s": "x" * 1000, "z": 1 + 2j, "n": None, "d": torch.int8}))
    assert "'xxx" in text
    assert "x" * 100 not in text
    assert "(1+2j)" in text
    assert "torch.int8" in text


def test_a_notebook_shows_it_as_it_is():
    """Keys with markup in them stay text."""
    shown = sd.show({"<b>w</b>": 1})._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;w" in shown


def test_a_name_with_control_characters_is_harmless():
    assert "\x1b" not in str(sd.show({"\x1b[2Jw": 1}))


def test_meta_and_abstract_leaves_are_listed():
    tree = {"m": torch.empty(2, 3, device="meta"), "n": 5}
    assert sd.show(sd.spec(tree)).total == sd.show(tree).total
    assert [row.kind for row in sd.show(sd.spec(tree)).rows] == ["Tensor", "int"]


def elements_of(leaves):
    """Return how many elements tensors hold, by the addresses of each."""
    places = set()
    for t in leaves:
        offsets = torch.zeros(t.shape, dtype=torch.int64)
        for d, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
            step = torch.arange(size).mul(stride * t.itemsize)
            offsets += step.view(-1, *[1] * (t.dim() - d - 1))
        places.update((t.data_ptr() + offsets).flatten().tolist())
    return len(places)


@st.composite
def pieces(draw):
    """Draw tensors that are rows of a few, some of them twice, cut and transposed."""
    whole = [torch.ones(6, 4), torch.ones(5, 3)]
    found = []
    for _ in range(draw(st.integers(1, 8))):
        t = draw(st.sampled_from(whole))
        start = draw(st.integers(0, t.shape[0] - 1))
        t = t[start : draw(st.integers(start + 1, t.shape[0]))]
        found.append(t.t() if draw(st.booleans()) else t)
    return found


@given(pieces())
def test_an_element_counts_once(leaves):
    """However many leaves have it, and in every branch."""
    listing = sd.show({"a": leaves, "n": 3})
    assert listing.total.parameters == elements_of(leaves)
    for row, t in zip(listing.rows, leaves, strict=False):
        assert row.parameters == t.numel()
    assert sd.show(sd.spec({"w": leaves[0]})).total.parameters == leaves[0].numel()
