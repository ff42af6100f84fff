"""Folders of shards and their index: read, written, damaged; and metadata as data."""

import json
import os
import random
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import difference
from test_safetensors import (
    HELD,
    TENSORS,
    aliases,
    dense_forms,
    interleaved,
    named,
    touching,
)

import sdtree as sd
from sdtree.__main__ import main
from sdtree.errors import FileError, UnknownContainer
from sdtree.io import convert_file, open_file
from sdtree.io.hf.splitting import shard_bytes_of
from sdtree.io.leaves.fetching import runs
from sdtree.io.safetensors.header import read_header
from sdtree.testing import views

safetensors = pytest.importorskip("safetensors")
load_file = pytest.importorskip("safetensors.torch").load_file
save_file = pytest.importorskip("safetensors.torch").save_file

INDEX = "model.safetensors.index.json"
W = torch.arange(6.0)
writes = pytest.mark.skipif(
    find_spec("huggingface_hub") is None,
    reason="huggingface_hub is not installed: pip install 'sdtree[hf]'",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def shard(k, count, suffix="safetensors", stem="model"):
    return f"{stem}-{k:05}-of-{count:05}.{suffix}"


def emptied(folder):
    """Return a folder that is there and has nothing in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def write_index(folder, places, total=None, name=INDEX, **metadata):
    metadata |= {} if total is None else {"total_size": total}
    text = json.dumps({"metadata": metadata, "weight_map": places})
    (folder / name).write_text(text)


def written_by_others(folder, parts):
    """Write shards as other software does: its own writer, an index by hand."""
    places = {}
    for k, part in enumerate(parts, 1):
        save_file(part, folder / shard(k, len(parts)), metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard(k, len(parts)))
    total = sum(t.nbytes for part in parts for t in part.values())
    write_index(folder, places, total)
    return places


def same(back, tree):
    """Raise unless trees are the same in all but the strides of their tensors."""
    assert sd.structure(back) == sd.structure(tree)
    assert dense_forms(named(back)) == dense_forms(named(tree))
    assert touching(back) == touching(tree)


# -- written by others -------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__")
PARTS = st.lists(
    st.dictionaries(NAMES, TENSORS.map(lambda t: t.detach().clone().contiguous())),
    min_size=1,
    max_size=3,
)


def by_shard(parts):
    """Return parts of which no two have a name, and none is empty."""
    seen, found = set(), []
    for part in parts:
        found.append({n: t for n, t in part.items() if n not in seen})
        seen |= part.keys()
    return [part for part in found if part]


@given(PARTS.map(by_shard).filter(bool), st.booleans(), st.booleans())
def test_shards_of_others_are_one_tree_by_name(root, parts, mmap, is_index):
    """load(folder) has each name as the shards do, and open_file tells which has it."""
    folder = emptied(root / "others")
    places = written_by_others(folder, parts)
    wanted = {name: t for part in parts for name, t in part.items()}
    source = folder / INDEX if is_index else folder
    back = sd.load(source, mmap=mmap)
    assert list(back) == sorted(wanted)
    assert dense_forms(back) == dense_forms(wanted)
    opened = open_file(source)
    assert {path[0]: file for path, file in opened.files.items()} == places
    assert (opened.format, opened.notes) == ("huggingface", ())
    assert opened.nbytes == sum(path.stat().st_size for path in folder.iterdir())


FAULTS = ("unlisted", "unfilled", "moved", "gone", "total", "stray", "cut")


@given(st.sets(st.sampled_from(FAULTS), min_size=1))
def test_all_that_is_wrong_with_an_index_is_told(root, faults):
    """One FileError names every fault; and none is told that is not there."""
    folder = emptied(root / "damaged")
    parts = [{f"{x}{k}": W + k for x in "uvw"} for k in range(1, 8)]
    places = written_by_others(folder, parts)
    told, total = {}, 7 * 3 * W.nbytes
    if "unlisted" in faults:
        told["unlisted"] = f"{places.pop('v1')} holds v1, which the index"
    if "unfilled" in faults:
        places["nowhere"] = shard(2, 7)
        told["unfilled"] = f"{shard(2, 7)} lacks nowhere, which the index"
    if "moved" in faults:
        places["w3"] = shard(4, 7)
        told["moved"] = f"{shard(4, 7)} lacks w3, which the index"
        told["moved "] = f"{shard(3, 7)} holds w3, which the index"
    if "gone" in faults:
        (folder / shard(5, 7)).unlink()
        told["gone"] = f"{shard(5, 7)} is missing"
    if "stray" in faults:
        places = {n: file for n, file in places.items() if file != shard(6, 7)}
        told["stray"] = f"{shard(6, 7)} has no name in the index"
        total -= 3 * W.nbytes
    if "cut" in faults:
        path = folder / shard(7, 7)
        os.truncate(path, path.stat().st_size - 1)
        told["cut"] = f"{shard(7, 7)}: its tensors take"
    if "total" in faults:
        total += 1
        if not faults & {"gone", "cut"}:  # else nobody knows
            told["total"] = f"total_size is {total:,}"
    write_index(folder, places, total)
    with pytest.raises(FileError) as caught:
        sd.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / INDEX}: ")
    assert all(words in message for words in told.values()), message
    assert message.count("; ") == len(told) - 1 + message.count("bytes; if"), message


@pytest.mark.parametrize(
    "file",
    ["../out.safetensors", "/etc/passwd", "a/../../out", "", "..", "..\\out", "C:out"],
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, file):
    folder = emptied(tmp_path / "in")
    save_file({"w": W}, tmp_path / "out.safetensors")
    write_index(folder, {"w": file})
    with pytest.raises(FileError, match="outside of its folder"):
        sd.load(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no index of shards"),
        ("[]", "no index of shards"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no index of shards"),
        ('{"weight_map": {"w": 1}}', "no index of shards"),
        ('{"weight_map": {"w": "a", "w": "b"}}', "stands twice"),
        ("[" * 100_000, "no index of shards"),
        ("\xff", "no index of shards"),
        ('{"weight_map": {"\\ud800": "a"}}', "no index of shards"),
        ('{"weight_map": {"w": "\\ud800"}}', "no index of shards"),
        ('{"weight_map": {"w": "' + "a" * 300 + '"}}', "File name too long"),
        ('{"weight_map": {"w": "' + INDEX + '/w"}}', "missing"),
        ('{"weight_map": {}, "metadata": {"total_size": 1}}', "total_size"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, text, words):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=words) as caught:
        sd.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def outcome(folder, mmap):
    """Return why a folder is refused, its name if it is not."""
    try:
        sd.load(folder, mmap=mmap)
    except (FileError, UnknownContainer) as error:
        return str(error)
    return str(folder)


@writes
def test_damaged_folders_are_refused_in_one_line_or_read(tmp_path):
    """Whatever bytes an index or a shard has, a folder is read or raises FileError."""
    chance, folder = random.Random(0), tmp_path / "m"
    sd.save({"a": [W, W], "b": {1: W.half()}, "c": "text"}, folder, shard_bytes=20)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    refused = 0
    for _ in range(400):
        path = chance.choice([*whole])
        damaged = bytearray(whole[path])
        for _ in range(chance.choice([1, 2, 5])):
            place = chance.randrange(len(damaged))
            damaged[place] = chance.choice([*b'0129"{}[],:./\\', chance.randrange(256)])
        path.write_bytes(damaged[: chance.choice([None, None, place])])
        told = outcome(folder, mmap=chance.random() < 0.5)
        assert "\n" not in told
        assert str(folder) in told
        refused += told != str(folder)
        path.write_bytes(whole[path])
    assert refused > 100


def test_links_to_shards_are_followed(tmp_path):
    """The cache of the hub has links to files that lie elsewhere."""
    blobs, folder = emptied(tmp_path / "blobs"), emptied(tmp_path / "snapshot")
    written_by_others(blobs, [{"a": W}, {"b": W}])
    for k, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / str(k))
        (folder / path.name).symlink_to(blobs / str(k))
    assert sd.equal(sd.load(folder), {"a": W, "b": W})


def test_files_that_are_trees_by_themselves(tmp_path):
    """Where an index was made of files of ours, what is left of them is noted."""
    sd.save({"a": [W, 3]}, tmp_path / "one.safetensors")
    sd.save({"b": W}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a.0": "one.safetensors"})
    assert sd.equal(sd.load(tmp_path), {"a": [W, 3]})
    assert open_file(tmp_path).notes == ()
    write_index(tmp_path, {"a.0": "one.safetensors", "b": "two.safetensors"})
    assert sd.equal(sd.load(tmp_path), {"a.0": W, "b": W})
    one, two = open_file(tmp_path).notes
    assert one.startswith("one.safetensors is a tree by itself")
    assert two.startswith("two.safetensors is a tree by itself")


def test_old_folders_of_bins_open(tmp_path):
    """They are read as .pt files are: nothing in them is run."""
    parts = [{"w": W, "tied": W, "v": W[:2]}, {"b": torch.ones(3)}]
    files = [shard(k, 2, "bin", "pytorch_model") for k in (1, 2)]
    places = {}
    for file, part in zip(files, parts, strict=True):
        torch.save(part, tmp_path / file)
        places |= dict.fromkeys(part, file)
    name = "pytorch_model.bin.index.json"
    for total in (36, 68, 36.5, None):  # ties counted once, or each; told badly; not
        write_index(tmp_path, places, total, name)
        for mmap in (False, True):
            back = sd.load(tmp_path, mmap=mmap)
            assert sd.equal(back, dict(sorted((parts[0] | parts[1]).items())))
            assert sd.ties(back) == [[("tied",), ("v",), ("w",)]]
    write_index(tmp_path, places, 37, name)
    with pytest.raises(FileError, match="total_size is 37"):
        sd.load(tmp_path)
    torch.save([W], tmp_path / files[0])
    with pytest.raises(FileError, match=f"{files[0]}: it holds a list"):
        sd.load(tmp_path)


# -- which file of a folder --------------------------------------------------------


def put(folder, *names):
    for name in names:
        if name.endswith(".json"):
            stem = name.removesuffix(".index.json")
            file = stem.replace(".", "-00001-of-00001.")
            write_index(folder, {"w": file}, name=name)
            put(folder, file)
        elif name.endswith(".safetensors"):
            save_file({"w": W}, folder / name)
        elif name == ".metadata":
            (folder / name).write_bytes(b"")
        else:
            torch.save({"w": W}, folder / name)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors"], "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["adapter_model.safetensors", "training_args.bin"], "adapter_model"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        ([INDEX, "consolidated.safetensors", "pytorch_model.bin.index.json"], INDEX),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
    ],
)
def test_a_folder_has_one_checkpoint(tmp_path, names, chosen):
    from sdtree.io.hf.finding import find

    put(tmp_path, *names)
    assert find(tmp_path).name.startswith(chosen)
    assert sd.equal(sd.load(tmp_path), {"w": W})


def turned(folder):
    """Yield what is in a folder, in no order that anyone would hope for."""
    yield from sorted(map(folder.joinpath, os.listdir(folder)), reverse=True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "without a checkpoint"),
        (["training_args.bin"], "without a checkpoint"),
        ([INDEX, "model.safetensors"], "several checkpoints; give the path of one"),
        (["a.safetensors", "b.safetensors"], "a.safetensors, b.safetensors"),
        ([shard(1, 2)], "without their index"),
        ([shard(1, 2), "pytorch_model.bin"], "without their index"),
        (["__0.metadata"], "each rank has"),
    ],
)
def test_a_folder_without_one_is_refused(tmp_path, names, words, monkeypatch):
    """By what is in it in the order of the names, however the disk has them."""
    put(tmp_path, *names)
    monkeypatch.setattr("pathlib.Path.iterdir", turned)
    with pytest.raises(FileError, match=words) as caught:
        sd.load(tmp_path)
    for name in names[:2] if "several" in str(caught.value) else []:
        assert sd.equal(sd.load(tmp_path / name), {"w": W})


FEW = [f"x{k}" for k in range(5)]
WRONG = {
    "outside": {x: f"../{x}" for x in reversed(FEW)},
    "extra": {"x0": shard(1, 2), "y": shard(2, 2)},
    "stray": {**dict.fromkeys(FEW, shard(1, 2)), "y": shard(2, 2)},
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_an_index_is_told_in_the_order_of_names(
    tmp_path, fault, monkeypatch
):
    """Of many the first, the same in every process and on every disk."""
    written_by_others(tmp_path, [{x: W.clone() for x in FEW}, {"y": W}])
    write_index(tmp_path, WRONG[fault], 6 * W.nbytes)
    for k in range(3, 8) if fault == "stray" else ():
        (tmp_path / shard(k, 2)).touch()
    monkeypatch.setattr("pathlib.Path.iterdir", turned)
    with pytest.raises(FileError) as caught:
        sd.load(tmp_path)
    told = re.findall(r"\bx\d|-0000[3-7]-of", str(caught.value))
    assert len(told) > 2
    assert told == sorted(told)


def test_what_is_noted_of_shards_comes_in_the_order_of_their_names(tmp_path):
    files = [shard(k, 8) for k in range(1, 9)]
    for file in files:
        sd.save({file: W}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {file: file for file in reversed(files)}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    noted = open_file(tmp_path).notes
    assert [note.partition(" ")[0] for note in noted] == files


# -- written by us -----------------------------------------------------------------

SIZES = st.sampled_from([1, 7, 30, "0.1KB", "5GB"])


def folder_of(tree, folder, size, way="saved", **options):
    """Return the folder that one of the ways to write a tree makes of it."""
    if way == "saved":
        sd.save(tree, folder, shard_bytes=size, **options)
    else:
        source = folder.with_suffix(".safetensors")
        sd.save(tree, source)
        convert_file(source, folder, sd.identity, shard_bytes=size, **options)
    return folder


WAYS = st.sampled_from(["saved", "converted"])


@writes
@given(HELD | views(), SIZES, st.booleans())
def test_a_tree_goes_to_a_folder_and_back(root, tree, size, mmap):
    """load(save(t)) = t, as for one file: whatever of it lies in which shard."""
    folder = emptied(root / "ours")
    sd.save(tree, folder, shard_bytes=size)
    sd.save(tree, root / "one.safetensors")
    one, back = sd.load(root / "one.safetensors"), sd.load(folder, mmap=mmap)
    same(back, tree)
    if not mmap:
        assert sd.equal(back, one)
        assert not difference(back, one)
    assert open_file(folder).files.keys() <= {*sd.paths(tree)}


@writes
@given(HELD | views(), SIZES, WAYS, st.booleans())
def test_other_readers_see_every_leaf_in_its_shard(root, tree, size, way, keep):
    """load_file has each name of the index, but for exact aliases, in its file.

    The index has what transformers writes: the bytes of all, and a file for each name;
    one file has no index. No shard is larger than it may be for no reason.
    """
    folder = folder_of(tree, emptied(root / "read"), size, way, keep_names=keep)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    found = {file: load_file(folder / file) for file in files}
    wanted = named(tree)
    if not keep:
        wanted = {k: t for k, t in wanted.items() if k not in aliases(tree)}
    seen = {name: t for ts in found.values() for name, t in ts.items()}
    assert dense_forms(seen) == dense_forms(wanted)
    assert all(sd.metadata(folder / file) == {"format": "pt"} for file in files)
    if files == ["model.safetensors"]:
        assert os.listdir(folder) == files
        return
    assert files == [shard(k, len(files)) for k in range(1, len(files) + 1)]
    index = json.loads((folder / INDEX).read_text())
    places = {name: file for file, ts in found.items() for name in ts}
    total = sum(t.nbytes for t in seen.values())
    assert index == {"metadata": {"total_size": total}, "weight_map": places}
    pairs = {frozenset(pair) for pair in touching(tree)}
    near = [{*pair} for pair in interleaved(tree)]
    for ts in found.values():
        is_one = len(ts) == 1 or all(
            any(name in pair for pair in near) for name, t in ts.items() if t.nbytes
        )
        assert is_one or sum(t.nbytes for t in ts.values()) <= shard_bytes_of(size)
    for pair in pairs:
        assert len({places[name] for name in pair if name in places}) <= 1


@writes
@given(
    st.one_of(st.integers(1, 10**13), st.floats(1, 1e4).map("{:.3f}".format)),
    st.sampled_from(["KB", " mb", "GB", "Tb "]),
)
def test_sizes_are_read_as_the_hub_reads_them(number, unit):
    from huggingface_hub.serialization._base import parse_size_to_int

    assert shard_bytes_of(f"{number}{unit}") == parse_size_to_int(f"{number}{unit}")


@pytest.mark.parametrize(
    "size", [0, -1, True, 1.5, "5", "GB", "-1GB", "5GiB", "0KB", "9" * 400 + "GB"]
)
def test_what_is_no_size_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="shard_bytes="):
        sd.save({"w": W}, tmp_path / "folder", shard_bytes=size)
    assert not os.listdir(tmp_path)


@writes
def test_the_readers_of_the_hub_take_a_folder(tmp_path):
    from huggingface_hub import load_torch_model

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    sd.save(model.state_dict(), tmp_path / "m", shard_bytes=50)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    load_torch_model(other, tmp_path / "m", strict=True)
    assert sd.equal(other.state_dict(), model.state_dict())


@writes
def test_shards_are_those_of_the_hub(tmp_path):
    """Without ties the splitter of huggingface_hub for tensors makes the same."""
    from huggingface_hub import save_torch_state_dict

    torch.manual_seed(0)
    state = {f"w{k}": torch.rand(k % 7 + 1, k) for k in range(1, 30)}
    sd.save(state, tmp_path / "ours", shard_bytes="1KB")
    save_torch_state_dict(state, tmp_path, max_shard_size="1KB")
    ours, theirs = (
        json.loads((f / INDEX).read_text()) for f in (tmp_path / "ours", tmp_path)
    )
    assert ours == theirs
    assert sd.equal(sd.load(tmp_path / "ours"), state)
    assert sd.equal(sd.load(tmp_path), dict(sorted(state.items())))


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'sdtree\[hf\]'"):
        sd.save({"w": W}, tmp_path / "folder", shard_bytes="5GB")
    assert not os.listdir(tmp_path)


def test_a_folder_or_a_file(tmp_path):
    """What is a name of a file takes no shards, and a folder no tree without them."""
    for name in ("a.pt", "a.safetensors", "A.BIN"):
        with pytest.raises(FileError, match="the name of a file"):
            sd.save({"w": W}, tmp_path / name, shard_bytes="5GB")
    with pytest.raises(FileError, match="shard_bytes="):
        sd.save({"w": W}, tmp_path / "fol.der")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="the name of a file"):
        sd.save({"w": W}, tmp_path / "file", shard_bytes="5GB")
    with pytest.raises(FileNotFoundError, match="make it first"):
        sd.save({"w": W}, tmp_path / "no" / "folder", shard_bytes="5GB")
    assert os.listdir(tmp_path) == ["file"]


# -- in the place of another -------------------------------------------------------


class Killed(BaseException):
    pass


OLD = {"a": W, "b": W + 1, "c": W + 2}
NEW = {"a": W + 3, "b": W + 4, "d": W + 5, "e": [W + 6, 7]}


def folder_with_other_files(folder, size):
    sd.save(OLD, folder, shard_bytes=size)
    (folder / "config.json").write_text("{}")
    return sorted(os.listdir(folder))


@writes
@pytest.mark.parametrize("old_size", [1, "5GB"])
@pytest.mark.parametrize("new_size", [1, "5GB"])
def test_weights_are_replaced_and_other_files_stay(tmp_path, old_size, new_size):
    folder = tmp_path / "m"
    folder_with_other_files(folder, old_size)
    sd.save(NEW, folder, shard_bytes=new_size)
    assert sd.equal(sd.load(folder), NEW)
    weights = ["model.safetensors"]
    if new_size == 1:
        weights = [*(shard(k, 4) for k in range(1, 5)), INDEX]
    assert sorted(os.listdir(folder)) == ["config.json", *weights]
    assert os.listdir(tmp_path) == ["m"]


@writes
@pytest.mark.parametrize("old_size", [1, "5GB"])
@pytest.mark.parametrize("new_size", [1, "5GB"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_at_no_time_a_folder_is_a_mixture(
    tmp_path, monkeypatch, old_size, new_size, is_killed
):
    """Where a write fails the old tree is there; where it is killed, one, or none."""
    rename, folder, k, left = Path.rename, tmp_path / "m", 0, 0

    def rename_until(self, target):
        nonlocal left
        left -= 1
        if left == -1 or (left < 0 and is_killed):
            raise Killed
        return rename(self, target)

    while True:
        before = folder_with_other_files(folder, old_size)
        k, left = k + 1, k
        monkeypatch.setattr(Path, "rename", rename_until)
        try:
            sd.save(NEW, folder, shard_bytes=new_size)
        except Killed:
            pass
        finally:
            monkeypatch.undo()
        if left >= 0:
            break
        if not is_killed:
            assert sd.equal(sd.load(folder), OLD)
            assert sorted(os.listdir(folder)) == before
            continue
        try:
            back = sd.load(folder)
        except FileError as error:
            assert "without" in str(error)  # noqa: PT017
        else:
            assert sd.equal(back, OLD if k == 1 else NEW)
    assert k > 2
    assert sd.equal(sd.load(folder), NEW)


@writes
def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="x:"):
        sd.save({"w": W, "x": W.to("meta")}, tmp_path / "m", shard_bytes=1)
    with pytest.raises(TypeError, match="x:"):
        sd.save({"w": W, "x": W.to_sparse()}, tmp_path / "m", shard_bytes=1)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > 1:
            raise OSError("no space left")

    monkeypatch.setattr("sdtree.io.hf.folder.write_entries", fail)
    with pytest.raises(OSError, match="no space"):
        sd.save(OLD, tmp_path / "m", shard_bytes=1)
    assert not os.listdir(tmp_path)


@writes
def test_a_folder_may_become_itself(tmp_path):
    sd.save(OLD, tmp_path / "m", shard_bytes=1)
    half = sd.cast(dtype=torch.float16)
    convert_file(tmp_path / "m", tmp_path / "m", half, shard_bytes=20)
    assert sd.equal(sd.load(tmp_path / "m"), half(OLD))


# -- metadata ----------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
METADATA = st.dictionaries(
    TEXTS.filter(lambda name: name not in ("sdtree", "sdtree.folder")), TEXTS
)


@settings(max_examples=50)
@given(METADATA)
def test_metadata_comes_back(root, metadata):
    """metadata(save(t, metadata=m)) = m, with a format; other readers see it, too."""
    path, other = root / "texts.safetensors", root / "again.safetensors"
    sd.save({"w": W}, path, metadata=metadata)
    assert sd.metadata(path) == {"format": "pt", **metadata}
    with safetensors.safe_open(path, "pt") as file:
        assert {**file.metadata(), **metadata, "sdtree": ""} == {
            "format": "pt",
            **metadata,
            "sdtree": "",
        }
    for transform in (sd.cast(dtype=torch.half), sd.map(torch.clone)):
        convert_file(path, other, transform)
        assert sd.metadata(other) == sd.metadata(path)
    assert sd.equal(sd.load(path), {"w": W})


@writes
def test_metadata_of_folders(tmp_path):
    """All shards have it, and it is that of all; where they disagree, it is told."""
    path = tmp_path / "m"
    sd.save(OLD, path, shard_bytes=1, metadata={"step": "3"})
    assert sd.metadata(path) == {"format": "pt", "step": "3"}
    for k in (1, 2, 3):
        assert sd.metadata(path / shard(k, 3)) == sd.metadata(path)
    convert_file(path, tmp_path / "a.safetensors", sd.identity)
    assert sd.metadata(tmp_path / "a.safetensors") == sd.metadata(path)
    save_file({"b": W}, path / shard(2, 3), metadata={"step": "4", "only": "here"})
    with pytest.raises(FileError, match=f"'step' in {shard(1, 3)} and {shard(2, 3)}"):
        sd.metadata(path)
    opened = open_file(path)
    assert opened.metadata == {"format": "pt", "only": "here"}
    assert "'step'" in opened.notes[0]


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"sdtree": ""}, ValueError, "another name"),
        ({"sdtree.folder": ""}, ValueError, "another name"),
        ({"a": 3}, TypeError, "'a': 3"),
        ({3: "a"}, TypeError, "3: 'a'"),
        ({"a": "\ud800"}, ValueError, "UTF-8"),
        ([("a", "b")], TypeError, "mapping"),
    ],
)
def test_metadata_that_no_file_holds(tmp_path, metadata, error, words):
    with pytest.raises(error, match=words):
        sd.save({"w": W}, tmp_path / "a.safetensors", metadata=metadata)
    assert not os.listdir(tmp_path)


def test_a_pt_file_has_no_room_for_metadata(tmp_path):
    with pytest.raises(ValueError, match="metadata="):
        sd.save({"w": W}, tmp_path / "a.pt", metadata={"a": "b"})
    sd.save({"w": W}, tmp_path / "a.pt", metadata={})
    assert sd.metadata(tmp_path / "a.pt") == {}
    sd.save({"w": W}, tmp_path / "a.safetensors", metadata={"a": "b"})
    with pytest.warns(UserWarning, match="left out, .* metadata: a$"):
        convert_file(tmp_path / "a.safetensors", tmp_path / "b.pt", sd.identity)


# -- parts of a folder -------------------------------------------------------------


def test_like_is_distribute_of_the_mapped_file(tmp_path):
    written_by_others(tmp_path, [{"a": W, "h": W.half()}, {"b": W.view(2, 3)}])
    like = {"a": W * 0, "h": W.half() * 0, "b": torch.zeros(2, 3)}
    back = sd.load(tmp_path, like=like)
    assert sd.equal(back, {"a": W, "h": W.half(), "b": W.view(2, 3)})
    back["a"].zero_()
    assert sd.load(tmp_path)["a"].tolist() == W.tolist()
    with pytest.raises(sd.errors.SpecMismatch, match="missing"):
        sd.load(tmp_path, like={**like, "c": W})
    with pytest.raises(TypeError, match="like="):
        sd.load(tmp_path, like=like, mmap=True)


@pytest.mark.parametrize("options", [{}, {"shard_bytes": 30}])
def test_for_a_part_another_call_is_told_that_works(tmp_path, options):
    sd.save({"a": W, "b": W.half()}, tmp_path / "m", **options)
    like = {"a": W * 0}
    with pytest.raises(sd.errors.SpecMismatch, match="unexpected: b") as raised:
        sd.load(tmp_path / "m", like=like)
    [note] = raised.value.__notes__
    call = note.partition("call ")[2]
    names = {"sd": sd, "file": tmp_path / "m", "like": like}
    assert sd.equal(eval(call, names), {"a": W})


@given(st.data(), st.lists(st.integers(1, 5), max_size=3), st.integers(0, 12))
def test_what_is_read_ahead_is_the_region(data, shape, near):
    """runs yields its elements in order, each once; none beside, but for near ones."""
    starts = [data.draw(st.integers(0, n)) for n in shape]
    sizes = [
        data.draw(st.integers(0, n - i)) for n, i in zip(shape, starts, strict=True)
    ]
    cut = tuple(slice(i, i + n) for i, n in zip(starts, sizes, strict=True))
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    wanted, region = numbers[cut].flatten().tolist(), (tuple(starts), tuple(sizes))
    exact = [i for pair in runs(region, tuple(shape), 0) for i in range(*pair)]
    assert exact == wanted
    wide = [i for pair in runs(region, tuple(shape), near) for i in range(*pair)]
    assert wide == sorted({*wide})
    assert {*wanted} <= {*wide}
    assert not wanted or {wide[0], wide[-1]} == {wanted[0], wanted[-1]}


def test_a_select_looks_into_no_other_shard(tmp_path):
    """A shard of which no leaf is kept is not read, but for its header."""
    parts = [{"a": torch.ones(5000)}, {"b": torch.ones(5000)}]
    written_by_others(tmp_path, parts)
    with open(tmp_path / shard(2, 2), "rb") as file:
        begin = read_header(file).nbytes
    mapped = sd.load(tmp_path, mmap=True)
    os.truncate(tmp_path / shard(2, 2), begin)  # to look at b would be a bus error
    assert sd.equal((sd.select("a") | sd.copy())(mapped), {"a": torch.ones(5000)})


# -- the command line --------------------------------------------------------------


def test_show_names_the_shard_of_each_leaf(tmp_path, capsys):
    written_by_others(tmp_path, [{"a": W, "b": W + 1}, {"c": W}])
    for words in ([str(tmp_path)], [str(tmp_path / INDEX), "--drop", "b"]):
        assert main(["show", *words]) == 0
        rows = capsys.readouterr().out.splitlines()
        found = {row.split("\t")[0]: row.split("\t")[-1] for row in rows}
        assert (
            found.items()
            <= {"a": shard(1, 2), "b": shard(1, 2), "c": shard(2, 2)}.items()
        )
        assert found.keys() >= {"a", "c"}
    assert main(["show", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [leaf["file"] for leaf in data["leaves"]] == [*found.values()][:1] * 2 + [
        shard(2, 2)
    ]
    (tmp_path / shard(1, 2)).unlink()
    assert main(["show", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {tmp_path / INDEX}: {shard(1, 2)} is missing\n")


@writes
def test_convert_writes_shards_and_reads_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sd.save(NEW, "a.pt")
    assert main(["convert", "a.pt", "m", "--shard-size", "30"]) == 0
    assert main(["convert", "m", "b.pt", "--drop", "d"]) == 0
    assert main(["diff", "m", "a.pt", "--values"]) == 0
    assert sd.equal(sd.load("b.pt"), {n: x for n, x in NEW.items() if n != "d"})
    assert len(os.listdir("m")) == 5
    capsys.readouterr()
    assert main(["convert", "a.pt", "m"]) == 2
    assert "--shard-size" in capsys.readouterr().err
    for size in ("much", "0"):
        assert main(["convert", "a.pt", "m", "--shard-size", size]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: --shard-size {size}: give how many bytes")
        assert "'5GB'" in said
