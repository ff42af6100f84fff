"""Conversions by functions of which nobody knows what they will return."""

import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import assert_same
from shards import fake
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from sdtree.io.converting.spooling import Spool, spooling
from sdtree.testing import trees

SHARED = torch.arange(12.0)
ROOM = torch.zeros(512, 3)


def doubled(x):
    return x * 2 if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def cut(x):
    """Return every other row of a tensor, which is a view."""
    return x[::2] if isinstance(x, torch.Tensor) and x.dim() and not x.is_sparse else x


def as_array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else x


def packed(x):
    """Return a row of one buffer, written now: after windows that have others.

    What is alike has one row. It is written as ``data``, for ``x`` may lie there.
    """
    if not isinstance(x, torch.Tensor) or not x.numel():
        return x
    first = int(x.flatten()[0])
    row = ROOM[(16 * first + x.numel()) % len(ROOM)]
    row.data.fill_(first + 1)
    return row


FUNCTIONS = {
    "in one buffer": packed,
    "as it is": lambda x: x,
    "another": doubled,
    "a view": cut,
    "a part of one": lambda x: SHARED[4:8] if isinstance(x, torch.Tensor) else x,
    "a part of one, as an array": lambda x: SHARED.numpy()[5:9],
    "an array": as_array,
    "turned": lambda x: x.t() if isinstance(x, torch.Tensor) and x.dim() == 2 else x,
}
suffixes = pytest.mark.parametrize("suffix", ["pt", "safetensors"])


@suffixes
@given(
    tree=st.dictionaries(
        st.sampled_from("abcdef"),
        st.sampled_from([torch.ones(3, 4), torch.zeros(5), 1, "x", SHARED[2:6]]),
        min_size=1,
    ),
    names=st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=2),
    limit=st.sampled_from([1, 2**25]),
)
def test_a_function_in_a_conversion(tree, names, limit, suffix, tmp_path_factory):
    """As ``save(transform(load(source)), target)``: also the ties, window by window."""
    folder = tmp_path_factory.mktemp("spool")
    source, target, want = (folder / f"{n}.{suffix}" for n in ("a", "b", "c"))
    sd.save(tree, source)
    transform = sd.chain(*(sd.map(FUNCTIONS[name]) for name in names))
    there = {source, target, want}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdtree.transform.run.SLICE_BYTES", limit)
        try:
            sd.save(transform(sd.load(source)), want)
        except TypeError as error:
            with pytest.raises(TypeError, match=re.escape(str(error))):
                sd.convert_file(source, target, transform)
            there = {source}
        else:
            ROOM.zero_()
            sd.convert_file(source, target, transform)
            assert_same(sd.load(target), sd.load(want), "converted")
    assert {*folder.iterdir()} == there


@given(trees(portable=True))
def test_any_tree_passes_a_function(tree):
    """Whatever leaves it has, or the same error as without a file."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "a.pt", Path(name) / "b.pt"
        try:
            sd.save(tree, source)
        except (TypeError, ValueError, RuntimeError):
            return
        sd.convert_file(source, target, sd.map(lambda x: x))
        assert_same(sd.load(target), sd.load(source), "converted")


@suffixes
def test_what_a_function_writes_after_a_window_is_there(suffix, tmp_path, monkeypatch):
    """A buffer is filled as the windows come: each row is copied when it is made."""
    monkeypatch.setattr("sdtree.transform.run.SLICE_BYTES", 1)
    source, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    sd.save({name: torch.full((2,), float(k)) for k, name in enumerate("abc")}, source)
    ROOM.zero_()
    sd.convert_file(source, target, sd.map(packed))
    rows = {name: torch.full((3,), k + 1.0) for k, name in enumerate("abc")}
    assert sd.equal(sd.load(target), rows)


def test_what_waits_lies_in_files(tmp_path):
    """All that has data, whatever comes before it."""
    tree = {"none": torch.zeros(0), "meta": torch.ones(2, device="meta"), "n": 1}
    tree |= {"w": torch.arange(6.0), "row": torch.ones(2, 3)[1], "last": torch.ones(1)}
    found = spooling(tmp_path, [], [])(tree)
    assert_same(found, tree)
    assert all(found[name].untyped_storage().filename for name in ("w", "row", "last"))
    assert not [*tmp_path.iterdir()]


def test_what_was_read_is_given_back_with_each_window(tmp_path):
    """The pages of mapped tensors, when what was made of them lies in a file."""
    given_back = []
    spool = Spool(tmp_path, frozenset(), lambda: given_back.append(spool.count))
    for _ in range(2):
        spool.kept([torch.ones(2), 1])
    assert given_back == [1, 2]


def test_what_has_no_data_is_refused_by_its_path(tmp_path):
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    sd.save({"x": {"w": torch.ones(2)}}, source)
    for other in (lambda x: sd.Abstract.of(x), lambda x: x.to("meta")):
        with pytest.raises(TypeError, match=r"^x\.w: "):
            sd.convert_file(source, target, sd.map(other))
    with pytest.raises(FileNotFoundError, match="no directory"):
        sd.convert_file(source, tmp_path / "nix" / "b.pt", sd.map(doubled))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


# -- streams -------------------------------------------------------------------------


@suffixes
@given(tree=trees(portable=True))
def test_a_stream_is_written_as_its_tree(tree, suffix, tmp_path_factory):
    """Whether it is foretold or not, or the same error; sharded leaves are refused."""
    assume(all(form.layout is None for form in sd.leaves(sd.spec(tree))))
    check_streamed(tree, tmp_path_factory.mktemp("stream"), suffix)


def check_streamed(tree, folder, suffix):
    streamed, whole = (folder / f"{name}.{suffix}".rstrip(".") for name in "ab")
    for transform in (sd.copy(), sd.map(lambda x: x)):
        try:
            sd.save(transform(tree), whole)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            with pytest.raises(type(error)):
                sd.save(transform.stream(tree), streamed)
            assert not streamed.exists()
        else:
            sd.save(transform.stream(tree), streamed)
            assert_same(sd.load(streamed), sd.load(whole), "streamed")
            assert sd.equal(sd.load(whole), transform(tree))


@st.composite
def views_of_one_memory(draw):
    """Return tensors and arrays of several dtypes over one memory, aligned or not.

    Among them are conjugates, and what lies backwards. One storage could have them all.
    """
    memory = np.arange(40, dtype=np.float32)
    is_aligned = draw(st.booleans())  # torch may crash at other complex numbers
    dtypes = ["u1", "f2", "f4", *(["c8", "c16"] if is_aligned else [])]
    begin = 0 if is_aligned else draw(st.integers(1, 3))

    def view(dtype, how):
        size = np.dtype(dtype).itemsize
        start = begin + size * draw(st.integers(0, 100 // size))
        count = draw(st.integers(0, (160 - start) // size))
        part = np.frombuffer(memory, dtype, count, start if count else 0)
        if how == "array" or how == "backwards":
            return part[:: 1 if how == "array" else -1]
        return (
            torch.from_numpy(part).conj() if how == "conj" else torch.from_numpy(part)
        )

    sorts = st.tuples(st.sampled_from(dtypes), st.sampled_from(HOWS))
    return [view(*sort) for sort in draw(st.lists(sorts, min_size=1, max_size=4))]


HOWS = ["tensor", "array", "backwards", "conj"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors", ""])
@given(tree=views_of_one_memory())
def test_a_stream_keeps_what_lies_in_one_memory(tree, suffix, tmp_path_factory):
    """Of what is a tensor and what is not, wherever each begins; or the same error."""
    check_streamed(tree, tmp_path_factory.mktemp("stream"), suffix)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", ""])
@pytest.mark.parametrize("source", ["pt", "safetensors"])
def test_what_a_function_ties_to_the_source_stays_tied(suffix, source, tmp_path):
    """Whatever window each comes in, mapped from a file or in memory."""
    tree = {"embed": torch.arange(6.0), "mid": torch.ones(5), "head": torch.zeros(6)}
    sd.save(tree, path := tmp_path / f"source.{source}")
    for whole in (tree, sd.load(path, mmap=True)):
        embed = whole["embed"]
        parts = {("head",): embed, ("mid",): embed[2:4]}
        tie = sd.map_with_path(lambda p, x, parts=parts: parts.get(p, x))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sdtree.transform.run.SLICE_BYTES", 1)
            target = tmp_path / f"target.{suffix}".rstrip(".")
            sd.save(tie.stream(whole), target)
        assert_same(sd.load(target), tie(whole), "streamed")


@pytest.mark.parametrize("suffix", ["pt", "safetensors", ""])
@pytest.mark.parametrize("transform", [sd.identity, sd.map(lambda x: x), sd.copy()])
def test_a_conjugate_is_converted_beside_what_it_is_of(suffix, transform, tmp_path):
    """They share memory, and are not the same."""
    z, r = torch.tensor([1 + 2j, 3 - 4j]), torch.tensor([1.0, 2.0])
    tree = {"z": z, "c": z.conj(), "part": z[1:].conj(), "again": z.conj()}
    tree |= {"r": r, "neg": torch._neg_view(r)}
    torch.save(tree, source := tmp_path / "source.pt")
    target, whole = (tmp_path / f"{name}.{suffix}".rstrip(".") for name in "ab")
    sd.save(transform(sd.load(source)), whole)
    sd.convert_file(source, target, transform)
    assert_same(sd.load(target), sd.load(whole), "converted")
    assert sd.equal(sd.load(target), tree)


def test_a_stream_keeps_what_was_written_to_mapped_tensors(tmp_path):
    """Their pages are the user's, and are not given back to be read anew."""
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    sd.save({f"w{i}": torch.ones(4096) for i in range(3)}, source)
    tree = sd.load(source, mmap=True)
    for t in tree.values():
        t.add_(1)
    for transform in (sd.cast(dtype=torch.half), sd.map(lambda t: t + 1)):
        sd.save(transform.stream(tree), target)
        assert sd.equal(sd.load(target), transform(tree))
        assert all((t == 2).all() for t in tree.values())


def test_a_stream_that_has_begun_is_refused(tmp_path):
    stream = sd.copy().stream({"a": 1, "b": 2})
    next(stream)
    with pytest.raises(ValueError, match="has begun"):
        sd.save(stream, tmp_path / "a.pt")
    assert next(stream) == (("b",), 2)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def shard():
    """Return a DTensor of which this rank, of four, has a part."""
    with fake(4):
        mesh = init_device_mesh("cpu", (4,))
        yield DTensor.from_local(torch.ones(2), mesh, (Shard(0),))


def test_a_stream_of_sharded_leaves_is_refused(tmp_path, shard):
    """Before anything is written: this rank has a part of them."""
    for transform in (sd.copy(), sd.map(lambda x: x)):
        with pytest.raises(TypeError, match=r"sd\.save\(transform\(tree\), target\)"):
            sd.save(transform.stream({"w": shard}), tmp_path / "a.pt")
    assert not [*tmp_path.iterdir()]
