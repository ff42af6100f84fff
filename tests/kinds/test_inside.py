"""DTensors over wrappers: inner tensors that are cut as the outer one is are parts."""

import pytest
import torch
import torch.distributed as dist
from foretelling import as_foretold
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import mesh
from shards import caught, me, over, said, shard, together
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd
from sdtree.errors import (
    LayoutError,
    RankFailed,
    RankMismatch,
    SpecMismatch,
    UnknownLeaf,
)
from sdtree.kinds import asking
from sdtree.kinds.handler import handler_of
from sdtree.kinds.values import same_value

GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default
SLICE = torch.ops.aten.slice.Tensor
ALIKE = (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default)


class Blocks(torch.Tensor):
    """Integers in blocks of rows with a scale each, and a table: all that may happen.

    It knows its size, and tells how it is sliced.
    """

    knows = (SLICE,)

    @staticmethod
    def __new__(cls, data, scale, table, block, size):
        return torch.Tensor._make_wrapper_subclass(cls, size, dtype=torch.float32)

    def __init__(self, data, scale, table, block, size):
        self.data8, self.scale, self.table = data, scale, table
        self.block, self.known = block, size

    def __tensor_flatten__(self):
        return ["data8", "scale", "table"], {"block": self.block, "size": self.known}

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(*inner.values(), context["block"], context["size"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        x, *rest = args
        if func in ALIKE:
            inner = [func(t, *rest, **(kwargs or {})) for t in (x.data8, x.scale)]
            return cls(*inner, x.table, x.block, x.known)
        if func not in cls.knows:
            raise NotImplementedError(f"{cls.__name__} knows nothing of {func}")
        if func is GATHER:
            return x.over(func(x.data8, *rest), func(x.scale, *rest))
        dim, start, stop = rest
        if dim:
            return x.over(x.data8[:, start:stop], x.scale)
        if start % x.block or stop % x.block:
            raise ValueError("within a block")
        first, last = start // x.block, stop // x.block
        return x.over(x.data8[start:stop], x.scale[first:last])

    def over(self, data, scale):
        return type(self)(data, scale, self.table, self.block, tuple(data.shape))


class Joined(Blocks):
    """It tells how two of it are gathered, and not how it is sliced."""

    knows = (GATHER,)


class Mute(Blocks):
    """It tells nothing."""

    knows = ()


class Counted(Blocks):
    """It has the number of its blocks beside it, which nobody can tell of the whole."""

    def __tensor_flatten__(self):
        names, context = super().__tensor_flatten__()
        return names, {**context, "blocks": self.scale.numel()}


def numbers(*shape, start=0):
    return torch.arange(start, start + torch.Size(shape).numel()).view(shape)


def blocks_of(cls, shape, block, start=0):
    """Return a whole of a kind."""
    if cls is TwoTensor:
        data = numbers(*shape, start=start).float()
        return TwoTensor(data, -data)
    data = numbers(*shape, start=start).to(torch.int16)
    scale = numbers(shape[0] // block, start=start).double()
    return cls(data, scale, numbers(16).float(), block, shape)


def part_of(x, placements, over):
    """Return what a rank has of a whole, as naively as can be."""
    rows, columns = range(x.shape[0]), range(x.shape[1])
    for axis, placement in enumerate(placements):
        if placement.is_shard():
            held = columns if placement.dim else rows
            step = -(-len(held) // over.size(axis))
            at = step * over.get_local_rank(axis)
            if placement.dim:
                columns = columns[at : at + step]
            else:
                rows = rows[at : at + step]
    rows, columns = torch.tensor([*rows]), torch.tensor([*columns])
    if isinstance(x, TwoTensor):
        return TwoTensor(x.a[rows][:, columns], x.b[rows][:, columns])
    scale = x.scale[rows[:: x.block] // x.block]
    size = (len(rows), len(columns))
    return type(x)(x.data8[rows][:, columns], scale, x.table, x.block, size)


def sharded(x, placements, over):
    """Return the DTensor that a whole is the whole of."""
    local = part_of(x, placements, over)
    like = DTensor.from_local(
        torch.empty(local.shape, dtype=x.dtype),
        over,
        placements,
        run_check=False,
        shape=x.shape,
        stride=(x.shape[1], 1),
    )
    return DTensor(local, like._spec, requires_grad=False)


def told(x):
    """Return all that a wrapper is."""
    names, context = x.__tensor_flatten__()
    return type(x), tuple(x.shape), context, [getattr(x, name) for name in names]


PLACEMENTS = {
    (4,): [[Shard(0)], [Shard(1)], [Replicate()]],
    (2, 2): [
        [Shard(0), Shard(0)],
        [Replicate(), Shard(0)],
        [Shard(1), Replicate()],
        [Replicate(), Replicate()],
    ],
}
KINDS = {"two": TwoTensor, "blocks": Blocks, "joined": Joined}


@st.composite
def worlds(draw):
    """Return a kind, a shape, blocks, and two ways of being cut that are told."""
    kind = draw(st.sampled_from([*KINDS]))
    block = 1 if kind == "two" else draw(st.integers(1, 2))
    size = draw(st.sampled_from([*PLACEMENTS]))
    ways = [
        draw(st.sampled_from(PLACEMENTS[size]).filter(lambda p: is_told(kind, p)))
        for _ in range(2)
    ]
    shape = (4 * block * draw(st.integers(1, 2)), 4)
    return kind, shape, block, size, ways


def is_told(kind, placements):
    return kind != "joined" or not any(p.is_shard(1) for p in placements)


def moved(kind, shape, block, size, ways):
    """Assert that a whole and its parts become each other, in every way that moves."""
    over, full = mesh(size), blocks_of(KINDS[kind], shape, block, start=3)
    here, there = (sharded(full, way, over) for way in ways)
    empty = sharded(blocks_of(KINDS[kind], shape, block), ways[0], over)
    tree, like = {"w": here, "n": 1}, {"w": empty, "n": 0}
    source = {"w": full, "n": 1} if me() == 0 else None
    made = sd.gather(tree)["w"]
    assert same_value(told(made), told(full))
    alone = sd.gather(tree, ranks=0)
    assert sd.similar(alone["w"], full if me() == 0 else sd.spec(full))
    assert me() or same_value(told(alone["w"]), told(full))
    into = {"w": blocks_of(KINDS[kind], shape, block), "n": 0}
    assert sd.gather(tree, into=into)["w"] is into["w"]
    assert same_value(told(into["w"]), told(full))
    assert sd.equal(sd.distribute({"w": full, "n": 1}, like=like), tree)
    assert sd.equal(sd.broadcast(source, like=like), tree)
    assert sd.equal(sd.redistribute({"w": there}, like={"w": empty}), {"w": here})
    assert not sd.equal(tree, like)
    assert len(sd.diff(tree, like)) == 2
    assert sd.broadcast(source, into=like)["w"] is empty
    assert sd.equal(like["w"], here)
    for f, start in (
        (sd.gather(ranks=0), tree),
        (sd.gather(), tree),
        (sd.distribute(like=like), {"w": full, "n": 1}),
        (sd.redistribute(like={"w": there}), {"w": here}),
    ):
        as_foretold(f, start)


@settings(max_examples=12)
@given(worlds())
def test_parts_of_a_wrapper_are_the_whole_and_the_other_way_round(world):
    """Each inner tensor goes by its own boxes; gather undoes distribute."""
    together(moved, *world)


def marked(grad):
    full = blocks_of(TwoTensor, (8, 4), 1, start=3)
    leaf = sharded(full, [Shard(0)], mesh((4,))).requires_grad_(grad)
    return sd.gather({"w": leaf})["w"].requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_the_whole_requires_grad_as_its_parts_do(grad):
    assert together(marked, grad) == [grad] * 4


def shared(x, placements, ranks, knows):
    """Return what a rank has of a whole that lies on some ranks; perhaps none."""
    where = over(*ranks)
    if me() in ranks:
        return sharded(x, placements, where)
    nothing = torch.empty(0)
    local = TwoTensor(nothing, nothing) if knows else nothing
    return DTensor.from_local(
        local, where, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def moved_on_some(kind, ranks, ways, knows, src):
    """Assert that ranks outside of the mesh keep what they have, and send all."""
    everyone = dist.group.WORLD
    full = blocks_of(KINDS[kind], (8, 4), 1, start=3)
    bare = blocks_of(KINDS[kind], (8, 4), 1)
    here, there, empty = (
        shared(x, [way], ranks, knows)
        for x, way in ((full, ways[0]), (full, ways[1]), (bare, ways[0]))
    )
    tree, like = {"w": here}, {"w": empty}
    made = sd.gather(tree)["w"]
    assert me() in ranks or (type(made), made.shape) == (sd.Abstract, (8, 4))
    assert me() not in ranks or same_value(told(made), told(full))
    source = {"w": full} if me() == src else None
    for found in (
        sd.distribute({"w": full}, like=like),
        sd.broadcast(source, src=src, like=like),
        sd.redistribute({"w": there}, like=like),
        sd.broadcast(source, src=src, into=like),
    ):
        assert sd.equal(found, tree, group=everyone)
        assert me() in ranks or found["w"] is empty
    bad = blocks_of(KINDS[kind], (4, 4), 1)
    for f in (sd.distribute(like=like), sd.broadcast(like=like)):
        error = caught(lambda f=f: f({"w": bad}))
        assert type(error) in (SpecMismatch, RankFailed)
        assert "w (shape (4, 4) in the source" in said(error)
    outside = min({*range(4)} - {*ranks})
    error = caught(lambda: sd.gather(tree, ranks=outside))
    assert type(error) is LayoutError
    assert f"is to go to the ranks [{outside}]" in str(error)


@settings(max_examples=8)
@given(
    st.sampled_from(["two", "blocks"]),
    st.sampled_from([(0, 1), (1, 3)]),
    st.tuples(*[st.sampled_from([Shard(0), Shard(1), Replicate()])] * 2),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_rank_that_is_not_in_the_mesh_needs_not_know_of_parts(
    kind, ranks, ways, knows, src
):
    """It may send all, and keeps what stands there."""
    together(moved_on_some, kind, ranks, ways, knows and kind == "two", src)


# -- what is refused ---------------------------------------------------------------


class Rows:
    """A DTensor, told of as a kind is to."""

    def __init__(self, data):
        self.data = data


def made_again(of, ts):
    mesh, placements, shape, stride = of
    options = {"run_check": False, "shape": shape, "stride": stride}
    return Rows(DTensor.from_local(*ts, mesh, placements, **options))


sd.register_leaf(
    Rows,
    flatten=lambda x: (
        [x.data.to_local()],
        (x.data.device_mesh, x.data.placements, x.data.shape, x.data.stride()),
    ),
    unflatten=made_again,
    layout=lambda x: sd.Abstract.of(x.data).layout,
)


class Bare(Rows):
    """One that hands out the DTensor itself."""


sd.register_leaf(
    Bare, flatten=lambda x: ((x.data,), None), unflatten=lambda _, ts: Bare(*ts)
)


def over_shards(ranks):
    """Return what is raised where a leaf is over DTensors; a layout mends it."""
    full, where = numbers(8, 4).float(), over(*ranks)
    x = shard(full, where)
    wrapped, plain = TwoTensor(x, x), TwoTensor(full, full)
    calls = (
        lambda: sd.gather({"a": {"w": wrapped}}),
        lambda: sd.gather({"a": {"w": wrapped}}, ranks=0),
        lambda: sd.broadcast({"a": {"w": plain}}, like={"a": {"w": wrapped}}),
        lambda: sd.redistribute({"a": {"w": wrapped}}, like={"a": {"w": wrapped}}),
    )
    found = [*map(caught, calls)]
    bare = caught(lambda: sd.gather({"a": {"w": Bare(x)}}))
    made = sd.gather({"w": Rows(x)}, ranks=3)
    assert me() != 3 or torch.equal(made["w"], full)
    again = sd.broadcast({"w": full}, like={"w": Rows(x)})["w"]
    assert torch.equal(again.data.to_local(), x.to_local())
    return found, bare


@pytest.mark.parametrize("ranks", [(0, 1, 2, 3), (0, 1), (3,)])
def test_a_leaf_over_dtensors_is_not_taken_for_whole(ranks):
    """Nobody would have told what lies on other ranks."""
    for errors, bare in together(over_shards, ranks):
        for error in errors:
            assert type(error) is LayoutError
            assert str(error).startswith("a.w: a TwoTensor over a DTensor")
            assert "sd.register_leaf(TwoTensor" in str(error)
        assert type(bare) is UnknownLeaf
        for text in ("a.w: ", "Bare returned a DTensor", "layout="):
            assert text in str(bare)


def gathered(kind, placements, shape, size=(4,)):
    x = sharded(blocks_of(kind, shape, 2), placements, mesh(size))
    return caught(lambda: sd.gather({"a": {"w": x}}))


REFUSED = {
    "mute": (Mute, [Shard(0)], "knows nothing of"),
    "columns": (Joined, [Shard(1)], "knows nothing of"),
    "counted": (Counted, [Shard(0)], "another of the whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_class_does_not_tell_is_refused(case):
    """With the path, the kind, why, and what to do; what it may do is done."""
    kind, placements, why = REFUSED[case]
    for error in together(gathered, kind, placements, (8, 4)):
        assert type(error) is LayoutError
        for text in ("a.w: ", kind.__name__, why, "sd.map", "DTensor.from_local"):
            assert text in str(error), (text, str(error))
    assert together(gathered, kind, [Replicate()], (8, 4)) == [None] * 4


class Forgetful(dict):
    """What another thread empties at once."""

    def __setitem__(self, key, value):
        pass


def test_an_answer_that_is_forgotten_at_once_is_given(monkeypatch):
    monkeypatch.setattr(asking, "_KNOWN", Forgetful())
    x = TwoTensor(torch.ones(4, 2), torch.ones(4, 2))
    ts, aux = handler_of(x).flatten(x)
    assert asking.asked(x, ts, aux, [0])[0] == (True, True)


def test_a_wrapper_that_is_cut_within_a_block():
    """Six rows in blocks of two are cut in pieces of two by three, and not by four."""
    errors = together(gathered, Blocks, [Shard(0)], (4, 4))
    assert {type(error) for error in errors} <= {LayoutError, RankFailed, RankMismatch}
    both = together(gathered, Blocks, [Shard(0), Shard(1)], (8, 4), (2, 2))
    assert {type(error) for error in both} == {LayoutError}
    assert "along one dimension, not the other" in str(both[0])


def terms():
    x = sharded(blocks_of(TwoTensor, (4, 4), 1), [Replicate()], mesh((4,)))
    like = DTensor.from_local(torch.ones(4, 4), mesh((4,)), [Partial()])
    x = DTensor(x._local_tensor, like._spec, requires_grad=False)
    return caught(lambda: sd.gather({"w": x}))


def test_terms_of_wrappers_are_not_reduced():
    for error in together(terms):
        assert type(error) is LayoutError
        assert "TwoTensor, whose terms are yet to be reduced" in str(error)


def of_other_tables():
    x = blocks_of(Blocks, (8, 4), 2)
    x.table = x.table + me()
    x = sharded(x, [Shard(0)], mesh((4,)))
    return caught(lambda: sd.gather({"w": x}))


def test_what_each_rank_has_whole_must_be_alike():
    """The scale of all, say: one of several would be taken without a word."""
    for error in together(of_other_tables):
        assert type(error) is RankMismatch
        assert "Blocks" in str(error)


def prepared_for_a_table(value):
    over, trees = mesh((4,)), []
    for start, table in ((0, 1), (100, value)):
        x = blocks_of(Blocks, (8, 4), 2, start=start)
        x.table = x.table * 0 + table
        trees.append({"w": sharded(x, [Shard(0)], over)})
    run = sd.gather().prepare(trees[0])
    return caught(lambda: run(trees[1]))


def test_what_is_prepared_takes_other_data_but_of_what_each_rank_has_whole():
    """A call compares it with that of no other rank, as the first one did."""
    assert together(prepared_for_a_table, 1) == [None] * 4
    for error in together(prepared_for_a_table, 2):
        assert type(error) is SpecMismatch
        assert "prepare it again" in str(error)


def onto_others():
    over, full = mesh((4,)), blocks_of(Blocks, (8, 4), 2)
    targets = {
        "dense": DTensor.from_local(torch.zeros(2, 4), over, [Shard(0)]),
        "kind": sharded(blocks_of(Joined, (8, 4), 2), [Shard(0)], over),
        "beside": sharded(blocks_of(Blocks, (8, 4), 1), [Shard(0)], over),
    }
    return [
        caught(lambda x=x: sd.distribute({"w": full}, like={"w": x}))
        for x in targets.values()
    ]


def test_a_target_of_another_make_is_refused():
    for errors in together(onto_others):
        assert [type(error) for error in errors] == [SpecMismatch] * 3
        assert all("w (" in said(error) for error in errors)


def tied_to_two_ranks(verify):
    full = blocks_of(TwoTensor, (8, 4), 1, start=3)
    x = sharded(full, [Shard(0)], mesh((4,)))
    made = sd.gather({"a": x, "bb": x}, ranks=lambda path: len(path[0]), verify=verify)
    own = {1: "a", 2: "bb"}.get(me())
    for name, leaf in made.items():
        if name == own:
            assert torch.equal(leaf.a, full.a)
            assert torch.equal(leaf.b, full.b)
        else:
            assert isinstance(leaf, sd.Abstract)
            assert leaf.shape == full.shape


@pytest.mark.parametrize("verify", [True, False])
def test_a_tie_of_several_tensors_goes_to_each_of_the_ranks_that_are_chosen(verify):
    """It travels once; who is to have one of the leaves has no other."""
    together(tied_to_two_ranks, verify)


# -- torchao -----------------------------------------------------------------------


def of_torchao():
    """Return leaves of torchao, of 16 rows, by name."""
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.optim.subclass_4bit import OptimState4bit
    from torchao.optim.subclass_8bit import OptimState8bit
    from torchao.optim.subclass_fp8 import OptimStateFp8
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    def quantized(config):
        model = torch.nn.Sequential(torch.nn.Linear(128, 64)).bfloat16()
        quantization.quantize_(model, config)
        return model.state_dict()["0.weight"].detach()

    torch.manual_seed(0)
    states = (OptimState8bit, OptimState4bit, OptimStateFp8)
    found = {cls.__name__: cls.zeros((64, 256)) for cls in states}
    for x in found.values():
        x.copy_(torch.randn(64, 256))
    found["nf4"] = to_nf4(torch.randn(64, 256))
    found["int8"] = quantized(quantization.Int8WeightOnlyConfig(version=2))
    found["float8"] = quantized(quantization.Float8WeightOnlyConfig())
    return found


def over_torchao(placement):
    """Return of what is gathered whether it is what it should be, or why not."""
    results = {}
    for name, x in of_torchao().items():
        like = DTensor.from_local(
            torch.empty(x.shape, dtype=x.dtype), mesh((4,)), [placement]
        )
        leaf = DTensor(x, like._spec, requires_grad=False)
        try:
            made = sd.gather({"w": leaf})["w"]
        except LayoutError as error:
            results[name] = str(error)
            continue
        count = 4 if placement.is_shard() else 1
        results[name] = type(made) is type(x) and made.shape == leaf.shape
        for a, b in zip(told(x)[-1], told(made)[-1], strict=True):
            is_cut = a.shape != b.shape
            want = torch.cat([a] * count) if is_cut else a
            results[name] = results[name] and same_value(b, want)
        back = sd.distribute({"w": made}, like=sd.empty_like({"w": leaf}))
        results[name] = results[name] and sd.equal(back, {"w": leaf})
    return results


@pytest.mark.parametrize("placement", [Replicate(), Shard(0), Shard(1)], ids=str)
def test_leaves_of_torchao(placement):
    """Each is gathered, replicated or by rows; by columns it is told why not."""
    pytest.importorskip("torchao.quantization")
    for results in together(over_torchao, placement):
        for name, found in results.items():
            if placement.is_shard(1):
                assert "w: it is over a " in found, name
            else:
                assert found is True, (name, found)
