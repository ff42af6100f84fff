"""explain: what it shows, what it takes for granted, and that it touches nothing."""

import json
import xml.etree.ElementTree as ET

import oracle
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from shards import fake
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd
from sdtree.layout.layout import Split, mesh_layout
from sdtree.testing import Both, snapshot, sparse_tensors, tensors, trees, views
from sdtree.wire.collectives import forced, record

HALF = sd.cast(dtype=torch.float16)
STATE = {"model": {"w": torch.ones(4, 8), "b": torch.ones(8)}, "step": 3}


def by_rows(shape, ranks, rank=0):
    """Return what rows on some ranks are, where there is no mesh."""
    layout = mesh_layout(shape, (ranks,), (Split(0, 0),), lambda at: at[0])
    found = sd.Abstract.dense(layout.boxes[rank][0].size, torch.float32)
    return sd.Abstract(DTensor, shape, torch.float32, found.tensors, layout)


# -- local transforms --------------------------------------------------------------

LOCAL = st.sampled_from(
    [
        HALF,
        sd.copy(),
        sd.prefix("a"),
        sd.offload() | HALF,
        sd.map(lambda x: x),
        sd.where("**.w", sd.copy(), missing_ok=True),
        sd.drop("**.w", missing_ok=True) | HALF,
        sd.select(torch.Tensor, missing_ok=True) | sd.prefix("x"),
    ]
)


@settings(max_examples=50)
@given(trees(), LOCAL)
def test_a_row_tells_where_each_leaf_goes(tree, transform):
    """Paths and forms are those of the result, no leaf is left out, and none moves."""
    try:
        result = transform(tree)
    except sd.errors.UnknownLeaf:  # an array that no cast is for
        reject()
    plan = sd.explain(transform, tree)
    made = {path: sd.Abstract.of(leaf) for path, leaf in sd.items(result)}
    told = {row.to: row.after for row in plan.rows if row.to is not None}
    assert [*told] == [*made]
    assert all(told[path] == form for path, form in made.items())
    assert {row.path for row in plan.rows} == {*sd.paths(tree)}
    assert {row[6:9] for row in plan.rows} <= {(0, 0, 0)}


@settings(max_examples=50)
@given(trees())
def test_nothing_is_touched(tree):
    """No version changes, no leaf is another, and nothing is sent."""
    before = snapshot(tree)
    with record() as traffic:
        sd.explain(sd.copy() | HALF | sd.gather(), tree)
    assert traffic.messages == {}
    assert snapshot(tree) == before


def test_a_chain_by_hand():
    plan = sd.explain(sd.select("model.**") | HALF | sd.copy(), STATE)
    assert [(row.path, row.to) for row in plan.rows] == [
        (("model", "w"), ("model", "w")),
        (("model", "b"), ("model", "b")),
        (("step",), None),
    ]
    assert plan.peak() == {"cpu": 2 * 2 * 40}
    assert plan.windows == 1
    assert plan.traffic().messages == {}


def test_what_is_tied_is_made_once():
    w = torch.ones(4, 8)
    assert sd.explain(sd.copy(), {"w": w, "tied": w}).peak() == {"cpu": w.nbytes}


@st.composite
def tied_inside(draw):
    """Return views of one storage, and leaves of several of them: partly tied ones."""
    tree = draw(views())
    some = st.sampled_from([*tree.values()])
    both = st.builds(Both, some, some | tensors(meta=False).map(torch.Tensor.detach))
    tree["both"] = draw(st.lists(both, max_size=2))
    sparse = draw(sparse_tensors())
    held = [*oracle.data_of(sparse)]
    tree["sparse"] = draw(st.lists(st.sampled_from([sparse, *held]), max_size=3))
    return tree


def made_bytes(tree):
    """Return what the storages of a tree take."""
    every = [t.untyped_storage() for x in sd.leaves(tree) for t in oracle.data_of(x)]
    return sum({x.data_ptr(): x.nbytes() for x in every}.values())


@given(tied_inside(), st.data())
def test_a_peak_is_what_is_made(tree, data):
    """Of all storages, gaps between views too; where dtypes meet ends are aligned.

    What is dropped by its name, before or after, is not made.
    """
    names = data.draw(st.sets(st.sampled_from(sorted(sd.names(tree) or ["none"]))))
    drop = sd.drop(tuple(names) or "none", missing_ok=True)
    transforms = sd.copy() | sd.prefix("a"), sd.copy() | drop, drop | sd.copy()
    transform = data.draw(st.sampled_from(transforms))
    told = sd.explain(transform, tree)
    result = transform(tree)
    dtypes = {t.dtype for x in sd.leaves(result) for t in oracle.data_of(x)}
    assert told.peak() == told.peak(streamed=True)
    more = made_bytes(result) - sum(told.peak().values())
    assert 0 <= more <= 32 * (len(dtypes) > 1)


@pytest.mark.parametrize("to", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_what_is_tied_to_a_part_of_a_leaf_takes_nothing_from_the_rest(to):
    s = to(torch.eye(100))
    for tree in {"x": s, "values": s.detach().values()}, {"x": s, "y": s}:
        made = sd.nbytes(sd.copy(tree))
        assert sd.explain(sd.copy(), tree).peak() == {"cpu": made}


def test_a_gap_between_tied_views_is_made():
    """Views that are tied keep their distance."""
    flat = torch.zeros(1000)
    ends = {"first": flat[:10], "last": flat[-10:]}
    assert sd.nbytes(ends) == 80
    assert sd.explain(sd.copy(), ends).peak() == {"cpu": 4000}
    assert made_bytes(sd.copy(ends)) == 4000


def test_what_was_made_is_counted_once_however_often_it_is_taken_whole():
    """And where the last stretch is streamed all lies there that it begins with."""
    seen = HALF | sd.whole(dict) | sd.prefix("x") | sd.whole(dict)
    assert sd.explain(seen, STATE).peak() == {"cpu": 2 * 40}
    grown = sd.explain(seen | sd.cast(dtype=torch.float64), STATE)
    assert grown.peak() == grown.peak(streamed=True) == {"cpu": (2 + 8) * 40}


def test_what_stays_takes_nothing():
    assert sd.explain(sd.to("cpu") | sd.prefix("x"), STATE).peak() == {}
    buffers = sd.empty_like(STATE)
    assert sd.explain(sd.copy(into=buffers), STATE).peak() == {}


def test_what_stays_in_the_target_is_there_for_the_steps_after():
    like = {"a": torch.zeros(4), "b": torch.ones(3)}
    load = sd.distribute(like=like, strict=False)
    for f, most in ((load, 16), (load | sd.copy(), 28), (load | HALF, 14)):
        plan = sd.explain(f, {"a": torch.ones(4)})
        assert [row.device for row in plan.rows] == ["cpu", "cpu"]
        assert plan.peak()["cpu"] >= most
        assert plan.peak()["cpu"] <= most + 16


def test_a_choice_among_forms_that_are_given_is_foretold():
    """Nothing has data there that one could have looked at."""
    plan = sd.explain(sd.select(lambda path, x: path[0] == "step"), sd.spec(STATE))
    assert plan.notes == ()
    assert [row.to for row in plan.rows if row.to] == [("step",)]


def test_what_cannot_be_foretold_is_told():
    plan = sd.explain(sd.map(lambda x: x) | sd.select(lambda path, x: True), STATE)
    assert [note.partition(":")[0] for note in plan.notes] == [
        "map(<lambda>)",
        "select(<lambda>)",
    ]
    assert plan.peak() == {"cpu": 160}
    assert all(note in str(plan) for note in plan.notes)


# -- ranks that are not there ------------------------------------------------------


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_a_mesh_need_not_be_there(wire):
    """Abstract leaves with layouts are enough: the ranks are those that they name."""
    tree = {"w": by_rows((8, 4), 4), "step": 3}
    with forced(wire):
        plan = sd.explain(sd.gather(ranks=0), tree)
    assert plan.ranks == (0, 1, 2, 3)
    assert plan.rows[0].moves == 3 * 2 * 4 * 4
    assert plan.rows[0].received == plan.rows[0].moves
    assert plan.rows[0].ranks == (0,)
    kinds = {"pairs": "receive", "collective": "all_to_all"}
    assert plan.traffic(0).messages[kinds[wire]] == (3 if wire == "pairs" else 1)


def test_a_thousand_ranks_that_share_one_file():
    """Balanced, the bytes are the same and the memory is that of a leaf or two."""
    tree = {f"layers.{i}.w": by_rows((4096, 1024), 1024) for i in range(64)}
    one, many = (
        sd.explain(sd.gather(ranks=ranks) | sd.offload(), tree)
        for ranks in (0, "balanced")
    )
    size = 4096 * 1024 * 4
    moved = 64 * size * 1023 // 1024
    for plan in (one, many):
        words = plan.spreads()["bytes: receive"].total - moved
        assert 0 <= words <= 16 * 64 * 1023
    assert 64 * size <= one.spreads()["peak: cpu"].most <= 66 * size
    assert many.spreads()["peak: cpu"].most <= 2 * size + 2**20


@given(st.lists(st.integers(1, 4), max_size=6), st.integers(1, 8))
def test_small_leaves_go_together(rows, limit):
    """In one window as many as have room, in the order of their paths."""
    tree = {f"w{k}": by_rows((4 * n, 1), 4) for k, n in enumerate(rows)}
    windows, room = 0, 0
    for n in rows:
        windows, room = (windows + (n > room), (limit if n > room else room) - n)
    plan = sd.explain(sd.gather(ranks=0, bucket_bytes=16 * limit), tree)
    assert plan.windows == windows


def test_a_fake_group_stands_for_a_real_one():
    with fake(4):
        mesh = init_device_mesh("cpu", (2, 2))
        rows = DTensor.from_local(
            torch.empty(2, 4, device="meta"), mesh, [Replicate(), Shard(0)]
        )
        plan = sd.explain(sd.gather() | HALF, {"w": rows})
        assert plan.traffic(3).messages["receive"] == 1
        target = {"w": by_rows((4, 4), 4)}
        loaded = sd.explain(sd.broadcast(like=target), {"w": torch.ones(4, 4)})
        assert loaded.rows[0].moves == 3 * 16
        assert loaded.traffic(0).messages["send"] == 3


def test_a_mismatch_is_raised_as_the_run_would():
    target = {"w": by_rows((4, 4), 2)}
    with pytest.raises(sd.errors.SpecMismatch, match="w"):
        sd.explain(sd.broadcast(like=target), {"w": torch.ones(4, 5)})


def test_inside_where_only_what_matches_moves():
    tree = {"a": by_rows((4, 4), 2), "b": by_rows((4, 4), 2)}
    plan = sd.explain(sd.where("a", sd.gather()), tree)
    assert [row.moves > 0 for row in plan.rows] == [True, False]


def test_where_moves_what_it_means_alone():
    """The others stay where they lie, and nothing is made of them."""
    tree = {"a": torch.ones(4), "b": torch.ones(8)}
    for which in ("a", sd.selector("a") & torch.Tensor):
        plan = sd.explain(sd.where(which, sd.to("meta")), tree)
        assert [row.device for row in plan.rows] == ["meta", "cpu"]
        assert plan.peak() == {"meta": 16}
    there = sd.to("meta") | sd.to("cpu")
    plan = sd.explain(sd.prefix("x") | sd.where("x.a", there), tree)
    assert [row.device for row in plan.rows] == ["cpu", "cpu"]


def test_where_that_looks_at_leaves_is_counted_as_if_it_matched_all():
    """After a step there is no data to look at; the plan says what it supposes."""

    def is_large(path, x):
        return x.numel() > 3

    f = sd.copy() | sd.where(is_large, sd.drop("b"))
    plan = sd.explain(f, {"a": torch.zeros(2), "b": torch.zeros(4)})
    assert "dropped" in str(plan).splitlines()[4]
    assert "counted as if it matched all" in plan.notes[0]


def test_types_are_told_without_data():
    tree = {"a": torch.zeros(2), "n": 1}
    for kind in (torch.Tensor, ~sd.selector(int), sd.selector(torch.Tensor) & "a"):
        for f in (sd.copy() | sd.select(kind), sd.copy() | sd.select(kind) | sd.copy()):
            plan = sd.explain(f, tree)
            assert [row.to is None for row in plan.rows] == [False, True]
            assert plan.notes == ()
        plan = sd.explain(sd.copy() | sd.where(kind, sd.cast(dtype=torch.half)), tree)
        assert plan.peak() == {"cpu": 8 + 4}
        assert plan.notes == ()


@pytest.mark.parametrize(
    "made",
    [
        sd.copy() | sd.select(lambda path, x: x is not None and path == ("a",)),
        sd.copy() | sd.drop(lambda path, x: path != ("a",)),
        sd.map(lambda x: x * 1) | sd.select(lambda path, x: path == ("a",)),
        sd.copy() | sd.whole(lambda t: {"a": t["a"], "b": 0}) | sd.select(torch.Tensor),
        sd.copy() | sd.where("b", sd.drop(lambda path, x: x.sum() > 0)) | sd.drop("n"),
        sd.copy() | sd.whole(dict) | sd.select(lambda path, x: path == ("a",)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "paired", [lambda t: sd.copy(into=t), lambda t: sd.cast(like=t)]
)
def test_no_plan_refuses_what_a_run_does(made, paired):
    """What it supposed may not be so, and it says where it ends for that."""
    tree = {"a": torch.zeros(3), "b": torch.ones(2), "n": 1}
    f = made | paired({"a": torch.zeros(3)})
    assert sd.equal(f(tree), {"a": torch.zeros(3)})
    plan = sd.explain(f, tree)
    is_told = all("kept all" not in note for note in plan.notes)
    assert is_told or "not counted" in plan.notes[-1]


def test_what_goes_to_some_takes_no_memory_elsewhere():
    """Nor does the source, which is not there either."""
    with fake(2):
        one = DeviceMesh("cpu", torch.tensor([0]))
        like = {"w": DTensor.from_local(torch.ones(2, 3), one, [Shard(0)])}
        f = sd.map(torch.neg) | sd.broadcast(like=like) | sd.copy()
        assert sd.explain(f, {"w": torch.ones(2, 3)}).peak(1) == {"cpu": 0}
        to_one = sd.explain(sd.gather(ranks=0) | sd.copy(), {"w": torch.ones(2, 3)})
        assert to_one.peak(1) == {"cpu": 0}
        assert to_one.peak(0) == {"cpu": 24}


@pytest.mark.parametrize(("ranks", "is_noted"), [(0, False), (1, True), (None, False)])
def test_ties_of_what_others_have_buffers_for_are_noted(ranks, is_noted):
    """Whether theirs are one and the same is not seen here."""
    with fake(2):
        mesh = init_device_mesh("cpu", (2,))
        w, buffer = DTensor.from_local(torch.ones(2), mesh, [Shard(0)]), torch.empty(4)
        f = sd.gather(ranks=ranks, into={"a": buffer, "b": buffer})
        notes = sd.explain(f, {"a": w, "b": w}).notes
    told = "gather(ranks=1, into=...): a, b may be tied, which is not seen on this rank"
    assert notes == ((told,) if is_noted else ())


def test_views_of_one_buffer_that_come_apart_are_named():
    """The rows of two leaves lie in one buffer, as their wholes could not."""
    flat = torch.zeros(8)
    with fake(4):
        mesh = init_device_mesh("cpu", (4,))
        a, b = (
            DTensor.from_local(flat[k : k + 4].view(2, 2), mesh, [Shard(0)])
            for k in (0, 4)
        )
        notes = sd.explain(sd.gather(), {"a": a, "b": b}).notes
        assert notes == (
            "gather(): a, b share memory here, and their wholes have each its own",
        )
        assert sd.explain(sd.gather(), {"a": a, "again": a}).notes == ()
        none = DTensor.from_local(flat[:0].view(0, 2), mesh, [Shard(0)])
        assert sd.explain(sd.gather(), {"a": a, "none": none}).notes == ()
        every = DTensor.from_local(flat[:4].view(2, 2), mesh, [Replicate()])
        for other in (flat, every):  # what stays lies on where it did
            notes = sd.explain(sd.gather(), {"a": a, "b": other, "c": other}).notes
            assert notes[0].startswith("gather(): a, b")
            assert notes[0].endswith("wholes have each its own")
            assert sd.explain(sd.gather(), {"b": other, "c": every}).notes == ()


NOTED = (
    "counted as if no other ranks held leaves at the paths that only some ranks hold"
)


@pytest.mark.parametrize(("ranks", "told"), [(4, ()), (2, (NOTED,))])
def test_what_is_taken_of_ranks_that_are_not_seen_is_told(ranks, told):
    """Not where what lies on some of them stays there, and each distributes alone."""
    with fake(4):
        part = sd.Shards(torch.ones(4 // ranks, 2), by_rows((4, 2), ranks).layout)
        tree, like, full = {"w": part}, {"w": part}, {"w": torch.ones(4, 2)}
        for f, given in (
            (sd.gather(ranks=0), tree),
            (sd.redistribute(like=like), tree),
            (sd.broadcast(like=like), full),
        ):
            notes = sd.explain(f, given).notes
            assert tuple(note.partition(": ")[2] for note in notes) == told
        for f, given in ((sd.gather(), tree), (sd.distribute(like=like), full)):
            assert sd.explain(f, given).notes == ()


@pytest.mark.parametrize("ranks", [4, 2])
def test_it_is_told_that_other_sets_of_ranks_may_see_other_ties(ranks):
    """They tell all ranks of them, where not all of a set see the same."""
    with fake(4):
        part = sd.Shards(torch.ones(4 // ranks, 2), by_rows((4, 2), ranks).layout)
        tree, whole = ({"a": x, "b": x} for x in (part, torch.ones(4, 2)))
        for f, given in ((sd.gather(), tree), (sd.distribute(like=tree), whole)):
            told = sd.explain(f, given).notes
            assert len(told) == (ranks == 2)
            assert all("a, b are counted as if other sets" in note for note in told)


def test_a_leaf_moves_all_of_its_tensors():
    w = TwoTensor(torch.ones(2, 2), torch.ones(2, 2))
    with fake(2):
        [row] = sd.explain(sd.broadcast(like={"w": w}), {"w": w}).rows
    assert (row.moves, row.sent, row.received) == (32, 32, 0)


# -- how it shows ------------------------------------------------------------------


def test_it_shows_as_text_html_and_json():
    tree = {"<w>": by_rows((8, 4), 2), "step": 3, "old": torch.ones(2)}
    tree["v"] = by_rows((4, 4), 2)
    plan = sd.explain(sd.drop("old") | sd.gather(ranks=1), tree)
    text, html, data = str(plan), plan._repr_html_(), json.loads(plan.to_json())
    assert all(word in text for word in ("rank 1, cpu", "dropped", "receive"))
    ET.fromstring(html)
    assert "&lt;w&gt;" in html
    shares = [float(x.partition("%")[0]) for x in html.split("--share:")[1:]]
    assert sorted(shares) == [0, 0, 50, 100]
    assert data["ranks"] == [0, 1]
    assert data["leaves"][0]["moves"] == 64
    assert data["leaves"][3]["to"] is None
    right = [sorted(table.right) for table in plan.tables()]
    assert right == [[3], [1, 2, 3, 4], [1, 2, 3]]


def test_it_shows_what_becomes_of_each_leaf():
    head, blank, titles, *rows = str(sd.explain(HALF | sd.gather(), STATE)).splitlines()
    assert head == f"{HALF | sd.gather()!r}: 3 leaves, 1 rank, 1 window"
    assert [blank, titles.split()[:2]] == ["", ["leaf", "form"]]
    assert [row.rstrip() for row in rows[:4]] == [
        "model.w  Tensor (4, 8) float32 -> float16  cpu",
        "model.b  Tensor (8,) float32 -> float16    cpu",
        "step     int",
        "",
    ]


def test_many_leaves_are_cropped():
    plan = sd.explain(sd.copy(), {f"w{i}": torch.ones(1) for i in range(100)})
    assert "… and 60 more leaves" in str(plan)
    assert len(plan.rows) == 100


# -- mistakes ----------------------------------------------------------------------


def test_the_transform_comes_first():
    with pytest.raises(TypeError, match="explain takes a transform, then the tree"):
        sd.explain(STATE, HALF)


def test_a_source_is_to_explain():
    with fake(2, rank=1), pytest.raises(ValueError, match="explain it there"):
        sd.explain(sd.broadcast(like={"w": torch.ones(2)}), {"w": torch.ones(2)})


def test_a_rank_outside_is_refused():
    with pytest.raises(ValueError, match="rank 7 is not in the plan"):
        sd.explain(sd.copy(), STATE).traffic(7)
