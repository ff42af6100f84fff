"""Leaves that ranks share: how they lie, as the oracle sees them and as they are.

A ``Part`` is what a rank holds, as plain tensors. ``real`` makes of it what models have
there, and ``seen`` is what there is to see of either.
"""

import copy
import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import oracle
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as Piece
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import _StridedShard

import sdtree as sd
from sdtree.layout import Layout
from sdtree.testing.layouts import boxes_in


@dataclass(frozen=True)
class Way:
    """How a tensor lies on ``ranks``, which stand in a mesh row by row.

    ``splits`` are (dimension of the mesh, of the tensor) in the order in which they are
    made; along the dimensions of the mesh in ``terms`` ranks hold terms of a sum. Or it
    lies in ``blocks``: (offsets, sizes, rank). ``boxed``: ranks have plain tensors,
    of which a layout tells where they lie.
    """

    shape: tuple
    sizes: tuple
    ranks: tuple
    splits: tuple = ()
    terms: tuple = ()
    blocks: tuple = ()
    boxed: bool = False

    def __repr__(self):
        given = [self.shape, self.sizes, self.ranks, self.splits, self.terms]
        given = given[:5] if self.terms else given[:4] if self.splits else given[:3]
        blocks = [f"blocks={self.blocks}"] if self.blocks else []
        boxed = ["boxed=True"] * self.boxed
        return f"Way({', '.join([*map(str, given), *blocks, *boxed])})"

    def turned(self, step=-1):
        """Return how the transpose of the tensor lies, with a step of 1 how it does."""
        if step == 1:
            return self
        last = len(self.shape) - 1
        splits = tuple((axis, last - dim) for axis, dim in self.splits)
        blocks = tuple((at[::-1], size[::-1], rank) for at, size, rank in self.blocks)
        return replace(self, shape=self.shape[::-1], splits=splits, blocks=blocks)

    def copied(self):
        """Return how the tensor lies where each of the ranks has all of it."""
        return Way(self.shape, self.sizes, self.ranks)

    def cut(self, full, rank):
        """Return the pieces of a whole tensor that a rank holds."""
        if self.blocks:
            mine = [block for *block, owner in self.blocks if owner == rank]
            return [full[tuple(map(stretch, *block))] for block in mine]
        for axis, dim in self.splits if rank in self.ranks else ():
            chunks, none = full.chunk(self.sizes[axis], dim), full.narrow(dim, 0, 0)
            full = [*chunks, *[none] * self.sizes[axis]][self.place(rank)[axis]]
        return [full] if rank in self.ranks else []

    @cache  # noqa: B019
    def told(self):
        """Return which elements each rank holds, as text: all that makes ways alike."""
        index = torch.arange(math.prod(self.shape)).view(self.shape)
        held = {
            rank: [t.tolist() for t in self.cut(index, rank) if t.numel()]
            for rank in self.ranks
        }
        return str((self.shape, bool(self.terms), sorted(held.items())))

    def place(self, rank):
        """Return where a rank stands in the mesh."""
        return [*itertools.product(*map(range, self.sizes))][self.ranks.index(rank)]

    def whole(self, pieces):
        """Return the whole tensor of which each rank holds these pieces."""
        terms, index = {}, torch.arange(math.prod(self.shape)).view(self.shape)
        for rank in self.ranks:
            term = tuple(self.place(rank)[axis] for axis in self.terms)
            for at, piece in zip(self.cut(index, rank), pieces[rank], strict=True):
                flat = terms.setdefault(term, piece.new_zeros(index.numel()))
                raw(flat)[at.reshape(-1)] = raw(piece).detach().reshape(-1)
        first, *others = terms.values()
        return sum(others, first).view(self.shape)

    def has_all(self, rank):
        """Return whether a rank holds the whole tensor, in one piece."""
        held = self.cut(torch.empty(self.shape, device="meta"), rank)
        return not self.terms and [tuple(t.shape) for t in held] == [self.shape]

    def layout(self):
        """Return which boxes each rank holds, found by cutting the places."""
        places = torch.arange(math.prod(self.shape)).view(self.shape)
        pieces = {rank: self.cut(places, rank) for rank in self.ranks}
        boxes = {rank: boxes_in(held, self.shape) for rank, held in pieces.items()}
        return Layout(self.shape, boxes)

    def is_doubtful(self):
        """Return whether ranks do not ascend along a dimension that splits."""
        ranks = torch.tensor(self.ranks).view(self.sizes)
        moves = (ranks.diff(dim=axis) for axis, _ in self.splits)
        return not self.boxed and any(bool((step < 0).any()) for step in moves)


def stretch(start, size):
    return slice(start, start + size)


class Part:
    """What a rank holds of a leaf that lies on several, in its ``way``.

    Or, without one, a leaf that has something beside its tensor, such as a scale.
    """

    def __init__(self, way, dtype, pieces, grad=False, beside=None):
        self.way, self.dtype, self.pieces, self.beside = way, dtype, pieces, beside
        self.requires_grad = grad
        self.shape = tuple(pieces[0].shape) if way is None else way.shape


class Scaled:
    """A tensor, and a number beside it."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


sd.register_leaf(
    Scaled,
    flatten=lambda x: ((x.data,), x.scale),
    unflatten=lambda scale, ts: Scaled(ts[0], scale),
)


# -- what there is to ask of either --------------------------------------------------


def way_of(x):
    return getattr(x, "way", None)


def beside(x):
    return getattr(x, "beside", None)


def is_data(x):
    return isinstance(x, (Tensor, Part))


def pieces_of(x):
    return x.pieces if isinstance(x, Part) else [x]


def form(x):
    """Return what must be the same of a leaf and of that into which it goes."""
    is_more = isinstance(x, Part) and x.way is None
    return (tuple(x.shape), x.dtype, is_more) if is_data(x) else None


def again(x, pieces, beside):
    """Return a leaf of the kind of one, of other data, in the same memory again."""
    pieces = [t.detach() for t in pieces]
    if isinstance(x, Part):
        return Part(x.way, x.dtype, pieces, x.requires_grad, beside)
    return pieces[0].requires_grad_(x.requires_grad)


def memory(x):
    """Return what is the same for leaves that are one and the same memory."""
    held = [(t, t.untyped_storage()) for t in pieces_of(x) if t.numel()]
    at = [s.data_ptr() or s._cdata for _, s in held]  # what is meta lies nowhere
    return [
        (a, t.storage_offset(), t.size(), t.stride())
        for a, (t, _) in zip(at, held, strict=True)
    ]


# -- what ranks have at a path, by their numbers ------------------------------------


def table(trees):
    """Return by path what each rank has there."""
    found = {}
    for rank, tree in trees.items():
        for path, x in oracle.items(tree):
            found.setdefault(path, {})[rank] = x
    return found


def turned(t, step):
    return t.permute([*range(t.dim())][::step])


def ways_of(held):
    """Return how a path lies on each set of ranks that holds it, lowest ranks first."""
    every = {way_of(x) for rank, x in held.items() if way_of(x) and rank in x.way.ranks}
    return sorted(every, key=lambda way: sorted(way.ranks))


def holders(held):
    """Return all ranks that hold a part of a path, in whatever set of ranks."""
    return sorted({rank for way in ways_of(held) for rank in way.ranks})


def place(rank, path, x):
    """Return what is the same for what is to be written to the same place."""
    return rank, str(memory(x)), path * (not memory(x))


def tie(held, ranks, step=1):
    """Return what leaves have in common that are tied on all ranks that see it.

    With a step of -1, that of their transposes.
    """
    here = [r for r in sorted(ranks) if r in held and is_data(held[r])]
    seen = {r: memory(held[r]) for r in here}
    told = {
        r: [(*at, n[::step], s[::step]) for *at, n, s in x] for r, x in seen.items()
    }
    return str({rank: found for rank, found in told.items() if found})


def is_torn(x, held):
    """Return whether ranks that share a leaf have other than it."""
    others = [held.get(rank) for rank in x.way.ranks]
    return len({(way_of(y), getattr(y, "dtype", None)) for y in others}) > 1


# -- what is really there ----------------------------------------------------------


def with_real(tree):
    """Return a tree of dicts with real leaves where parts stand."""
    if not isinstance(tree, dict):
        return real(tree)
    new = copy.copy(tree)
    new.update({key: with_real(x) for key, x in tree.items()})
    return new


def real(x):
    """Return what a rank really has where a part stands."""
    if not isinstance(x, Part):
        return x
    if x.way is None:
        return Scaled(*x.pieces, x.beside)
    if x.way.boxed:
        held = x.pieces or [torch.empty(0, dtype=x.dtype)]
        return sd.Shards(held, x.way.layout())
    if x.way.blocks:
        return _in_blocks(x)
    empty = torch.empty(x.way.shape, device="meta")
    meta = TensorMeta(empty.size(), empty.stride(), x.dtype)
    spec = DTensorSpec(mesh(x.way), tensor_meta=meta, **_ordered(x.way))
    [local] = x.pieces or [torch.empty(0, dtype=x.dtype)]
    return DTensor(local, spec, requires_grad=x.requires_grad)


def placements(way):
    """Return the placements; a split made after one of a later axis is strided."""
    found = [Replicate() for _ in way.sizes]
    for k, (axis, dim) in enumerate(way.splits):
        before = [way.sizes[a] for a, d in way.splits[:k] if d == dim and a > axis]
        factor = math.prod(before)
        strided = _StridedShard(dim, split_factor=factor)
        found[axis] = Shard(dim) if factor == 1 else strided
    for axis in way.terms:
        found[axis] = Partial("sum")
    return tuple(found)


def _ordered(way):
    """Return the placements, and for some the order of splits apart, as torch may."""
    how = placements(way)
    decode = getattr(DTensorSpec, "_normalize_placements_into_shard_order", None)
    is_strided = any(isinstance(p, _StridedShard) for p in how)
    if decode is None or not is_strided or sum(way.shape) % 2:
        return {"placements": how}
    plain, order = decode(how, mesh(way))
    return {"placements": plain, "shard_order": order}


def _read(x):
    """Return the placements of a DTensor, which tell the order of splits as well."""
    spec = x._spec
    if getattr(spec, "use_strided_shard_as_shard_order", True):
        return spec.placements
    made = spec._convert_shard_order_to_StridedShard(
        spec.shard_order, spec.placements, spec.mesh
    )
    return tuple(made)


def mesh(way):
    """Return the mesh of some ranks, with groups if need be: then all ranks call."""
    return _mesh(way.sizes, way.ranks, bool(way.terms))


@cache
def _mesh(sizes, ranks, has_groups):
    return DeviceMesh("cpu", torch.tensor(ranks).view(sizes), _init_backend=has_groups)


def _in_blocks(x):
    blocks, me = x.way.blocks, dist.get_rank()
    shards = [ShardMetadata([*at], [*n], f"rank:{r}/cpu") for at, n, r in blocks]
    mine = [k for k, (_, _, rank) in enumerate(blocks) if rank == me]
    held = [t.detach().requires_grad_(x.requires_grad) for t in x.pieces]
    local = [Piece(t, shards[k]) for k, t in zip(mine, held, strict=True)]
    form = TensorProperties(dtype=x.dtype, requires_grad=x.requires_grad)
    everything = ShardedTensorMetadata(shards, torch.Size(x.way.shape), form)
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, everything)


def raw(t):
    """Return a tensor that torch copies as it is: of a bool the bytes."""
    return t.view(torch.uint8) if t.dtype is torch.bool else t


# -- what there is to see ----------------------------------------------------------


def visible(tree):
    """Return a tree of what there is to see, without classes of torch's."""
    return oracle.refill(tree, iter([seen(x) for _, x in oracle.items(tree)]))


def seen(x):
    """Return what there is to see of a leaf, of a part and of a real one alike."""
    if isinstance(x, DTensor):
        mesh, local = x.device_mesh, x._local_tensor
        held = [local] if mesh.get_coordinate() is not None else []
        where = tuple(mesh.mesh.shape), tuple(mesh.mesh.flatten().tolist())
        return _told(*where, _read(x), x, held)
    if isinstance(x, ShardedTensor):
        metadata, held = x.metadata(), [s.tensor.detach() for s in x.local_shards()]
        shards = metadata.shards_metadata
        blocks = [(tuple(s.shard_offsets), tuple(s.shard_sizes)) for s in shards]
        blocks.sort()  # torch sorts those of one rank, at times
        return _told(blocks, metadata.tensor_properties.requires_grad, x, held)
    if isinstance(x, sd.Shards):
        return _told(_boxes(x.layout), x, [t for t in x.tensors if t.numel()])
    if isinstance(x, Scaled):
        return _told("scaled", x.scale, x.data, [x.data])
    if isinstance(x, sd.Abstract):
        return _told("abstract", x, [])
    if not isinstance(x, Part):
        return x
    if x.way is None:
        return _told("scaled", x.beside, x, x.pieces)
    if x.way.boxed:
        return _told(_boxes(x.way.layout()), x, [t for t in x.pieces if t.numel()])
    if x.way.blocks:
        blocks = sorted((at, size) for at, size, _ in x.way.blocks)
        return _told(blocks, x.requires_grad, x, x.pieces)
    return _told(x.way.sizes, x.way.ranks, placements(x.way), x, x.pieces)


def _boxes(layout):
    """Return the boxes of each rank as text, in one order."""
    return str(sorted((rank, sorted(found)) for rank, found in layout.boxes.items()))


def _told(*told):
    """Return what is told of a leaf as text, and the data."""
    *told, x, held = told
    is_blocked = isinstance(x, ShardedTensor) or (told and isinstance(told[0], list))
    marks = () if is_blocked else (getattr(x, "requires_grad", False),)
    return [str((*told, tuple(x.shape), x.dtype, *marks)), held]
