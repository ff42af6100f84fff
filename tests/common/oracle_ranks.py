"""What ranks exchange, said for all of them at once, as naively as can be.

``trees`` are what each rank has, by its number; a leaf that ranks share is a ``Part``.
To gather is to put its pieces together, to distribute is to cut; nothing of the
library's layouts, routes or messages is used.
"""

import itertools
import math

import oracle
import torch
from rank_leaves import (
    again,
    beside,
    form,
    holders,
    is_data,
    memory,
    pieces_of,
    place,
    raw,
    tie,
    turned,
    visible,
    way_of,
    ways_of,
)

from sdtree import Abstract


class Refused(Exception):
    """All ranks are to raise, and nobody is to wait."""


class Untold(Exception):
    """Ranks are to do one thing or another, and nobody is to wait."""


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


def agreed(trees, *options, but=()):
    """Return what ranks have by path, if those that share a leaf are of one mind.

    ``but``: what stays at these paths is not compared.
    """
    found = table(trees)
    for path, held in found.items():
        for x in filter(way_of, held.values()):
            ranks = x.way.ranks
            refuse_if(x.way.is_doubtful(), "who holds what cannot be told")
            refuse_if(not {*ranks} <= {*trees}, "the leaf lies outside the group")
            refuse_if(path not in but and is_torn(x, held), "ranks differ")
            refuse_if_odd(options, ranks)
    return found


def refuse_if_odd(options, ranks, may_be=False):
    """Refuse other options than others have, unless each set may be by itself."""
    if any(len({str(at(option, r)) for r in ranks}) > 1 for option in options):
        raise (Untold if may_be else Refused)("options differ")


def is_torn(x, held):
    """Return whether ranks that share a leaf have other than it."""
    others = [held.get(rank) for rank in x.way.ranks]
    return len({(way_of(y), getattr(y, "dtype", None)) for y in others}) > 1


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


def check_places(trees, buffers):
    """Refuse buffers that do not stand where leaves, and empty containers, will."""

    def places(tree):
        return {p for p, _ in oracle.items(tree)}, {*oracle.holes(oracle.take(tree))}

    every = [{r: places(tree) for r, tree in x.items()} for x in (trees, buffers)]
    refuse_if(every[0] != every[1], "other places")


def standing(path, x, every, ways):
    """Return what a leaf has in common with those tied to it, and how it stands there.

    The transpose of a leaf is tied to it: one of them stands, and the other is turned.
    But where ranks have parts that tell not which, the two come apart.
    """
    ranks, keys = {rank for way in ways for rank in way.ranks}, []
    for step in (1, -1) if all(map(tells_order, ways)) else (1,):
        ties = [tie(held, sorted(ranks), step) for held in every]
        keys.append((str((ties, [way.turned(step).told() for way in ways])), -step))
    text, step = min(keys)
    return (x.dtype, path * (not math.prod(x.shape)), text), -step


def tells_order(way):
    """Return whether one sees how the dimensions of a leaf stand in its transpose."""
    is_other = way.turned().told() != way.told()
    return is_other or all(map(way.has_all, way.ranks))


def check_room(met, path, rank, buffers, to):
    """Refuse a buffer for two leaves that not all ranks have for both."""
    if is_data(buffers.get(path, {}).get(rank)):
        here = place(rank, path, buffers[path][rank])
        there = tie(buffers[path], to), sorted(to)
        refuse_if(met.setdefault(here, there) != there, "one buffer here only")


def named(path, rank, ranks):
    """Return the ranks that are chosen for a path, None for its own."""
    to = at(ranks, rank)
    to = to(path) if callable(to) else to
    return None if to in (None, "balanced") else {to} if isinstance(to, int) else {*to}


def routes(path, held, trees, ranks, owners, options):
    """Return how a path lies on each set of ranks, and to which ranks it goes so.

    Those that are in none take it from the first; each rank has it once.
    """
    asked = {rank: named(path, rank, ranks) for rank in held}
    refuse_if(any(to and not to <= {*trees} for to in asked.values()), "not in group")
    ways, own = ways_of(held), {*holders(held)}
    firsts = [way.ranks[0] for way in ways]
    every = [
        (asked[r], w.shape, held[r].dtype) for r, w in zip(firsts, ways, strict=True)
    ]
    is_one = all(x == every[0] for x in every)
    if path in owners:
        refuse_if(not is_one, "sets of ranks differ")
        refuse_if_odd(options, firsts, may_be=True)
        idle = {
            r for way in ways for r in way.ranks if owners[path][0] not in way.ranks
        }
        if any(t.is_meta for r in idle for t in pieces_of(held[r])):
            raise Untold("whether a set that another spares lacks data")
        return [(way, {*owners[path]} & {*way.ranks}) for way in ways]
    found = []
    for way in ways:
        to = asked[way.ranks[0]]
        more = (to or {*()}) - own if way is ways[0] else {*()}
        found += [(way, {*way.ranks} & to | more if to is not None else {*way.ranks})]
    is_open = any((asked[w.ranks[0]] or {*()}) - {*w.ranks} for w in ways)
    refuse_if(is_open and not is_one, "sets of ranks differ")
    refuse_if_odd(options, firsts, may_be=not is_open)
    for rank in {rank for _, to in found for rank in to} - own:
        x = held.get(rank, held[ways[0].ranks[0]])
        is_same = (way_of(x), x.dtype) == (ways[0], every[0][2]) if is_data(x) else 0
        refuse_if(not is_same or named(path, rank, ranks) != every[0][0], "it is taken")
        refuse_if_odd(options, [rank, firsts[0]])
    return found


def sent_to(trees, sent):
    """Return the trees with the leaves that come from ranks which alone have them."""
    grown = {rank: oracle.take(tree) for rank, tree in trees.items()}
    for sender, rank in itertools.product(sorted(trees), trees):
        known = {path for path, _ in oracle.items(grown[rank])}
        for path, x in [*oracle.items(trees[sender])]:
            [(way, to)] = sent[path][:1] or [(None, ())]
            if rank in to and path not in known and min(way.ranks) == sender:
                grown[rank] = joined(grown[rank], oracle.take(trees[sender]), path, x)
    return grown


def joined(tree, other, path, x, top=True):
    """Return a tree with a leaf of another more, in containers as it is in there."""
    if not path:
        return x
    refuse_if(tree is not None and not isinstance(tree, oracle.Box), "it is taken")
    if tree is None or (top and not tree.pairs):
        tree = other._replace(pairs=[])
    pairs, key = dict(tree.pairs), path[0]
    child = pairs.get(key)
    pairs[key] = joined(child, dict(other.pairs)[key], path[1:], x, False)
    return tree._replace(pairs=[*pairs.items()])


def balanced(found, buffers):
    """Return who gets each leaf: largest first, to the least loaded, lowest rank."""
    owners, known, loads = {}, {}, {}
    parts = {p: held[holders(held)[0]] for p, held in found.items() if holders(held)}
    sizes = {p: math.prod(x.shape) * x.dtype.itemsize for p, x in parts.items()}
    text = lambda path: [f"{type(key).__name__} {key!s}" for key in path]  # noqa: E731
    for path in sorted(sizes, key=lambda p: (-sizes[p], "\0".join(text(p)))):
        ranks = tuple(holders(found[path]))
        every = [x.get(path, {}) for x in (found, buffers)]
        key, _ = standing(path, parts[path], every, ways_of(found[path]))
        if key not in known:
            load = loads.setdefault(ranks, dict.fromkeys(ranks, 0))
            known[key] = min(load, key=load.__getitem__)
            load[known[key]] += sizes[path]
        owners[path] = (known[key],)
    return owners


def deliver(trees, like, src=None, moves=False, into=False, strict=True, **options):
    """Return the trees in the layouts of others."""
    sources = trees if src is None else dict.fromkeys(trees, trees[src])
    given = agreed(sources, *options.values())
    stay = table(like).keys() - given.keys() if src is None else ()
    wanted = agreed(like, *options.values(), but=stay)
    made, met = {}, {}
    leaves = [x for held in given.values() for x in held.values()]
    refuse_if(not moves and any(map(way_of, leaves)), "a source must be whole")
    for path in {**given, **wanted}:
        sides = [x.get(path, {}) for x in (given, wanted)]
        seen = trees if moves else [*sides[1]] or trees
        for rank in seen:
            check_fit(*(x.get(rank, trees) for x in sides), trees, strict, into)
        here, there = map(holders, sides)
        refuse_if(here and there and here != there, "other ranks")
        meets = {
            r for x in sides for r, leaf in x.items() if src is not None or way_of(leaf)
        }
        targets = [(r, x) for r, x in sides[1].items() if is_data(x) and r in meets]
        own = [x for r, x in targets if not way_of(x) or r in x.way.ranks]
        refuse_if(len({(x.shape, x.dtype, type(x)) for x in own}) > 1, "other targets")
        if len({(x.shape, x.dtype, type(x)) for _, x in targets}) > 1:
            raise Untold("whether a target is seen of which a rank has no part")
        ranks = {r for x in sides for r in holders(x)}
        is_one = src is not None and any(map(is_data, sides[1].values()))
        ranks = {*sides[1], src} if is_one else ranks
        refuse_if_odd(options.values(), ranks, may_be=not is_one)

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
        one = way and way.told(), ties[0], str([x.told() for x in lies])
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


def check_fit(x, target, nothing, strict, into):
    """Refuse a source that does not fit its target; ``nothing`` is none of them."""
    refuse_if(way_of(target) and target.way.terms, "the target is terms of a sum")
    refuse_if(strict and (x is nothing) != (target is nothing), "other paths")
    if x is not nothing and target is not nothing:
        refuse_if(isinstance(x, Abstract), "a leaf has no data")
        refuse_if(form(x) != form(target), "another form")
        refuse_if(into and beside(x) != beside(target), "another scale")


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
