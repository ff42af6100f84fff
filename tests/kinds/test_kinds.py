"""The kinds that are built in, by example, where they have ways of their own."""

import enum
import io
import sys

import numpy as np
import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd
from sdtree.kinds.handler import handler_of
from sdtree.testing import check_one_leaf


class Phase(enum.IntEnum):
    WARM = 1


class Tagged(torch.nn.Parameter):
    """A Parameter of a type of its own."""


def test_a_parameter_stays_one():
    """Type, requires_grad and attributes stay; .grad and graph do not."""
    weight = Tagged(torch.ones(2))
    weight.tag = "vocab"
    (weight * 2).sum().backward()
    copied = sd.copy({"w": weight})["w"]
    assert type(copied) is Tagged
    assert copied.requires_grad
    assert copied.tag == "vocab"
    assert copied.grad is None
    assert copied.is_leaf
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert not sd.cast({"w": frozen}, dtype=torch.float16)["w"].requires_grad
    assert sd.copy({"b": torch.nn.Buffer(torch.ones(1))})["b"]._is_buffer


def test_the_result_of_a_graph_is_cut_off():
    """A tensor inside a graph is copied without it, and still requires grad."""
    x = torch.ones(2, requires_grad=True) * 3
    copied = sd.copy([x])[0]
    assert copied.grad_fn is None
    assert copied.requires_grad


def test_asynchronous_results_are_waited_for():
    """A waiting tensor is a plain one after wait, copy, and to every comparison."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    tree = {"w": AsyncCollectiveTensor(torch.arange(3.0))}
    for result in (sd.wait(tree), sd.copy(tree), sd.cast(tree, dtype=torch.float32)):
        assert type(result["w"]) is torch.Tensor
        assert torch.equal(result["w"], torch.arange(3.0))
    assert sd.names(sd.select(tree, torch.Tensor)) == ["w"]
    check_one_leaf(tree["w"])
    other = {"w": torch.arange(3.0)}
    for a, b in ((tree, other), (other, tree), (tree, {**tree})):
        assert sd.similar(a, b)
        assert sd.equal(a, b)
        assert not sd.diff(a, b)
    assert not sd.equal(tree, {"w": torch.zeros(3)})
    assert sd.diff(tree, {"v": torch.arange(3.0)}).renamed == ((("w",), ("v",)),)


def test_sparse_tensors_are_their_parts():
    """Indices stay, values are cast, ties of values are kept, layout too."""
    values = torch.tensor([1.0, 2.0])
    coo = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), values, (3,))
    tree = {"coo": coo, "values": coo._values(), "csr": torch.eye(3).to_sparse_csr()}
    copied = sd.copy(tree)
    assert sd.ties(copied) == [[("coo",), ("values",)]]
    half = sd.cast(tree, dtype=torch.float16)
    assert half["coo"].dtype is torch.float16
    assert half["coo"]._indices().dtype is torch.int64
    assert half["csr"].layout is torch.sparse_csr
    assert sd.nbytes({"coo": coo}) == 2 * 8 + 2 * 4
    assert not sd.similar(tree["coo"], tree["coo"].coalesce())


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_quantized_tensors_share_their_integers():
    """No copy is made to take them apart; scales that differ are no match."""
    q = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 3, torch.qint8)
    rows = torch.quantize_per_channel(
        torch.ones(2, 3),
        torch.tensor([0.5, 0.25]),
        torch.tensor([0, 1]),
        0,
        torch.qint8,
    )
    for leaf in (q, rows):
        check_one_leaf(leaf)
    other = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.25, 3, torch.qint8)
    with pytest.raises(sd.errors.SpecMismatch, match="scale"):
        sd.copy({"q": q}, into={"q": other})
    assert not sd.similar({"q": q}, {"q": other})


def test_wrapper_subclasses_by_their_protocol():
    """Inner tensors are cast and copied, nested ones too; the type stays."""
    inner = torch.ones(2)
    pair = TwoTensor(TwoTensor(inner, torch.zeros(2)), TwoTensor(inner, inner))
    copied = sd.copy({"p": pair})["p"]
    assert type(copied) is type(copied.a) is TwoTensor
    assert copied.a.a.data_ptr() == copied.b.b.data_ptr()
    assert sd.cast({"p": pair}, dtype=torch.float16)["p"].b.a.dtype is torch.float16
    assert len(handler_of(pair).flatten(pair)[0]) == 4


def test_arrays_of_every_sort():
    """Backwards axes, foreign byte order and text; Python objects are refused."""
    backwards = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    tree = {
        "a": backwards,
        "swapped": np.arange(3, dtype=">i4"),
        "text": np.array(["ab"]),
    }
    copied = sd.copy(tree)
    assert sd.equal(copied, tree)
    assert not np.shares_memory(copied["a"], backwards)
    buffer = {"a": np.zeros((2, 3), np.float32)[:, ::-1]}
    sd.copy({"a": backwards}, into=buffer)
    assert (buffer["a"] == backwards).all()
    assert sd.cast(tree, dtype=torch.float64)["a"].dtype == np.float64
    with pytest.raises(sd.errors.UnknownLeaf, match=r"x: .*Python objects"):
        sd.copy({"x": np.array([object()])})
    with pytest.raises(sd.errors.UnknownLeaf, match=r"x: .*bfloat16"):
        sd.cast({"x": backwards, "y": torch.ones(1)}, dtype=torch.bfloat16)
    assert sd.spec({"s": np.float32(2)})["s"].kind is np.float32


def test_plain_values_are_what_they_were():
    """Subclasses stay; a buffer is copied with its position."""
    buffer = io.BytesIO(b"abcd")
    buffer.seek(2)
    tree = {"phase": Phase.WARM, "b": buffer, "size": torch.Size([1]), "none": None}
    copied = sd.copy(tree)
    assert copied["phase"] is Phase.WARM
    assert copied["b"] is not buffer
    assert copied["b"].read() == b"cd"
    copied["b"].write(b"more")
    assert buffer.getvalue() == b"abcd"
    assert not sd.equal({"b": copied["b"]}, {"b": buffer})
    assert sd.select(tree, int) == {"phase": Phase.WARM}


def test_meta_tensors_stay_meta():
    """Nothing is materialised: not by copy, offload, cast, buffers or to."""
    tree = {"w": torch.empty(2, device="meta"), "x": torch.ones(2)}
    for f in (sd.copy(), sd.offload(), sd.empty_like(), sd.to("cpu")):
        assert f(tree)["w"].is_meta
    assert sd.cast(tree, dtype=torch.float16)["w"].dtype is torch.float16
    assert all(x.is_meta for x in sd.leaves(sd.to(tree, "meta")))
    assert sd.copy(tree, into=sd.empty_like(tree))["w"].is_meta


def test_a_tensor_that_does_not_come_apart():
    """A layout that nothing serves is refused with the path and the way out."""
    with pytest.raises(sd.errors.UnknownLeaf, match=r"a\.b: .*to_dense"):
        sd.copy({"a": {"b": torch.ones(2, 2).to_mkldnn()}})


def test_a_tree_that_is_too_deep():
    """Beyond Python's recursion the error is one of ours."""
    tree = 1
    for _ in range(sys.getrecursionlimit() + 10):
        tree = [tree]
    with pytest.raises(ValueError, match="more than 1000 containers"):
        sd.leaves(tree)
