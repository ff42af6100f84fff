"""Directories of torch.distributed.checkpoint: read, written, damaged; none is run."""

import io
import json
import os
import pathlib
import pickle
import sys
import warnings
from dataclasses import replace
from itertools import pairwise, product
from pickle import UnpicklingError
from zipfile import ZipFile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from test_files import assert_back, plain_containers, saved, strides
from torch.distributed.checkpoint import metadata as classes
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import (
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

import sdtree as sd
from sdtree.errors import FileError, UnknownContainer
from sdtree.io import convert_file, open_file
from sdtree.io.dcp.files import Files
from sdtree.io.dcp.nesting import nested
from sdtree.io.dcp.plain_pickle import plain
from sdtree.io.dcp.saved import Place, read_saved
from sdtree.io.dcp.writing import Written, _flattened
from sdtree.tensors.counting import UNHEARD
from sdtree.testing import DTYPES, dense, plain_values, snapshot, tensors, trees, views

W = torch.arange(12.0).view(3, 4)


few = settings(max_examples=50)
"""A directory is several files, each of which is written to the disk."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("dcp")


@pytest.fixture(autouse=True)
def quiet():
    """torch warns of every save and load without ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def emptied(folder):
    """Return a folder that is there and has nothing in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def as_torch_loads(folder):
    """Return what torch makes of a directory, name by name, and how it nests that."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, classes.TensorStorageMetadata)
        else None
        for name, entry in metadata.state_dict_metadata.items()
    }
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False)
    dcp.load(state, checkpoint_id=folder, planner=planner, no_dist=True)
    found = {name: planner.state_dict[name] for name in metadata.state_dict_metadata}
    return unflatten_state_dict(found, metadata.planner_data)


# -- there and back ----------------------------------------------------------------


@few
@given(trees())
def test_what_is_saved_comes_back(root, tree):
    """load(save(t)) = t: structure, bits, kinds, ties; or save refuses and leaves t."""
    path, before = root / "any", snapshot(tree)
    if saved(tree, path):
        resolved = (sd.copy() | sd.gather())(tree)
        assert_back(sd.load(path), resolved)
        assert_back(sd.load(path, mmap=True), resolved)
        assert sd.structure(open_file(path).tree) == sd.structure(tree)
        emptied(path).rmdir()
    assert snapshot(tree) == before


HELD = [t for t in DTYPES if not t.is_complex or t is torch.complex64]
LEAVES = tensors(dtypes=HELD, meta=False) | plain_values()


def named_apart(strategy):
    """Draw trees of which no two leaves have one name."""

    def are_apart(tree):
        names = [".".join(map(str, path)) for path in sd.paths(tree)]
        return len({*names}) == len(names)

    return strategy.filter(are_apart)


@few
@given(named_apart(st.recursive(LEAVES, plain_containers, max_leaves=6)))
def test_dcp_holds_every_tree_of_its_kinds(root, tree):
    path = root / "held"
    sd.save(tree, path, metadata={"by": "us"})
    assert_back(sd.load(path), sd.copy()(tree))
    assert sd.metadata(path) == {"by": "us"}
    assert {p.name for p in path.iterdir()} == {".metadata", ".sdtree", "__0_0.distcp"}


@few
@given(views())
def test_views_come_back_in_their_places(root, tree):
    sd.save(tree, root / "views")
    assert_back(sd.load(root / "views"), tree)


TREES = trees(LEAVES, unique_names=True)
STEPS = [
    sd.identity,
    sd.cast(dtype=torch.bfloat16),
    sd.prefix("a"),
    sd.drop("a.**", missing_ok=True),
    sd.map(lambda x: x),
]


@few
@given(TREES, st.sampled_from(STEPS), st.permutations(["pt", "safetensors", ""]))
def test_converting_is_transforming(root, tree, transform, suffixes):
    """convert(a, b, f) = save(f(load(a)), b), one of which is a directory."""
    source, target = (
        root / f"convert-{name}{suffix and '.'}{suffix}"
        for name, suffix in zip("ab", suffixes, strict=False)
    )
    if not saved(tree, source):
        return
    result = transform(sd.load(source))
    try:
        convert_file(source, target, transform)
    except (TypeError, sd.errors.NameCollision):
        with pytest.raises((TypeError, sd.errors.NameCollision)):
            sd.save(result, target)
        return
    assert_back(sd.load(target), result)


def test_strides_come_back(tmp_path):
    conv = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tree = {
        "conv": conv,
        "alias": conv,
        "by columns": W.t(),
        "parameter": torch.nn.Parameter(torch.ones(3, 2).t()),
        "expanded": torch.arange(3.0).expand(4, 3),
        "step": 3,
    }
    sd.save(tree, tmp_path / "a")
    assert strides(sd.load(tmp_path / "a")) == strides(tree)
    convert_file(tmp_path / "a", tmp_path / "b.safetensors", sd.identity)
    assert strides(sd.load(tmp_path / "b.safetensors")) == strides(tree)


@pytest.mark.parametrize("values", [[1, 2], (1, 2)])
def test_a_dotted_key_may_read_as_a_place_in_a_list(tmp_path, values):
    """A value goes to the entry of its path, not to one that is called so."""
    tree = {"a": {"b": values}, "a.b": {"0": [5, 6]}, "w": W}
    sd.save(tree, tmp_path / "a")
    assert sd.equal(sd.load(tmp_path / "a"), tree)
    sd.save(tree, tmp_path / "a.pt")
    convert_file(tmp_path / "a.pt", tmp_path / "b", sd.identity)
    assert sd.equal(sd.load(tmp_path / "b"), tree)
    with pytest.raises(sd.errors.NameCollision, match="for two entries, "):
        sd.save({"a": {"b": [{}, 1]}, "a.b": {"1": [2]}}, tmp_path / "c")


def test_a_tree_may_be_as_deep_as_dcp_goes(tmp_path):
    """That is as deep as Python recurses."""
    deep = {"w": W}
    for _ in range(400):
        deep = {"d": deep}
    sd.save(deep, tmp_path / "a")
    assert sd.equal(sd.load(tmp_path / "a"), deep)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(350)
    try:
        with pytest.raises(TypeError, match="nested deeper than DCP goes"):
            _flattened(deep)
    finally:
        sys.setrecursionlimit(limit)


def test_an_exact_alias_is_written_once(tmp_path):
    """And DCP finds it under each of its names."""
    w = torch.zeros(1000)
    sd.save({"w": w, "tied": {"w": w}, "row": w[:10]}, tmp_path / "a")
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 12_000
    state = as_torch_loads(tmp_path / "a")
    assert sd.equal(state, {"w": w, "row": w[:10], "tied": {"w": w}})
    assert sd.ties(sd.load(tmp_path / "a")) == [[("w",), ("tied", "w"), ("row",)]]


def test_what_is_written_is_looked_at_once_however_many_aliases_there_are(
    tmp_path, monkeypatch
):
    looks = []

    class Counted(classes.MetadataIndex):
        def __getattribute__(self, name):
            looks.extend([name] * (name == "fqn"))
            return super().__getattribute__(name)

        def __reduce__(self):
            return classes.MetadataIndex, (self.fqn, self.offset)

    def finish(self, every, results, metadata):
        results = [
            [replace(x, index=Counted(x.index.fqn, x.index.offset)) for x in rank]
            for rank in results
        ]
        looks.clear()
        written(self, every, results, metadata)

    written = Written.finish
    monkeypatch.setattr(Written, "finish", finish)
    counts = []
    for n in (10, 100):
        once = {f"w{i}": torch.ones(1) for i in range(n)}
        sd.save({"once": once, "again": once}, tmp_path / str(n))
        counts.append(len(looks))
    assert counts[1] <= 10 * counts[0]


# -- torch and we ------------------------------------------------------------------


def dicts_of(children):
    return st.dictionaries(st.text("ab", min_size=1, max_size=2), children, max_size=3)


def nested_as_dcp(children):
    lists = st.lists(children, max_size=3)
    return st.one_of(dicts_of(children), lists, lists.map(tuple))


DENSE = st.builds(
    dense,
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(HELD),
    st.integers(0, 9),
)
VALUES = st.none() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False)


def unresolved(t):
    """Return a tensor whose data is not its bytes, if there is such of its dtype."""
    if t.is_complex():
        return t.conj()
    return torch._neg_view(t) if t.dtype is torch.float32 else t


STORED = DENSE | DENSE.map(unresolved) | VALUES
DCP_TREES = dicts_of(st.recursive(STORED, nested_as_dcp, max_leaves=6))


@few
@given(DCP_TREES)
def test_what_dcp_writes_is_loaded_as_torch_does(root, tree):
    """load(dcp.save(t)) is what torch rebuilds of it."""
    path = emptied(root / "theirs")
    dcp.save(tree, checkpoint_id=path, no_dist=True)
    wanted = as_torch_loads(path)
    assert_back(sd.load(path), wanted)
    assert_back(sd.load(path, mmap=True), wanted)


@few
@given(DCP_TREES)
def test_dcp_loads_what_we_write(root, tree):
    """dcp.load(save(t)) = t, as of what dcp.save writes."""
    ours, theirs = root / "ours", emptied(root / "also theirs")
    sd.save(tree, ours)
    dcp.save(tree, checkpoint_id=theirs, no_dist=True)
    assert sd.equal(as_torch_loads(ours), as_torch_loads(theirs))
    wanted, state = sd.copy(tree), sd.copy(tree)
    for leaf in sd.leaves([wanted, state]):
        if isinstance(leaf, torch.Tensor):
            leaf.zero_()
    try:
        dcp.load(wanted, checkpoint_id=theirs, no_dist=True)
    except dcp.api.CheckpointException:  # torch takes some directories for older ones
        reject()
    dcp.load(state, checkpoint_id=ours, no_dist=True)
    assert sd.equal(state, wanted)


# -- chunks ------------------------------------------------------------------------


class Blocks:
    """A tensor that dcp.save writes in blocks, as ranks would."""

    def __init__(self, t, regions):
        self.t, self.regions = t, regions

    def __create_write_items__(self, name, _):
        properties = classes.TensorProperties(dtype=self.t.dtype)
        return [
            WriteItem(
                classes.MetadataIndex(name, offset),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    classes.ChunkStorageMetadata(torch.Size(offset), torch.Size(size)),
                    properties,
                    self.t.size(),
                ),
            )
            for offset, size in self.regions
        ]

    def __get_tensor_shard__(self, index):
        size = dict(self.regions)[tuple(index.offset)]
        return cut(self.t, index.offset, size)


class Planner(dcp.DefaultSavePlanner):
    """Has Blocks written that are no tensors themselves."""

    def lookup_object(self, index):
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


def cut(t, offset, size):
    for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
        t = t.narrow(dim, start, length)
    return t


@st.composite
def blocks(draw):
    """Return a tensor and the regions of a grid that cuts it."""
    shape = draw(st.lists(st.integers(1, 5), max_size=3).map(tuple))
    t = dense(shape, draw(st.sampled_from(HELD)), draw(st.integers(0, 9)))
    if draw(st.booleans()) and t.dim() > 1:
        t = t.transpose(0, 1).contiguous().transpose(0, 1)
    sides = []
    for n in shape:
        marks = sorted({0, n, *draw(st.sets(st.integers(0, n), max_size=2))})
        sides.append([(a, b - a) for a, b in pairwise(marks)])
    return t, [
        (tuple(a for a, _ in cell), tuple(n for _, n in cell))
        for cell in product(*sides)
    ]


@few
@given(st.lists(blocks(), min_size=1, max_size=3), st.data())
def test_chunks_are_put_together(root, found, data):
    """And of what a select keeps the chunks alone are read."""
    path = emptied(root / "chunks")
    tree = {f"w{k}": t for k, (t, _) in enumerate(found)}
    state = {f"w{k}": Blocks(*each) for k, each in enumerate(found)}
    dcp.save(state, checkpoint_id=path, planner=Planner(), no_dist=True)
    assert sd.equal(sd.load(path), tree)
    assert sd.equal(sd.load(path, mmap=True), tree)
    assert sd.equal(sd.load(path, like=tree), tree)
    name = data.draw(st.sampled_from([*tree]))
    convert_file(path, root / "one.safetensors", sd.select(name))
    assert sd.equal(sd.load(root / "one.safetensors"), {name: tree[name]})


def test_a_look_reads_no_tensor(tmp_path, monkeypatch):
    """show and diff read the metadata and what is no tensor."""
    sd.save({"w": W, "step": 3}, tmp_path / "a")
    monkeypatch.setattr(Files, "tensor", None)
    opened = open_file(tmp_path / "a")
    assert str(sd.show(opened.tree)).count("(3, 4)") == 1
    assert opened.tree["step"] == 3
    assert not sd.diff(opened.tree, {"w": W, "step": 3}, values=False)
    assert opened.format == "dcp"
    assert opened.nbytes == sum(p.stat().st_size for p in (tmp_path / "a").iterdir())


def test_what_is_not_read_is_not_called_equal(tmp_path):
    sd.save({"w": W}, tmp_path / "a")
    tree = open_file(tmp_path / "a").tree
    with pytest.raises(TypeError, match=r"w: .*no data"):
        sd.save(tree, tmp_path / "b.pt")


# -- nothing is run ----------------------------------------------------------------


class Evil:
    """What makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_metadata_runs_nothing(tmp_path):
    sd.save({"w": W}, tmp_path / "a")
    path = tmp_path / "a" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Evil(tmp_path / "made")
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(FileError, match=r"mkdir, which is no class of DCP") as raised:
        sd.load(tmp_path / "a")
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_values_run_nothing(tmp_path):
    state = {"evil": Evil(tmp_path / "made"), "w": W}
    dcp.save(state, checkpoint_id=tmp_path / "a", no_dist=True)
    found = sd.load(tmp_path / "a")
    assert found["evil"].name.endswith("mkdir")
    assert sd.equal(found["w"], W)
    assert not (tmp_path / "made").exists()


# -- damaged -----------------------------------------------------------------------


def one_line(path):
    """Raise unless a directory opens, or ends in one line that names it."""
    told = str(path)
    try:
        sd.load(path)
    except (FileError, UnknownContainer) as error:
        told = str(error)
    assert told.startswith(str(path))
    assert "\n" not in told
    assert len(told) < 1000
    return told.removeprefix(str(path))


TREE = {"w": W, "l": [torch.ones(2), 3, (1, "a")], "alias": W, 5: {"b": None, "c": {}}}


@settings(max_examples=80)
@given(
    st.sampled_from([".metadata", "__0_0.distcp", ".sdtree"]),
    st.integers(0, 10_000),
    st.sampled_from(["cut", "flip", "gone", "junk"]),
    st.integers(0, 255),
)
def test_a_damaged_directory_ends_in_one_line(root, file, place, how, byte):
    path = emptied(root / "damaged")
    sd.save(TREE, path)
    data = (path / file).read_bytes()
    at = place % len(data)
    if how == "gone":
        (path / file).unlink()
    elif how == "junk":
        (path / file).write_bytes(bytes([byte]) * at)
    elif how == "cut":
        (path / file).write_bytes(data[:at])
    else:
        (path / file).write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
    told = one_line(path)
    if how == "cut" or (how == "gone" and file != ".sdtree"):
        assert told


JUNK = (None, -1, "{}", [[]], {"0": 5}, [["w", 1]])


def of_junk(document):
    """Yield a document of which a part is something else, or is not there."""
    for name in document:
        yield {key: x for key, x in document.items() if key != name}
        yield from (document | {name: junk} for junk in JUNK)


def test_a_document_of_junk_ends_in_one_line(root):
    path = emptied(root / "junk")
    sd.save(TREE, path)
    document = json.loads((path / ".sdtree").read_text())
    inner = of_junk(json.loads(document["tensors"]))
    inner = ({**document, "tensors": json.dumps(x)} for x in inner)
    for each in (*of_junk(document), *inner):
        (path / ".sdtree").write_text(json.dumps(each))
        one_line(path)


@pytest.mark.parametrize("junk", [b".", b"0", b"R", b"t", b"s", b"K"])
def test_the_tensor_is_named_whose_pickle_is_junk(tmp_path, junk):
    """An operation that finds nothing to work on, and one that is cut off."""
    sd.save({"w": W}, tmp_path / "a")
    file = tmp_path / "a" / "__0_0.distcp"
    file.write_bytes(file.read_bytes().replace(b"\x80\2c", b"\x80\2" + junk, 1))
    assert one_line(tmp_path / "a").startswith(": 'w': ")


def test_what_lies_dense_in_its_file_is_not_read_as_an_item(tmp_path, monkeypatch):
    """It is where its bytes are: only those that are asked for are read."""
    sd.save({"w": W, "row": W[0]}, tmp_path / "a")
    monkeypatch.setattr("sdtree.io.dcp.files.read_item", None)
    for mmap in (False, True):
        assert sd.equal(sd.load(tmp_path / "a", mmap=mmap), {"w": W, "row": W[0]})


def rewritten(path, change):
    """Change the metadata of a directory."""
    found = pickle.loads((path / ".metadata").read_bytes())
    change(found)
    (path / ".metadata").write_bytes(pickle.dumps(found))


def of_another_version(metadata):
    metadata.version = "2.0"


def outside(metadata):
    for where in metadata.storage_data.values():
        where.relative_path = "../other"


def without_place(metadata):
    metadata.storage_data.clear()


def overlapping(metadata):
    chunks = metadata.state_dict_metadata["w"].chunks
    chunks.append(classes.ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([2, 4])))
    index = classes.MetadataIndex("w", [1, 0])
    metadata.storage_data[index] = next(iter(metadata.storage_data.values()))


def too_large(metadata):
    metadata.state_dict_metadata["w"].size = torch.Size([3000, 4000])
    metadata.state_dict_metadata["w"].chunks[0].sizes = torch.Size([3000, 4000])


def of_another_dtype(metadata):
    metadata.state_dict_metadata["w"].properties.dtype = torch.int32


def in_a_list(metadata):
    metadata.planner_data["w"] = ("w", 10**12)


def in_a_leaf(metadata):
    metadata.planner_data["v"] = ("w", "v")


def in_the_place_of_another(metadata):
    metadata.planner_data["v"] = ("w",)


def in_lists_of_gaps(metadata):
    for k, name in enumerate("wv"):
        metadata.planner_data[name] = ("l", k, *[90_000] * 9)


def too_deep(metadata):
    metadata.planner_data["w"] = ("w", *[0] * 5000)


def of_no_extent(metadata):
    metadata.state_dict_metadata["w"].size = torch.Size([2**62, 2**62, 0])


def junk(metadata):
    metadata.state_dict_metadata = {"w": "junk"}


FAULTS = {
    of_another_version: "version '2.0' and this sdtree reads 1",
    outside: "outside of its directory: '../other'",
    without_place: "does not tell where its data lies",
    overlapping: "boxes overlap",
    too_large: "48,000,000 bytes in",
    of_another_dtype: "a tensor of torch.float32",
    in_a_list: "more gaps",
    in_a_leaf: "stands in what is another leaf",
    in_the_place_of_another: "stands where another does",
    in_lists_of_gaps: "more gaps",
    too_deep: "stands at ('w', 0",
    of_no_extent: "which no tensor has",
    junk: "is a str",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_metadata_that_lies_is_refused(tmp_path, fault):
    dcp.save({"w": W, "v": W}, checkpoint_id=tmp_path / "a", no_dist=True)
    rewritten(tmp_path / "a", fault)
    assert FAULTS[fault] in one_line(tmp_path / "a")


@pytest.mark.parametrize("first", [0, None, {}, []])
def test_a_leaf_is_no_container_and_no_place_for_another(first):
    """Whatever it is: a name leads to a leaf, and no other goes through it."""
    for others in (("a",), ("a", "b"), ("a", 0), ("a", 0, "b")):
        with pytest.raises(FileError, match="'y' stands "):
            nested({"x": first, "y": 1}, {"x": ("a",), "y": others})


def test_what_is_copied_at_once_has_no_memory_of_its_own_before(tmp_path, monkeypatch):
    """Only what is returned as it was read has some, unless it is to be mapped."""
    tree = {"w": W, "b": W[0].clone()}
    sd.save(tree, tmp_path / "a")
    asked, tensor = [], Files.tensor

    def noted(self, *which, own):
        asked.append(own)
        return tensor(self, *which, own=own)

    monkeypatch.setattr(Files, "tensor", noted)
    for options, own in (({}, True), ({"mmap": True}, False), ({"like": tree}, False)):
        asked.clear()
        assert sd.equal(sd.load(tmp_path / "a", **options), tree)
        assert asked == [own] * 2


def test_what_is_missing_or_cut_is_told_without_a_read(tmp_path):
    sd.save({"w": W}, tmp_path / "a")
    file = tmp_path / "a" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileError, match=r"__0_0.distcp has [\d,]+ bytes of"):
        open_file(tmp_path / "a")
    file.unlink()
    with pytest.raises(FileError, match=r"__0_0\.distcp missing"):
        open_file(tmp_path / "a")


def test_what_is_missing_is_told_before_the_first_that_is_cut(tmp_path):
    """As many bytes are to be there as the item that ends last says."""
    for name in "ab":
        (tmp_path / name).write_bytes(b"123")
    sizes = zip("bacad", (2, 4, 9, 3, 1), strict=True)
    places = [Place(name, 2, size) for name, size in sizes]
    with pytest.raises(FileError, match=r"^c, d missing; a has 3 bytes of 6$"):
        Files.of(tmp_path, places, UNHEARD)
    whole = Files.of(tmp_path, [Place("a", 0, 3), Place("b", 2, 1)], UNHEARD)
    assert whole.opened(Place("b", 1, 2)).read() == b"23"


def test_an_item_has_the_bytes_that_it_claims(tmp_path):
    """Else those behind it would be taken for its own."""
    dcp.save({"w": torch.zeros(9)}, checkpoint_id=tmp_path / "a", no_dist=True)
    item, path = io.BytesIO(), tmp_path / "a" / "__0_0.distcp"
    torch.save(torch.zeros(9), item)

    def put_alone(metadata):
        for where in metadata.storage_data.values():
            where.offset, where.length = 0, path.stat().st_size

    for size in (36, 35, 32, 13):
        with ZipFile(item) as old, ZipFile(path, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, data[:size] if "/data/" in name else data)
        rewritten(tmp_path / "a", put_alone)
        if size == 36:
            assert sd.equal(sd.load(tmp_path / "a"), {"w": torch.zeros(9)})
        else:
            assert f"9 elements in {size} bytes" in one_line(tmp_path / "a")


def test_what_another_save_left_is_put_aside(tmp_path):
    """Our structure is that of one save, which dcp.save may have written over."""
    sd.save({"w": {0: W}}, tmp_path / "a")
    dcp.save({"v": W}, checkpoint_id=tmp_path / "a", no_dist=True)
    assert sd.equal(sd.load(tmp_path / "a"), {"v": W})
    [note] = open_file(tmp_path / "a").notes
    assert note == ".sdtree is of an earlier save there, and was left aside"


def test_metadata_of_each_rank_is_refused(tmp_path):
    dcp.save({"w": W}, checkpoint_id=tmp_path / "a", no_dist=True)
    (tmp_path / "a" / ".metadata").rename(tmp_path / "a" / "__0.metadata")
    with pytest.raises(FileError, match="each rank has metadata of its own"):
        sd.load(tmp_path / "a")


def test_a_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    sd.save({"w": W}, tmp_path / "a")
    (tmp_path / "a" / "__0_0.distcp").unlink()
    os.mkfifo(tmp_path / "a" / "__0_0.distcp")
    with pytest.raises(FileError, match=r"__0_0\.distcp missing"):
        sd.load(tmp_path / "a")


@pytest.mark.parametrize("by", ["stream.zstd", "stream.unheard-of", "nonsense"])
def test_what_is_compressed_is_read_or_refused_by_name(tmp_path, by):
    """By torch's own extensions, where it can undo them."""
    dcp.save({"w": W, "l": (1,)}, checkpoint_id=tmp_path / "a", no_dist=True)

    def compressed(metadata):
        for where in metadata.storage_data.values():
            where.transform_descriptors = [by]

    rewritten(tmp_path / "a", compressed)
    assert f"it was transformed by {by}, which is not undone" in one_line(
        tmp_path / "a"
    )


def test_what_torch_has_compressed_is_read(tmp_path):
    pytest.importorskip("zstandard", reason="torch compresses with zstandard alone")
    from torch.distributed.checkpoint._extension import ZStandard

    tree = {"w": W, "l": [torch.ones(3), 3], "z": torch.complex(W, W).conj()}
    writer = dcp.FileSystemWriter(tmp_path / "a", _extensions=[ZStandard()])
    dcp.save(tree, storage_writer=writer, no_dist=True)
    assert sd.equal(sd.load(tmp_path / "a"), tree)
    assert sd.equal(sd.load(tmp_path / "a", mmap=True), tree)


# -- metadata as a pickle ----------------------------------------------------------

FAR = st.integers(0, 2**62)
NAMES = st.text(max_size=4) | st.integers(250, 70_000).map("n".__mul__)


@st.composite
def shapes_and_places(draw):
    """Return metadata of torch, of tensors that are not there, and what it says."""
    found = classes.Metadata({}, {}, {})
    for name in draw(st.sets(NAMES, max_size=3)):
        size = torch.Size(draw(st.lists(st.integers(0, 300), max_size=6)))
        start, far = torch.Size([0] * len(size)), draw(FAR)
        chunk = classes.ChunkStorageMetadata(start, size)
        properties = classes.TensorProperties(draw(st.sampled_from(HELD)))
        entry = classes.TensorStorageMetadata(properties, size, [chunk])
        found.state_dict_metadata[name] = entry
        found.planner_data[name] = (name, *draw(st.lists(NAMES | FAR, max_size=5)))
        index = classes.MetadataIndex(name, start)
        where = _StorageInfo("__0_0.distcp", far, 2**62)
        found.storage_data[index] = where
    return found


@few
@given(shapes_and_places(), st.sampled_from([4, 5]))
def test_metadata_says_what_torch_has_pickled(metadata, protocol):
    found = read_saved(pickle.dumps(metadata, protocol))
    assert found.paths == metadata.planner_data
    assert {
        name: (entry.dtype, entry.shape, entry.chunks[0].place.offset)
        for name, entry in found.entries.items()
    } == {
        index.fqn: (entry.properties.dtype, entry.size, where.offset)
        for (index, where), entry in zip(
            metadata.storage_data.items(),
            metadata.state_dict_metadata.values(),
            strict=True,
        )
    }


FORGED = {
    "a place far off in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "tuples of one twice": b"\x80\x04}K\x01\x85" + b"2\x86" * 25 + b"Ns.",
    "deep tuples": b"\x80\x04}K\x01" + b"\x85" * 30_000 + b"Ns.",
    "deeper in turns": b"\x80\x04}K\x01" + b"K\x01\x86" * 30_000 + b"Ns.",
    "in a longer one": b"\x80\x04}((K\x01K\x01ttNs.",
    "a frame with an end": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "a far longer text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".",
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=[*FORGED])
def test_a_pickle_that_claims_too_much_is_not_begun(forged):
    """It could take any time, all memory, or the stack of Python."""
    with pytest.raises(UnpicklingError):
        plain(forged)


def test_a_long_pickle_is_made_sure_of_in_one_go():
    many = b"\x80\x04](" + b"K\x01" * 200_000
    assert pickle.loads(plain(many + b"e.")) == [1] * 200_000
    with pytest.raises(UnpicklingError):
        plain(many + b"?.")


def test_what_is_shared_in_a_tuple_is_no_tuple():
    """A reference to a tuple gives None, so that none is hashed twice."""
    shared = b"\x80\x04K\x01\x85\x94h\x00h\x00\x86\x94."
    assert pickle.loads(shared) == ((1,), (1,))
    assert pickle.loads(plain(shared)) == (None, None)


@given(st.recursive(st.none() | FAR | NAMES, plain_containers, max_leaves=9))
def test_plain_pickles_are_as_they_were_or_refused(tree):
    data = pickle.dumps(tree)
    try:
        found = pickle.loads(plain(data))
    except UnpicklingError:
        assert "(" in repr(tree)
    else:
        assert found == tree


def test_metadata_changes_no_class(tmp_path):
    """A pickle can give attributes to whatever it names."""
    forged = b"\x80\x04\x8c\x07pathlib\x8c\x0dPurePosixPath\x93N}\x8c\x01xNs\x86b."
    read = b"\x80\x04\x8c\x07pathlib\x8c\x0dPurePosixPath\x93}\x8c\x01xNsb."
    for data in (forged, read):
        with pytest.raises(FileError):
            read_saved(data)
    assert not hasattr(pathlib.PurePosixPath, "x")


# -- where it goes -----------------------------------------------------------------


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    sd.save({"w": W}, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{}")
    monkeypatch.setattr(dcp.FileSystemWriter, "finish", None)
    with pytest.raises(TypeError):
        sd.save({"v": W}, tmp_path / "a")
    with pytest.raises(TypeError):
        sd.save({"v": W}, tmp_path / "b")
    assert sd.equal(sd.load(tmp_path / "a"), {"w": W})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    monkeypatch.undo()
    sd.save({"v": W}, tmp_path / "a")
    assert sd.equal(sd.load(tmp_path / "a"), {"v": W})
    assert (tmp_path / "a" / "config.json").read_text() == "{}"


def test_a_file_is_not_replaced_by_a_directory(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileError, match="this is a file"):
        sd.save({"w": W}, tmp_path / "a")
    with pytest.raises(FileError, match="none for a directory of DCP"):
        sd.save({"w": W}, tmp_path / "a.xyz")


def test_two_checkpoints_do_not_share_a_folder(tmp_path):
    """One would stand in the shadow of the other."""
    sd.save({"w": W}, tmp_path / "dcp")
    with pytest.raises(FileError, match=r"of another format, \.metadata"):
        sd.save({"w": W}, tmp_path / "dcp", shard_bytes="5GB")
    sd.save({"v": W}, tmp_path / "dcp" / "model.safetensors")
    with pytest.raises(FileError, match="several checkpoints"):
        sd.load(tmp_path / "dcp")
    with pytest.raises(FileError, match=r"of another format, model\.safetensors"):
        sd.save({"w": W}, tmp_path / "dcp")
    assert sd.equal(sd.load(tmp_path / "dcp" / ".metadata"), {"w": W})
    assert sd.equal(sd.load(tmp_path / "dcp" / "model.safetensors"), {"v": W})


def test_what_lies_beside_a_checkpoint_is_told_in_order(tmp_path):
    sd.save({"w": W}, tmp_path / "dcp")
    for name in "fbeadc":
        sd.save({"v": W}, tmp_path / "dcp" / f"{name}.safetensors")
    every = ", ".join(rf"{name}\.safetensors" for name in "abcdef")
    with pytest.raises(FileError, match=rf"path of one: \.metadata, {every}$"):
        sd.load(tmp_path / "dcp")


def test_what_dcp_has_no_room_for_is_refused_by_name(tmp_path):
    cases = {
        "dtype torch.qint8": torch.quantize_per_tensor(W, 1.0, 0, torch.qint8),
        "layout torch.sparse_coo": W.to_sparse(),
    }
    for told, leaf in cases.items():
        with pytest.raises(TypeError, match=f"a.b: DCP has no room for .*{told}"):
            sd.save({"a": {"b": leaf}}, tmp_path / "a")
    ragged = torch.nested.nested_tensor([W, W])
    with pytest.raises(TypeError, match=r"^a\.b: a nested tensor .*, x\.unbind\(\)"):
        sd.save({"a": {"b": ragged}}, tmp_path / "a")
    with pytest.raises(TypeError, match=r"t\.0: .* would not stay tied to w; clone"):
        sd.save({"w": W, "t": (W, 1)}, tmp_path / "a")
    assert not [*tmp_path.iterdir()]


# -- the command line --------------------------------------------------------------


def test_the_command_line_shows_converts_and_compares(tmp_path, capsys, monkeypatch):
    main = pytest.importorskip("sdtree.__main__").main
    monkeypatch.chdir(tmp_path)
    w = W.clone()
    tree = {"model": {"w": w, "tied": w}, "step": 3}
    dcp.save(tree, checkpoint_id="theirs", no_dist=True)
    sd.save(tree, "ours")
    capsys.readouterr()
    assert main(["show", "theirs", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == "dcp"
    assert [leaf["name"] for leaf in shown["leaves"]] == [
        *("model.w", "model.tied", "step")
    ]
    assert main(["show", "ours", "--totals"]) == 0
    assert "shares memory" in capsys.readouterr().out
    assert main(["convert", "theirs", "a.safetensors", "--cast", "half"]) == 0
    assert main(["convert", "a.safetensors", "again"]) == 0
    assert main(["diff", "again", "a.safetensors", "--values"]) == 0
    assert main(["diff", "again", "ours", "--values"]) == 1
    capsys.readouterr()
    w[0, 0] = 5
    sd.save(tree, "ours")
    assert main(["diff", "theirs", "ours"]) == 0
    assert "--values compares it" in capsys.readouterr().err
    assert main(["diff", "theirs", "ours", "--values", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in found} == {"model.w", "model.tied"}
