"""What ``diff`` says of two trees: how far apart they are, and what it did not see."""

import io
import json
import math
import re
import struct
from collections import defaultdict, deque
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.exchange.differences import NAME, Difference
from sdtree.exchange.stat import in_json
from sdtree.testing import ndarrays, trees
from sdtree.testing.strategies import DTYPES, VIEWS, dense


def elements(t):
    """Return the bytes and the value of each element, as Python has them."""
    own, size = t.detach().resolve_conj().resolve_neg(), t.dtype.itemsize
    own = own.view(torch.uint8) if size == 1 else own  # a copied bool is 0 or 1
    whole = torch.empty(t.numel(), dtype=own.dtype).copy_(own.flatten()).view(t.dtype)
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
    if isinstance(distance, int):
        return f"by at most {distance}"
    return f"by at most {max(float(distance), math.ulp(0.0)):.3g}"


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
    check_numbers(found[0], count, len(a), worst, most, [abs(x) for _, x in b])


def check_numbers(found, count, of, worst, most, sizes):
    """Check what a difference counts against what Python makes of its elements."""
    assert (found.count, found.of, found.share) == (count, of, count / of)
    assert same_number(found.max_abs, worst)
    norm = math.nan if any(map(math.isnan, most)) else math.hypot(*map(float, most))
    scale = math.hypot(*(float(x) for x in sizes if math.isfinite(x)))
    assert same_number(found.norm, norm)
    rel = 0.0 if not norm else norm / scale if scale else math.inf
    assert same_number(found.rel, rel)


def same_number(x, y):
    if isinstance(y, int):
        return x == y
    return math.isclose(x, y, rel_tol=1e-9) or (x != x and y != y)


def is_close(x, y, rtol, atol):
    """Return whether two numbers are apart by no more than a tolerance."""
    if isinstance(x, int):
        return x == y
    size = abs(y) if math.isfinite(abs(y)) else 0.0
    return apart(x, y) <= atol + rtol * size


tolerances = st.sampled_from([0.0, 1e-300, 1e-3, 0.5, 3.0, 1e30])


@given(two_of_one_form(), tolerances, tolerances)
def test_a_tolerance_is_for_each_element(pair, rtol, atol):
    """A leaf differs if an element does by more; within, it is told of."""
    a, b = map(elements, pair)
    exact = sd.diff({"w": pair[0]}, {"w": pair[1]})
    found = sd.diff({"w": pair[0]}, {"w": pair[1]}, rtol=rtol, atol=atol)
    pairs = [(x, y) for (p, x), (q, y) in zip(a, b, strict=True) if p != q]
    if all(is_close(x, y, rtol, atol) for x, y in pairs):
        assert (found.differences, found.within) == ((), exact.differences)
        assert bool(exact) == ("1 leaf differs within the tolerance" in str(found))
    else:
        assert (found.differences, found.within) == (exact.differences, ())


@given(st.floats(), st.floats(), tolerances, tolerances)
def test_plain_numbers_have_a_tolerance_too(x, y, rtol, atol):
    close = is_close(x, y, rtol, atol)
    assert (not sd.diff({"lr": x}, {"lr": y}, rtol=rtol, atol=atol)) == close
    assert bool(sd.diff({"step": 1}, {"step": 2}, rtol=rtol, atol=atol))


@given(st.integers(), st.integers(2**62, 2**1100))
def test_plain_integers_are_apart_exactly(x, more):
    [found] = sd.diff({"n": x}, {"n": x + more})
    assert found.max_abs == (more if more < 2**1023 else math.inf)


def test_a_tolerance_that_is_none_is_refused():
    for bad in ({"rtol": -1.0}, {"atol": math.nan}, {"atol": math.inf}, {"rtol": True}):
        with pytest.raises(ValueError, match="is no tolerance"):
            sd.diff(1, 1, **bad)
    with pytest.raises(ValueError, match="leave out values=False"):
        sd.diff(1, 1, values=False, rtol=0.1)


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


# -- arrays --------------------------------------------------------------------------

SORTS = [mark for mark in ndarrays.MARKS if mark is not ndarrays._scalar]


@st.composite
def two_arrays_of_one_form(draw):
    """Return two arrays that lie alike, with some elements and masks in common."""
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    dtype = draw(st.sampled_from(ndarrays.DTYPES))
    a, b = (ndarrays.array_of(shape, dtype, draw(st.integers(0, 9))) for _ in "ab")
    kept = np.arange(a.size).reshape(shape) < draw(st.integers(0, 9))
    b = np.where(kept, a, b) if a.itemsize and not a.dtype.names else b
    view, sort = draw(st.sampled_from(ndarrays.VIEWS)), draw(st.sampled_from(SORTS))
    a, b = (sort(view(x.astype(a.dtype))) for x in (a, b))
    if isinstance(b, np.ma.MaskedArray) and np.ndim(b.mask) and not b.dtype.names:
        b.mask = b.mask ^ draw(st.booleans())
    return a, b


def numbers(x):
    """Return the bytes, mask and parts of each element; what is no number has none.

    A moment is the count that is stored, and nan if it is none.
    """
    data, masks = (
        np.array(a, subok=False).flatten() for a in (x, np.ma.getmaskarray(x))
    )
    raw, masks = (
        [a[k : k + 1].tobytes() for k in range(a.size)] for a in (data, masks)
    )
    native = data.astype(data.dtype.newbyteorder("="))
    if data.dtype.kind in "mM":
        gone = np.isnat(native).tolist()
        counts = native.view("i8").tolist()
        parts = [(math.nan if n else x,) for n, x in zip(gone, counts, strict=True)]
    elif data.dtype.kind == "c":
        parts = [*zip(native.real, native.imag, strict=True)]
    elif data.dtype.kind in "biuf":
        exact = data.dtype.char == "g"
        parts = [(x,) for x in (native if exact else (native * 1).tolist())]
    else:
        parts = [None] * data.size
    return [*zip(raw, masks, parts, strict=True)]


def apart_by_parts(x, y):
    with np.errstate(all="ignore"):
        found = [apart(*pair) for pair in zip(x, y, strict=True)]
        return found[0] if len(found) == 1 else np.hypot(*found)


@given(two_arrays_of_one_form())
def test_how_far_arrays_are_apart(pair):
    """An element counts once, with its mask, whatever it takes to hold it."""
    pairs = [*zip(*map(numbers, pair), strict=True)]
    differing = [(x, y) for x, y in pairs if x[:2] != y[:2]]
    found = [*sd.diff({"x": pair[0]}, {"x": pair[1]})]
    if not differing:
        assert found == []
        return
    if any(x is None and raw != other for (raw, _, x), (other, *_) in differing):
        told = "which are no numbers"
    else:
        most = [int(x[1] != y[1]) for x, y in differing]
        most += [apart_by_parts(x[2], y[2]) for x, y in differing if x[2] is not None]
        told = said(math.nan if any(map(math.isnan, most)) else max(most))
    count = f"{len(differing)} of {len(pairs)} elements differ"
    assert found == [(("x",), "value", count, told)]
    assert (found[0].count, found[0].of) == (len(differing), len(pairs))
    assert (found[0].norm is None) == (told == "which are no numbers")
    close = sd.diff({"x": pair[0]}, {"x": pair[1]}, rtol=1e300, atol=1e300)
    assert [*close, *close.within] == found


def test_arrays_that_torch_has_no_dtype_for():
    """Their dtype is numpy's own wherever one is told."""
    here = {
        "x": np.array([1.0, 2.0], ">f4"),
        "s": np.array(["ab", "cd"]),
        "t": np.array(["2024-01-01", "NaT"], "M8[D]"),
        "n": np.array([2**62], ">i8"),
        "g": np.array([1], np.longdouble),
        "r": np.array([(1, 2.0)], "u1, <f4")[0],
    }
    there = {
        "x": np.array([1.0, 2.5], ">f4"),
        "s": np.array(["ab", "ce"]),
        "t": np.array(["2024-01-03", "NaT"], "M8[D]"),
        "n": np.array([2**62 + 1], ">i8"),
        "g": np.array([1], np.longdouble) + np.finfo(np.longdouble).eps,
        "r": np.array([(1, 2.5)], "u1, <f4")[0],
    }
    assert {d.path[0]: (d.a, d.b) for d in sd.diff(here, there)} == {
        "x": ("1 of 2 elements differ", "by at most 0.5"),
        "s": ("1 of 2 elements differ", "which are no numbers"),
        "t": ("1 of 2 elements differ", "by at most 2"),
        "n": ("1 of 1 elements differ", "by at most 1"),
        "g": ("1 of 1 elements differ", "by at most 1.08e-19"),
        "r": ("1 of 1 elements differ", "which are no numbers"),
    }
    assert repr(sd.spec(here)["x"]) == "Abstract(ndarray, (2,), >f4)"
    assert sd.spec(here)["s"].dtype == np.dtype("<U2")
    assert {row.dtype for row in sd.show(here).rows} >= {">f4", "<U2", "datetime64[D]"}
    assert "&gt;f4" in sd.show(here)._repr_html_()
    swapped = {"x": here["x"].astype("f4")}
    [found] = sd.diff(swapped, {"x": here["x"]})
    assert found == (("x",), "dtype", "float32", ">f4")


# -- what differs is seen ------------------------------------------------------------


class Marked:
    """A leaf of a tensor and of a value that tells how to read it."""

    def __init__(self, data, mark):
        self.data, self.mark = data, mark


sd.register_leaf(
    Marked,
    flatten=lambda x: ((x.data,), x.mark),
    unflatten=lambda mark, ts: Marked(ts[0], mark),
)


def quantized(*scales):
    raw, zeros = torch.ones(len(scales), 2), torch.zeros(len(scales), dtype=torch.int64)
    if len(scales) == 1:
        return torch.quantize_per_tensor(raw, scales[0], 0, torch.qint8)
    scales = torch.tensor(scales, dtype=torch.float64)
    return torch.quantize_per_channel(raw, scales, zeros, 0, torch.qint8)


def class_named(name):
    cls = type(name, (), {})
    return sd.register_leaf(cls, flatten=lambda x: ((), 0), unflatten=lambda *_: cls())


ALIKE = [
    lambda n: quantized(1.0 + n),
    lambda n: quantized(*[0.5] * 99, 1.0 + n),
    lambda n: torch.eye(3)[: 1 + n].new_ones(3, 3).triu(n).to_sparse(),
    lambda n: torch.ones(3, 3).triu(n).to_sparse_csr(),
    lambda n: Marked(torch.ones(2), ("x" * 200, n)),
    lambda n: Marked(torch.ones(2), {"x" * 99: [0] * 99 + [n]}),
    lambda n: Marked(torch.ones(2), torch.full((2000,), n)),
    lambda n: "x" * 200 + str(n) + "x" * 200,
    lambda n: "x" * (200 + n),
    lambda n: 10**400 + n,
    lambda n: 10**5000 + n,
    lambda n: struct.unpack("d", struct.pack("Q", 0x7FF8 << 48 | n))[0],
    lambda n: class_named("Same")(),
    lambda n: np.zeros(
        1, [(f"field{k}" + "n" * n * (k > 20), "i4") for k in range(30)]
    ),
    lambda n: defaultdict([list, partial(list)][n > 0]),
    lambda n: Beside({"x" * 99: [*range(20), n]}),
]
"""Two things that differ where it is not easily seen."""


class Beside(dict):
    """A dict with an attribute."""

    def __init__(self, value):
        super().__init__(a=1)
        self.beside = value


@pytest.mark.parametrize("make", ALIKE)
def test_the_sides_of_a_difference_differ(make):
    """As data, and as the table prints them."""
    found = sd.diff({"x": make(0)}, {"x": make(1)})
    assert found
    assert all(d.a != d.b for d in found)
    for line in str(found).splitlines()[1:]:
        *_, a, b = re.split(r" {2,}", line)
        assert a != b


def test_what_differs_is_told_and_no_more():
    """Of what is beside the data, that alone; of a long text, what is around it."""
    [found] = sd.diff({"q": quantized(0.1)}, {"q": quantized(0.2)})
    assert found == (("q",), "layout", "aux.form.scale 0.1", "aux.form.scale 0.2")
    [found] = sd.diff({"t": "x" * 500 + "a"}, {"t": "x" * 500 + "b"})
    assert found.a == "str 'xxxxxxxxxxxx...xxxxxxxxxxxxa'"
    [found] = sd.diff({"t": "x" * 500 + "a" * 50}, {"t": "x" * 500 + "b" + "a" * 49})
    assert found.a == "str …" + "x" * 20 + "a" * 40 + "…"
    assert found.b == "str …" + "x" * 20 + "b" + "a" * 39 + "…"


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


# -- many differences ----------------------------------------------------------------


@st.composite
def two_of_one_tree(draw):
    """Draw two trees of tensors, some of which differ, are renamed, or not there."""
    names = st.sampled_from(["a", "b", "c.d", "e"])
    tree = draw(
        st.dictionaries(names, st.dictionaries(names, st.integers(0, 3), max_size=4))
    )
    a = {
        k: {n: torch.full((x + 1,), float(x)) for n, x in v.items()}
        for k, v in tree.items()
    }
    b = {}
    for key, below in a.items():
        for name, t in below.items():
            change = draw(st.sampled_from(["", "value", "shape", "gone", "renamed"]))
            if change == "gone":
                continue
            step = draw(st.sampled_from([1.0, 2.0, math.nan]))
            other = t + step if change == "value" else t
            other = torch.ones(9) if change == "shape" else other
            to = f"{name}2" if change == "renamed" else name
            b.setdefault(key, {})[to] = other
    return a, b


@given(two_of_one_tree(), st.integers(1, 3))
def test_a_stat_is_the_sum_of_its_leaves(pair, depth):
    """And the total is that of the branches."""
    found = sd.diff(*pair)
    *branches, total = found.stat(depth)
    paths = {*sd.paths(pair[0]), *sd.paths(pair[1])}
    sizes = dict(sd.items(pair[1])) | dict(sd.items(pair[0]))
    assert total.leaves == len(paths)
    unlike = {d.path for d in found if d.what != "container" and d.count is None}
    assert total.unlike == len(unlike)
    assert total.of == sum(t.numel() for p, t in sizes.items() if p not in unlike)
    assert total.changed == len({d.path for d in found if d.what != "container"})
    assert total.count == sum(d.count or 0 for d in found)
    assert same_number(total.norm, math.hypot(*(d.norm or 0.0 for d in found)))
    most = [d.max_abs or 0 for d in found]
    worst = math.nan if any(x != x for x in most) else max(most, default=0)
    assert same_number(total.max_abs, worst)
    for name in ("leaves", "of", "changed", "count", "unlike"):
        assert sum(getattr(s, name) for s in branches) == getattr(total, name)
    for name in ("norm", "scale"):
        every = math.hypot(*(getattr(s, name) for s in branches))
        assert same_number(every, getattr(total, name))
    assert len({s.label for s in branches}) == len(branches)
    for stat in (*branches, total):
        data = stat.to_data()
        assert data.pop("prefix") == stat.label
        assert data == {name: in_json(getattr(stat, name)) for name in data}
        counts = {"leaves", "changed", "unlike", "of"}
        assert data.keys() == counts | {"count", "max_abs", "norm", "rel"}


def test_what_is_no_number_hides_none():
    """A text that changed beside a tensor is counted, and the tensor's numbers stay."""
    a, b = {"w": torch.ones(4), "name": "a"}, {"w": torch.zeros(4), "name": "b"}
    *_, total = sd.diff(a, b).stat()
    assert (total.count, total.of, total.max_abs, total.norm) == (5, 5, 1.0, 2.0)


def test_what_is_unlike_is_not_told_to_be_the_same():
    """Another shape or dtype, or a leaf of one side, is no share, not even 0 %."""
    a = {"m": {"w": torch.ones(4), "v": torch.ones(3)}, "n": {"w": torch.ones(4)}}
    b = {"m": {"w": a["m"]["w"], "v": torch.ones(5)}, "n": {"w": a["n"]["w"].half()}}
    found = sd.diff(a, b)
    assert [(s.unlike, s.of, s.count) for s in found.stat()] == [
        (1, 4, 0),
        (1, 0, 0),
        (2, 4, 0),
    ]
    rows = [" ".join(stat.cells()).split() for stat in found.stat()]
    assert rows[1] == ["n", "1", "of", "1", "1"]
    assert rows[0][-5:] == ["0", "%", "0", "0", "0"]


def test_the_top_of_what_is_sorted_is_its_beginning():
    """Without a number of its own ``top`` keeps the order; unsorted it is by norm."""
    a = {"x": torch.tensor([1.0]), "y": torch.tensor([100.0]), "z": torch.ones(1)}
    b = {"x": torch.tensor([2.0]), "y": torch.tensor([110.0]), "z": torch.ones(1)}
    found = sd.diff(a, b)
    first = lambda diff: [".".join(d.path) for d in diff]  # noqa: E731
    assert first(found.top(1)) == ["y"]
    assert first(found.sorted("rel").top(1)) == ["x"]
    assert first(found.sorted("rel").top(2).top(1)) == ["x"]
    assert first(found.sorted("rel").top(1, "norm")) == ["y"]
    assert found.sorted("rel").top(1) == found.top(1, "rel")


@pytest.mark.parametrize("most", [0, -1])
def test_a_top_of_none_is_refused(most):
    """It would be falsy, and print that there are no differences."""
    with pytest.raises(ValueError, match="give 1 or more"):
        sd.diff([1, 2], [2, 3]).top(most)


@given(two_of_one_tree(), st.sampled_from(["max_abs", "norm", "rel", "count", "share"]))
def test_a_diff_sorted_is_a_permutation(pair, by):
    """With the largest first; what has no number, before, and then what has nan."""
    found = sd.diff(*pair)
    ordered = found.sorted(by)
    assert sorted(ordered, key=str) == sorted(found, key=str)
    numbers = [getattr(d, by) for d in ordered]
    ranked = [(x is not None, x == x, -(x or 0) if x == x else 0) for x in numbers]
    assert ranked == sorted(ranked)
    top = found.top(2, by)
    assert [*top] == [*ordered][:2]
    assert len(top) + top.more == len(found)
    assert (f"… and {top.more} more" in str(top)) == (top.more > 0)


def test_a_stat_counts_all_or_is_refused():
    """Of the largest alone it would tell that nothing else has changed."""
    found = sd.diff({"a": {"x": 1, "y": 1}}, {"a": {"x": 2, "y": 3}})
    assert found.top(2).stat() == found.stat()
    with pytest.raises(
        ValueError, match=r"1 differences are left out.*sd\.diff\(a, b\)"
    ):
        found.top(1).stat()


def test_a_container_is_told_by_what_is_other_in_it():
    """Of its attributes, and of keys in these, those that both have are left out."""
    known = torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(9)]).state_dict()
    [*_, told] = sd.diff(known, sd.rename(known, ("7.*", "seven.*")))
    assert (told.a, told.b) == (
        "OrderedDict with attributes['_metadata'] {'7': {'version': 1}}",
        "OrderedDict with attributes['_metadata'] {'seven': {'version': 1}}",
    )
    [told] = sd.diff(deque([1], 3), deque([1], 4))
    assert (told.a, told.b) == ("deque with maxlen 3", "deque with maxlen 4")


def test_a_row_tells_both_sides_or_where_a_name_went():
    [told] = sd.diff({"n": 1}, {"n": 2})
    assert told.in_short() == "value int 1 \N{RIGHTWARDS ARROW} int 2"
    went = Difference(("a",), NAME, "a", "b")
    assert went.in_short() == "name \N{RIGHTWARDS ARROW} b"


def test_bits_that_differ_may_mean_the_same():
    [told] = sd.diff({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([-0.0, 1.0])})
    assert told.b == "in bits that mean the same"


def test_what_cannot_be_sorted_by_is_refused():
    with pytest.raises(ValueError, match="'max_abs', 'norm', 'rel'"):
        sd.diff(1, 2).sorted("size")


@given(two_of_one_tree())
def test_json_tells_what_the_diff_does(pair):
    """As before, and its numbers."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = sd.diff(*pair)
    rows = json.loads(found.to_json(), parse_constant=refuse)
    assert found.to_json() == json.dumps(rows, indent=2)
    assert [(r["name"], r["what"], r["a"], r["b"]) for r in rows] == [
        (".".join(d.path), d.what, d.a, d.b) for d in found
    ]
    norms = [d.norm if d.norm == d.norm else "nan" for d in found]
    assert [r.get("norm") for r in rows] == norms
    assert sum("renamed_to" in r for r in rows) == len(found.renamed)


@given(two_of_one_tree())
def test_a_rename_has_the_same_bits(pair):
    """Each pair is one of leaves that only one tree has, and no other could be told."""
    a, b = (dict(sd.items(tree)) for tree in pair)
    found = sd.diff(*pair)
    gone, come = (dict(found.renamed), {y: x for x, y in found.renamed})
    assert len(gone) == len(come) == len(found.renamed)
    for x, y in found.renamed:
        assert x not in b
        assert y not in a
        assert torch.equal(a[x], b[y])
    left = [a[p] for p in a.keys() - b.keys() - gone.keys()]
    others = [b[p] for p in b.keys() - a.keys() - come.keys()]
    assert not any(torch.equal(x, y) for x in left for y in others)
    assert {d.path for d in found if d.what == "leaf"} == a.keys() ^ b.keys()
    assert not sd.diff(*pair, values=False).renamed


def test_a_rename_is_told_as_one():
    a = {"model": {"w": torch.ones(2, 3), "b": torch.zeros(2)}, "n": 1}
    b = {"net": {"w": torch.ones(2, 3), "b": torch.ones(2)}, "n": 1}
    lines = [" ".join(line.split()) for line in str(sd.diff(a, b)).splitlines()]
    assert "model.w name model.w net.w" in lines
    assert "model.b leaf Tensor (2,) float32 nothing" in lines


def test_progress_is_told_to_the_end():
    a = {"x": torch.ones(4), "n": 1, "y": torch.ones(2)}
    seen = []
    sd.diff(a, a, on_progress=lambda *at: seen.append(at))
    assert seen == [(16, 24), (24, 24)]


def test_a_notebook_and_a_terminal_show_differences(monkeypatch):
    """Folded where they are alike, with what they come to together."""
    from rich.console import Console

    a = {f"layers.{i}.{n}": torch.ones(4) for i in range(30) for n in ("w", "b")}
    b = {name: t + name.endswith("w") for name, t in a.items()} | {"lr": 1}
    found = sd.diff({**a, "lr": 2}, b)
    assert "<meter" in found._repr_html_() or "bar" in found._repr_html_()
    for width in (40, 60, 100):
        console = Console(file=io.StringIO(), width=width)
        console.print(found)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert "31 differences" in lines[-1]
    told = r"layers\.0…29\.w .30 +value +100 % +1 +11 +0\.5 *"
    assert any(re.fullmatch(told, line) for line in lines)


def silent(x):
    """Return the bytes of an element that numpy does not look at."""
    found = []
    for k in range(x.itemsize):
        y = x.copy()
        y.view("u1").reshape(-1, x.itemsize)[:, k] ^= 255
        with np.errstate(invalid="ignore"):
            found += [k] * bool((x == y).all())
    return found


@pytest.mark.parametrize("dtype", ["g", "G", ">g", "u1, g", "u1, 2g"])
def test_what_lies_behind_a_long_double_is_not_compared(dtype):
    """It is whatever lay in memory."""
    a = np.zeros(3, dtype)
    for name in a.dtype.names or [...]:
        a[name] = 2
    b = a.copy()
    b.view("u1").reshape(3, -1)[:, silent(a)] ^= 255
    assert sd.equal([a], [b])
    assert not sd.diff([a], [b])
    assert not sd.equal([a], [np.zeros_like(a)])


def test_what_lies_between_fields_is_not_compared():
    """As numpy has it, and of one record, too."""
    dtype = np.dtype([("n", "u1"), ("x", "f8"), ("in", [("k", "u1")])], align=True)
    a, b = np.zeros(2, dtype), np.zeros(2, dtype)
    raw = b.view("u1").reshape(2, -1)
    raw[:, 1:8] = raw[:, 17:] = 9
    assert (a == b).all()
    for x, y in ((a, b), (a[0], b[0]), (a[::-1], b[::-1])):
        assert sd.equal([x], [y])
        assert not sd.diff([x], [y])
    b["in"]["k"][1] = 1
    assert not sd.equal([a], [b])
    assert [d.count for d in sd.diff([a], [b])] == [1]


def test_scalars_of_numpy_are_numbers():
    """As those of Python are; text, bools and moments are not."""
    for dtype in "bBhHiIlLqQefdgFDG":
        a, b = np.dtype(dtype).type(3), np.dtype(dtype).type(1)
        [found] = sd.diff([a], [b])
        assert (found.max_abs, found.count, found.of, found.rel) == (2, 1, 1, 2.0)
        is_exact = np.issubdtype(dtype, np.integer)
        assert bool(sd.diff([a], [b], atol=2)) == is_exact
        assert sd.diff([a], [b], atol=1)
    for a, b in (
        (np.str_("a"), np.str_("ab")),
        (np.bool_(True), np.bool_(False)),
        (np.datetime64("2020", "Y"), np.datetime64("2020-01-02", "D")),
    ):
        [found] = sd.diff([a], [b], atol=9)
        assert found.max_abs is None
