"""DTensors: over their local tensor, with mesh, placements and shape beside it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor._dtensor_spec import (
    DTensorSpec,
    ShardOrderEntry,
    TensorMeta,
)
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from sdtree.errors import LayoutError
from sdtree.kinds.handler import Basis, Handler, Makeup, add_handler, handler_of
from sdtree.kinds.inside import Inside, look_inside, parts_of, whole_makeup
from sdtree.kinds.tensor import flatten
from sdtree.layout.layout import Layout, Split, in_order, mesh_layout
from sdtree.tensors.storage import BESIDE, are_bare
from sdtree.typing import Aux

Order = tuple[tuple[int, tuple[int, ...]], ...]
"""By tensor dimension, the mesh dimensions that split it, first to last."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """What a DTensor is beside its local tensor; marks and strides do not compare.

    ``local`` is how the local tensor came apart in its turn; ``spec`` is torch's own.
    ``order`` tells how placements are to be read, see ``_order``.
    """

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    order: Order | None
    shape: tuple[int, ...]
    spec: Any = field(compare=False, repr=False)
    local: tuple[Handler, Aux]
    requires_grad: bool = field(compare=False)
    attributes: Mapping[str, Any] = field(compare=False)


def _flatten(x: Any) -> tuple[Sequence[Tensor], Aux]:
    """Return the local tensor, waited for if it is on its way."""
    spec, local = x._spec, x._local_tensor.detach()
    handler = handler_of(local)
    ts, aux = handler.flatten(local)
    if not handler.keeps_type:
        [local] = ts
        handler = handler_of(local)
        ts, aux = handler.flatten(local)
    sharding = Sharding(
        spec.mesh,
        tuple(spec.placements),
        _order(spec),
        tuple(spec.shape),
        spec,
        (handler, aux),
        x.requires_grad,
        dict(x.__dict__),
    )
    return ts, sharding


def _unflatten(aux: Sharding, ts: Sequence[Tensor]) -> Any:
    handler, inner = aux.local
    local = handler.unflatten(inner, ts)
    spec = aux.spec
    if spec.tensor_meta.dtype != local.dtype:
        spec = _with_dtype(spec, local.dtype)
    grad = aux.requires_grad and (local.is_floating_point() or local.is_complex())
    return _made(local, spec, grad, aux.attributes)


def _made(local: Tensor, spec: Any, grad: bool, attributes: Mapping[str, Any]) -> Any:
    """Return a DTensor; its ``__init__`` does nothing, and that takes long."""
    new: Any = DTensor.__new__(DTensor, local, spec, requires_grad=grad)
    if attributes:
        new.__dict__.update(attributes)
    return new


def _with_dtype(spec: Any, dtype: torch.dtype) -> Any:
    """Return the spec of a DTensor with elements of another dtype."""
    return _spec(spec, spec.placements, TensorMeta(spec.shape, spec.stride, dtype))


def _spec(like: Any, placements: Sequence[Any], meta: TensorMeta) -> Any:
    """Return a spec of these placements, to be read as those of another are."""
    order = _order(like)
    more: Any = {}
    if order is not None:
        split = {axis for axis, p in enumerate(placements) if _split(axis, p)}
        axes = ((dim, tuple(x for x in axes if x in split)) for dim, axes in order)
        found = tuple(ShardOrderEntry(dim, axes) for dim, axes in axes if axes)
        more = {"shard_order": found, "use_strided_shard_as_shard_order": False}
    return DTensorSpec(like.mesh, tuple(placements), tensor_meta=meta, **more)


def _order(spec: Any) -> Order | None:
    """Return in which order splits are made, one of a factor as it stands.

    None if the factors tell the order, as of all that has no views; see ``in_order``.
    """
    is_told = getattr(spec, "use_strided_shard_as_shard_order", True)
    return None if is_told else spec.shard_order


def _tensors(x: Any) -> Sequence[Tensor]:
    local = x._local_tensor
    return flatten(local)[0] if type(local) is Tensor else _flatten(x)[0]


def _locals(xs: Sequence[Any]) -> Sequence[Tensor] | None:
    ts = [x._local_tensor for x in xs]
    return ts if {*map(type, ts)} == {Tensor} and are_bare(ts) else None


def _over(xs: Sequence[Any], ts: Sequence[Tensor]) -> Sequence[Any]:
    """Return what DTensors of bare local tensors are over others of the same form."""
    pairs = zip(xs, ts, strict=True)
    return [_made(t, x._spec, x.requires_grad, x.__dict__) for x, t in pairs]


Ground = tuple[DeviceMesh, tuple[Any, ...], Order | None, torch.Size, Inside | None]
"""What a layout follows from."""


def _basis(x: Any) -> Ground:
    spec, local = x._spec, x._local_tensor
    inside = None
    if type(local) is not Tensor or local.dtype in BESIDE:
        dims = [] if spec.mesh.get_coordinate() is None else _dims(spec.placements)
        inside = look_inside(local, dims)
    return spec.mesh, spec.placements, _order(spec), spec.shape, inside


def _dims(placements: Sequence[Any]) -> list[int]:
    """Return the dimensions of a tensor that placements split."""
    return sorted({split.dim for p in placements if (split := _split(0, p))})


def _layout(x: Any) -> Layout:
    return _layout_of(_basis(x))


@lru_cache(maxsize=4096)
def _layout_of(basis: Ground) -> Layout:
    """Return the boxes of each rank of the mesh; a Partial replicates its terms."""
    mesh, placements, told, shape, inside = basis
    sizes = tuple(mesh.mesh.shape)
    places = product(*map(range, sizes))
    ranks = dict(zip(places, mesh.mesh.flatten().tolist(), strict=True))
    splits = [_split(axis, placement) for axis, placement in enumerate(placements)]
    made = [split for split in splits if split is not None]
    order = in_order(made, sizes) if told is None else _ordered(made, told)
    is_partial = any(placement.is_partial() for placement in placements)
    doubt = strange(placements) or doubt_on(mesh.mesh, {split.axis for split in order})
    rank_at = ranks.__getitem__
    layout = mesh_layout(tuple(shape), sizes, order, rank_at, is_partial, doubt)
    return layout if inside is None else _with_parts(layout, inside, placements)


def _ordered(splits: Sequence[Split], order: Order) -> tuple[Split, ...]:
    """Return splits in the order that torch tells."""
    by_axis = {split.axis: split for split in splits}
    return tuple(by_axis[axis] for _, axes in order for axis in axes)


def _with_parts(layout: Layout, inside: Inside, placements: Sequence[Any]) -> Layout:
    """Return a layout that tells how inner tensors lie, or why nobody can tell."""
    try:
        if layout.is_partial:
            raise LayoutError("whose terms are yet to be reduced")
        parts = parts_of(layout, inside, _dims(placements))
    except LayoutError as error:
        why = (
            f"it is over a {inside.kind.__name__}, {error}; put sd.map before that "
            "makes a DTensor over dense tensors of it: DTensor.from_local(dense, "
            "x.device_mesh, x.placements)"
        )
        return replace(layout, doubt=layout.doubt or why)
    return replace(layout, parts=parts)


def _whole(x: Any) -> Makeup | None:
    """Return what the whole is beside its tensors, None if it is a dense tensor."""
    inside = _basis(x)[-1]
    if inside is None or inside.cut is None:
        return None
    local = x._local_tensor.detach()
    return whole_makeup(local, inside, tuple(x.shape), x.requires_grad)


def strange(placements: Sequence[Any]) -> str:
    """Return that a placement is none of torch's, empty if all are."""
    for axis, p in enumerate(placements):
        if not (_split(axis, p) or p.is_replicate() or p.is_partial()):
            return (
                f"its placement {p!r} is none of torch's own, and does not tell which "
                "part a rank has; put sd.map before that makes of it sd.Shards, or a "
                "DTensor of placements that torch has"
            )
    return ""


def doubt_on(ranks: Tensor, axes: set[int]) -> str:
    """Return why it cannot be told who holds which shard, empty if it can.

    A process group has its ranks in ascending order, whatever the mesh says.
    """
    wrong = sorted(axis for axis in axes if bool((ranks.diff(dim=axis) < 0).any()))
    if not wrong:
        return ""
    return (
        f"it is sharded over dimension {wrong[0]} of the mesh {ranks.tolist()}, along "
        "which ranks do not ascend; there fully_shard and full_tensor go by the order "
        "in the group and distribute_tensor by the place in the mesh, so nobody can "
        "tell who holds which shard; make the mesh of ranks that ascend"
    )


def _split(axis: int, placement: Any) -> Split | None:
    if isinstance(placement, _StridedShard):
        return Split(axis, placement.dim, int(placement.split_factor))
    return Split(axis, placement.dim) if isinstance(placement, Shard) else None


def _reduced(x: Any) -> Any:
    """Return the DTensor with the terms of its ranks reduced, each in its own way.

    Collective over the mesh, one of its dimensions after the other. What masks its
    terms would do so in place, and only once.
    """
    local, placements = x._local_tensor.detach(), list(x.placements)
    for axis, placement in enumerate(x.placements):
        if placement.is_partial():
            with _unspent(placement):
                own = local if type(placement) is Partial else local.clone()
                local = placement._reduce_value(own, x.device_mesh, axis)
            placements[axis] = Replicate()
    if isinstance(local, AsyncCollectiveTensor):
        local = local.wait()
    meta = TensorMeta(x.shape, x.stride(), local.dtype)
    return _made(local, _spec(x._spec, placements, meta), x.requires_grad, {})


@contextmanager
def _unspent(placement: Any) -> Generator[None]:
    """Have a placement keep the mask that it lets go of when it has reduced."""
    mask = getattr(placement, "mask_buffer", None)
    held = {} if mask is None else dict(vars(mask))
    try:
        yield
    finally:
        if mask is not None:
            vars(mask).update(held)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """Return a DTensor over what its local tensor is cast to, if that says so."""
    local = x._local_tensor
    made = handler_of(local).cast(local, dtype)
    if made is None or made is local:
        return None if made is None else x
    ts, aux = handler_of(made).flatten(made)
    return _unflatten(replace(_flatten(x)[1], local=(handler_of(made), aux)), ts)


def _is_waiting(x: Any) -> bool:
    return not handler_of(x._local_tensor).keeps_type


add_handler(
    Handler(
        DTensor,
        _flatten,
        _unflatten,
        _layout,
        is_waiting=_is_waiting,
        reduced=_reduced,
        tensors=_tensors,
        locals=_locals,
        over=_over,
        basis=Basis(_basis, _layout_of),
        whole=_whole,
        dtype=attrgetter("dtype"),
        cast=_cast,
    )
)
