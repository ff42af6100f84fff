"""Tensors that have no memory of their own, or no data: every operation says so."""

import re

import pytest
import torch
from ingredients import freed, graded
from operations import OPERATIONS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import LazyLinear, Parameter, UninitializedBuffer
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd


def sparse_over_freed():
    values = torch.ones(4)
    made = torch.sparse_coo_tensor(torch.arange(4)[None], values, (4,))
    values.untyped_storage().resize_(0)
    return made


def freed_view():
    whole = torch.ones(24)
    view = whole.view(4, 6)[1::2, ::2]
    whole.untyped_storage().resize_(60)
    return view


def two_in_a_byte():
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 1.0])
    values = torch.rand(2, 4)
    return torch.quantize_per_channel(values, scales, zeros, 0, torch.quint4x2)


class Boxed:
    """A leaf of a kind of its own, over a tensor without memory."""

    def __init__(self, data=None):
        self.data = freed() if data is None else data


sd.register_leaf(
    Boxed, flatten=lambda x: ((x.data,), None), unflatten=lambda _, ts: Boxed(*ts)
)

REFUSED = {
    "has no shape yet": [lambda: LazyLinear(3).weight, UninitializedBuffer],
    "nested": [
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: Parameter(torch.nested.nested_tensor([torch.ones(2)])),
    ],
    "NestedTensor": [
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)
    ],
    "FakeTensor": [lambda: FakeTensorMode().from_tensor(torch.ones(3))],
    "functional": [lambda: torch._to_functional_tensor(torch.ones(3))],
    "torch.func": [
        lambda: torch._C._functorch._add_batch_dim(torch.ones(3, 2), 0, 1),
        graded,
    ],
    "freed": [
        *(freed, lambda: freed(8), lambda: Parameter(freed()), freed_view, Boxed),
        *(lambda: freed(16, 4), lambda: freed(28, 4), lambda: freed(16, 0, 2)),
        *(lambda: Parameter(freed(16, 4)), lambda: Boxed(freed(16, 4))),
        *(lambda: TwoTensor(torch.ones(4), freed()), sparse_over_freed),
    ],
    "mkldnn": [lambda: torch.ones(3, 3).to_mkldnn()],
    r"quint4x2.*\.view\(torch\.uint8\)": [
        lambda: torch.ones(4, dtype=torch.uint8).view(torch.quint4x2)
    ],
    r"quint4x2.*\.dequantize\(\)": [two_in_a_byte],
    r"qint8.*\.view\(torch\.int8\)": [
        lambda: torch.ones(4, dtype=torch.int8).view(torch.qint8)
    ],
}
MADE = [(told, make) for told, makers in REFUSED.items() for make in makers]
MOVING = {"flatten", "select", "wait"}
"""What moves leaves about and does not look into them."""

FORMAL = {"to", "similar to another", "nbytes", "ties", "spec", "cast like", "gather"}
FORMAL |= {"empty_like"}
"""What may do without the data, and then answers."""


@pytest.mark.parametrize(("told", "make"), MADE)
@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - MOVING))
def test_what_has_no_memory_is_refused_by_its_path(name, told, make):
    """Where an operation needs the data, UnknownLeaf tells what it is, and where."""
    act = OPERATIONS[name]
    trees = [{"one": torch.ones(2), "a": {"w": make()}} for _ in "ab"]
    try:
        act(*trees[: act.__code__.co_argcount])
    except sd.errors.UnknownLeaf as error:
        assert re.search(rf"a\.w: .*{told}", str(error))  # noqa: PT017
    else:
        assert name in FORMAL


@pytest.mark.parametrize("make", [make for _, make in MADE])
def test_what_has_no_memory_can_be_moved_and_dropped(make):
    """What moves leaves, or drops them by name, does not look at them."""
    leaf = make()
    tree = {"one": torch.ones(2), "a": {"w": leaf}}
    assert sd.prefix(tree, "x")["x"]["a"]["w"] is leaf
    assert sd.map(lambda x: x, tree)["a"]["w"] is leaf
    assert sd.select(tree, (Tensor, Boxed))["a"]["w"] is leaf
    assert sd.unflatten(sd.flatten(tree), spec=sd.structure(tree))["a"]["w"] is leaf
    assert [*sd.copy(sd.drop(tree, "a.w"))] == ["one"]


@pytest.mark.parametrize("make", [make for _, make in MADE])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_of_what_has_no_memory_is_refused(tmp_path, suffix, make):
    """Nothing is written, and the path is told."""
    path = tmp_path / f"state.{suffix}"
    sd.save({"w": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"a\.w: "):
        sd.save({"a": {"w": make()}}, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("verb", [sd.copy, sd.gather, sd.distribute, sd.redistribute])
@pytest.mark.parametrize("stages", [(), (sd.copy(),)])
@pytest.mark.parametrize(
    ("source", "into"),
    [
        *((freed(*odd), torch.ones(4)) for odd in [(8,), (16, 4), (20, 4), (28, 4)]),
        *((torch.ones(4), freed(*odd)) for odd in [(), (8,), (16, 4), (28, 4)]),
    ],
)
def test_freed_memory_is_neither_read_nor_written(source, into, stages, verb):
    """Neither as what is copied, nor as a buffer."""
    copied = sd.chain(*stages, verb(into={"one": torch.ones(2), "w": into}))
    with pytest.raises(sd.errors.UnknownLeaf, match=r"w: .*freed"):
        copied({"one": torch.ones(2), "w": source})


@pytest.mark.parametrize("verb", [sd.gather, sd.distribute, sd.redistribute])
@pytest.mark.parametrize(
    ("source", "into"),
    [
        (Boxed(torch.ones(4)), Boxed()),
        (torch.ones(4).to_sparse()._coalesced_(False), sparse_over_freed()),
    ],
)
def test_what_ranks_bring_is_not_written_to_freed_memory_in_a_leaf(source, into, verb):
    """Its kind is content with what it is over, and the buffer is looked at."""
    with pytest.raises(sd.errors.SpecMismatch, match=r"w: .*freed"):
        verb({"w": source}, into={"w": into})


def test_inside_a_level_of_torch_func():
    """Tensors of the level are mapped over, and refused by other operations."""
    tree = {"w": torch.arange(6.0).view(2, 3)}

    def double(batch):
        for act in (sd.copy, sd.offload, sd.spec, sd.cast(dtype=torch.float64)):
            with pytest.raises(sd.errors.UnknownLeaf, match=r"w: .*torch\.func"):
                act(batch)
        return sd.map(lambda t: 2 * t, batch)

    def doubled_sum(tree):
        return double(tree)["w"].sum()

    assert torch.equal(torch.vmap(double)(tree)["w"], 2 * tree["w"])
    assert torch.equal(torch.func.grad(doubled_sum)(tree)["w"], torch.full((2, 3), 2.0))


def test_a_float4_is_not_converted():
    """torch has no conversion: a cast of or to one is refused by its path."""
    four = torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    tree = {"w": torch.ones(4), "q": four}
    casts = [
        lambda: sd.cast(tree, dtype=torch.half),
        lambda: sd.cast(tree, like={"w": four, "q": tree["w"]}),
        lambda: sd.cast({"q": torch.ones(4)}, dtype=torch.float4_e2m1fn_x2),
    ]
    for cast in casts:
        with pytest.raises(sd.errors.UnknownLeaf, match=r"[qw]: .*float4_e2m1fn_x2"):
            cast()
    half = sd.where("w", sd.cast(dtype=torch.half))(tree)
    assert (half["w"].dtype, half["q"].dtype) == (torch.half, four.dtype)


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_quantized_tensor_has_no_meta_form():
    """torch has none, and the path of the leaf is told."""
    ints = torch.ones(2, dtype=torch.int8)
    leaf = torch._make_per_tensor_quantized_tensor(ints, 0.5, 1)
    with pytest.raises(sd.errors.UnknownLeaf, match=r"a\.w: .*no meta tensor"):
        sd.to({"a": {"w": leaf}}, "meta")
