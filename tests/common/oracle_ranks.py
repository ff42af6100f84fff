"""What ranks exchange, said for all of them at once, as naively as can be.

``trees`` are what each rank has, by its number; a leaf that ranks share is a ``Part``.
To gather is to put its pieces together, to distribute is to cut; nothing of the
library's layouts, routes or messages is used.
"""

import itertools
import math

import oracle
import torch
from oracle_refusals import (
    Untold,
    agreed,
    check_delivery,
    check_places,
    check_room,
    refuse_if,
)
from oracle_routes import balanced, named, routes, sent_to, standing
from rank_leaves import (
    again,
    beside,
    form,
    holders,
    is_data,
    is_torn,
    memory,
    pieces_of,
    place,
    raw,
    table,
    tie,
    turned,
    visible,
    way_of,
    ways_of,
)

from sdtree import Abstract


def remade(trees, make):
    """Return the trees with the leaves that a function makes of paths and ranks."""
    return {
        rank: oracle.refill(tree, iter([make(p, rank) for p, _ in oracle.items(tree)]))
        for rank, tree in trees.items()
    }


def whole(held, rank, way=None):
    """Return the whole of that of which a rank has a part, or ranks in some way."""
    way = way or way_of(held[rank])
    ranks = way.ranks if way else (rank,)
    every = {rank: pieces_of(held[rank]) for rank in ranks}
    data = [t for pieces in every.values() for t in pieces]
    refuse_if(any(t.is_meta and t.numel() for t in data), "a leaf has no data")
    if any(t.is_meta for t in data):
        raise Untold("whether what has no elements lacks data")
    if not way:
        return raw(data[0]).detach().clone().view(data[0].dtype)
    found = way.whole(every)
    for rank, pieces in {} if way.terms else every.items():
        for t, u in zip(pieces, way.cut(found, rank), strict=True):
            if oracle.mark(t.detach())[2] != oracle.mark(u)[2]:
                raise Untold("which of replicas that differ is taken")
    return found


# -- what moves --------------------------------------------------------------------


def gather(trees, ranks=None, into=None, **options):
    """Return the trees with whole leaves on the ranks chosen."""
    found, made, met, how = agreed(trees, ranks, *options.values()), {}, {}, {}
    whole_here = {}  # what a rank holds whole lies where it did
    buffers = table(into or {})
    if into is not None and ranks == "balanced":
        gather(trees, into=into)  # all are to have room for all
        for path, rank in itertools.product(found, trees):
            if rank in holders(found[path]):
                check_room(met, path, rank, buffers, holders(found[path]))
    owners = balanced(found, buffers) if ranks == "balanced" else {}
    options = [*options.values()]
    sent = {p: routes(p, x, trees, ranks, owners, options) for p, x in found.items()}
    trees = sent_to(trees, sent)
    found = table(trees)
    if into is not None:
        check_places(trees, into)

    def become(path, rank):
        x, to = found[path][rank], named(path, rank, ranks)
        is_here = to is None or rank in to
        if not is_data(x):
            if not is_here and path in buffers:
                buffers[path][rank] = x  # whatever stands there is not asked
            return x
        if not way_of(x):
            return x if is_here else Abstract.dense(tuple(x.shape), x.dtype)
        goes = [(way, to) for way, to in sent[path] if rank in to]
        if not goes:
            return Abstract.dense(tuple(x.shape), x.dtype)
        [(way, to)] = goes
        if ranks != "balanced":
            check_room(met, path, rank, buffers, to)
        key, step = standing(path, x, [found[path]], [way])
        key = key, *sorted(to - {*way.ranks} if rank not in way.ranks else ())
        data = made.get((rank, key))
        stays = all(map(way.has_all, to))
        if how.setdefault((rank, key), stays) != stays:
            raise Untold("whether what stays is tied to what comes")
        if stays:
            if x.pieces[0].is_meta and not all(map(way.has_all, way.ranks)):
                raise Untold("whether what stays lacks data")
            data = turned(x.pieces[0], step)
        elif data is None:
            data = turned(whole(found[path], rank, way), step)
        made[rank, key] = data
        own = x if rank in way.ranks else found[path][way.ranks[0]]
        new = turned(data, step).detach().requires_grad_(own.requires_grad)
        whole_here[id(new)] = memory(x) if way.has_all(rank) else memory(new)
        return new

    result = remade(trees, become)
    lies = lambda t: whole_here.get(id(t), memory(t))  # noqa: E731
    one = lambda t, u: lies(t) == lies(u)  # noqa: E731
    return result if into is None else filled(result, buffers, one)


def deliver(trees, like, src=None, moves=False, into=False, strict=True, **options):
    """Return the trees in the layouts of others."""
    sources = trees if src is None else dict.fromkeys(trees, trees[src])
    given = agreed(sources, *options.values())
    stay = table(like).keys() - given.keys() if src is None else ()
    wanted = agreed(like, *options.values(), but=stay)
    made, met = {}, {}
    leaves = [x for held in given.values() for x in held.values()]
    refuse_if(not moves and any(map(way_of, leaves)), "a source must be whole")
    check_delivery(given, wanted, trees, src, moves, into, strict, options.values())

    def become(path, rank):
        target, held = wanted[path][rank], given.get(path, {})
        if rank not in held or not is_data(target):
            return held.get(rank, target)
        way = way_of(target) or way_of(held[rank])
        if way and rank not in way.ranks:
            if any(t.is_meta for t in pieces_of(held[rank])):
                raise Untold("whether a source of which nothing moves lacks data")
            return target
        ranks = [rank] if src is None else [*wanted[path]]
        own = way_of(held[rank])  # who holds what else is another tensor
        lies = ways_of(held) if own else []
        if way:  # a set that keeps a leaf to itself sees its ties alone
            is_kept = (own or way).ranks == way.ranks
            is_own = src is None and is_kept
            lies = [own] if is_own and own else lies
            ranks = way.ranks if is_own else holders(wanted[path]) or way.ranks
        there = [r for r in ranks if r in wanted[path]]
        seers = [r for r in there if memory(wanted[path][r]) or own]
        ties = tie(wanted[path], ranks), tie(held, seers if src is None else [src])
        here = place(rank, path, target)
        comes = way_of(target) or (way and way.copied())
        one = comes and comes.told(), ties[0], str([x.told() for x in lies])
        refuse_if(into and met.setdefault(here, one) != one, "one here only")
        sizes = [t.size() for t in pieces_of(target)]  # what is empty has its own
        alone = path * (not math.prod(target.shape))
        key = rank, ties[1], *one, target.dtype, alone, *sizes
        if key not in made:
            data, way = whole(held, rank), way_of(target)
            new = [torch.empty_like(t, device="cpu") for t in pieces_of(target)]
            cuts = way.cut(data, rank) if way else [data]
            for t, u in zip(new, cuts, strict=True):
                raw(t).copy_(raw(u))
            made[key] = new
        return again(target, made[key], beside(held[rank]))

    result = remade(like, become)
    same = lambda t, u: oracle.mark(t)[2] == oracle.mark(u)[2]  # noqa: E731
    return filled(result, wanted, same) if into else result


def filled(result, buffers, may_meet):
    """Return the buffers, with what is to be in them; some may be filled twice."""
    held, written = table(result), []

    def become(path, rank):
        x, buffer = held[path][rank], buffers.get(path, {}).get(rank)
        if x is buffer and is_data(x) and any(t.is_meta for t in pieces_of(x)):
            raise Untold("whether a buffer without data is seen to be one")
        if x is buffer or isinstance(x, Abstract):
            return x
        refuse_if(form(x) != form(buffer), "another form")
        refuse_if(beside(x) != beside(buffer), "another scale")
        if not is_data(x):
            return x
        for t, u in zip(pieces_of(x), pieces_of(buffer), strict=True):
            refuse_if(u.is_meta, "a buffer has no data")
            refuse_if(t.is_meta, "a leaf has no data")
            met = [s for s, v in written if memory(u) == memory(v)]
            refuse_if(not all(may_meet(t, s) for s in met), "one buffer for two leaves")
            written.append((t, u))
        return buffer

    filled = remade(result, become)
    for t, u in written:
        raw(u).detach().copy_(raw(t).detach())
    return filled


def equal(trees, others):
    """Return whether every rank has the same twice, bit for bit."""
    for held in [*table(trees).values(), *table(others).values()]:
        if any(is_torn(x, held) for x in filter(way_of, held.values())):
            raise Untold("whether ranks that differ are seen to")
    seen = [{rank: visible(tree) for rank, tree in x.items()} for x in (trees, others)]
    return not any(oracle.difference(*(x[rank] for x in seen)) for rank in trees)
