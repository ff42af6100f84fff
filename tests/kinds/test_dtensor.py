"""DTensors under the transforms that do not communicate."""

import os

import pytest
import torch
from shards import fake
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd
from sdtree.errors import LayoutError
from sdtree.kinds.abstract import look_at, sight_of
from sdtree.kinds.handler import handler_of
from sdtree.testing import check_one_leaf

MESHES = {"1d": (4,), "2d": (2, 2)}
PLACEMENTS = {
    "1d": ([Shard(0)], [Shard(1)], [Replicate()], [Partial()]),
    "2d": ([Shard(0), Shard(0)], [Replicate(), Shard(1)], [Shard(1), Shard(0)]),
}


@pytest.fixture(scope="module", params=range(4))
def rank(request):
    """Each rank of four in its turn, over a group that moves nothing."""
    os.environ.setdefault("MASTER_ADDR", "localhost")
    with fake(4, request.param):
        yield request.param


def dtensors():
    for name, sizes in MESHES.items():
        mesh = init_device_mesh("cpu", sizes)
        for placements in PLACEMENTS[name]:
            full = torch.arange(15.0).view(5, 3)
            local = full
            for dim, placement in enumerate(placements):
                if isinstance(placement, Shard):
                    parts = local.tensor_split(mesh.size(dim), placement.dim)
                    local = parts[mesh.get_local_rank(dim)].contiguous()
            yield DTensor.from_local(
                local,
                mesh,
                placements,
                run_check=False,
                shape=full.shape,
                stride=(3, 1),
            )


def test_many_are_seen_and_made_anew_as_each_is(rank):
    """With marks, and with what users have hung on them."""
    xs = [x for x in dtensors() for _ in range(2)]
    xs[1].requires_grad_()
    xs[3].note = "kept"
    alone = [look_at([x, None])[0][0] for x in xs]
    found = sight_of(xs)
    assert found.forms == alone
    assert [ts[0].data_ptr() for ts in found.held] == [
        x._local_tensor.data_ptr() for x in xs
    ]
    handler = handler_of(xs[0])
    ts = [torch.zeros_like(x._local_tensor) for x in xs]
    for x, t, made in zip(xs, ts, handler.over(xs, ts), strict=True):
        each = handler.unflatten(handler.flatten(x)[1], [t])
        assert type(made) is type(each) is DTensor
        assert made._local_tensor is t
        assert made._spec == each._spec
        assert made.requires_grad == each.requires_grad == x.requires_grad
        assert vars(made) == vars(each) == vars(x)
        assert vars(made) is not vars(x)


def test_they_keep_kind_mesh_placements_and_global_shape(rank):
    """The leaf law, and every local transform, on every rank and placement."""
    for x in dtensors():
        check_one_leaf(x)
        tree = {"w": x, "step": torch.tensor(1.0)}
        for f in (sd.copy(), sd.offload(), sd.empty_like(), sd.wait(), sd.identity):
            made = f(tree)["w"]
            assert type(made) is DTensor
            assert made.device_mesh == x.device_mesh
            assert made.placements == x.placements
            assert made.shape == x.shape
            assert made.stride() == x.stride()
        low = sd.cast(tree, dtype=torch.bfloat16)["w"]
        assert low.dtype == low._local_tensor.dtype == torch.bfloat16
        assert low._spec.tensor_meta.dtype == torch.bfloat16
        assert sd.spec(tree)["w"].shape == (5, 3)
        assert sd.nbytes(tree) == x._local_tensor.numel() * 4 + 4


def test_one_over_a_wrapper_is_cast_as_that_is(rank):
    """It has the dtype of its local tensor then; with nothing to do it stays."""
    mesh = init_device_mesh("cpu", (4,))
    local = TwoTensor(torch.ones(2, 3), torch.zeros(2, 3))
    x = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    half = sd.cast({"w": x}, dtype=torch.half)["w"]
    assert (type(half), type(half._local_tensor)) == (DTensor, TwoTensor)
    assert half.dtype == half._local_tensor.dtype == half._local_tensor.b.dtype
    assert half.dtype == torch.half
    assert half.shape == x.shape
    for f in (sd.cast(dtype=torch.float32), sd.cast(like={"w": x}), sd.to("cpu")):
        assert f({"w": x})["w"] is x
    assert sd.cast({"w": x}, like={"w": torch.ones(1).half()})["w"].dtype == torch.half


def test_a_cast_keeps_the_order_in_which_it_is_sharded(rank):
    """Which of two mesh dimensions cuts first, where torch tells it."""
    spec_of = pytest.importorskip("torch.distributed.tensor._dtensor_spec")
    mesh, meta = init_device_mesh("cpu", (2, 2)), torch.empty(8, 3)
    order = (spec_of.ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0)),)
    spec = spec_of.DTensorSpec(
        mesh,
        (Shard(0), Shard(0)),
        tensor_meta=spec_of.TensorMeta(meta.shape, meta.stride(), meta.dtype),
        shard_order=order,
        use_strided_shard_as_shard_order=False,
    )
    x = DTensor(torch.ones(2, 3), spec, requires_grad=False)
    for made in (sd.cast(x, dtype=torch.float16), sd.copy(x)):
        assert made._spec.shard_order == order
        assert made._spec.placements == spec.placements


def test_what_tells_two_of_them_apart(rank):
    """Global shape, placements and values, each in its own words."""
    mesh = init_device_mesh("cpu", (4,))

    def on(placement, local):
        return {"w": DTensor.from_local(local, mesh, [placement], run_check=False)}

    ones = on(Shard(0), torch.ones(2, 3))
    for other, what in (
        (on(Shard(0), torch.ones(3, 3)), "shape"),
        (on(Shard(0), torch.zeros(2, 3)), "value"),
        (on(Shard(0), torch.ones(2, 3, dtype=torch.float64)), "dtype"),
        ({"w": torch.ones(8, 3)}, "kind"),
    ):
        assert [d.what for d in sd.diff(ones, other)] == [what]
        assert sd.similar(ones, other) == (what == "value")
    replicated, partial = on(Replicate(), torch.ones(2)), on(Partial(), torch.ones(2))
    assert [d.what for d in sd.diff(replicated, partial)] == ["layout"]
    with pytest.raises(sd.errors.SpecMismatch, match="w: "):
        sd.copy(replicated, into=partial)


def test_ties_and_parameters(rank):
    """A tied DTensor is tied after; a parameter stays one."""
    mesh = init_device_mesh("cpu", (4,))
    weight = torch.nn.Parameter(
        DTensor.from_local(torch.ones(2, 2), mesh, [Shard(0)], run_check=False)
    )
    tree = {"a": weight, "b": weight.detach()}
    copied = sd.copy(tree)
    assert sd.ties(copied) == [[("a",), ("b",)]]
    assert isinstance(copied["a"], torch.nn.Parameter)
    assert copied["a"].requires_grad
    assert copied["a"].grad_fn is None


def test_a_local_tensor_that_is_on_its_way(rank):
    """wait() leaves the same DTensor over what has arrived."""
    mesh = init_device_mesh("cpu", (4,))
    [arrived] = list(dtensors())[:1]
    late = DTensor(
        AsyncCollectiveTensor(arrived._local_tensor), arrived._spec, requires_grad=False
    )
    assert mesh == late.device_mesh
    for f in (sd.wait(), sd.copy()):
        made = f({"w": late})["w"]
        assert type(made) is DTensor
        assert type(made._local_tensor) is torch.Tensor
        assert torch.equal(made._local_tensor, arrived._local_tensor)


class Ragged(Placement):
    """A placement of someone else's."""

    def __eq__(self, other):
        return isinstance(other, Ragged)

    def __hash__(self):
        return 0


def test_a_placement_that_is_none_of_torchs_is_not_read_as_replicated(rank):
    """Nobody here can tell what a rank holds then."""
    mesh = init_device_mesh("cpu", (4,))
    x = DTensor.from_local(torch.ones(2, 3), mesh, [Replicate()], run_check=False)
    x._spec.placements = (Ragged(),)
    with pytest.raises(LayoutError, match=r"Ragged.* is none of torch's own"):
        sd.gather({"w": x})
    assert sd.copy({"w": x})["w"].placements == (Ragged(),)
