"""Directories of DCP that ranks write together, and of which each reads its part."""

import math
import os
import warnings
from importlib.util import find_spec
from itertools import accumulate, pairwise
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_folders import full_of, sharded_over
from rank_leaves import Part, Way, real
from ranks import pool
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

import sdtree as sd
from sdtree.layout import Box, Layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def sharded_of(shapes, placements):
    """Return the tree, sharded over all ranks in two rows."""
    side = dist.get_world_size() // 2
    return sharded_over(init_device_mesh("cpu", (2, side)), shapes, placements)


def zeroed(tree):
    return sd.map(
        lambda x: torch.zeros_like(x) if isinstance(x, torch.Tensor) else x, tree
    )


def there_and_back(path, shapes, placements):
    """Return whether a tree that ranks write is what one process and each load."""
    warnings.simplefilter("ignore")
    tree = sharded_of(shapes, placements)
    sd.save(tree, path, metadata={"by": "ranks"})
    back, again = sd.load(path, like=zeroed(tree)), sd.load(path)
    full = full_of(shapes)
    assert sd.equal(again, full), sd.diff(again, full)
    assert sd.structure(again) == sd.structure(full)
    assert sd.ties(again) == sd.ties(full)
    assert sd.metadata(path) == {"by": "ranks"}
    theirs = zeroed(tree)
    theirs["beside"]["list"][0] = {"3": theirs["beside"]["list"][0][3]}
    dcp.load(theirs, checkpoint_id=path)
    theirs["beside"]["list"][0] = {3: theirs["beside"]["list"][0]["3"]}
    assert sd.equal(theirs, tree)
    return sd.equal(back, tree)


SIDES = st.integers(1, 9)
PLACED = st.sampled_from([Shard(0), Shard(1), Replicate()])
LEAVES = st.lists(
    st.tuples(st.tuples(SIDES, SIDES), st.tuples(PLACED, PLACED)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=8)
@given(LEAVES)
def test_what_ranks_write_is_the_tree(folder, leaves):
    """load(save(t)) = gather(t), load(like=t) = t, and dcp.load takes it."""
    path = folder / "m"
    shapes, placements = zip(*leaves, strict=True)
    found = pool(4).run(there_and_back, path, shapes, placements)
    assert found == [True] * 4
    assert {*os.listdir(path)} - {".metadata", ".sdtree"} <= {
        f"__{rank}_0.distcp" for rank in range(4)
    }
    assert "m" in os.listdir(folder)
    assert {*os.listdir(folder)} <= {"m", "kinds"}


def written_by_torch(path, shapes, placements):
    """Return whether what dcp.save writes on ranks is what each loads of it."""
    warnings.simplefilter("ignore")
    tree = sharded_of(shapes, placements)["model"]
    dcp.save(tree, checkpoint_id=path)
    back = sd.load(path, like=zeroed(tree))
    return sd.equal(back, tree)


@settings(max_examples=5)
@given(LEAVES)
def test_what_torch_writes_on_ranks_opens(tmp_path_factory, leaves):
    """On each rank in its layout, and whole on one."""
    path = tmp_path_factory.mktemp("torch") / "m"
    shapes, placements = zip(*leaves, strict=True)
    found = pool(4).run(written_by_torch, path, shapes, placements)
    assert found == [True] * 4
    assert sd.equal(sd.load(path), full_of(shapes)["model"])


# -- leaves of any kind, on any ranks ----------------------------------------------


@st.composite
def ways(draw):
    """Return how a tensor lies on some of four ranks, in a mesh or in blocks."""
    shape = tuple(draw(st.lists(SIDES, min_size=1, max_size=2)))
    if draw(st.booleans()):
        marks = sorted({0, shape[0], *draw(st.sets(st.integers(0, shape[0])))})
        rest = shape[1:]
        blocks = tuple(
            ((a, *(0,) * len(rest)), (b - a, *rest), draw(st.integers(0, 3)))
            for a, b in pairwise(marks)
        )
        everyone, boxed = (0, 1, 2, 3), draw(st.booleans())
        return Way(shape, (4,), everyone, blocks=blocks, boxed=boxed)
    sizes, ranks = draw(
        st.sampled_from(
            [((4,), (0, 1, 2, 3)), ((2, 2), (0, 1, 2, 3)), ((2,), (1, 3)), ((1,), (2,))]
        )
    )
    axes = draw(st.permutations(range(len(sizes))))
    splits = tuple(
        (axis, draw(st.integers(0, len(shape) - 1)))
        for axis in axes
        if draw(st.integers(0, 3))
    )
    return Way(shape, sizes, ranks, splits, boxed=draw(st.booleans()))


class Rows:
    """A kind of the user's: rows of a tensor, every fourth on each rank.

    Before the first of them it has nothing, which is a box as well.
    """

    def __init__(self, data, count):
        self.data, self.count = data, count


def layout_of_rows(x):
    width = tuple(x.data.shape[1:])
    side = (0,) * len(width)
    boxes = {
        rank: (
            *(
                Box(0, (k, *side), (row, *side), (1, *width))
                for k, row in enumerate(range(rank, x.count, 4))
            ),
            Box(0, (0, *side), (rank, *side), (0, *width)),
        )
        for rank in range(4)
    }
    return Layout((x.count, *width), boxes)


def kinds_there_and_back(path, ways):
    """Return whether leaves of all kinds come back, in their layouts and whole."""
    sd.register_leaf(
        Rows,
        flatten=lambda x: ((x.data,), x.count),
        unflatten=lambda count, ts: Rows(ts[0], count),
        layout=layout_of_rows,
    )
    rank, tree = dist.get_rank(), {}
    for k, way in enumerate(ways):
        full = torch.arange(math.prod(way.shape), dtype=torch.float32).view(way.shape)
        tree[f"w{k}"] = real(Part(way, torch.float32, way.cut(full, rank)))
    rows = torch.arange(14.0).view(7, 2)
    tree["rows"] = Rows(rows[rank::4].clone(), 7)
    sd.save(tree, path)
    return sd.equal(sd.load(path, like=sd.empty_like(tree)), tree)


@settings(max_examples=6)
@given(st.lists(ways(), min_size=1, max_size=3))
def test_boxes_of_any_kind_are_written_and_read(folder, ways):
    """Strided, in blocks, on some ranks, or of a class of the user's."""
    found = pool(4).run(kinds_there_and_back, folder / "kinds", ways)
    assert found == [True] * 4
    back = sd.load(folder / "kinds")
    for k, way in enumerate(ways):
        full = torch.arange(math.prod(way.shape), dtype=torch.float32).view(way.shape)
        assert torch.equal(back[f"w{k}"], full)
    assert torch.equal(back["rows"], torch.arange(14.0).view(7, 2))


def partial(path):
    """Return what a rank is told that saves terms of a reduction."""
    mesh = init_device_mesh("cpu", (4,))
    w = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    with pytest.raises(sd.errors.LayoutError) as caught:
        sd.save({"a": {"w": w}}, path)
    return str(caught.value)


def test_terms_of_a_reduction_are_not_written(tmp_path):
    """What came back would be one of them."""
    for told in pool(4).run(partial, tmp_path / "m"):
        assert "a.w: it is partial, terms of a reduction; gather or redistri" in told
    assert not os.listdir(tmp_path)


def parts_of_one(root):
    """Save what rules cut a leaf into, then the leaf with one of its parts."""
    whole = torch.arange(48.0).view(3, 8, 2)
    mesh = init_device_mesh("cpu", (4,))
    tree = {"g": distribute_tensor(whole, mesh, [Shard(1)])}
    parts = sd.convert(tree, sd.rule("g [e f c]", "x.{e} [c f]"))
    sd.save(parts, root / "parts")
    assert sd.equal(sd.load(root / "parts"), dict(sd.gather(parts)))
    tree["part"] = parts["x.1"]
    with pytest.raises(sd.errors.LayoutError) as caught:
        sd.save(tree, root / "both")
    tree["part"] = sd.copy(tree["part"])
    sd.save(tree, root / "both")
    assert sd.equal(sd.load(root / "both"), {"g": whole, "part": whole[1].T})
    return str(caught.value)


def test_parts_that_share_no_bytes_are_written_each_for_itself(tmp_path):
    """As a file of their wholes has them; what overlaps is refused."""
    for told in pool(4).run(parts_of_one, tmp_path):
        assert "part: it shares bytes with g" in told


# -- each rank reads and writes its own --------------------------------------------


def filled_here(path):
    """Return how many bytes of chunks this rank copies, and how large it writes."""
    from sdtree.io.dcp import files

    tree = {"w": sharded_of([(64, 64)], [(Shard(0), Shard(0))])["model"]["w0"]}
    sd.save(tree, path)
    copied, cut = [], files._cut

    def count(raw, offset, size, dtype):
        part = cut(raw, offset, size, dtype)
        copied.append(part.nbytes)
        return part

    files._cut = count
    try:
        sd.load(path, like=tree)
    finally:
        files._cut = cut
    return sum(copied) // 2


def test_a_rank_reads_and_writes_its_own_boxes(tmp_path):
    found = pool(4).run(filled_here, tmp_path / "m")
    assert found == [64 * 64] * 4
    sizes = [path.stat().st_size for path in (tmp_path / "m").glob("*.distcp")]
    assert len(sizes) == 4
    assert all(64 * 64 < size < 64 * 64 + 2000 for size in sizes)


# -- one rank fails ----------------------------------------------------------------


def failing(path, rank):
    """Write a directory where one rank cannot, and return what each raises."""

    def fail(*_):
        raise OSError("no space left")

    write = dcp.FileSystemWriter.write_data
    if dist.get_rank() == rank:
        dcp.FileSystemWriter.write_data = fail
    try:
        sd.save(sharded_of([(8, 8)], [(Shard(0), Shard(1))]), path)
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        dcp.FileSystemWriter.write_data = write


@pytest.mark.parametrize("rank", [0, 3])
def test_if_one_rank_fails_all_raise_and_nothing_is_left(tmp_path, rank):
    sd.save({"w": torch.ones(2)}, tmp_path / "m")
    found = pool(4).run(failing, tmp_path / "m", rank)
    assert found[rank] == ("OSError", "no space left")
    assert {name for name, _ in found} == {"OSError", "RankFailed"}
    assert sd.equal(sd.load(tmp_path / "m"), {"w": torch.ones(2)})
    assert os.listdir(tmp_path) == ["m"]
    assert len(os.listdir(tmp_path / "m")) == 3


# -- ranks that have other trees ---------------------------------------------------


def stage_of_pipeline(path):
    """Write what two stages of a pipeline have, each sharded over two ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "tensor"))
    stage = mesh.get_local_rank("stage")
    w = distribute_tensor(torch.arange(8.0) + stage, mesh["tensor"], [Shard(0)])
    tree = {"step": 3, f"stage{stage}": {"w": [w], "empty": {}}}
    sd.save(tree, path)
    return sd.equal(sd.load(path), {"step": 3, **STAGES})


STAGES = {
    f"stage{stage}": {"w": [torch.arange(8.0) + stage], "empty": {}}
    for stage in range(2)
}


def test_stages_of_a_pipeline_become_one_tree(tmp_path):
    assert pool(4).run(stage_of_pipeline, tmp_path / "m") == [True] * 4


# -- leaves that ranks have in other ways ------------------------------------------

T = torch.arange(4.0)


def rows_of(t, counts):
    """Return this rank's rows of a tensor, of which ranks hold so many in order."""
    stops = dict(zip(counts, accumulate(counts.values()), strict=True))
    places = {rank: (stops[rank] - n, n) for rank, n in counts.items()}
    boxes = {rank: (Box(0, (0,), (at,), (n,)),) for rank, (at, n) in places.items()}
    start, n = places[dist.get_rank()]
    return sd.Shards(t[start : start + n].clone(), Layout(tuple(t.shape), boxes))


def tied_on_one_rank(path):
    """Save two leaves that are one on the first rank alone."""
    a = rows_of(T, {0: 2, 1: 2})
    b = a if dist.get_rank() == 0 else rows_of(T + 9, {0: 2, 1: 2})
    sd.save({"a": a, "b": b}, path)
    return sd.load(path)


def test_a_tie_that_another_rank_does_not_see_loses_nothing(tmp_path):
    full = {"a": T, "b": torch.cat([T[:2], T[2:] + 9])}
    assert sd.equal(pool(2).run(tied_on_one_rank, tmp_path / "m"), [full] * 2)


def tied_by_names(path, *names):
    """Save what each rank has of leaves that are one, and of a part of that."""
    t = T.clone()
    tree = {x: t[:2] if x == "part" else t for x in names[dist.get_rank()].split()}
    sd.save({**tree, "rows": rows_of(T, {0: 2, 1: 2})}, path)
    return sd.load(path)


@pytest.mark.parametrize(
    "names",
    [
        ("a b", "b a"),
        ("a b c", "b c"),
        ("b c", "a b c"),
        ("b c", "a b c part"),
        ("a b", "b c"),
    ],
)
def test_ranks_may_see_a_tie_in_parts_and_in_any_order(tmp_path, names):
    """What is one is written once, and each of its names leads to it."""
    every = sorted({*" ".join(names).split()})
    full = {x: T[:2] if x == "part" else T for x in [*every, "rows"]}
    for back in pool(2).run(tied_by_names, tmp_path / "m", *names):
        assert sd.equal(dict(sorted(back.items())), full)
        [tie] = sd.ties(back)
        assert sorted(x for (x,) in tie) == every


def on_two_sets(path):
    """Save a leaf that two sets of ranks have, each in parts of its own."""
    counts = {0: 2, 1: 2} if dist.get_rank() < 2 else {2: 1, 3: 3}
    tree = {"w": rows_of(T, counts)}
    sd.save(tree, path)
    return sd.load(path)


def test_a_leaf_of_several_sets_of_ranks_is_written_by_one(tmp_path):
    assert sd.equal(pool(4).run(on_two_sets, tmp_path / "m"), [{"w": T}] * 4)


# -- converted together ------------------------------------------------------------


def converted(source, target, size):
    """Return how often this process tells of progress, and how many bytes it copies."""
    from sdtree.io.converting import by_window
    from sdtree.transform import run

    seen, copied, write = [], [], by_window._write

    def count(*how):
        copied.append(write(*how))
        return copied[-1]

    with (
        patch.object(by_window, "_write", count),
        patch.object(run, "WINDOW_BYTES", 2**20),
    ):
        by_window.convert_file(
            source,
            target,
            sd.cast(dtype=torch.bfloat16),
            shard_bytes=size,
            on_progress=lambda done, total: seen.append(done),
            group=dist.group.WORLD if dist.is_initialized() else None,
        )
    return len(seen), sum(copied)


def needs_hub(name):
    """Mark what takes another library to be written."""
    is_there = find_spec("huggingface_hub") is not None
    reason = "huggingface_hub is not installed: pip install 'sdtree[hf]'"
    return pytest.param(name, marks=pytest.mark.skipif(not is_there, reason=reason))


NAMES = ["a.pt", "a.safetensors", "a", needs_hub("shards")]


@pytest.mark.parametrize("source", NAMES[:3])
@pytest.mark.parametrize("target", NAMES)
def test_ranks_convert_together(tmp_path, source, target):
    """convert(a, b, f) = save(f(load(a)), b), each rank a share of it."""
    tree = {f"w{k}": torch.rand(2**18) for k in range(8)}
    tree |= {"step": 3, "tied": tree["w0"], "row": tree["w1"][:9], "t": (1, [])}
    sd.save(tree, tmp_path / source)
    (tmp_path / "to").mkdir()
    path, size = tmp_path / "to" / target, "3MB" if target == "shards" else None
    found = pool(4).run(converted, tmp_path / source, path, size)
    back = sd.load(path)
    wanted = sd.cast(tree, dtype=torch.bfloat16)
    assert sd.equal(back, wanted)
    assert sd.ties(back) == sd.ties(wanted)
    assert os.listdir(tmp_path / "to") == [target]
    (tmp_path / "alone").mkdir()
    count, by_one = converted(tmp_path / source, tmp_path / "alone" / target, size)
    assert max(seen for seen, _ in found) < count
    assert sum(copied for _, copied in found) == by_one
