"""``Shards``: plain local tensors with a layout, as each rank of several has them."""

import copy
import json
import math
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import fake
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import sdtree as sd
from sdtree.errors import FileError, LayoutError, NoMatch
from sdtree.kinds.shards import restored
from sdtree.kinds.values import same_value
from sdtree.layout import Box, Layout, whole
from sdtree.testing import Blocked, Meshed, blocks, check_one_leaf, layouts, shards_of
from sdtree.testing.strategies import dense, tensors

WORLD = 4
few = settings(max_examples=25)


def on_each_rank(check):
    """Run a check as each rank of a group that moves nothing."""
    for rank in range(WORLD):
        with fake(WORLD, rank):
            check(rank)


def local(layout, full, rank):
    """Return the local tensors of a rank: each as large as its boxes reach."""
    held = layout.boxes.get(rank, ())
    found = []
    for k in range(max((box.tensor + 1 for box in held), default=0)):
        mine = [box for box in held if box.tensor == k]
        ends = [[a + n for a, n in zip(b.local, b.size, strict=True)] for b in mine]
        t = full.new_empty([max(sides) for sides in zip(*ends, strict=True)])
        for box in mine:
            t[stretch(box.local, box.size)] = full[stretch(box.offset, box.size)]
        found.append(t)
    return found or [full.new_empty(0)]


def stretch(offset, size):
    return tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))


ROWS = Layout(
    (4, 3),
    {
        0: (Box(0, (0, 0), (0, 0), (1, 3)), Box(1, (0, 0), (3, 0), (1, 3))),
        1: (Box(0, (0, 0), (1, 0), (2, 3)),),
        2: (),
    },
)
"""Two local tensors on rank 0, one on rank 1, none on 2; rank 3 is outside."""


def rows(rank, dtype=torch.float32):
    return sd.Shards(local(ROWS, torch.arange(12, dtype=dtype).view(4, 3), rank), ROWS)


def test_they_are_leaves_of_their_own():
    """Every local transform keeps kind and layout, also where a rank has no box."""

    def check(rank):
        x = rows(rank)
        check_one_leaf(x)
        tree = {"w": x, "step": 1}
        for f in (sd.copy(), sd.offload(), sd.empty_like(), sd.cast(dtype=torch.half)):
            made = f(tree)["w"]
            assert type(made) is sd.Shards
            assert made.layout is ROWS
            assert [t.shape for t in made.tensors] == [t.shape for t in x.tensors]
        assert sd.cast(tree, dtype=torch.half)["w"].dtype is torch.half
        assert sd.to(tree, "meta")["w"].device.type == "meta"
        assert sd.spec(tree)["w"].shape == x.shape == (4, 3)
        assert sd.nbytes(tree) == 4 * 3 * (2, 2, 0, 0)[rank]
        assert sd.nbytes(tree, whole=True) == 48
        assert sd.select(tree, sd.Shards) == {"w": x}
        assert sd.map(lambda leaf: leaf, tree)["w"] is x
        assert not x.tensors[0].requires_grad

    on_each_rank(check)


def test_how_they_show_themselves():
    x = sd.Shards(torch.ones(4, 3, dtype=torch.half), whole((4, 3), (0,)))
    assert repr(x) == "Shards((4, 3), float16, whole on rank 0)"
    assert "<svg" in x._repr_html_()
    assert "Shards" in str(sd.show({"w": x}))
    assert "<svg" in sd.show({"w": x})._repr_html_()


SIMPLE = (torch.float32, torch.bfloat16, torch.int64)
"""Dtypes that torch itself pickles."""


@given(shards_of(tensors(dtypes=SIMPLE)))
def test_they_are_what_they_hold(x):
    """Pickled and deep-copied they are equal, with equal hashes, in one layout."""
    for again in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert again == x
        assert hash(again) == hash(x)
        assert again.layout == x.layout
    assert copy.deepcopy(x).layout is x.layout


def test_what_makes_two_of_them_differ():
    """A bit, the dtype, the layout, and what is none of them."""
    x = sd.Shards(torch.zeros(2), whole((2,), (0,)))
    assert x == sd.Shards(torch.zeros(2), whole((2,), (0,)))
    assert x != sd.Shards(torch.tensor([0.0, -0.0]), whole((2,), (0,)))
    assert x != sd.Shards(torch.zeros(2, dtype=torch.int32), whole((2,), (0,)))
    assert x != sd.Shards(torch.zeros(2), whole((2,), (0, 1)))
    assert x != torch.zeros(2).tolist()
    layout = Layout((4,), {0: (Box(0, (0,), (0,), (2,)), Box(1, (0,), (2,), (2,)))})
    one, other, third = torch.zeros(2), torch.ones(2), torch.ones(2) * 2
    assert sd.Shards((one, other), layout) == sd.Shards((one, other), layout)
    assert sd.Shards((one, other), layout) != sd.Shards((one, third), layout)
    assert sd.Shards((one, other), layout) != sd.Shards((third, other), layout)


def test_they_stay_as_they_are():
    x = sd.Shards(torch.ones(2), whole((2,), (0,)))
    with pytest.raises(AttributeError, match="stay as they are"):
        x.layout = whole((3,), (0,))
    with pytest.raises(AttributeError, match="stay as they are"):
        del x.tensors
    assert x.tensors[0].data_ptr()


def test_nothing_is_copied_and_grad_is_left_behind():
    w = torch.nn.Parameter(torch.ones(2))
    x = sd.Shards(w, whole((2,), (0,)))
    assert x.tensors[0].data_ptr() == w.data_ptr()
    assert not x.tensors[0].requires_grad
    assert sd.ties({"a": w, "b": x}) == [[("a",), ("b",)]]


def lone(*boxes, shape=(4,)):
    return Layout(shape, {0: boxes})


OVERLAP = lone(Box(0, (0,), (0,), (2,)), Box(0, (0,), (2,), (2,)))
"""Two boxes in one place of a local tensor, and none in the rest of it."""

TWICE = lone(Box(0, (0,), (0,), (4,)), Box(1, (0,), (0,), (4,)))
"""One box in two local tensors, which may differ."""

WRONG = [
    ([], whole((4,), (0,)), "no local tensors"),
    (torch.ones(3), whole((4,), (0,)), r"local tensor of shape \(3,\)"),
    (torch.ones(5), whole((4,), (0,)), r"local tensor of shape \(5,\)"),
    (torch.ones(2, 2), whole((4,), (0,)), r"local tensor of shape \(2, 2\)"),
    ([torch.ones(2), torch.ones(2)], whole((4,), (0,)), "in 1 local tensors of rank 0"),
    ([torch.ones(4), torch.ones(4)], lone(Box(1, (0,), (0,), (4,))), "no box in local"),
    (torch.ones(4), OVERLAP, "two boxes that overlap in a local tensor"),
    ([torch.ones(4)] * 2, TWICE, r"\[0:4\] in local tensor 0 and again in 1, and noth"),
    (torch.ones(4), lone(Box(0, (-2,), (0,), (4,))), "local tensor of shape"),
    (torch.ones(4), lone(Box(0, (0,), (0,), (3,))), "1 of 4 elements"),
    (torch.ones(4), lone(Box(0, (0,), (0,), (5,))), "lies outside"),
    (torch.ones(4), lone(Box(0, (0, 0), (0, 0), (4, 1))), "other dimensions"),
    (torch.ones(4), lone(Box(0, (0,), (0,), (4,)), Box(0, (4,), (0,), (-4,))), "outs"),
    (torch.ones(2), whole((4,), (1,)), r"rank 0 is none of \(1,\)"),
    (torch.ones(4).to_sparse(), whole((4,), (0,)), "not dense"),
    (3, whole((4,), (0,)), "local tensor 0 is a int"),
    ([torch.ones(2), 3], whole((4,), (0,)), "local tensor 1 is a int"),
    (torch.ones(4), (4,), "takes local tensors and then their Layout"),
    (torch.ones(4), Layout((4,), whole((4,), (0,)).boxes, True), "partial"),
    (torch.ones(4), Layout((4,), whole((4,), (0,)).boxes, doubt="who?"), "who?"),
]


@pytest.mark.parametrize(("given_tensors", "layout", "words"), WRONG)
def test_what_does_not_fit_is_refused(given_tensors, layout, words):
    with pytest.raises(LayoutError, match=words):
        sd.Shards(given_tensors, layout)


@st.composite
def anyhow(draw):
    """Return local tensors and a layout: rows in any order, but for a number or two."""
    width = draw(st.integers(1, 2))
    rows = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    starts = [sum(rows[:k]) for k in range(len(rows))]
    order, many = draw(st.permutations(range(len(rows)))), draw(st.booleans())
    boxes, at = [], 0
    for k, piece in enumerate(order):
        size = rows[piece], width
        local = (0, 0) if many else (at, 0)
        boxes.append(Box(k * many, local, (starts[piece], 0), size))
        at += rows[piece]
    for _ in range(draw(st.integers(0, 2))):
        k, side = draw(st.integers(0, len(boxes) - 1)), draw(st.integers(0, 3))
        step, dim = draw(st.sampled_from([-2, -1, 1])), draw(st.integers(0, 1))
        old = boxes[k][side]
        new = (
            old + step if side == 0 else (*old[:dim], old[dim] + step, *old[dim + 1 :])
        )
        boxes[k] = boxes[k]._replace(**{Box._fields[side]: new})
    sizes = [(rows[k], width) for k in order] if many else [(sum(rows), width)]
    held = [torch.rand(size) for size in sizes]
    return held, Layout((sum(rows), width), {0: tuple(boxes)})


@settings(max_examples=400)
@given(anyhow())
def test_layouts_are_refused_or_true(drawn):
    """What is taken uses each local element once, and fills each place once."""
    held, layout = drawn
    try:
        x = sd.Shards(held, layout)
    except LayoutError:
        return
    full, filled = torch.zeros(layout.shape), torch.zeros(layout.shape)
    used = [torch.zeros(t.shape) for t in held]
    for box in layout.boxes[0]:
        here, there = (stretch(x, box.size) for x in (box.local, box.offset))
        if box.numel:
            used[box.tensor][here] += 1
            full[there] = held[box.tensor][here]
            filled[there] += 1
    assert all(bool((t == 1).all()) for t in (filled, *used))
    assert torch.equal(sd.gather({"w": x})["w"], full)


def test_all_local_tensors_have_one_dtype_and_device():
    halves = lone(Box(0, (0,), (0,), (2,)), Box(1, (0,), (2,), (2,)))
    for other, what in ((torch.half, "dtype"), ("meta", "device")):
        with pytest.raises(LayoutError, match=f"local tensor 1 has {what}"):
            sd.Shards([torch.ones(2), torch.ones(2).to(other)], halves)


def test_a_value_that_has_tensors_is_compared_by_them():
    """As the attribute of a container, say: what it is beside them is not all."""
    alone = whole((2,), (0,))
    a, b = (sd.Shards(torch.full((2,), x), alone) for x in (0.0, 1.0))
    assert same_value([a], [sd.copy(a)])
    assert not same_value([a], [b])


# -- files -------------------------------------------------------------------------


def test_a_file_of_torch_has_each_ranks_own(tmp_path):
    """Layout, ties and bits come back, also of a rank that another process is not."""

    def write(rank):
        x = rows(rank)
        sd.save({"w": x, "tied": x, "step": rank}, tmp_path / f"{rank}.pt")

    on_each_rank(write)
    for rank in range(WORLD):
        for mmap in (False, True):
            found = sd.load(tmp_path / f"{rank}.pt", mmap=mmap)
            held = local(ROWS, torch.arange(12.0).view(4, 3), rank)
            assert found["step"] == rank
            assert found["w"].layout == ROWS
            assert all(map(torch.equal, found["w"].tensors, held))
            assert found["w"].layout is found["tied"].layout
            assert sd.ties(found) == [[("w",), ("tied",)]]


class Forged:
    """Pickled, it claims to be Shards of whatever it was given."""

    def __init__(self, *told):
        self.told = told

    def __reduce__(self):
        return restored, self.told


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (("{", (torch.ones(2),)), "not the JSON of a Layout"),
        ((3, (torch.ones(2),)), "a str was expected"),
        ((whole((2,), (0,)).to_json(), ()), "no local tensors"),
        ((whole((2,), (0,)).to_json(), (3,)), "local tensor 0 is a int"),
        ((whole((2,), (0,)).to_json(), 3), "restored"),
        ((whole((2,), (0,)).to_json(), (torch.ones(2).to_sparse(),)), "not dense"),
        ((whole((2,), (0,)).to_json(),), "restored"),
    ],
)
def test_a_forged_file_is_refused(tmp_path, told, words):
    torch.save({"w": Forged(*told)}, tmp_path / "m.pt")
    with pytest.raises(FileError, match=words):
        sd.load(tmp_path / "m.pt")


def test_what_a_file_claims_is_seen_when_it_is_exchanged(tmp_path):
    """A tensor of another size may be of another rank; here it does not fit."""
    told = whole((2,), (0,)).to_json(), (torch.ones(3),)
    torch.save({"w": Forged(*told)}, tmp_path / "m.pt")
    found = sd.load(tmp_path / "m.pt")
    with pytest.raises(LayoutError, match=r"^w: rank 0 has a local tensor of shape"):
        sd.gather(found)


def test_safetensors_refuses_and_a_folder_takes_them(tmp_path):
    tree = {"w": sd.Shards(torch.ones(2), whole((2,), (0,)))}
    with pytest.raises(TypeError, match="no room for a Shards"):
        sd.save(tree, tmp_path / "m.safetensors")
    for name, options in (("dcp", {}), ("hf", {"shard_bytes": 10**6})):
        sd.save(tree, tmp_path / name, **options)
        assert torch.equal(sd.load(tmp_path / name)["w"], torch.ones(2))
        assert sd.load(tmp_path / name, like=sd.empty_like(tree)) == tree


def test_layouts_beside_a_file(tmp_path):
    """A tree of layouts is written by name, and read again."""
    layouts = {"a": {"w": ROWS}, "b": whole((2,), (0,))}
    texts = sd.map(Layout.to_json, layouts)
    file = tmp_path / "layouts.json"
    file.write_text(json.dumps(sd.flatten(texts)))
    read = sd.map(Layout.from_json, json.loads(file.read_text()))
    assert read == sd.flatten(layouts)


# -- DTensors ----------------------------------------------------------------------


def distributed(drawn, full, rank):
    mesh = DeviceMesh(
        "cpu", torch.tensor(drawn.ranks).view(drawn.mesh), _init_backend=False
    )
    form = torch.empty(drawn.shape, device="meta")
    spec = torch.distributed.tensor._dtensor_spec
    meta = spec.TensorMeta(form.shape, form.stride(), full.dtype)
    found = spec.DTensorSpec(mesh, drawn.placements, tensor_meta=meta)
    return DTensor(drawn.local(full, rank), found, requires_grad=False)


ascending = layouts().filter(lambda x: list(x.ranks) == sorted(x.ranks))


@few
@given(ascending, st.sampled_from([torch.float32, torch.int64]))
def test_a_dtensor_comes_back(drawn, dtype):
    """Shards.of takes its local tensor and layout, to_dtensor finds placements."""

    def check(rank):
        x = distributed(drawn, dense(drawn.shape, dtype, 3), rank)
        found = sd.Shards.of(x)
        assert found.tensors[0].data_ptr() == x._local_tensor.data_ptr()
        back = found.to_dtensor(x.device_mesh)
        assert back.shape == x.shape
        if x._local_tensor.numel():  # there is more than one way to hold nothing
            assert sd.Shards.of(back) == found
        if math.prod(drawn.shape):
            assert sd.Shards.of(back).layout == found.layout == drawn.layout()

    on_each_rank(check)


def test_which_layouts_are_none_of_a_dtensor():
    """Several local tensors, cuts of no chunks, other ranks: each with its reason."""

    def check(rank):
        mesh = DeviceMesh("cpu", torch.arange(4), _init_backend=False)
        blocked = Blocked((4,), ((((0,), (1,)), 0), (((1,), (3,)), 1))).layout()
        x = sd.Shards(local(blocked, torch.arange(4), rank), blocked)
        with pytest.raises(LayoutError, match="no placements on a mesh of"):
            x.to_dtensor(mesh)
        with pytest.raises(LayoutError, match="give a mesh of the very ranks"):
            rows(rank).to_dtensor(mesh)
        with pytest.raises(TypeError, match="takes a DeviceMesh, not a tuple"):
            rows(rank).to_dtensor((4,))

    on_each_rank(check)


def test_what_of_refuses():
    with pytest.raises(LayoutError, match="takes a leaf that ranks share, and a Tens"):
        sd.Shards.of(torch.ones(2))

    def check(rank):
        mesh = DeviceMesh("cpu", torch.arange(4), _init_backend=False)
        terms = DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
        with pytest.raises(LayoutError, match="partial, terms of a reduction"):
            sd.Shards.of(terms)
        turned = DeviceMesh("cpu", torch.tensor([1, 0, 2, 3]), _init_backend=False)
        odd = DTensor.from_local(torch.ones(1), turned, [Shard(0)], run_check=False)
        with pytest.raises(LayoutError, match="ranks do not ascend"):
            sd.Shards.of(odd)
        same = DTensor.from_local(torch.ones(1), turned, [Replicate()], run_check=False)
        assert sd.Shards.of(same).to_dtensor(turned).placements == (Replicate(),)

    on_each_rank(check)


# -- a tree of local tensors -------------------------------------------------------


@few
@given(layouts() | blocks(), st.booleans())
def test_a_tree_of_local_tensors_takes_layouts(drawn, is_flat):
    """By path or by name, nested or flat; a list is one leaf; the rest stays."""
    layout = drawn.layout()
    full = dense(drawn.shape, torch.float32, 1)

    def check(rank):
        held = local(layout, full, rank)
        held = held if isinstance(drawn, Blocked) else held[0]
        if isinstance(drawn, Meshed) and rank in drawn.ranks:
            held = drawn.local(full, rank)
        tree = {"experts": {"w1": held, "w2": held}, "step": 3, "ids": [1, 2]}
        meant = {"experts": {"w1": layout, "w2": layout}}
        made = sd.shards(tree, sd.flatten(meant) if is_flat else meant)
        if not (is_flat and isinstance(drawn, Blocked)):
            x = sd.Shards(held, layout)
            assert made == {**tree, "experts": {"w1": x, "w2": x}}
            assert sd.shards(meant)(tree) == made

    if not (is_flat and isinstance(drawn, Blocked)):
        on_each_rank(check)


def test_globs_name_many():
    """One layout for all experts; a leaf that two mean, or none, is an error."""
    w, two = torch.ones(2), whole((2,), (0,))
    tree = {"experts": {"0": {"w": w}, "1": {"w": w}}, "norm": w}
    made = sd.shards(tree, {"experts.*.w": two})
    assert [type(x) for x in sd.leaves(made)] == [sd.Shards, sd.Shards, torch.Tensor]
    assert sd.shards(w, two) == sd.Shards(w, two)
    with pytest.raises(ValueError, match=r"^norm: it is meant by 'norm' and '\*\*'"):
        sd.shards(tree, {"norm": two, "**": two})
    with pytest.raises(NoMatch, match=r"'exprts\.\*\*' matches no leaf; no 'exprts'"):
        sd.shards(tree, {"exprts.**": two})


def test_an_error_tells_the_path():
    w = torch.ones(2)
    with pytest.raises(LayoutError, match=r"^a\.b: Shards: rank 0 has a local tensor"):
        sd.shards({"a": {"b": w}}, {"a": {"b": whole((3,), (0,))}})
    with pytest.raises(LayoutError, match=r"^a: Shards: local tensor 0 is a int"):
        sd.shards({"a": 3}, {"a": whole((3,), (0,))})
    with pytest.raises(LayoutError, match=r"^a: Shards: there are no local tensors"):
        sd.shards({"a": []}, {"a": whole((3,), (0,))})
    with pytest.raises(TypeError, match="takes layouts, and at a of them is an int"):
        sd.shards({"a": w}, {"a": 3})


def test_they_are_foretold():
    """explain knows what will be of leaves without data."""
    steps = sd.shards({"w": whole((2,), (0,))}) | sd.gather()
    assert "Shards (2,)" in str(sd.explain(steps, {"w": torch.ones(2)}))
    form = sd.shards(sd.spec({"w": torch.ones(2)}), {"w": whole((2,), (0,))})["w"]
    assert form == sd.spec({"w": sd.Shards(torch.ones(2), whole((2,), (0,)))})["w"]


def test_other_shards_of_a_layout_are_of_one_form():
    """What was prepared takes them, and what is known of a form keeps no leaf."""
    layout = whole((2,), (0,))
    one, other = (sd.Shards(torch.full((2,), x), layout) for x in (1.0, 2.0))
    with sd.copy().prepare({"w": one}) as run:
        assert run({"w": other}) == {"w": other}
    for leaf in (one, other):
        sd.spec({"w": leaf})
    kept = [weakref.ref(x.tensors[0]) for x in (one, other)]
    del one, other, leaf, run
    assert [t() for t in kept] == [None, None]
