"""Which ranks get what they have not, and what of it is tied."""

import itertools
import math

import oracle
from oracle_refusals import Untold, at, refuse_if, refuse_if_odd
from rank_leaves import (
    holders,
    is_data,
    pieces_of,
    tie,
    way_of,
    ways_of,
)


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
        if any(t.is_meta and not t.numel() for r in own for t in pieces_of(held[r])):
            raise Untold("whether what has no elements lacks data")
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


def named(path, rank, ranks):
    """Return the ranks that are chosen for a path, None for its own."""
    to = at(ranks, rank)
    to = to(path) if callable(to) else to
    return None if to in (None, "balanced") else {to} if isinstance(to, int) else {*to}


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
