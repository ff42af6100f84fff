"""``on_progress`` of files: what is told, and that nothing else is other for it."""

import functools
import os
import pickle

import pytest
import torch
from heard import assert_grows, heard, listened
from hypothesis import given
from hypothesis import strategies as st
from ranks import pool
from shards import shard, whole
from test_files import assert_back, saved

import sdtree as sd
from sdtree.testing import trees

NAMES = st.sampled_from(["a.pt", "a.safetensors", "a"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("progress")


@given(trees(), NAMES)
def test_files_are_the_same_whoever_hears_of_it(folder, tree, name):
    """load(save(t)) = t, told of bytes of the tensors, and of the files."""
    path = folder / name
    if not saved(tree, path):
        return
    plain = sd.load(path)
    heard(sd.save, tree, path)
    back, told = heard(sd.load, path)
    assert_back(back, plain)
    assert told[-1][1] == sum(file.stat().st_size for file in data_of(path))
    assert_back(heard(sd.load, path, mmap=True)[0], sd.load(path, mmap=True))


def data_of(path):
    return [*path.glob("*.distcp")] if path.is_dir() else [path]


TREE = {f"w{k}": torch.ones(2**16) for k in range(8)} | {"step": 3}
TREE["tied"] = TREE["w0"]
MANY = [torch.ones(2)] * 3 + [torch.ones(k) for k in range(3)]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a", "old.pt", "shards"])
def test_a_large_tensor_is_told_of_in_between(tmp_path, monkeypatch, name):
    """The total is that of ``nbytes``, or of the files; with ``like``, of this rank."""
    monkeypatch.setattr("sdtree.io.disk.counted.PIECE", 2**16)
    path, options = tmp_path / name, {}
    if name == "shards":
        pytest.importorskip("huggingface_hub")
        options = {"shard_bytes": "1MB"}
    if name == "old.pt":
        torch.save(TREE, path, _use_new_zipfile_serialization=False)
    else:
        _, told = heard(sd.save, TREE, path, **options)
        assert len(told) >= 8
        assert told[-1][1] == sd.nbytes(TREE)
    back, told = heard(sd.load, path)
    assert sd.equal(back, TREE)
    assert len(told) >= 8
    like = sd.empty_like(TREE)
    back, told = heard(sd.load, path, like=like)
    assert sd.equal(back, TREE)
    assert told[-1][1] == sd.nbytes(TREE)


def on_ranks(path, options):
    """Return what this rank is told of a tree that all write, and read again."""
    tree = {f"w{k}": shard(whole(8, 4, start=k)) for k in range(8)} | {"step": 3}
    _, told = listened(sd.save, tree, path, **options)
    back, told_too = listened(sd.load, path, like=tree)
    return sd.equal(back, tree), told, told_too


@pytest.mark.parametrize("options", [{}, {"shard_bytes": 300}], ids=["dcp", "shards"])
def test_each_rank_hears_of_what_it_writes(tmp_path, options):
    if options:
        pytest.importorskip("huggingface_hub")
    found = pool(2).run(on_ranks, tmp_path / "m", options)
    assert all(is_equal for is_equal, _, _ in found)
    for each in zip(*found, strict=True):
        if each[0] is not True:
            list(map(assert_grows, each))
            assert sum(told[-1][1] for told in each) == 8 * 8 * 4 * 4


def test_a_step_that_someone_hears_of_is_a_value():
    """Equal if its function is, and pickled with it."""
    heard_of = sd.gather(ranks=0, on_progress=print) | sd.prefix("model")
    assert heard_of == sd.gather(ranks=0, on_progress=print) | sd.prefix("model")
    assert heard_of != sd.gather(ranks=0) | sd.prefix("model")
    assert pickle.loads(pickle.dumps(heard_of)) == heard_of


RAISED = (RuntimeError, "that is enough"), (StopIteration, "raised StopIteration, wh")
"""What whoever is told raises, and how that is told."""


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a", "shards"])
def test_what_is_raised_leaves_what_was_there(tmp_path, name, is_last):
    """Whatever others would make of it: a damaged file, a disk that is full, an end."""
    options = {"shard_bytes": "1MB"} if name == "shards" else {}
    if options:
        pytest.importorskip("huggingface_hub")

    def refuse(done, total):
        if done == total or not is_last:
            raise raised[0]("that is enough")

    other = tmp_path.with_name(f"{tmp_path.name}.pt")
    sd.save(TREE, other)
    spooled = sd.whole(lambda tree: tree)

    path = tmp_path / name
    sd.save({"old": torch.ones(2)}, path, **options)
    here = functools.partial(sd.load, path, on_progress=refuse)
    for call in (
        lambda: sd.save(TREE, path, on_progress=refuse, **options),
        lambda: sd.save(TREE | {"z": MANY}, path, on_progress=refuse, **options),
        lambda: sd.save({"n": 1}, path, on_progress=refuse, **options),
        lambda: sd.convert_file(other, path, on_progress=refuse, **options),
        lambda: sd.convert_file(other, path, spooled, on_progress=refuse, **options),
        here,
        functools.partial(here, like={"old": torch.ones(2)}),
    ):
        for raised in RAISED:
            with pytest.raises(RuntimeError, match=raised[1]) as caught:
                call()
            assert "in the function given as on_progress=" in caught.value.__notes__
        assert sd.equal(sd.load(path), {"old": torch.ones(2)})
    assert os.listdir(tmp_path) == [name]
