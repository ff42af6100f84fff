"""Layouts as JSON: they come back as they were, and forged ones are refused."""

import json

import numpy as np
import pytest
from grammar_json import forged_layouts
from hypothesis import given
from hypothesis import strategies as st

from sdtree.errors import LayoutError
from sdtree.layout import Layout, whole
from sdtree.layout.layout import Box, Parts
from sdtree.testing import blocks, layouts


@given(layouts(partial=("sum",)) | blocks(), st.sampled_from(["", "who knows"]))
def test_a_layout_comes_back_from_json(drawn, doubt):
    """from_json undoes to_json: shape, boxes, ranks without any, terms, doubts."""
    found = drawn.layout()
    layout = Layout(found.shape, found.boxes, found.is_partial, doubt)
    assert Layout.from_json(layout.to_json()) == layout
    turned = dict(reversed(found.boxes.items()))
    other = Layout(found.shape, turned, found.is_partial, doubt)
    assert other.to_json() == layout.to_json()


def in_numpy(x):
    """Return what holds ints as what holds those of numpy, which overflow."""
    if isinstance(x, int):
        return np.int8(x)
    return Box(*map(in_numpy, x)) if isinstance(x, Box) else tuple(map(in_numpy, x))


@given(layouts(max_side=9) | blocks())
def test_a_layout_told_in_numbers_of_numpy_is_the_same(drawn):
    """Offsets that numpy summed up, say: checked, said and hashed as plain ones."""
    plain = drawn.layout()
    boxes = {np.int64(r): in_numpy(found) for r, found in plain.boxes.items()}
    layout = Layout(in_numpy(plain.shape), boxes)
    layout.check_coverage()
    assert layout == plain
    assert repr(layout) == repr(plain)
    assert layout.to_json() == plain.to_json()
    kept = [layout.shape, layout.ranks, *layout.boxes.values()]
    assert "numpy" not in repr(kept)
    assert "np." not in repr(kept)


def test_a_layout_in_numbers_of_numpy_is_not_kept_for_others():
    """What is kept of one call is handed out at the next, whose numbers are plain."""
    whole((np.int64(7), 3), (np.int64(0),))
    assert "np." not in repr(whole((7, 3), (0,)).boxes)


def test_replicas_are_told_once():
    """A thousand ranks that hold the same are not a thousand times as long."""
    text = whole((4, 2), tuple(range(1000))).to_json()
    assert text.count("[4, 2]") == 2


@given(forged_layouts())
def test_a_forged_layout_is_refused_or_comes_back(text):
    """from_json raises one ValueError, or returns what says itself again."""
    try:
        layout = Layout.from_json(text)
    except ValueError as error:
        told = str(error)
        layout = None
    if layout is None:
        assert told.startswith("not the JSON of a Layout: ")
        assert len(told) < 300
        return
    assert Layout.from_json(layout.to_json()) == layout
    assert len(repr(layout)) > 0
    assert all(box.numel < 2**63 for held in layout.boxes.values() for box in held)


def document(**changes):
    fields = {"shape": [4], "boxes": [[[0], [[0, [0], [0], [4]]]]]}
    return json.dumps({**fields, "partial": False, "doubt": "", **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "a dict was expected"),
        ('{"shape": [4]}', "shape, boxes, partial and doubt were expected"),
        (document(more=1), "shape, boxes, partial and doubt were expected"),
        (document(shape=[-1]), "-1 is no size"),
        (document(shape=[True]), "a int was expected, not True"),
        (document(shape=[1] * 65), "64 dimensions at most"),
        (document(shape=[2**40, 2**40]), "no tensor is as large"),
        (document(partial=0), "a bool was expected"),
        (document(doubt=None), "a str was expected"),
        (document(boxes={}), "a list was expected"),
        (document(boxes=[[[0], [[0, [0], [0, 0], [4]]]]]), "1 parts were expected"),
        (document(boxes=[[[0], [[0, [0], [1], [4]]]]]), "'[1:5]' lies outside"),
        (document(boxes=[[[0], [[0, [2**63 - 1], [0], [4]]]]]), "lies outside"),
        (
            document(boxes=[[[0], [[1, [0], [0], [4]]]]]),
            "1 boxes cannot lie",
        ),
        (document(boxes=[[[0, 0], []]]), "rank 0 is told twice"),
        (document(boxes=[[["0"], []]]), "a int was expected"),
        ('{"shape": [4], "shape": [4]}', "'shape' stands twice"),
        ("[" * 100_000, "nested deeper"),
        (None, "a str was expected"),
    ],
)
def test_what_is_wrong_with_a_layout_is_told(text, words):
    with pytest.raises(ValueError, match="not the JSON of a Layout") as caught:
        Layout.from_json(text)
    assert words in str(caught.value)


def test_a_layout_over_wrappers_is_refused():
    """JSON does not name classes."""
    found = whole((4,), (0,))
    with pytest.raises(LayoutError, match="no room for the layout of a Wrapped"):
        Layout(
            (4,), found.boxes, parts=Parts(type("Wrapped", (), {}), (found,))
        ).to_json()
