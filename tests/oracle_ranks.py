"""What ranks exchange, said for all of them at once, as naively as can be.

``trees`` are what each rank has, by its number. A leaf that ranks share is a ``Part``:
how it lies, and the pieces that this rank holds. To gather is to put pieces together,
to distribute is to cut; nothing of the library's layouts, routes or messages is used.
"""

import itertools
import math
from dataclasses import dataclass

import oracle
import torch
from torch import Tensor

from sdtree import Abstract
from sdtree.errors import LayoutError, RankMismatch, SpecMismatch


class Refused(Exception):
    """All ranks are to raise, at least one of them an error of this type."""


class By(tuple):
    """An option that differs from rank to rank."""


@dataclass(frozen=True)
class Way:
    """How a tensor lies on ``ranks``, which stand in a mesh row by row.

    ``splits`` are (dimension of the mesh, of the tensor) in the order in which they are
    made; along the dimensions of the mesh in ``terms`` ranks hold terms of a sum. Or it
    lies in ``blocks``: (offsets, sizes, rank).
    """

    shape: tuple
    sizes: tuple
    ranks: tuple
    splits: tuple = ()
    terms: tuple = ()
    blocks: tuple = ()

    def __repr__(self):
        given = [self.shape, self.sizes, self.ranks, self.splits, self.terms]
        while given and not given[-1]:
            given.pop()
        blocks = [f"blocks={self.blocks}"] if self.blocks else []
        return f"Way({', '.join([*map(str, given), *blocks])})"

    def cut(self, full, rank):
        """Return the pieces of a whole tensor that a rank holds."""
        if self.blocks:
            mine = [block for *block, owner in self.blocks if owner == rank]
            return [full[tuple(map(stretch, *block))] for block in mine]
        for axis, dim in self.splits if rank in self.ranks else ():
            chunks, none = full.chunk(self.sizes[axis], dim), full.narrow(dim, 0, 0)
            full = [*chunks, *[none] * self.sizes[axis]][self.place(rank)[axis]]
        return [full] if rank in self.ranks else []

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
                flat[at.reshape(-1)] = piece.detach().reshape(-1)
        first, *others = terms.values()
        return sum(others, first).view(self.shape)

    def has_all(self, rank):
        """Return whether a rank holds the whole tensor, in one piece."""
        held = self.cut(torch.empty(self.shape, device="meta"), rank)
        return not self.terms and [tuple(t.shape) for t in held] == [self.shape]

    def is_doubtful(self):
        """Return whether ranks do not ascend along a dimension that splits."""
        ranks = torch.tensor(self.ranks).view(self.sizes)
        return any(bool((ranks.diff(dim=axis) < 0).any()) for axis, _ in self.splits)


def stretch(start, size):
    return slice(start, start + size)


class Part:
    """What a rank holds of a leaf that is more than a tensor: it lies on several ranks,

    or has something beside its tensor, such as a scale; then it has no ``way``.
    """

    def __init__(self, way, dtype, pieces, grad=False, beside=None):
        self.way, self.dtype, self.pieces, self.beside = way, dtype, pieces, beside
        self.requires_grad, self.shape = (
            grad,
            pieces[0].shape if way is None else way.shape,
        )


# -- trees -------------------------------------------------------------------------


def table(trees):
    """Return by path what each rank has there."""
    found = {}
    for rank, tree in trees.items():
        for path, x in oracle.items(tree):
            found.setdefault(path, {})[rank] = x
    return found


def remade(trees, make):
    """Return the trees with the leaves that a function makes of paths and ranks."""
    return {
        rank: oracle.refill(tree, iter([make(p, rank) for p, _ in oracle.items(tree)]))
        for rank, tree in trees.items()
    }


def way_of(x):
    return getattr(x, "way", None)


def is_data(x):
    return isinstance(x, (Tensor, Part))


def pieces_of(x):
    return x.pieces if isinstance(x, Part) else [x]


def with_pieces(x, pieces, beside):
    """Return other data as a leaf of the kind of one."""
    if isinstance(x, Part):
        dtype = pieces[0].dtype if pieces else x.dtype
        return Part(x.way, dtype, pieces, x.requires_grad, beside)
    return pieces[0].requires_grad_(x.requires_grad)


def is_empty(x):
    return not math.prod(x.shape)


def form(x):
    """Return what fits together."""
    return tuple(x.shape), x.dtype, isinstance(x, Part) and not x.way


def memory(x):
    """Return what is the same for leaves that are one and the same memory."""
    held = [t for t in pieces_of(x) if t.numel()]
    return [
        (t.untyped_storage().data_ptr(), t.storage_offset(), t.size(), t.stride())
        for t in held
    ]


def tie(held, ranks):
    """Return what leaves have in common that are tied on all ranks that see it."""
    seen = {r: memory(held[r]) for r in ranks if r in held and is_data(held[r])}
    return str({rank: found for rank, found in seen.items() if found})


def agreed(trees, *options):
    """Return what ranks have by path, if those that share a leaf are of one mind."""
    found = table(trees)
    for held in found.values():
        for x in filter(way_of, held.values()):
            if x.way.is_doubtful() or not {*x.way.ranks} <= {*trees}:
                raise Refused(LayoutError)
            forms = {
                (way_of(held.get(r)), getattr(held.get(r), "dtype", 0))
                for r in x.way.ranks
            }
            chosen = [{str(at(o, r)) for r in x.way.ranks} for o in options]
            if len(forms) > 1 or any(len(texts) > 1 for texts in chosen):
                raise Refused(RankMismatch)
    return found


def at(option, rank):
    return option[rank] if isinstance(option, By) else option


def whole(held, rank):
    """Return the whole of that of which a rank has a part."""
    if way := way_of(held[rank]):
        return way.whole({r: held[r].pieces for r in way.ranks})
    return pieces_of(held[rank])[0].detach().clone()


# -- what moves --------------------------------------------------------------------


def gather(trees, ranks=None, into=None, **options):
    """Return the trees with whole leaves on the ranks chosen."""
    found, made = agreed(trees, ranks, *options.values()), {}
    if into is not None and {*table(into)} != {*found}:
        raise Refused(SpecMismatch)
    owners = balanced(found, into or {}) if ranks == "balanced" else {}

    def chosen(path, rank):
        way, to = way_of(found[path][rank]), at(ranks, rank)
        to = to(path) if callable(to) else to
        if to is None or to == "balanced":
            return owners.get(path, way.ranks if way else (rank,))
        to = {to} if isinstance(to, int) else {*to}
        if not to <= {*trees} or (way and not to <= {*way.ranks}):
            raise Refused(LayoutError if to <= {*trees} else ValueError)
        return to

    def become(path, rank):
        x = found[path][rank]
        if not is_data(x):
            return x
        to, way = chosen(path, rank), way_of(x)
        if rank not in to or (way and rank not in way.ranks):
            return Abstract.dense(tuple(x.shape), x.dtype)
        if not way:
            return x
        key = rank, tie(found[path], way.ranks), way, x.dtype, path * is_empty(x)
        if all(map(way.has_all, to)):
            made[key] = x.pieces[0]
        elif key not in made:
            made[key] = whole(found[path], rank)
        return made[key].detach().requires_grad_(x.requires_grad)

    result = remade(trees, become)
    return (
        result
        if into is None
        else filled(result, into, lambda t, u: memory(t) == memory(u))
    )


def balanced(found, into):
    """Return who gets each leaf: largest first, to the least loaded, lowest rank."""
    first, loads, owners, buffers = {}, {}, {}, table(into)
    parts = {p: next(filter(way_of, held.values()), None) for p, held in found.items()}
    sizes = {p: math.prod(x.shape) * x.dtype.itemsize for p, x in parts.items() if x}
    for path in sorted(sizes, key=lambda p: (-sizes[p], canonical(p))):
        way = parts[path].way
        tied = [tie(x.get(path, {}), way.ranks) for x in (found, buffers)]
        key = *tied, way, parts[path].dtype
        ranks = tuple(sorted(way.ranks))
        load = loads.setdefault(ranks, dict.fromkeys(ranks, 0))
        owners[path] = (min(load, key=load.__getitem__),)
        if first.setdefault(key, path) != path and sizes[path]:
            owners[path] = owners[first[key]]
        else:
            load[owners[path][0]] += sizes[path]
    return owners


def canonical(path):
    return "\0".join(f"{type(key).__name__} {key!s}" for key in path)


def deliver(trees, like, src=None, moves=False, into=False, strict=True, **options):
    """Return the trees in the layouts of others."""
    sources = trees if src is None else dict.fromkeys(trees, trees[src])
    given, wanted, made = agreed(sources), agreed(like, *options.values()), {}
    if not moves and any(way_of(x) for held in given.values() for x in held.values()):
        raise Refused(LayoutError)
    for path, rank in itertools.product({**given, **wanted}, trees):
        sides = [held.get(path, {}).get(rank, trees) for held in (given, wanted)]
        check_fit(*sides, trees, strict, into)

    def become(path, rank):
        target, held = wanted[path][rank], given.get(path, {})
        if rank not in held or not is_data(target):
            return held.get(rank, target)
        way = way_of(target) or way_of(held[rank])
        ranks = way.ranks if way else [rank] if src is None else [*trees]
        if rank not in ranks:
            return target
        sides = tie(wanted[path], ranks), tie(held, ranks if src is None else [src])
        key = rank, sides, way_of(target), target.dtype, path * is_empty(target)
        if key not in made:
            cuts = [whole(held, rank)]
            cuts = way_of(target).cut(*cuts, rank) if way_of(target) else cuts
            like_them = [torch.empty_like(t, device="cpu") for t in pieces_of(target)]
            made[key] = [t.copy_(u) for t, u in zip(like_them, cuts, strict=True)]
        beside = getattr(held[rank], "beside", None)
        return with_pieces(target, [t.detach() for t in made[key]], beside)

    result = remade(like, become)
    return (
        filled(result, like, lambda t, u: oracle.mark(t)[2] == oracle.mark(u)[2])
        if into
        else result
    )


def check_fit(x, target, nothing, strict, into):
    """Refuse a source that does not fit its target."""
    if way_of(target) and target.way.terms:
        raise Refused(LayoutError)
    if (x is nothing) is not (target is nothing) and strict:
        raise Refused(SpecMismatch)
    if x is nothing or target is nothing:
        return
    if is_data(x) is not is_data(target) or (is_data(x) and form(x) != form(target)):
        raise Refused(SpecMismatch)
    if into and getattr(x, "beside", None) != getattr(target, "beside", None):
        raise Refused(SpecMismatch)
    if way_of(x) and way_of(target) and {*x.way.ranks} != {*target.way.ranks}:
        raise Refused(LayoutError)


def filled(result, into, may_meet):
    """Return the buffers, with what is to be in them; one may be filled twice alike."""
    buffers, held, written = table(into), table(result), []

    def become(path, rank):
        x, buffer = held[path][rank], buffers.get(path, {}).get(rank)
        if x is buffer or isinstance(x, Abstract):
            return x
        if is_data(x) is not is_data(buffer) or (
            is_data(x) and form(x) != form(buffer)
        ):
            raise Refused(SpecMismatch)
        if not is_data(x):
            return x
        for t, u in zip(pieces_of(x), pieces_of(buffer), strict=True):
            if any(memory(u) == memory(v) and not may_meet(t, s) for s, v in written):
                raise Refused(SpecMismatch)
            written.append((t, u))
        return buffer

    filled = remade(result, become)
    for t, u in written:
        u.detach().copy_(t.detach())
    return filled
