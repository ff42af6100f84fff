"""Runs drawn programs on real ranks, and compares with what they mean.

``check(program)`` has each rank make what it has, run the steps by both wires, in one
call and as a stream, and look at what it got; plans are compared with what was counted.
"""

import copy
import itertools
import math
import warnings
from contextlib import ExitStack
from datetime import timedelta
from functools import cache
from unittest import mock

import meaning
import oracle
import oracle_ranks
import torch
import torch.distributed as dist
from oracle_ranks import Part, Refused, way_of
from ranks import pool
from running import attempt, failed, told
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
from sdtree import batches, shipping
from sdtree.wire import forced, record

TIMEOUT = 20.0
"""Seconds after which ranks that do not answer hang."""

WAYS = (("pairs", "call"), ("collective", "stream"))
WAYS += (("collective", "call"), ("pairs", "stream"))


# -- in the process that runs the tests --------------------------------------------


def check(program):
    """Raise unless every rank finds what the program means."""
    outcomes = pool(program.size).run(look, program, timeout=TIMEOUT)
    found = "\n".join(dict.fromkeys(filter(None, outcomes)))
    assert not found, found


# -- leaves that are real ----------------------------------------------------------


class Scaled:
    """A tensor, and a number beside it."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


sd.register_leaf(
    Scaled,
    flatten=lambda x: ((x.data,), x.scale),
    unflatten=lambda scale, ts: Scaled(ts[0], scale),
)


def mapped(tree, make):
    """Return a tree of dicts with other leaves."""
    if not isinstance(tree, dict):
        return make(tree)
    new = copy.copy(tree)
    for key, x in tree.items():
        dict.__setitem__(new, key, mapped(x, make))
    return new


def real(x):
    """Return what a rank really has where a part stands."""
    if not isinstance(x, Part):
        return x
    if x.way is None:
        return Scaled(*x.pieces, x.beside)
    if x.way.blocks:
        return _in_blocks(x)
    sizes = torch.Size(x.way.shape)
    empty = torch.empty(sizes, device="meta")
    meta = TensorMeta(sizes, empty.stride(), x.dtype)
    spec = DTensorSpec(_mesh(x.way), placements(x.way), tensor_meta=meta)
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


def _mesh(way):
    return _mesh_of(way.sizes, way.ranks, bool(way.terms))


@cache
def _mesh_of(sizes, ranks, is_needed):
    """Return the mesh of some ranks, with groups of its own only if they are needed."""
    return DeviceMesh("cpu", torch.tensor(ranks).view(sizes), _init_backend=is_needed)


def _in_blocks(x):
    blocks = x.way.blocks
    shards = [ShardMetadata([*at], [*n], f"rank:{r}/cpu") for at, n, r in blocks]
    mine = [k for k, (_, _, rank) in enumerate(blocks) if rank == dist.get_rank()]
    grad = x.requires_grad
    local = [
        Piece(t.detach().requires_grad_(grad), shards[k])
        for k, t in zip(mine, x.pieces, strict=True)
    ]
    form = TensorProperties(dtype=x.dtype, requires_grad=grad)
    everything = ShardedTensorMetadata(shards, torch.Size(x.way.shape), form)
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, everything)


def seen(x):
    """Return what there is to see of a leaf, of a part and of a real one alike."""
    if isinstance(x, DTensor):
        mesh, local = x.device_mesh, x._local_tensor
        held = [local] if mesh.get_coordinate() is not None else []
        ranks = mesh.mesh.flatten().tolist()
        form = [*mesh.mesh.shape], ranks, str(x.placements), x.requires_grad
        return ["DTensor", str((*form, [*x.shape], x.dtype)), held]
    if isinstance(x, ShardedTensor):
        metadata, held = (
            x.metadata(),
            [shard.tensor.detach() for shard in x.local_shards()],
        )
        blocks = [(s.shard_offsets, s.shard_sizes) for s in metadata.shards_metadata]
        form = blocks, metadata.tensor_properties.requires_grad
        return ["ShardedTensor", str((*form, [*x.size()], x.dtype)), held]
    if isinstance(x, Scaled):
        return ["Scaled", str(x.scale), [x.data]]
    if isinstance(x, sd.Abstract):
        return ["Abstract", str((*x.shape, x.dtype))]
    if not isinstance(x, Part):
        return x
    if x.way is None:
        return ["Scaled", str(x.beside), x.pieces]
    shape = [*x.way.shape], x.dtype
    if x.way.blocks:
        blocks = [([*at], [*size]) for at, size, _ in x.way.blocks]
        return ["ShardedTensor", str((blocks, x.requires_grad, *shape)), x.pieces]
    form = [*x.way.sizes], [*x.way.ranks], str(placements(x.way)), x.requires_grad
    return ["DTensor", str((*form, *shape)), x.pieces]


def visible(tree):
    return oracle.refill(tree, iter([seen(x) for _, x in oracle.items(tree)]))


# -- what steps mean ---------------------------------------------------------------


def cast(dtype):
    """Return what casts what each rank has, storage by storage."""

    def run(trees):
        made = {}

        def one(t):
            if not t.is_floating_point() or t.dtype is dtype:
                return t
            flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
            new = made.setdefault((flat.data_ptr(), t.dtype), flat.to(dtype))
            return new.as_strided(t.size(), t.stride(), t.storage_offset())

        def become(path, rank):
            x = found[path][rank]
            if isinstance(x, Tensor):
                return one(x.detach()).requires_grad_(x.requires_grad)
            if not isinstance(x, Part):
                return _retyped(x, dtype)
            grown = dtype if x.dtype.is_floating_point else x.dtype
            pieces = [one(t.detach()) for t in x.pieces]
            return Part(x.way, grown, pieces, x.requires_grad, x.beside)

        found = oracle_ranks.table(trees)
        return oracle_ranks.remade(trees, become)

    return run


def _retyped(x, dtype):
    is_cast = isinstance(x, sd.Abstract) and x.dtype.is_floating_point
    return sd.Abstract.dense(x.shape, dtype) if is_cast else x


def each(act):
    """Return what acts on the tree of each rank by itself."""
    return lambda trees: {rank: act(tree) for rank, tree in trees.items()}


def collective(verb, **fixed):
    """Return the maker of steps that ranks take together."""

    def make(like=None, into=None, **options):
        options.pop("group")
        if verb is oracle_ranks.gather:
            return lambda trees: verb(trees, into=into, **options)
        target, is_into = (like, False) if into is None else (into, True)
        return lambda trees: verb(trees, target, into=is_into, **fixed, **options)

    def with_group(group=None, **options):
        return make(group=group, **options)

    return with_group


def broadcast(src=0, **options):
    return collective(oracle_ranks.deliver, src=src)(**options)


MEANT = {
    "gather": collective(oracle_ranks.gather),
    "distribute": collective(oracle_ranks.deliver),
    "redistribute": collective(oracle_ranks.deliver, moves=True),
    "broadcast": broadcast,
    "cast": cast,
    "copy": lambda: each(oracle.take),
    "offload": lambda: each(oracle.take),
    "drop": lambda *args, **options: each(meaning.drop(*args, **options)),
    "whole": each,
    "group": None,
}
OURS = {name: getattr(sd, name) for name in MEANT if name != "group"}


def meant_by(program):
    """Return what each rank is to get, and the buffers in which it lies at last."""
    from rank_worlds import NAMES

    buffers = {}

    def tree(name):
        buffers.update({r: program.build(name, r) for r in program.ranks})
        return dict(buffers)

    trees = {rank: program.build(program.start, rank) for rank in program.ranks}
    for text in program.steps:
        buffers.clear()
        trees = eval(text, {**NAMES, **MEANT, "tree": tree})(trees)
        if "into=" not in text:
            buffers.clear()
    return trees, dict(buffers)


# -- on the ranks ------------------------------------------------------------------


@cache
def groups():
    """Return the groups of some of the ranks; all ranks of the world call."""
    warnings.simplefilter("ignore")
    size = dist.get_world_size()
    some = [r for n in range(1, size) for r in itertools.combinations(range(size), n)]
    limit = timedelta(seconds=15)
    found = {ranks: dist.new_group(ranks, timeout=limit) for ranks in some}
    return {**found, "words": dist.new_group(timeout=timedelta(minutes=5))}


class Run:
    """A program on this rank."""

    def __init__(self, program):
        self.program, self.me = program, dist.get_rank()
        self.group = groups()[program.group] if program.group else None
        self.trees, self.marks = {}, {}

    def tree(self, name):
        """Return a tree of which nothing was made before."""
        found = mapped(self.program.build(name, self.me), real)
        self.trees[name] = found
        self.marks[name] = marks_of(found)
        return found

    def transform(self):
        from rank_worlds import NAMES

        names = {**NAMES, **OURS, "tree": self.tree, "group": self.group}
        return sd.chain(*[eval(text, names) for text in self.program.steps])

    def result(self, how):
        """Return what a run comes to, what it sent, and what was foretold of that."""
        tree = self.tree(self.program.start)
        f = self.transform()
        plan = attempt(lambda: sd.explain(f, tree)) if how == "call" else None
        with record() as traffic:
            if how == "call":
                made = attempt(f, tree)
            else:
                made = attempt(lambda: [*f.stream(tree)])
        return made, traffic, plan

    def unread(self):
        """Return which trees were changed that are to be read only."""
        steps = str(self.program.steps)
        for name, tree in self.trees.items():
            is_written = f"into=tree('{name}')" in steps
            if not is_written and marks_of(tree) != self.marks[name]:
                yield f"the tree {name} was changed"


def marks_of(tree):
    """Return what must not change when a tree is only read."""
    data = [t for _, x in oracle.items(visible(tree)) for t in oracle.data_of(x)]
    return [(t.data_ptr(), t._version, oracle.mark(t)) for t in data]


def look(program):
    """Return what is wrong with what ranks get, empty if nothing is."""
    words, me = groups()["words"], dist.get_rank()
    meant, buffers = None, {}
    try:
        meant, buffers = meant_by(program)
    except Refused as refused:
        meant = refused
    for wire, how in WAYS:
        said = "", "", None, None
        if me in program.ranks:
            said = _one(program, meant, buffers, wire, how)
        every = [None] * program.size
        dist.all_gather_object(every, said, group=words)
        if found := _judged(program, every, meant):
            return f"by {wire}, as a {how}: {found}"
    return ""


def _one(program, meant, buffers, wire, how):
    """Return what is wrong with a run, its error, what it sent and foretold."""
    run = Run(program)
    with ExitStack() as around:
        around.enter_context(forced(wire))
        if program.small:
            around.enter_context(mock.patch.object(shipping, "LARGE", 16))
            around.enter_context(mock.patch.object(batches, "STATUS_BYTES", 64))
        made, traffic, plan = run.result(how)
    if failed(made):
        if not oracle.is_ours(made):
            raise made  # others may wait for this rank
        return "", told(made), None, None
    if isinstance(meant, Refused):
        return f"{meant.args} was due, and there is {made}"[:2000], "", None, None
    found = attempt(lambda: compare(run, made, meant[run.me], buffers.get(run.me), how))
    if failed(found):
        return (
            told(found) if not isinstance(found, AssertionError) else str(found),
            "",
            None,
            None,
        )
    told_of = None
    if plan is not None and not failed(plan) and sees_all(program, run.me):
        told_of = {r: plan.traffic(r) for r in program.ranks}
    if failed(plan) and not isinstance(plan, ValueError):
        return f"explain raises {told(plan)}", "", None, None
    return found, "", traffic, told_of


def sees_all(program, rank):
    """Return whether a rank has a part of each leaf that ranks share."""
    if "rank" in str(program.lines):
        return False  # of ties that only others see
    if len(program.exchanges()) > 1 or "whole" in str(program.steps):
        return False  # of plain values that come out of steps
    for name in program.trees:
        for _, x in oracle.items(program.build(name, rank)):
            held = way_of(x) and sum(t.numel() for t in x.pieces)
            is_off = way_of(x) and {*x.way.ranks} != {*program.ranks}
            if is_off or (way_of(x) and math.prod(x.shape) and not held):
                return False
    return True


def compare(run, made, meant, buffers, how):
    """Return what differs from what was meant, empty if nothing does."""
    if how == "stream":
        got = dict(made)
        assert len(got) == len(made), "a stream yields a path twice"
        wanted = dict(oracle.items(meant))
        assert got.keys() == wanted.keys(), f"a stream yields {[*got]}, not {[*wanted]}"
        for path, x in wanted.items():
            found = oracle.difference(seen(got[path]), seen(x))
            assert not found, f"{path}: {found}"
    else:
        oracle.assert_same(visible(made), visible(meant), "the result")
    return "\n".join([*run.unread()])


def _judged(program, every, meant):
    """Return what is wrong with what all ranks say of a run."""
    for rank, (found, error, _, _) in enumerate(every):
        if found:
            return f"rank {rank}: {found}"
        if error and not isinstance(meant, Refused):
            return f"rank {rank} raises {error}"
    for planner, (_, _, _, told_of) in enumerate(every):
        for rank, traffic in (told_of or {}).items():
            done = every[rank][2]
            if done not in (None, traffic):
                return f"rank {planner} foretells {traffic} for rank {rank}, not {done}"
    return ""
