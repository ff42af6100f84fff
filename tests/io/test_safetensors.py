"""Safetensors files: what other readers see of them, and what they say of memory."""

import json
import os
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from grammar_files import EARLIER_FILE, forged_safetensors, split
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.io import convert_file, open_file
from sdtree.io.leaves import fetching
from sdtree.io.safetensors.dtypes import DTYPES, is_unpackable
from sdtree.io.safetensors.header import read_header
from sdtree.testing import arrays, tensors, trees, views

safetensors = pytest.importorskip("safetensors")
load_file = pytest.importorskip("safetensors.torch").load_file
save_file = pytest.importorskip("safetensors.torch").save_file

TENSORS = tensors(dtypes=[*DTYPES], meta=False).filter(lambda t: not is_unpackable(t))
ARRAYS = st.one_of(
    st.sampled_from([np.s_[::-1], np.s_[:, ::-1], np.s_[1:, ::-2], np.s_[::2]]).map(
        np.arange(12.0).reshape(3, 4).__getitem__
    ),
    arrays().filter(lambda x: type(x) is np.ndarray and x.dtype.isnative),
).filter(lambda x: x.dtype.kind in "biuf" and x.itemsize <= 8)
HELD = trees(TENSORS | ARRAYS | st.integers(), unique_names=True, max_leaves=4)
WAYS = ("saved", "converted from .pt", "converted")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors")


def written(tree, folder, way, **options):
    """Return the file that one of the ways to write a tree makes of it."""
    path = folder / "written.safetensors"
    if way == "saved":
        sd.save(tree, path, **options)
        return path
    source = folder / ("source.pt" if way.endswith(".pt") else "source.safetensors")
    try:
        sd.save(tree, source)
    except TypeError:  # .pt has no room for a storage of several dtypes
        return written(tree, folder, "converted", **options)
    convert_file(source, path, sd.identity, **options)
    return path


# -- the oracle: plain torch and Python --------------------------------------------


def named(tree):
    """Return tensors and arrays of a tree by dotted name, their bits all resolved."""
    return {
        name: x
        if isinstance(x, np.ndarray)
        else x.detach().resolve_conj().resolve_neg()
        for name, x in zip(sd.names(tree), sd.leaves(tree), strict=True)
        if isinstance(x, (torch.Tensor, np.ndarray))
    }


def dense_forms(ts):
    """Return shapes, dtypes and the bits of tensors by name, strides aside."""
    return {name: dense_form(t) for name, t in ts.items()}


def dense_form(t):
    t = torch.from_numpy(t.copy()) if isinstance(t, np.ndarray) else t
    dense = torch.empty(t.shape, dtype=t.dtype).copy_(t)
    bits = dense.reshape(-1).view(torch.uint8)
    return tuple(t.shape), t.dtype, bits.tolist()


def form(t):
    """Return address, shape, strides in bytes and dtype of a tensor or array."""
    if isinstance(t, np.ndarray):
        return t.ctypes.data, t.shape, t.strides, str(t.dtype)
    strides = tuple(step * t.itemsize for step in t.stride())
    return t.data_ptr(), tuple(t.shape), strides, str(t.dtype).removeprefix("torch.")


def aliases(tree):
    """Return the names that are exact aliases of one before them."""
    found = named(tree)
    first = {}
    for name, t in found.items():
        first.setdefault(form(t) if t.nbytes else name, name)
    return found.keys() - set(first.values())


def addresses(t):
    """Return the address of each byte of a tensor or array."""
    start, shape, strides, _ = form(t)
    places = {start} if t.nbytes else set()
    for size, step in zip(shape, strides, strict=True):
        places = {p + k * step for p in places for k in range(size)}
    return {p + k for p in places for k in range(t.itemsize)}


def touching(tree):
    """Return which pairs of names share a byte, and how far apart they begin."""
    found = named(tree)
    bytes_of = {name: addresses(t) for name, t in found.items()}
    return {
        (a, b): form(found[b])[0] - form(found[a])[0]
        for a in found
        for b in found
        if a != b and bytes_of[a] & bytes_of[b]
    }


def interleaved(tree):
    """Return which pairs of names lie in one stretch of memory, shared or not."""
    found = {name: addresses(t) for name, t in named(tree).items()}
    spans = {name: (min(at), max(at)) for name, at in found.items() if at}
    return {
        (a, b)
        for a, (start, stop) in spans.items()
        for b, (begin, end) in spans.items()
        if a != b and start <= end and begin <= stop
    }


def steps(t):
    """Return the strides that matter."""
    return [step for size, step in zip(t.shape, t.stride(), strict=True) if size > 1]


# -- other readers -----------------------------------------------------------------


@given(HELD | views(), st.sampled_from(WAYS))
def test_other_readers_see_every_leaf(folder, tree, way):
    """load_file has each name but exact aliases, with its own shape, dtype and bits."""
    path = written(tree, folder, way)
    found = {k: t for k, t in named(tree).items() if k not in aliases(tree)}
    assert dense_forms(load_file(path)) == dense_forms(found)


@given(HELD | views(), st.sampled_from(WAYS))
def test_other_readers_see_aliases_where_names_are_kept(folder, tree, way):
    """With keep_names=True load_file has each name; sd.load ties them all the same."""
    path = written(tree, folder, way, keep_names=True)
    assert dense_forms(load_file(path)) == dense_forms(named(tree))
    back, again = sd.load(path), sd.load(written(tree, folder, "saved"))
    assert sd.ties(back) == sd.ties(again)


@given(views(), st.sampled_from(WAYS), st.booleans())
def test_leaves_that_share_bytes_are_tied_again(folder, tree, way, mmap):
    """load(save(t)) = t: bits, and among those that share bytes places and strides.

    A leaf of a mapped file that has exact aliases alone is contiguous.
    """
    back = sd.load(written(tree, folder, way), mmap=mmap)
    assert sd.structure(back) == sd.structure(tree)
    assert dense_forms(named(back)) == dense_forms(named(tree))
    assert touching(back) == touching(tree)
    if mmap or way == "converted" or len({t.dtype for t in tree.values()}) > 1:
        return
    for name in {name for pair in touching(tree) for name in pair}:
        assert steps(back[name]) == steps(tree[name])


def test_chunks_of_an_interleaved_weight(tmp_path):
    qkv = torch.arange(36.0).view(4, 9)
    tree = dict(zip("qkv", qkv.chunk(3, dim=1), strict=True))
    sd.save(tree, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == {"q", "k", "v"}
    assert all(torch.equal(found[name], tree[name]) for name in tree)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5))
def test_blocks_of_columns_are_tied_if_they_share_some(folder, blocks):
    """Those between which are others, however near, come back on their own."""
    path, w = folder / "columns.safetensors", torch.arange(40.0).view(4, 10)
    tree = {str(k): w[:, a : a + n] for k, (a, n) in enumerate(blocks)}
    sd.save(tree, path)
    tied = {frozenset(path[0] for path in group) for group in sd.ties(sd.load(path))}
    columns = {str(k): {*range(a, a + n)} for k, (a, n) in enumerate(blocks)}
    assert tied == {group for group in joined(columns) if len(group) > 1}


def joined(sets):
    """Return the keys of sets, with those of which sets have something in common."""
    groups = []
    for key, found in sets.items():
        near = [group for group in groups if any(sets[k] & found for k in group)]
        groups = [group for group in groups if group not in near]
        groups.append(frozenset({key}.union(*near)))
    return {*groups}


def test_an_alias_is_written_once(tmp_path):
    w = torch.arange(1000.0)
    sd.save({"a": w, "b": w.view(1000)}, tmp_path / "a.safetensors")
    sd.save({"a": w, "b": w}, tmp_path / "b.safetensors", keep_names=True)
    assert (tmp_path / "a.safetensors").stat().st_size < 5_000
    assert (tmp_path / "b.safetensors").stat().st_size > 8_000
    assert list(load_file(tmp_path / "a.safetensors")) == ["a"]
    assert sorted(load_file(tmp_path / "b.safetensors")) == ["a", "b"]


# -- what changes meanwhile --------------------------------------------------------


def resaved(path, **changes):
    """Write the entries of a file again with some changed, as other software would."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changes, path, metadata=metadata)


@given(views(), st.data(), st.booleans())
def test_what_other_software_changed_is_what_is_loaded(folder, tree, data, mmap):
    """Bytes that do not agree any more are not tied: each leaf has what its entry has.

    What is left of a tie is told by a note.
    """
    path = folder / "changed.safetensors"
    sd.save(tree, path, keep_names=True)
    name = data.draw(st.sampled_from([*tree]))
    new = torch.empty(tree[name].shape, dtype=tree[name].dtype).copy_(tree[name])
    flat = new.view(-1).view(torch.uint8)
    if not len(flat):
        return
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= 255
    resaved(path, **{name: new})
    back = sd.load(path, mmap=mmap)
    assert dense_forms(back) == dense_forms(tree | {name: new})
    assert touching(back).items() <= touching(tree).items()
    if touching(back) != touching(tree):
        assert name in open_file(path).notes[0]


def test_other_software_may_cast_what_is_tied(tmp_path):
    path, w = tmp_path / "a.safetensors", torch.arange(12.0)
    sd.save({"w": w, "row": w[4:], "last": w[8:]}, path)
    resaved(path, row=w[4:].half(), last=w[8:].view(2, 2))
    back = sd.load(path)
    assert sd.equal(back, {"w": w, "row": w[4:].half(), "last": w[8:].view(2, 2)})
    assert sd.ties(back) == []


@pytest.mark.parametrize("shape", [(3, 4), (12,), (3, 2, 2)])
@pytest.mark.parametrize("stride", [(0, 1), (1, 0), (0, 0), (1, 1), (2, 1), (1, 3)])
def test_other_software_may_change_one_of_elements_that_were_one(
    tmp_path, stride, shape
):
    """A leaf that is alone in its storage is given no strides that would merge them.

    Nor those of another shape.
    """
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    sd.save({"w": torch.ones(12).as_strided((3, 4), stride)}, path)
    changed = {"w": torch.arange(12.0).view(shape)}
    resaved(path, **changed)
    convert_file(path, target, sd.copy())
    for back in (sd.load(path), sd.load(path, mmap=True), sd.load(target)):
        assert sd.equal(back, changed)
    notes = open_file(path).notes
    assert [note[:18] for note in notes] == ["no longer the same"] * (
        stride != (1, 3) or shape != (3, 4)
    )


@pytest.mark.parametrize("t", [torch.ones(2, 3).t(), torch.ones(2, 3)[:, :2]])
def test_a_leaf_that_is_alone_stays_where_the_file_has_it(tmp_path, t):
    """It is mapped as it is, whatever strides it had, which it gets when it is read."""
    path = tmp_path / "a.safetensors"
    sd.save({"t": t}, path)
    opened = open_file(path)
    assert opened.tree["t"].is_contiguous()
    assert opened.loaded(opened.tree)["t"].stride() == sd.copy(t).stride()


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_cut_meanwhile_is_refused(tmp_path, monkeypatch, mmap):
    path = tmp_path / "a.safetensors"
    sd.save({"w": torch.ones(1000)}, path)

    def read_header_slowly(file):
        header = read_header(file)
        os.truncate(path, 1000)
        return header

    name = "sdtree.io.safetensors.file.read_header"
    monkeypatch.setattr(name, read_header_slowly)
    with pytest.raises(sd.errors.FileError, match=r"a\.safetensors: it (has|ends)"):
        sd.load(path, mmap=mmap)


# -- of earlier --------------------------------------------------------------------


def earlier_tree():
    """Return what ``earlier.safetensors`` was written from."""
    base = torch.arange(24.0)
    square, line = base.view(4, 6), torch.arange(9.0)
    conv = torch.arange(16.0).view(1, 2, 2, 4)
    chunks = torch.arange(36).view(4, 9).chunk(3, dim=1)
    return {
        "module": OrderedDict(weight=square, turned=square.t(), row=square[1]),
        "crossing": [line[:6], line[3:], line[3:]],
        "chunks": dict(zip("qkv", chunks, strict=True)),
        "wide": torch.ones(1).expand(3, 4),
        "conv": conv.to(memory_format=torch.channels_last),
        "bytes": base.view(torch.int32)[3:5],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "step": 3,
        0: (float("nan"), b"x"),
    }


@pytest.mark.parametrize("mmap", [False, True])
def test_files_of_earlier_are_read(mmap):
    """They have an entry for several leaves, and come back with all of their ties."""
    tree, path = earlier_tree(), EARLIER_FILE
    back = sd.load(path, mmap=mmap)
    assert sd.structure(back) == sd.structure(tree)
    assert not sd.diff(back, tree)
    assert touching(back) == touching(tree)
    for name, t in {} if mmap else named(tree).items():
        assert form(named(back)[name])[2] == form(t)[2]


def tensor(name, dtype, shape, place):
    """Return a header of one tensor, whose file has four bytes of data."""
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": place}})


# -- headers -----------------------------------------------------------------------


def entries_by_us(path):
    with path.open("rb") as file:
        header = read_header(file)
        data = file.read()
    return {
        name: (entry.dtype, entry.shape, data[entry.start : entry.stop])
        for name, entry in header.entries.items()
    }


def entries_by_library(path):
    return {
        name: (found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for name, found in safetensors.deserialize(path.read_bytes())
    }


@settings(max_examples=300)
@given(forged_safetensors())
def test_headers_are_taken_as_the_library_takes_them(folder, content):
    """What it refuses we refuse, and what it takes is the same; but no name twice."""
    path = folder / "forged.safetensors"
    path.write_bytes(content)
    try:
        theirs = entries_by_library(path)
    except safetensors.SafetensorError:
        theirs = None
    try:
        ours, told = entries_by_us(path), ""
    except sd.errors.FileError as error:
        ours, told = None, str(error)
    assert ours == theirs or "stands twice" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 3}', "'a': it tells no dtype, shape"),
        (
            '{"a": {"dtype": "U8", "shape": [4]}}',
            "'a': it tells no dtype, shape and data_off",
        ),
        (tensor("a", "U8", [4], 0), "'a': a list was expected, not 0"),
        (tensor("a", "U8", [-4], [0, 4]), "'a': -4 is no size"),
        (tensor("a", "U8", [4.0], [0, 4]), "'a': a int was expected, not 4.0"),
        (tensor("a", "I4", [4], [0, 2]), "'a': 'I4' is no dtype of the format"),
        (tensor("a", "U8", [5], [0, 4]), "'a': U8 of shape (5,) does not take the 4"),
        (tensor("a", "F4", [3], [0, 2]), "'a': F4 of shape (3,) does not take the 2"),
        (tensor("a", "F4", [4, 8, 9], [0, 16]), "'a': F4 of shape (4, 8, 9) does not"),
        (tensor("a", "U8", [3], [1, 4]), "'a': its bytes begin at 1 and those before"),
        (tensor("a", "U8", [2], [0, 2]), "its tensors take 2 bytes, and it has 4"),
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('{"__metadata__": {"a": 1}}', "holds something else than texts"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
        ('{"a": NaN}', "JSON has no NaN"),
        ("{" * 99_999, "Expecting property name"),
        ('{"a": ' * 99_999, "nested deeper than Python reads"),
    ],
)
def test_what_is_wrong_with_a_header_is_told(tmp_path, text, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(4))
    for mmap in (False, True):
        with pytest.raises(sd.errors.FileError) as caught:
            sd.load(path, mmap=mmap)
        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F6_E2M3", [16]), ("F6_E3M2", [4, 4]), ("F4", [8, 3])]
)
def test_what_torch_cannot_hold_is_named(tmp_path, dtype, shape):
    """Such a leaf is shown, and left out or refused by name, as foreign ones are."""
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 12]}}
    header |= {"b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    for tree in (sd.load(path), sd.load(path, mmap=True), open_file(path).tree):
        assert (tree["a"].name, tree["a"].args) == (
            f"safetensors.{dtype}",
            (tuple(shape),),
        )
        assert tree["b"] == 0
        assert f"safetensors.{dtype}" in str(sd.show(tree))
    with pytest.raises(TypeError, match=rf"a: .*safetensors\.{dtype}"):
        convert_file(path, target, sd.identity)
    convert_file(path, target, sd.drop(sd.io.Foreign))
    assert sd.equal(sd.load(target), {"b": torch.zeros(1)})


def test_what_torch_cannot_hold_may_stand_in_a_file_of_ours(tmp_path):
    """Where other software has made other numbers of a leaf."""
    path = tmp_path / "a.safetensors"
    sd.save({"a": torch.zeros(3, dtype=torch.uint8), "b": torch.ones(1)}, path)
    header, data = split(path.read_bytes())
    header["a"] |= {"dtype": "F6_E2M3", "shape": [4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    for tree in (sd.load(path), sd.load(path, mmap=True)):
        assert (tree["a"].name, tree["b"]) == ("safetensors.F6_E2M3", 1)


def test_a_mapped_file_is_not_kept_open(tmp_path):
    tree, folder = {"w": torch.ones(3)}, Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("the system does not tell which files are open")
    for suffix in ("pt", "safetensors"):
        sd.save(tree, tmp_path / f"a.{suffix}")
        before = len([*folder.iterdir()])
        held = [sd.load(tmp_path / f"a.{suffix}", mmap=True) for _ in range(5)]
        assert len([*folder.iterdir()]) == before
        assert sd.equal(held[0], tree)


def test_a_claim_of_long_names_costs_nothing(tmp_path):
    """Plain values have no entry in a file, and no name is made for them."""
    path, count = tmp_path / "a.safetensors", 5_000
    sd.save({"w": [0] * count, "x": torch.ones(1)}, path)
    with safetensors.safe_open(path, "pt") as file:
        text = file.metadata()["sdtree"].replace('"w"', f'"{"w" * 200_000}"')
    save_file(load_file(path), path, metadata={"sdtree": text})
    tracemalloc.start()
    assert len(sd.leaves(sd.load(path))) == count + 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


# -- what tensors are beside -------------------------------------------------------


def test_attributes_of_tensors_come_back(tmp_path):
    w = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    w.shard, w.note = 3, "kept"
    sd.save({"w": w}, tmp_path / "a.safetensors")
    back = sd.load(tmp_path / "a.safetensors")["w"]
    assert vars(back) == {"shard": 3, "note": "kept"}
    assert not back.requires_grad
    w.hook = print
    with pytest.raises(TypeError, match=r"m\.w\.hook: JSON cannot say"):
        sd.save({"m": {"w": w}}, tmp_path / "a.safetensors")


def test_an_array_that_is_only_read_comes_back_as_such(tmp_path):
    tree = {"fixed": np.arange(3.0), "free": np.arange(3.0)}
    tree["fixed"].flags.writeable = False
    sd.save(tree, tmp_path / "a.safetensors")
    back = sd.load(tmp_path / "a.safetensors")
    assert [back[key].flags.writeable for key in tree] == [False, True]


def test_a_leaf_that_is_had_whole_is_read_ahead_from_its_beginning(
    tmp_path, monkeypatch
):
    """All of it, and no byte beside it."""
    tree = {"w": torch.ones(3, 4, 5), "b": torch.ones(7), "step": 3}
    sd.save(tree, tmp_path / "a.safetensors")
    asked, fetch = [], fetching.fetch

    def noted(pages, begin, region, *form):
        asked.append(region)
        fetch(pages, begin, region, *form)

    monkeypatch.setattr(fetching, "fetch", noted)
    assert sd.equal(sd.load(tmp_path / "a.safetensors", like=tree), tree)
    assert {*asked} == {((0, 0, 0), (3, 4, 5)), ((0,), (7,))}
