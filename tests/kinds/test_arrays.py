"""The laws of arrays, looked at by numpy alone: bits, strides, memory, ties, bytes."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.kinds.handler import tensors_of
from sdtree.tensors.storage import identity_of
from sdtree.testing import arrays, check_one_leaf

ROOTS = {
    "array": lambda: np.arange(24, dtype=np.float64),
    "by columns": lambda: np.arange(24, dtype=np.float64).reshape(4, 6).T,
    "foreign": lambda: np.frombuffer(bytearray(range(193)), np.float64, 24, 1),
    "tensor": lambda: torch.arange(24, dtype=torch.float64),
    "part": lambda: torch.arange(30, dtype=torch.float64)[3:27],
    "records": lambda: np.ones(16, "u1, <f4, M8[s]"),
}
"""What leaves may be views of: it owns its memory, or another does."""

VIEWS = {
    "all": lambda x: x,
    "flat": lambda x: x.reshape(-1, order="A"),
    "head": lambda x: x[:2],
    "middle": lambda x: x[1:4],
    "tail": lambda x: x[3:],
    "one": lambda x: x[2],
    "none": lambda x: x[:0],
    "backwards": lambda x: x[::-1],
    "every other": lambda x: x[::2],
    "broadcast": lambda x: np.broadcast_to(x[1:3], (2, *x[1:3].shape)),
    "sliding": lambda x: np.lib.stride_tricks.sliding_window_view(x[:5], 2, axis=0),
    "matrix": lambda x: x[:2].reshape(1, -1, copy=False).view(np.matrix),
    "field": lambda x: x["f1"] if x.dtype.names else x,
    "last field": lambda x: x["f2"][2:6] if x.dtype.names else x,
    "one record": lambda x: x[3] if x.dtype.names else x,
    "bytes": lambda x: x[:2].copy() if x.ndim > 1 else x.view("u1")[3:40],
    "tensor": torch.from_numpy,
    "tail tensor": lambda x: torch.from_numpy(x[2:]),
}


@st.composite
def views(draw):
    """Return a tree of views of one or two things, in any order, and what each is of.

    A view that numpy or torch does not make, as of records as a tensor, is left out.
    """
    tree, roots = {}, {}
    names = draw(st.lists(st.sampled_from([*ROOTS]), min_size=1, max_size=2))
    made = [ROOTS[name]() for name in names]
    for k in range(draw(st.integers(1, 6))):
        root = draw(st.integers(0, len(made) - 1))
        view = draw(st.sampled_from([*VIEWS]))
        try:
            leaf = VIEWS[view](as_array(made[root]))
        except (TypeError, ValueError):
            continue
        if draw(st.booleans()) and view == "all":
            leaf = made[root]
        if isinstance(leaf, np.generic) and leaf.dtype.names is None:
            continue  # a value of its own
        key = f"{k} {names[root]} {view}"
        tree[key] = leaf
        roots[key] = key if view == "bytes" and made[root].ndim > 1 else root
    return tree, roots


def as_array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def stretch(x):
    """Return where the memory of a leaf begins and ends, as numpy has it."""
    x = as_array(x)
    start = x.__array_interface__["data"][0]
    steps = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)]
    low = start + sum(step for step in steps if step < 0)
    return low, start + sum(step for step in steps if step > 0) + x.itemsize


def bits(x):
    """Return the bits of a leaf; numpy fills up what is behind a long double."""
    is_long = isinstance(x, np.longdouble | np.clongdouble)
    return repr(x) if is_long else as_array(x).tobytes()


def same(a, b):
    """Return whether two leaves are the same to numpy: type, dtype, shape, bits."""
    if type(a) is not type(b) or bits(a) != bits(b):
        return False
    a, b = as_array(a), as_array(b)
    return (a.dtype, a.shape) == (b.dtype, b.shape)


def shares(a, b):
    return np.shares_memory(as_array(a), as_array(b))


def expected_ties(roots, tree):
    """Return the leaves of one root that hold something, where there are several."""
    groups = {}
    for key, root in roots.items():
        if as_array(tree[key]).nbytes:
            groups.setdefault(root, []).append(key)
    return sorted(group for group in groups.values() if len(group) > 1)


def found_ties(tree):
    return sorted([key for (key,) in group] for group in sd.ties(tree))


@given(views(), st.booleans())
def test_copies_of_views(drawn, into):
    """Bits, dtype, strides and ties stay; no memory is the source's."""
    tree, roots = drawn
    ties = expected_ties(roots, tree)
    assert found_ties(tree) == ties
    result = sd.copy(tree, into=sd.empty_like(tree) if into else None)
    assert list(result) == list(tree)
    for key, leaf in result.items():
        assert same(leaf, tree[key]), key
    assert not any(shares(a, b) for a in result.values() for b in tree.values())
    assert found_ties(result) == ties
    for group in ties:
        for a, b in combinations(group, 2):
            gaps = [stretch(t[a])[0] - stretch(t[b])[0] for t in (tree, result)]
            assert gaps[0] == gaps[1], (a, b)
            assert as_array(result[a]).strides == as_array(tree[a]).strides


@given(views())
def test_bytes_of_views(drawn):
    """nbytes counts each byte once, whatever lies over it."""
    tree, roots = drawn
    tied = {key for group in expected_ties(roots, tree) for key in group}
    expected = 0
    for key, leaf in tree.items():
        low, high = stretch(leaf)
        size = as_array(leaf).nbytes
        expected += 0 if key in tied else min(size, high - low)
    for group in expected_ties(roots, tree):
        places = [range(*stretch(tree[key])) for key in group]
        expected += len({byte for place in places for byte in place})
    assert sd.nbytes(tree) == expected


@given(arrays())
def test_arrays_of_every_sort(x):
    """A copy is the same to numpy, lies in the same order, and shares no memory."""
    before = bits(x)
    for copied in (
        sd.copy({"x": x})["x"],
        sd.copy({"x": x}, into=sd.empty_like({"x": x}))["x"],
        sd.unflatten(sd.flatten(sd.copy([x])), spec=sd.structure([x]))[0],
    ):
        assert same(copied, x)
        assert sd.equal({"x": copied}, {"x": x})
        assert not shares(copied, x)
        mine, its = as_array(copied), as_array(x)
        signs = [np.sign(a.strides) * (np.array(a.shape) > 1) for a in (mine, its)]
        if x.size and not isinstance(x, np.ma.MaskedArray):
            assert (signs[0] >= signs[1]).all()  # what was broadcast may be filled
            assert (signs[0] < 0).tolist() == (signs[1] < 0).tolist()
        if isinstance(x, np.ndarray):
            assert copied.flags.writeable
    assert bits(x) == before


@given(arrays(), arrays())
def test_equal_is_what_numpy_says(a, b):
    """Neither strides nor alignment nor the way an axis runs make a difference."""
    assert sd.equal({"x": a}, {"x": b}) == (same(a, b) and masks(a) == masks(b))
    if isinstance(a, np.ndarray):
        other = np.array(a, order="C", subok=True)
        assert sd.equal({"x": a}, {"x": other})
        assert sd.similar({"x": a}, {"x": other})
        assert not sd.diff({"x": a}, {"x": other})


def masks(x):
    return np.ma.getmask(x).tobytes() if isinstance(x, np.ma.MaskedArray) else None


# -- by example --------------------------------------------------------------------


class Measured(np.ndarray):
    """An array of a subclass that has a unit, and an array of errors."""


def test_what_a_subclass_has_beside_its_data():
    """Attributes stay, shared; those that are arrays are copied as the data is."""
    x = np.arange(4.0).view(Measured)
    x.unit, x.error = ["m"], np.full(4, 0.5)
    check_one_leaf(x)
    copied = sd.copy({"x": x, "e": x.error})
    assert type(copied["x"]) is Measured
    assert copied["x"].unit is x.unit
    assert not np.shares_memory(copied["x"].error, x.error)
    assert np.shares_memory(copied["x"].error, copied["e"])
    assert not sd.equal({"x": copied["x"] + 0}, {"x": x})


class Plain(np.ndarray):
    """An array of a subclass that has no attributes."""

    __slots__ = ()


def test_a_subclass_without_attributes():
    """It comes back as one; so do the subclasses of numpy itself."""
    for x in (np.arange(3.0).view(Plain), np.asmatrix([[1, 2]]), np.char.array(["a"])):
        check_one_leaf(x)
        assert type(sd.copy({"x": x})["x"]) is type(x)


def test_arrays_in_files(tmp_path):
    """A map of a file is copied into memory, and is no map of a file then."""
    np.arange(6.0).tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", np.float64, "r")
    tree = {"tail": mapped[2:], "all": mapped}
    copied = sd.copy(tree)
    assert sd.equal(copied, tree)
    assert sd.nbytes(tree) == 48
    assert type(copied["all"]) is np.memmap
    assert copied["all"].filename is None
    copied["all"][2] = 9
    assert copied["tail"][0] == 9
    with pytest.raises(sd.errors.SpecMismatch, match=r"all: .*read-only"):
        sd.copy(copied, into=tree)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_memory_under_two_storages_in_files(tmp_path, suffix):
    """Tensors over views of one array are tied in a file and hold what they did."""
    x = np.arange(12.0)
    tree = {"head": torch.from_numpy(x[:4]), "tail": torch.from_numpy(x[2:])}
    sd.save(tree, tmp_path / f"x.{suffix}")
    loaded = sd.load(tmp_path / f"x.{suffix}")
    assert all(same(loaded[key], tree[key]) for key in tree)
    assert found_ties(loaded) == [["head", "tail"]]


def test_memory_that_begins_between_two_elements():
    """No tensor of the storage around it could lie there; it is a leaf as any."""
    raw = np.arange(17, dtype="u1")
    tree = {
        "inner": torch.from_numpy(raw[1:].view("<f4")),
        "all": torch.from_numpy(raw),
    }
    want = {key: t.clone() for key, t in tree.items()}
    assert sd.equal(sd.copy(tree), want)
    assert sd.ties(tree) == [[("inner",), ("all",)]]
    assert sd.nbytes(tree) == 17


def test_a_buffer_that_is_read_only():
    """What numpy keeps from being written is not; copies of it can be."""
    x = np.arange(3.0)
    fixed = x.view()
    fixed.flags.writeable = False
    with pytest.raises(sd.errors.SpecMismatch, match=r"a\.0: .*read-only"):
        sd.copy({"a": [x + 1]}, into={"a": [fixed]})
    assert x.tolist() == [0, 1, 2]
    assert sd.empty_like([fixed])[0].flags.writeable
    assert sd.copy([fixed])[0].flags.writeable
    assert not sd.to([fixed], "cpu")[0].flags.writeable


def test_records_are_arrays_too():
    """A record shares the memory of its array, and their copies share one, too."""
    rows = np.array([(1, 2.0), (3, 4.0)], "u1, <f4")
    tree = {"row": rows[1], "rows": rows, "field": rows["f1"], "void": np.void(b"ab")}
    copied = sd.copy(tree)
    assert sd.nbytes(tree) == 10
    copied["row"]["f1"] = 7
    assert copied["rows"]["f1"].tolist() == copied["field"].tolist() == [2, 7]
    assert rows["f1"].tolist() == [2, 4]
    assert copied["void"] is tree["void"]


def test_one_array_in_two_places_is_one():
    """As it is sent once, and tied where it arrives."""
    x = np.arange(4.0)
    assert identity_of(tensors_of(x[1:])) == identity_of(tensors_of(x[1:]))
    assert identity_of(tensors_of(x[1:])) != identity_of(tensors_of(x[:-1]))


def test_a_scalar_is_no_array():
    """Each keeps its type, and neither equals the other."""
    tree = {"array": np.array(2, np.float32), "scalar": np.float32(2)}
    copied = sd.copy(tree)
    assert [type(x) for x in copied.values()] == [np.ndarray, np.float32]
    assert copied["array"].shape == ()
    swapped = {"array": tree["scalar"], "scalar": tree["array"]}
    assert len(sd.diff(swapped, tree)) == 2


def test_what_no_array_can_become():
    """As any leaf that does not convert: by its path."""
    x = np.ones(2, np.float32)
    for change in (sd.cast(dtype=torch.bfloat16), sd.to("meta")):
        with pytest.raises(sd.errors.UnknownLeaf, match=r"a\.0: numpy has no array"):
            change({"a": [x], "t": torch.ones(1)})


def test_arrays_that_do_not_come_apart():
    """Python objects are refused by path, also where they are a field, or text."""
    objects = [
        np.array([object()]),
        np.zeros(1, [("a", "i4"), ("b", "O")]),
        np.zeros(1, [("a", "i4"), ("b", "O")])[0],
        np.array(["any length"], np.dtypes.StringDType()),
    ]
    for x in objects:
        with pytest.raises(sd.errors.UnknownLeaf, match=r"a\.0: .*Python objects"):
            sd.copy({"a": [x]})


def test_what_another_package_holds_in_an_array_is_not_left_as_it_was():
    """``cast`` casts numbers of a dtype that numpy has from elsewhere, or raises."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.ones(3, ml_dtypes.bfloat16)
    assert sd.equal(sd.copy([x]), [x])
    with pytest.raises(sd.errors.UnknownLeaf, match=r"'bfloat16'.*astype"):
        sd.cast([x], dtype=torch.float32)
    whole = np.ones(3, ml_dtypes.int4)
    assert sd.equal(sd.cast([whole], dtype=torch.float32), [whole])
