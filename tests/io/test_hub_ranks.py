"""Folders of shards that ranks write together, and of which each reads its part."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_folders import full_of, sharded_over
from ranks import pool
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import sdtree as sd
from sdtree.errors import RankMismatch
from sdtree.io.disk.crew import Crew

pytest.importorskip(
    "huggingface_hub",
    reason="huggingface_hub is not installed: pip install 'sdtree[hf]'",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def sharded_of(shapes, placements):
    """Return the tree, sharded over all ranks in a row."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return sharded_over(mesh, shapes, [[placement] for placement in placements])


def there_and_back(path, shapes, placements, size):
    """Return whether a tree that ranks write is what one process and each load."""
    tree = sharded_of(shapes, placements)
    sd.save(tree, path, shard_bytes=size, metadata={"by": "ranks"})
    back, again = sd.load(path, like=tree), sd.load(path)
    full = full_of(shapes)
    assert sd.equal(again, full)
    assert sd.structure(again) == sd.structure(full)
    assert sd.ties(again) == sd.ties(full)
    assert sd.metadata(path) == {"format": "pt", "by": "ranks"}
    return sd.equal(back, tree)


SIDES = st.integers(1, 9)
LEAVES = st.lists(
    st.tuples(
        st.tuples(SIDES, SIDES),
        st.sampled_from([Shard(0), Shard(1), Replicate()]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=8)
@given(LEAVES, st.sampled_from([1, 100, "5GB"]), st.sampled_from([2, 4]))
def test_what_ranks_write_is_the_tree(folder, leaves, size, ranks):
    """load(save(t)) = gather(t), whatever rank writes what, and load(like=t) = t."""
    path = folder / "m"
    shapes, placements = zip(*leaves, strict=True)
    found = pool(ranks).run(there_and_back, path, shapes, placements, size)
    assert found == [True] * ranks
    assert {name[:5] for name in os.listdir(path)} == {"model"}
    assert os.listdir(folder) == ["m"]


# -- no rank holds the whole -------------------------------------------------------


def written_here(path):
    """Return how many bytes this rank writes."""
    from sdtree.io.hf import ranks

    write, written = ranks.write_entries, []

    def count(ts, *how):
        written.append(sum(t.nbytes for t in ts.values()))
        write(ts, *how)

    ranks.write_entries = count
    try:
        sd.save(sharded_of([(8, 8)] * 8, [Shard(0)] * 8), path, shard_bytes=512)
    finally:
        ranks.write_entries = write
    return written


def test_each_rank_writes_its_share(tmp_path):
    found = pool(4).run(written_here, tmp_path / "m")
    assert all(sum(sizes) <= 2 * 256 + 16 for sizes in found)
    assert sum(map(len, found)) == len([*(tmp_path / "m").glob("*.safetensors")])


# -- one rank fails ----------------------------------------------------------------


def failing(path, rank):
    """Write a folder where one rank cannot, and return what each raises."""
    from sdtree.io.hf import ranks

    write = ranks.write_entries

    def fail(*how):
        if dist.get_rank() == rank:
            raise OSError("no space left")
        write(*how)

    ranks.write_entries = fail
    try:
        sd.save(sharded_of([(8, 8)] * 4, [Shard(0)] * 4), path, shard_bytes=100)
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        ranks.write_entries = write


@pytest.mark.parametrize("rank", [0, 1])
def test_if_one_rank_fails_all_raise_and_nothing_is_left(tmp_path, rank):
    sd.save({"w": torch.ones(2)}, tmp_path / "m", shard_bytes="5GB")
    found = pool(2).run(failing, tmp_path / "m", rank)
    assert found[rank] == ("OSError", "no space left")
    assert found[1 - rank][0] == "RankFailed"
    assert "in save: OSError: no space left" in found[1 - rank][1]
    assert os.listdir(tmp_path / "m") == ["model.safetensors"]
    assert sd.equal(sd.load(tmp_path / "m"), {"w": torch.ones(2)})


def to_another_place(path, options):
    """Return what comes of a save to another place on each rank."""
    tree = sharded_of([(8, 8)], [Shard(0)])
    try:
        sd.save(tree, f"{path}{dist.get_rank()}", **options)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("options", [{}, {"shard_bytes": 100}])
def test_ranks_that_would_write_to_other_places_raise(tmp_path, options):
    """Else all would be in the first, and nothing in the others, without a word."""
    for name, told in pool(2).run(to_another_place, tmp_path / "m", options):
        assert name == "RankMismatch"
        assert f"given {tmp_path}/m0, another {tmp_path}/m1; nothing was" in told
    assert not os.listdir(tmp_path)


def of_one_name(path, options):
    """Return what comes of a save of leaves of one name, at a path on each rank."""
    tree = sharded_of([(8, 8)], [Shard(0)])
    mine = {"a": {"b": torch.ones(2)}} if dist.get_rank() else {"a.b": torch.zeros(2)}
    try:
        sd.save({"model": tree, **mine}, path, **options)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("options", [{}, {"shard_bytes": 100}])
def test_leaves_of_ranks_do_not_share_a_name(tmp_path, options):
    """That of the first rank would be written for both, without a word."""
    for name, told in pool(2).run(of_one_name, tmp_path / "m", options):
        assert name == "NameCollision"
        assert "'a.b' is the name of two paths, ('a', 'b') and ('a.b',)" in told
    assert not os.listdir(tmp_path)


def test_the_ranks_of_a_group_that_differ_are_told_as_such():
    crew = Crew(0, 2, lambda _: ["/here", "/there"], (1, 3))
    with pytest.raises(RankMismatch) as caught, crew.room(nullcontext, "/here"):
        pass
    assert caught.value.ranks == (1, 3)


# -- a rank reads its part ---------------------------------------------------------

PAGE = 2**16


def reading_half(paths):
    """Load where, on rank 0, the other half of the file is gone once it is mapped.

    Return whether this half is right, and how many bytes were to be read ahead.
    """
    from sdtree.io import reading
    from sdtree.io.disk.pages import Pages

    mesh = init_device_mesh("cpu", (2,))
    full = torch.arange(4 * PAGE, dtype=torch.float32).view(4, PAGE)
    like = {"w": distribute_tensor(torch.zeros(4, PAGE), mesh, [Shard(0)])}
    path, open_file = Path(paths[dist.get_rank()]), reading.open_file

    def open_and_cut(source):
        opened = open_file(source)
        if dist.get_rank() == 0:
            os.truncate(source, source.stat().st_size - full.nbytes // 2 + 4096)
        return opened

    fetch, ahead = Pages.fetch, []

    def fetch_and_count(self, start, stop, step):
        ahead.append(stop - start)
        fetch(self, start, stop, step)

    reading.open_file, Pages.fetch = open_and_cut, fetch_and_count
    try:
        back = sd.load(path, like=like)
    finally:
        reading.open_file, Pages.fetch = open_file, fetch
    half = full[2 * dist.get_rank() : 2 * dist.get_rank() + 2]
    return torch.equal(back["w"].to_local(), half), sum(ahead)


def test_a_rank_reads_no_other_part(tmp_path):
    """To look at what is gone of a mapped file would kill the process."""
    full = torch.arange(4 * PAGE, dtype=torch.float32).view(4, PAGE)
    paths = [tmp_path / f"{rank}.safetensors" for rank in (0, 1)]
    for path in paths:
        sd.save({"w": full}, path)
    assert pool(2).run(reading_half, paths) == [(True, full.nbytes // 2)] * 2


# -- ranks that have other trees ---------------------------------------------------


def stage_of_pipeline(path):
    """Write what two stages of a pipeline have, each sharded over two ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "tensor"))
    stage = mesh.get_local_rank("stage")
    w = distribute_tensor(torch.arange(8.0) + stage, mesh["tensor"], [Shard(0)])
    tree = {"step": 3, f"stage{stage}": {"w": [w], "empty": {}}}
    sd.save(tree, path, shard_bytes=16)
    return sd.equal(sd.load(path), {"step": 3, **STAGES})


STAGES = {
    f"stage{stage}": {"w": [torch.arange(8.0) + stage], "empty": {}}
    for stage in range(2)
}


def test_stages_of_a_pipeline_become_one_tree(tmp_path):
    assert pool(4).run(stage_of_pipeline, tmp_path / "m") == [True] * 4
    files = [*(tmp_path / "m").glob("*.safetensors")]
    assert len(files) == 2
