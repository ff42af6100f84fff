"""What ranks exchange, said for all of them at once, as naively as can be.

``trees`` are what each rank has, by its number; a leaf that ranks share is a ``Part``.
To gather is to put its pieces together, to distribute is to cut; nothing of the
library's layouts, routes or messages is used.
"""

import itertools
import math

import oracle
import torch
from rank_leaves import Part
from torch import Tensor

from sdtree import Abstract


class Refused(Exception):
    """All ranks are to raise, and nobody is to wait."""


class By(tuple):
    """An option that differs from rank to rank."""


# -- trees and leaves --------------------------------------------------------------


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


def refuse_if(wrong, why):
    if wrong:
        raise Refused(why)


def at(option, rank):
    return option[rank] if isinstance(option, By) else option


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
    return [(s.data_ptr(), t.storage_offset(), t.size(), t.stride()) for t, s in held]


def place(rank, path, x):
    """Return what is the same for what is to be written to the same place."""
    return rank, str(memory(x)), path * (not memory(x))


def tie(held, ranks):
    """Return what leaves have in common that are tied on all ranks that see it."""
    seen = {r: memory(held[r]) for r in ranks if r in held and is_data(held[r])}
    return str({rank: found for rank, found in seen.items() if found})


def key_of(path, x, *ties):
    """Return what tied leaves have in common; those without elements are not tied."""
    return *ties, way_of(x), x.dtype, path * (not math.prod(x.shape))


def whole(held, rank):
    """Return the whole of that of which a rank has a part."""
    way = way_of(held[rank])
    ranks = way.ranks if way else (rank,)
    every = {rank: pieces_of(held[rank]) for rank in ranks}
    data = [t for pieces in every.values() for t in pieces]
    refuse_if(any(t.is_meta for t in data), "a leaf has no data")
    return way.whole(every) if way else data[0].detach().clone()


def agreed(trees, *options):
    """Return what ranks have by path, if those that share a leaf are of one mind."""
    found = table(trees)
    for held in found.values():
        for x in filter(way_of, held.values()):
            ranks = x.way.ranks
            refuse_if(x.way.is_doubtful(), "who holds what cannot be told")
            refuse_if(not {*ranks} <= {*trees}, "the leaf lies outside the group")
            others = [held.get(rank) for rank in ranks]
            forms = {(way_of(y), getattr(y, "dtype", None)) for y in others}
            chosen = [{str(at(option, r)) for r in ranks} for option in options]
            refuse_if(max(map(len, (forms, *chosen))) > 1, "ranks differ")
    return found


# -- what moves --------------------------------------------------------------------


def gather(trees, ranks=None, into=None, **options):
    """Return the trees with whole leaves on the ranks chosen."""
    found, made, met = agreed(trees, ranks, *options.values()), {}, {}
    buffers = table(into or {})
    refuse_if(into is not None and {*buffers} != {*found}, "other paths")
    if into is not None and ranks == "balanced":
        gather(trees, into=into)  # all are to have room for all
    owners = balanced(found, buffers) if ranks == "balanced" else {}

    def chosen(path, rank):
        way, to = way_of(found[path][rank]), at(ranks, rank)
        to = to(path) if callable(to) else to
        if to is None or to == "balanced":
            return owners.get(path, way.ranks if way else (rank,))
        to = {to} if isinstance(to, int) else {*to}
        refuse_if(not to <= {*trees}, "no rank of the group")
        refuse_if(way and not to <= {*way.ranks}, "no rank of the leaf")
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
        if rank in buffers.get(path, {}) and is_data(buffers[path][rank]):
            here = place(rank, path, buffers[path][rank])
            there = tie(buffers[path], to), sorted(to)
            refuse_if(met.setdefault(here, there) != there, "one buffer here only")
        key = rank, *key_of(path, x, tie(found[path], way.ranks))
        if all(map(way.has_all, to)):
            made[key] = x.pieces[0]
        elif key not in made:
            made[key] = whole(found[path], rank)
        return made[key].detach().requires_grad_(x.requires_grad)

    result = remade(trees, become)
    one = lambda t, u: memory(t) == memory(u)  # noqa: E731
    return result if into is None else filled(result, buffers, one)


def balanced(found, buffers):
    """Return who gets each leaf: largest first, to the least loaded, lowest rank."""
    owners, known, loads = {}, {}, {}
    parts = {p: next(filter(way_of, held.values()), None) for p, held in found.items()}
    sizes = {p: math.prod(x.shape) * x.dtype.itemsize for p, x in parts.items() if x}
    text = lambda path: [f"{type(key).__name__} {key!s}" for key in path]  # noqa: E731
    for path in sorted(sizes, key=lambda p: (-sizes[p], "\0".join(text(p)))):
        ranks = tuple(sorted(parts[path].way.ranks))
        tied = [tie(x.get(path, {}), ranks) for x in (found, buffers)]
        key = key_of(path, parts[path], *tied)
        if key not in known:
            load = loads.setdefault(ranks, dict.fromkeys(ranks, 0))
            known[key] = min(load, key=load.__getitem__)
            load[known[key]] += sizes[path]
        owners[path] = (known[key],)
    return owners


def deliver(trees, like, src=None, moves=False, into=False, strict=True, **options):
    """Return the trees in the layouts of others."""
    sources = trees if src is None else dict.fromkeys(trees, trees[src])
    given, wanted = agreed(sources), agreed(like, *options.values())
    made, met = {}, {}
    leaves = [x for held in given.values() for x in held.values()]
    refuse_if(not moves and any(map(way_of, leaves)), "a source must be whole")
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
        seers = [r for r in ranks if memory(wanted[path][r]) or way_of(held[rank])]
        ties = tie(wanted[path], ranks), tie(held, seers if src is None else [src])
        here = place(rank, path, target)
        refuse_if(into and met.setdefault(here, ties[0]) != ties[0], "one here only")
        key = rank, *key_of(path, target, *ties)
        if key not in made:
            data, way = whole(held, rank), way_of(target)
            new = [torch.empty_like(t, device="cpu") for t in pieces_of(target)]
            cuts = way.cut(data, rank) if way else [data]
            made[key] = [t.copy_(u) for t, u in zip(new, cuts, strict=True)]
        return again(target, made[key], beside(held[rank]))

    result = remade(like, become)
    same = lambda t, u: oracle.mark(t)[2] == oracle.mark(u)[2]  # noqa: E731
    return filled(result, wanted, same) if into else result


def check_fit(x, target, nothing, strict, into):
    """Refuse a source that does not fit its target; ``nothing`` is none of them."""
    refuse_if(way_of(target) and target.way.terms, "the target is terms of a sum")
    refuse_if(strict and (x is nothing) != (target is nothing), "other paths")
    if x is not nothing and target is not nothing:
        refuse_if(form(x) != form(target), "another form")
        refuse_if(into and beside(x) != beside(target), "another scale")
        ranks = [{*way.ranks} for way in (way_of(x), way_of(target)) if way]
        refuse_if(ranks[1:] and ranks[0] != ranks[1], "other ranks")


def filled(result, buffers, may_meet):
    """Return the buffers, with what is to be in them; some may be filled twice."""
    held, written = table(result), []

    def become(path, rank):
        x, buffer = held[path][rank], buffers.get(path, {}).get(rank)
        if x is buffer or isinstance(x, Abstract):
            return x
        refuse_if(form(x) != form(buffer), "another form")
        refuse_if(beside(x) != beside(buffer), "another scale")
        if not is_data(x):
            return x
        for t, u in zip(pieces_of(x), pieces_of(buffer), strict=True):
            refuse_if(u.is_meta, "a buffer has no data")
            met = [s for s, v in written if memory(u) == memory(v)]
            refuse_if(not all(may_meet(t, s) for s in met), "one buffer for two leaves")
            written.append((t, u))
        return buffer

    filled = remade(result, become)
    for t, u in written:
        u.detach().copy_(t.detach())
    return filled


def equal(trees, others):
    """Return whether every rank has the same twice, bit for bit."""
    return not any(oracle.difference(told(trees[r]), told(others[r])) for r in trees)


def told(tree):
    """Return a tree in which what is told of parts stands in their place."""

    def of(x):
        beside = str((x.way, x.dtype, x.beside)) if isinstance(x, Part) else ""
        return [beside, x.pieces] if beside else x

    return oracle.refill(tree, iter([of(x) for _, x in oracle.items(tree)]))
