"""The laws of files: what is saved comes back, as a whole or converted."""

import io
import json
import pathlib
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZipFile, ZipInfo

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import data_of, difference, steps

import sdtree as sd
from sdtree.errors import FileError
from sdtree.io import convert_file, open_file
from sdtree.io.converting.forecast import forecast
from sdtree.io.safetensors.header import read_header
from sdtree.io.suffixes import SUFFIXES
from sdtree.kinds.handler import handler_of
from sdtree.kinds.strangers import FILES
from sdtree.testing import (
    DTYPES,
    Layer,
    Pair,
    arrays,
    dense,
    plain_values,
    snapshot,
    tensors,
    trees,
    views,
)
from sdtree.transform.run import Run

FORMATS = ("pt", "safetensors")
HELD = [t for t in DTYPES if t not in (torch.complex32, torch.complex128)]
"""The dtypes that both formats have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def saved(tree, path):
    """Return whether a tree was saved; where it is refused, nothing is left."""
    before = set(path.parent.iterdir())
    try:
        sd.save(tree, path)
    except (TypeError, sd.errors.NameCollision):
        assert set(path.parent.iterdir()) == before
        return False
    return True


def assert_back(back, tree):
    """Raise unless a tree came back: structure, bits, marks, and shared bytes."""
    assert sd.equal(back, tree)
    assert not difference(back, tree)
    assert shared(back) == shared(tree)


def shared(tree):
    """Return the pairs of leaves that share bytes, as sets of addresses tell."""
    places = [addresses(x) for x in sd.leaves(tree)]
    pairs = range(len(places))
    return {(i, j) for i in pairs for j in pairs if i < j and places[i] & places[j]}


def addresses(leaf):
    """Return the addresses of the bytes of a leaf."""
    found = set()
    for t in handler_of(leaf).flatten(leaf)[0]:
        places = {t.data_ptr()} if t.numel() else set()
        for size, step in zip(t.shape, t.stride(), strict=True):
            places = {p + k * step * t.itemsize for p in places for k in range(size)}
        found |= {p + k for p in places for k in range(t.itemsize)}
    return found


def strides(tree):
    """Return the strides of the data of each leaf, in bytes."""
    return [[*map(steps, data_of(leaf))] for leaf in sd.leaves(tree)]


# -- there and back ----------------------------------------------------------------


@given(trees(), st.sampled_from(FORMATS))
def test_what_is_saved_comes_back(folder, tree, suffix):
    """load(save(t)) = t: structure, bits, kinds, ties; or save refuses and leaves t."""
    path, before = folder / f"any.{suffix}", snapshot(tree)
    if saved(tree, path):
        resolved = sd.copy()(tree)
        assert_back(sd.load(path), resolved)
        assert_back(sd.load(path, mmap=True), resolved)
        path.unlink()
    assert snapshot(tree) == before


def is_held(x):
    """Return whether a safetensors file holds an array: without fields, not complex."""
    is_array = type(x) is np.ndarray and x.dtype.newbyteorder("=") != np.complex128
    return x.dtype.names is None and (is_array or isinstance(x, np.generic))


HELD_LEAVES = st.one_of(
    tensors(dtypes=HELD, meta=False), plain_values(), arrays().filter(is_held)
)


NOTHING = np.lib.stride_tricks.as_strided(np.ones(3, np.float32), (0,), (1,))
"""An array of no numbers, each a byte behind the one before."""


@given(trees(HELD_LEAVES, unique_names=True))
@example([NOTHING])
def test_safetensors_holds_every_tree_of_its_kinds(folder, tree):
    """save takes whatever is of a kind and dtype that the format has."""
    path = folder / "held.safetensors"
    sd.save(tree, path)
    assert_back(sd.load(path), sd.copy()(tree))


def plain_containers(children):
    """Return the containers that a .pt file holds."""
    pairs = st.lists(st.tuples(st.integers(0, 9) | st.text(max_size=2), children))
    two = st.tuples(children, children)
    return st.one_of(
        pairs.map(dict),
        pairs.map(OrderedDict),
        st.lists(children, max_size=3),
        st.lists(children | st.just(sd.ABSENT), max_size=3).map(tuple),
        two.map(lambda found: Pair(*found)),
        two.map(as_layer),
    )


def as_layer(children):
    layer = object.__new__(Layer)
    layer.weight, layer.bias = children
    return layer


LEAVES = st.one_of(tensors(meta=False).map(torch.Tensor.detach), plain_values())


@given(st.recursive(LEAVES, plain_containers, max_leaves=6))
def test_pt_holds_every_tree_of_its_kinds(folder, tree):
    """save takes every dtype, and the containers that torch loads safely."""
    path = folder / "held.pt"
    sd.save(tree, path)
    assert_back(sd.load(path), tree)


def test_no_byte_that_is_shared_is_written_twice(tmp_path):
    w = torch.arange(100_000.0).view(100, 1000)
    one = torch.ones(1).expand(1000, 1000)
    tree = {"w": w, "tied": w, "row": w[3], "turned": w.t(), "ones": one}
    sd.save(tree, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 402_500


def test_of_each_storage_only_what_is_covered_is_written(tmp_path):
    path = tmp_path / "a.pt"
    row, none = torch.zeros(1000, 1000)[5], torch.zeros(0)
    sd.save({"none": none, "row": row, "tied": row[:9], "last": none}, path)
    assert path.stat().st_size < 7_000


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_tensors_that_were_made_of_one_array_stay_tied(tmp_path, suffix):
    """Each has a storage of its own over that memory."""
    numbers, path = np.arange(6.0), tmp_path / f"a.{suffix}"
    tree = {"a": torch.from_numpy(numbers), "b": torch.from_numpy(numbers)}
    tree |= {"rest": torch.from_numpy(numbers[2:])}
    sd.save(tree, path)
    assert sd.ties(sd.load(path)) == sd.ties(tree) == [[("a",), ("b",), ("rest",)]]


@pytest.mark.parametrize("target", ["b.safetensors", "directory"])
def test_a_tie_that_a_file_has_at_an_odd_place_stays_one(tmp_path, target):
    """A small leaf before it moves it there, and a mapped tree lies as its file."""
    w = torch.arange(8.0)
    tree = {"a": torch.tensor(1.0).half(), "f": w.view(torch.half), "w": w}
    sd.save(tree, tmp_path / "a.safetensors")
    mapped = sd.load(tmp_path / "a.safetensors", mmap=True)
    assert mapped["w"].data_ptr() % 4
    sd.save(mapped, tmp_path / target)
    for found in (mapped, sd.copy(mapped), sd.load(tmp_path / target)):
        assert sd.ties(found) == sd.ties(tree)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
@pytest.mark.parametrize("part", [slice(None), slice(None, None, 2), slice(1, 4)])
def test_a_bool_keeps_its_bytes_in_a_file(tmp_path, name, part):
    """Of which any but 0 reads as True; in what way soever it is written."""
    tree = {"mask": torch.tensor([7, 0, 1, 2, 200], dtype=torch.uint8).view(torch.bool)}
    tree["mask"] = tree["mask"][part]
    path = tmp_path / name
    ways = tree, sd.identity.stream(tree), sd.map(lambda x: x).stream(tree)
    for way in ways:
        sd.save(way, path)
        assert sd.equal(sd.load(path), tree)
    convert_file(path, tmp_path / "b.safetensors")
    assert sd.equal(sd.load(tmp_path / "b.safetensors"), tree)


def test_strides_come_back(tmp_path):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for suffix in FORMATS:
        sd.save({"conv": weight}, tmp_path / f"a.{suffix}")
        assert sd.load(tmp_path / f"a.{suffix}")["conv"].stride() == weight.stride()


def test_strides_stay_when_a_file_is_converted(tmp_path):
    """Of leaves that share bytes with none, of their aliases, and of arrays."""
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tree = {
        "conv": weight,
        "alias": weight,
        "by columns": torch.arange(6.0).view(2, 3).t(),
        "parameter": torch.nn.Parameter(torch.ones(3, 2).t()),
        "gaps": torch.arange(12.0).view(3, 4)[:, :3],
        "expanded": torch.arange(3.0).expand(4, 3),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "step": 3,
    }
    source = tmp_path / "source.safetensors"
    sd.save(tree, source)
    for suffix in FORMATS:
        target = tmp_path / f"target.{suffix}"
        for transform in (sd.identity, sd.map(lambda x: x), sd.drop("step")):
            convert_file(source, target, transform)
            found = sd.load(target)
            assert_back(found, transform(tree))
            assert strides(found) == strides(transform(tree))
    transform = sd.select("conv") | sd.cast(dtype=torch.bfloat16)
    convert_file(source, target, transform)
    assert sd.load(target)["conv"].stride() == weight.stride()


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_quantized_by_channel_comes_back(tmp_path, axis):
    raw, count = torch.arange(6.0).view(2, 3), (2, 3)[axis]
    scales, zeros = torch.arange(1.0, 1 + count), torch.arange(count)
    t = torch.quantize_per_channel(raw, scales.double(), zeros, axis, torch.qint8)
    sd.save({"t": t, "row": t[1:]}, tmp_path / "a.pt")
    found = sd.load(tmp_path / "a.pt")["t"]
    assert found.q_per_channel_axis() == axis
    assert torch.equal(found.q_per_channel_scales(), t.q_per_channel_scales())
    assert torch.equal(found.int_repr(), t.int_repr())
    with pytest.raises(sd.errors.UnknownLeaf, match=r"a\.pt: torch has no meta tensor"):
        sd.load(tmp_path / "a.pt", device="meta")
    mapped = sd.load(tmp_path / "a.pt", mmap=True)["t"]
    assert torch.equal(mapped.int_repr(), t.int_repr())


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_system_may_have_no_paths_of_open_files(tmp_path, suffix, monkeypatch):
    """There the place of a file that is open is its own."""
    exists, path = pathlib.Path.exists, tmp_path / f"a.{suffix}"
    sd.save({"w": torch.ones(2)}, path)
    is_there = lambda place: place.name != "fd" and exists(place)  # noqa: E731
    monkeypatch.setattr("pathlib.Path.exists", is_there)
    for mmap in (False, True):
        assert sd.equal(sd.load(path, mmap=mmap), {"w": torch.ones(2)})


Z = torch.tensor([1 + 2j, 3 - 4j, 5j])
CONJUGATES = {"conj": Z.conj(), "part": Z[1:].conj(), "usual": torch.ones(2)}
NEGATED = {"negated": Z.clone().conj().imag, "usual": torch.ones(2)}


@pytest.mark.parametrize("tree", [CONJUGATES, NEGATED, CONJUGATES | NEGATED])
@pytest.mark.parametrize("suffix", FORMATS)
def test_lazy_conjugates_come_back(tmp_path, tree, suffix):
    """As what they stand for, whatever stands beside them."""
    sd.save(tree, tmp_path / f"a.{suffix}")
    torch.save(tree, tmp_path / "b.pt")
    convert_file(tmp_path / "b.pt", tmp_path / f"c.{suffix}")
    for name in "ac":
        back = sd.load(tmp_path / f"{name}.{suffix}")
        assert sd.equal(back, tree)
        assert not any(t.is_conj() or t.is_neg() for t in back.values())


def test_a_training_state_comes_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": float("-inf"),
        "rng": torch.get_rng_state(),
        "none": None,
    }
    for suffix in FORMATS:
        path = tmp_path / f"state.{suffix}"
        sd.save(state, path)
        back = sd.load(path)
        assert_back(back, state)
        assert back["model"]._metadata == state["model"]._metadata
        optimizer.load_state_dict(back["optimizer"])


def test_plain_values_keep_their_bits(tmp_path):
    tree = {
        "floats": (-0.0, 1e-310, float("inf"), float("nan"), np.float64("nan")),
        "ints": [0, -1, 2**63, 10**5000],
        "others": [1 - 0j, b"\xff\0", "\ud800", True, None, np.datetime64(3, "s")],
        "torch": [torch.Size([2]), torch.float8_e5m2, torch.strided],
        "queue": deque([1], maxlen=3),
    }
    sd.save(tree, tmp_path / "a.safetensors")
    assert_back(sd.load(tmp_path / "a.safetensors"), tree)


# -- converted ---------------------------------------------------------------------

TRANSFORMS = (
    sd.identity,
    sd.cast(dtype=torch.float32),
    sd.cast(dtype=torch.float64) | sd.copy(),
    sd.where("**.w", sd.cast(dtype=torch.bfloat16), missing_ok=True),
    sd.prefix("model"),
    sd.drop("**.step", missing_ok=True),
    sd.select(torch.Tensor, missing_ok=True),
    sd.cast(dtype=torch.float32) | sd.drop(int, missing_ok=True),
    sd.map(lambda x: x),
)


@given(
    trees() | st.lists(HELD_LEAVES, min_size=1, max_size=4),
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS),
    st.sampled_from(TRANSFORMS),
)
def test_converting_is_transforming(folder, tree, suffix, other, transform):
    """convert_file(a, b, f) writes what save(f(load(a)), b) does, or refuses alike."""
    source, target = folder / f"from.{suffix}", folder / f"to.{other}"
    if not saved(tree, source):
        return
    try:
        wanted = transform(sd.load(source))
    except TypeError:  # there is no such array
        with pytest.raises(TypeError):
            convert_file(source, target, transform)
        assert not target.exists()
        return
    again = folder / f"again.{other}"
    if saved(wanted, again):
        convert_file(source, target, transform)
        converted, saved_again = sd.load(target), sd.load(again)
        assert_back(converted, saved_again)
        assert strides(converted) == strides(saved_again)
        target.unlink()
        again.unlink()
    else:
        with pytest.raises((TypeError, sd.errors.NameCollision)):
            convert_file(source, target, transform)
        assert not target.exists()
    source.unlink()


@given(views(), st.sampled_from(["pt", "safetensors"]))
def test_converting_keeps_views_in_their_places(folder, tree, suffix):
    """The leaves of a converted file share bytes as those of the source do."""
    source, target = folder / "from.safetensors", folder / f"to.{suffix}"
    sd.save(tree, source)
    if suffix == "pt" and len({t.dtype for t in tree.values()}) > 1:
        return
    convert_file(source, target, sd.identity)
    assert_back(sd.load(target), tree)


def test_progress_ends_with_all_bytes(tmp_path):
    sd.save({f"w{i}": torch.zeros(2**18) for i in range(5)}, tmp_path / "a.pt")
    source, target = tmp_path / "a.pt", tmp_path / "b.safetensors"
    for transform in (sd.cast(dtype=torch.float16), sd.map(lambda t: t.half())):
        seen: list[tuple[int, int]] = []
        report = lambda *counts, seen=seen: seen.append(counts)  # noqa: E731
        convert_file(source, target, transform, on_progress=report)
        assert seen == sorted(seen)
        assert seen[-1] == (5 * 2**19, 5 * 2**19)


@pytest.mark.parametrize(
    "leaf",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.eye(3), 1, 0, torch.qint8),
    ],
    ids=["coo", "csr", "quantized"],
)
def test_no_file_is_laid_out_for_what_is_no_tensor_without_its_data(leaf):
    """torch may look at the indices of a tensor that it reads, as 2.14 does."""
    outline = forecast(Run.of({"w": torch.ones(2)}, []))
    assert sd.structure(outline) == sd.structure({"w": 0})
    assert forecast(Run.of({"w": torch.ones(2), "leaf": leaf}, [])) is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_may_become_itself(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    sd.save({"a": torch.ones(3), "b": torch.ones(3)}, path)
    convert_file(path, path, sd.drop("b"))
    assert sd.equal(sd.load(path), {"a": torch.ones(3)})


# -- opened ------------------------------------------------------------------------


def test_what_is_loaded_is_not_the_file(tmp_path):
    for suffix in FORMATS:
        path = tmp_path / f"a.{suffix}"
        sd.save({"w": torch.ones(1000)}, path)
        loaded, mapped = sd.load(path), sd.load(path, mmap=True)
        path.write_bytes(path.read_bytes().replace(b"\x80\x3f" * 2, b"\0\0" * 2))
        with path.open("r+b") as file:
            file.seek(-3000, 2)
            file.write(b"\0" * 2000)
        assert loaded["w"].sum() == 1000
        assert mapped["w"].sum() < 1000


@pytest.mark.parametrize("suffix", sorted({*FILES, *SUFFIXES}))
def test_what_is_taken_for_the_name_of_a_checkpoint_is_one_to_write(tmp_path, suffix):
    """A name that stands for no tree in ``diff`` is a file to ``save`` and ``load``."""
    path = tmp_path / f"a{suffix}"
    with pytest.raises(TypeError, match="name of a file"):
        sd.diff(str(path), {})
    sd.save({"w": torch.ones(2)}, path)
    assert sd.equal(sd.load(path), {"w": torch.ones(2)})
    assert path.is_file()


def test_open_file_tells_format_size_and_notes(tmp_path):
    path = tmp_path / "old.pth.tar"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    opened = open_file(path)
    assert sd.equal(opened.tree, {"w": torch.ones(2)})
    assert (opened.format, opened.nbytes) == ("pt", path.stat().st_size)
    assert opened.notes == (
        "old format: the file was read whole, and cannot be mapped",
    )


def test_content_counts_more_than_the_name(tmp_path):
    tree = {"w": torch.ones(2)}
    sd.save(tree, tmp_path / "a.pt")
    sd.save(tree, tmp_path / "a.safetensors")
    (tmp_path / "a.pt").rename(tmp_path / "b.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "b.pt")
    for name, found in (("b.pt", "safetensors"), ("b.safetensors", "pt")):
        assert open_file(tmp_path / name).format == found
        assert sd.equal(sd.load(tmp_path / name), tree)


def test_threads_may_read_together(tmp_path):
    tree = [Pair(torch.ones(1), sd.ABSENT), b""] * 50
    sd.save(tree, tmp_path / "a.pt")
    before = torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(sd.load, [tmp_path / "a.pt"] * 20))
    assert all(sd.equal(back, tree) for back in loaded)
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_device_can_be_given(tmp_path, suffix):
    w = torch.ones(4)
    sd.save({"w": w, "row": w[1:], "n": 3}, tmp_path / f"a.{suffix}")
    back = sd.load(tmp_path / f"a.{suffix}", device="meta")
    assert back["w"].is_meta
    assert back["row"].shape == (3,)
    assert back["n"] == 3


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(
    tmp_path, monkeypatch, mmap
):
    """Between header and data another file takes its place: nothing of it is seen."""
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tree = {"w": torch.ones(1000), "x": torch.full((7,), 2.0)}
    sd.save(tree, path)
    sd.save({"w": torch.zeros(1000), "x": torch.zeros(7)}, other)

    def read_header_slowly(file):
        header = read_header(file)
        other.replace(path)
        return header

    name = "sdtree.io.safetensors.file.read_header"
    monkeypatch.setattr(name, read_header_slowly)
    back = sd.load(path, mmap=mmap)
    assert not other.exists()
    assert sd.equal(back, tree)


# -- for other readers -------------------------------------------------------------


def test_other_readers_of_safetensors_find_the_tensors(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    w = torch.arange(6.0).view(2, 3)
    tree = {"m": {"w": w.t(), "tied": w.t(), "n": torch.nn.Parameter(w)}, "step": 3}
    for path in written(tree, tmp_path, "safetensors"):
        assert sd.equal(load_file(path), {"m.n": w, "m.w": w.t()})
        with safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert json.loads(file.metadata()["sdtree"])["version"] == 2


def test_other_readers_of_pt_find_the_tree(tmp_path):
    from zipfile import ZipFile

    w = torch.arange(6.0)
    tree = OrderedDict(w=w, tied=w, step=3)
    for path in written(tree, tmp_path, "pt"):
        assert_back(torch.load(path, weights_only=True), tree)
        with ZipFile(path) as archive:
            assert archive.testzip() is None


def written(tree, folder, suffix):
    """Return the files that saving and that converting make of a tree."""
    saved, converted = folder / f"saved.{suffix}", folder / f"converted.{suffix}"
    sd.save(tree, saved)
    convert_file(saved, converted, sd.identity)
    return saved, converted


def of_another_machine(tree, path, order, dtype=np.float32):
    """Write a file as torch does where numbers lie in another order of bytes."""
    torch.save(tree, buffer := io.BytesIO())
    with ZipFile(buffer) as source, ZipFile(path, "w") as target:
        for record in source.infolist():
            data = source.read(record)
            if record.filename.endswith("/byteorder"):
                data = order
            elif "/data/" in record.filename and order == b"big":
                data = np.frombuffer(data, dtype).byteswap().tobytes()
            made = ZipInfo(record.filename)
            room = -(target.fp.tell() + 34 + len(made.filename)) % 64
            made.extra = b"FB" + room.to_bytes(2, "little") + b"Z" * room
            target.writestr(made, data)


def test_numbers_of_another_machine_stay_what_they_are(tmp_path):
    """Also when the pages that they were read from are given back."""
    tree = {name: torch.rand(100) for name in "abc"}
    of_another_machine(tree, tmp_path / "a.pt", b"big")
    assert sd.equal(torch.load(tmp_path / "a.pt"), tree)
    assert sd.equal(sd.load(tmp_path / "a.pt"), tree)
    assert sd.equal(sd.load(tmp_path / "a.pt", mmap=True), tree)
    assert sd.equal(sd.load(tmp_path / "a.pt", like=tree), tree)
    for target in ("b", "b.pt", "b.safetensors"):
        convert_file(tmp_path / "a.pt", tmp_path / target, sd.map(torch.clone))
        assert sd.equal(sd.load(tmp_path / target), tree)
    convert_file(tmp_path / "a.pt", tmp_path / "b", sd.identity)
    assert sd.equal(sd.load(tmp_path / "b"), tree)


@pytest.mark.parametrize("mmap", [False, True])
def test_numbers_of_newer_dtypes_are_of_another_machine_too(tmp_path, mmap):
    """Their storage does not tell what they are; views of one are swapped once."""
    t = torch.tensor([0, 1, 2, 300]).to(torch.uint16)
    tree = {"a": t, "row": t[1:]}
    of_another_machine(tree, tmp_path / "a.pt", b"big", np.uint16)
    back = sd.load(tmp_path / "a.pt", mmap=mmap)
    assert sd.equal(back, tree)
    assert sd.ties(back) == [[("a",), ("row",)]]


def test_an_order_of_bytes_that_is_not_known_is_refused(tmp_path):
    """It was taken for the other one, and all numbers were swapped."""
    of_another_machine({"a": torch.ones(3)}, tmp_path / "a.pt", b"litt1e")
    with pytest.raises(FileError, match="its byte order is b'litt1e'"):
        sd.load(tmp_path / "a.pt")


def test_files_of_other_writers_are_read(tmp_path):
    from safetensors.torch import save_file

    tree = {"a.b": torch.ones(2), "__x__": torch.zeros(0, 3), "h": torch.ones(1).half()}
    save_file(tree, tmp_path / "a.safetensors", metadata={"sdtree.note": "not ours"})
    assert sd.equal(sd.load(tmp_path / "a.safetensors"), tree)
    convert_file(tmp_path / "a.safetensors", tmp_path / "a.pt", sd.identity)
    assert sd.equal(sd.load(tmp_path / "a.pt"), tree)


def test_every_dtype_of_the_format_is_read_back_by_its_library(tmp_path):
    from safetensors.torch import load_file

    from sdtree.io.safetensors.dtypes import DTYPES

    tree = {str(dtype): dense((3, 5), dtype, 1) for dtype in DTYPES}
    for path in written(tree, tmp_path, "safetensors"):
        assert sd.equal(load_file(path), tree)


def test_arrays_and_scalars_of_numpy_in_a_file_of_torch(tmp_path):
    """They come back from what sdtree wrote, and from what torch.save did."""
    tree = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "b": np.array(["ab", "c"]),
        "c": np.float32(2),
        "d": np.datetime64(3, "s"),
    }
    sd.save(tree, tmp_path / "a.pt")
    assert sd.equal(sd.load(tmp_path / "a.pt"), tree)
    torch.save(tree, tmp_path / "b.pt")
    assert sd.equal(sd.load(tmp_path / "b.pt"), tree)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_system_may_not_be_able_to_reserve_room(tmp_path, monkeypatch, suffix):
    """A file that is filled window by window has its size from the beginning."""
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    tree = {"w": torch.arange(9.0), "v": torch.ones(2)}
    sd.save(tree, tmp_path / "a.pt")
    convert_file(tmp_path / "a.pt", tmp_path / f"b.{suffix}", sd.identity)
    assert sd.equal(sd.load(tmp_path / f"b.{suffix}"), tree)


def test_a_new_file_has_the_mode_that_new_files_have(tmp_path):
    """Both formats, and a conversion; a file that is replaced keeps its own."""
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    for name in ("a.pt", "a.safetensors"):
        sd.save({"w": torch.ones(2)}, tmp_path / name)
        assert (tmp_path / name).stat().st_mode == mode
    (tmp_path / "a.pt").chmod(0o600)
    sd.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_mode & 0o777 == 0o600


def test_ties_to_a_part_of_a_larger_storage(tmp_path):
    """Only the part is written to a file of torch, and is shared when it is back."""
    base = torch.arange(1000.0)
    tree = {"a": base[2:5], "b": base[3:6]}
    sd.save(tree, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2500
    back = sd.load(tmp_path / "a.pt")
    assert sd.equal(back, tree)
    assert sd.ties(back) == sd.ties(tree)


def test_an_empty_tensor_at_the_address_of_another(tmp_path):
    """torch.save would take them for one storage of two dtypes."""
    base = torch.arange(4.0)
    empty = torch.empty(0, dtype=torch.int64).set_(base.untyped_storage(), 0, (0, 2))
    sd.save({"a": base, "b": empty}, tmp_path / "a.pt")
    back = sd.load(tmp_path / "a.pt")
    assert sd.equal(back, {"a": base, "b": torch.empty(0, 2, dtype=torch.int64)})
