"""What ranks refuse together, and what they may do one way or another."""

import oracle
from rank_leaves import (
    beside,
    form,
    holders,
    is_data,
    is_torn,
    place,
    table,
    tie,
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


def refuse_if(wrong, why):
    if wrong:
        raise Refused(why)


def at(option, rank):
    return option[rank] if isinstance(option, By) else option


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


# -- what does not fit ---------------------------------------------------------------


def check_places(trees, buffers):
    """Refuse buffers that do not stand where leaves, and empty containers, will."""

    def places(tree):
        return {p for p, _ in oracle.items(tree)}, {*oracle.holes(oracle.take(tree))}

    every = [{r: places(tree) for r, tree in x.items()} for x in (trees, buffers)]
    refuse_if(every[0] != every[1], "other places")


def check_room(met, path, rank, buffers, to):
    """Refuse a buffer for two leaves that not all ranks have for both."""
    if is_data(buffers.get(path, {}).get(rank)):
        here = place(rank, path, buffers[path][rank])
        there = tie(buffers[path], to), sorted(to)
        refuse_if(met.setdefault(here, there) != there, "one buffer here only")


def check_delivery(given, wanted, trees, src, moves, into, strict, options):
    """Refuse what is not to be brought into the layouts of others, path by path."""
    for path in {**given, **wanted}:
        sides = [x.get(path, {}) for x in (given, wanted)]
        seen = trees if moves else [*sides[1]] or trees
        for rank in seen:
            check_fit(*(x.get(rank, trees) for x in sides), trees, strict, into)
        here, there = map(holders, sides)
        if here and there and here != there:
            refuse_if(any(a != b for a, b in both(*sides)), "other ranks")
            raise Untold("whether sets of ranks that are apart are seen to differ")
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
        refuse_if_odd(options, ranks, may_be=not is_one)


def both(source, target):
    """Return who holds a leaf before, and who after, where sets of ranks meet."""
    found = []
    for way in (*ways_of(source), *ways_of(target)):
        meet = [x for x in found if x & {*way.ranks}]
        found = [x for x in found if x not in meet] + [{*way.ranks}.union(*meet)]
    sides = [[x & {*holders(side)} for side in (source, target)] for x in found]
    return [side for side in sides if all(side)]


def check_fit(x, target, nothing, strict, into):
    """Refuse a source that does not fit its target; ``nothing`` is none of them."""
    refuse_if(way_of(target) and target.way.terms, "the target is terms of a sum")
    refuse_if(strict and (x is nothing) != (target is nothing), "other paths")
    if x is not nothing and target is not nothing:
        refuse_if(isinstance(x, Abstract), "a leaf has no data")
        refuse_if(form(x) != form(target), "another form")
        refuse_if(into and beside(x) != beside(target), "another scale")
