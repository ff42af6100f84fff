"""Runs drawn programs on real ranks, and compares with what they mean.

``check(program)`` has each rank make what it has, run the steps by both wires, in one
call and as a stream, and look at what it got; plans are compared with what was counted.
"""

import itertools
import math
import re
import warnings
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from unittest import mock

import meaning
import oracle
import oracle_ranks
import torch
import torch.distributed as dist
from oracle_refusals import By, Refused, Untold, refuse_if
from programs import invert
from rank_leaves import (
    Part,
    Scaled,
    is_data,
    memory,
    mesh,
    seen,
    table,
    visible,
    way_of,
    with_real,
)
from rank_programs import NAMES
from ranks import pool
from running import told
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor

import sdtree as sd
from sdtree.exchange import windows as batches
from sdtree.tree.spec import take
from sdtree.wire import messages as shipping
from sdtree.wire.collectives import forced, record

TIMEOUT = 20.0
"""Seconds after which ranks that do not answer hang."""

AT_A_LEAF = "a rank stops", "another scale", "one buffer for two leaves"
AT_A_LEAF += ("a leaf has no data",)
"""What one rank alone refuses, once a leaf has come through the steps before."""

UNSURE = "options differ", "one buffer here only", "ranks differ", "it is taken"
"""What is refused unless nothing moves, or each rank can do what it is to."""

WAYS = (
    (("pairs", "call"), ("collective", "stream")),
    (("collective", "call"), ("pairs", "stream")),
    (("pairs", "prepared"), ("collective", "reused")),
    (("collective", "prepared"), ("pairs", "reused")),
)


# -- in the process that runs the tests --------------------------------------------


def check(program):
    """Raise unless every rank finds what the program means."""
    outcomes = pool(program.size).run(look, program, timeout=TIMEOUT)
    found = "\n".join(dict.fromkeys(filter(None, outcomes)))
    assert not found, found


# -- what steps mean ---------------------------------------------------------------


def cast(dtype):
    """Return what casts what each rank has, storage by storage."""

    def run(trees):
        made = {}

        def one(t):
            if not t.is_floating_point() or t.dtype is dtype:
                return t
            if t.is_meta:
                return t.to(dtype)
            flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
            key = t.untyped_storage()._cdata, t.dtype, t.is_neg()
            flat = torch._neg_view(flat) if t.is_neg() else flat
            new = made.setdefault(key, flat.to(dtype).resolve_neg())
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

        found = table(trees)
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


def stopped(number):
    """Return what refuses to go on if a rank has data."""

    def run(trees):
        found = [x for _, x in oracle.items(trees.get(number, {}))]
        refuse_if(any(map(is_data, found)), "a rank stops")
        return trees

    return run


def compared(others):
    """Return what tells each rank whether all have the same twice."""
    return lambda trees: dict.fromkeys(trees, oracle_ranks.equal(trees, others))


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
    "stop": stopped,
    "equal": compared,
    "differ": compared,
    "by": lambda *values: By(values),
    "group": None,
}
"""What steps mean, by the names that programs have for them."""


def meant_by(program, **options):
    """Return what each rank is to get, or that all refuse."""

    def tree(name):
        return {rank: program.build(name, rank) for rank in program.ranks}

    trees, names = tree(program.start), {**NAMES, **MEANT, "tree": tree, **options}
    try:
        for text in program.steps:
            trees = eval(text, names)(trees)
    except (Refused, Untold) as refused:
        return refused
    return trees


def meant_without(program):
    """Return what a program means that never has what it drops after an exchange.

    Nobody sees that ranks differ in what none of them sends, and it has no buffer.
    """
    if "whole" in str(program.steps):
        return meant_by(program, by=lambda *values: values[0])

    def tree(name):
        trees = {rank: program.build(name, rank) for rank in program.ranks}
        for text in filter(is_drop, program.steps):
            every = {"drop": lambda which, missing_ok=True: MEANT["drop"](which, True)}
            trees = eval(text, every)(trees)
        return trees

    steps = sorted(program.steps, key=lambda step: not is_drop(step))
    less = replace(program, steps=tuple(steps))
    return meant_by(less, by=lambda *values: values[0], tree=tree)


def is_drop(step):
    return step.startswith("drop(")


def dropped_first(program):
    """Return a program that drops from its source, too, what it drops."""
    drops = filter(is_drop, program.steps)
    return replace(program, steps=(*drops, *program.steps))


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


class Stopped(KeyboardInterrupt):
    """What a person does to a rank."""


def stop(number, x):
    """Return a leaf, unless this rank is to stop where there is data."""
    if dist.get_rank() == number and isinstance(x, (Tensor, Scaled, sd.Shards)):
        raise Stopped
    return x


def attempt(call, *args):
    """Return what a call returns, or the error that it raises."""
    try:
        return call(*args)
    except (Exception, Stopped) as error:
        return error


def failed(x):
    return isinstance(x, BaseException)


class Run:
    """A program on this rank."""

    def __init__(self, program):
        self.program, self.me = program, dist.get_rank()
        self.group = groups()[program.group] if program.group else None
        self.trees, self.marks = {}, {}

    def tree(self, name):
        """Return a tree of which nothing was made before."""
        self.trees[name] = with_real(self.program.build(name, self.me))
        self.marks[name] = marks_of(self.trees[name])
        return self.trees[name]

    def transform(self):
        """Return the steps as one transform, or what compares two trees."""
        everyone = self.group or dist.group.WORLD  # who holds nothing takes part, too
        ours = {
            "equal": lambda b: lambda a: sd.equal(a, b, group=everyone),
            "differ": lambda b: lambda a: not sd.diff(a, b, group=everyone),
            "stop": lambda number: sd.map(partial(stop, number)),
            "by": lambda *values: values[self.me],
            "tree": self.tree,
            "group": self.group,
        }
        ours = {**{k: getattr(sd, k, None) for k in MEANT}, **ours}
        steps = [eval(text, {**NAMES, **ours}) for text in self.program.steps]
        return steps[0] if not self.program.exchanges() else sd.chain(*steps)

    def result(self, how):
        """Return what a run comes to, what it sent, and what was foretold of that."""
        tree, f, plan = self.tree(self.program.start), self.transform(), None
        if how == "call" and self.program.exchanges():
            plan = attempt(sd.explain, f, tree)
        with record() as traffic:
            if how in ("prepared", "reused") and self.program.exchanges():
                return attempt(self.prepared, f, tree, how == "reused"), traffic, plan
            if how == "call" or not self.program.exchanges():
                return attempt(f, tree), traffic, plan
            return attempt(lambda: [*f.stream(tree)]), traffic, plan

    def prepared(self, f, tree, reuse):
        """Return what the transform does that was prepared with other data.

        To ``reuse`` is to have its results written over those of that.
        """
        other = with_real(self.program.build(self.program.start, self.me))
        invert(data_in(other))
        with f.prepare(other, reuse=reuse) as g:
            if not reuse:
                return g(tree)
            attempt(g, other)
            return sd.copy(g(tree))  # what is mapped has its place in a slab

    def changed(self):
        """Return which trees were changed that are to be read only."""
        steps = str(self.program.steps)
        for name, tree in self.trees.items():
            is_written = f"into=tree('{name}')" in steps
            if not is_written and marks_of(tree) != self.marks[name]:
                yield f"the tree {name} was changed"


def marks_of(tree):
    """Return what must not change when a tree is only read."""
    return [(t.data_ptr(), t._version, oracle.mark(t)) for t in data_in(tree)]


def data_in(tree):
    return [t for _, x in oracle.items(visible(tree)) for t in oracle.data_of(x)]


def look(program):
    """Return what is wrong with what ranks get, empty if nothing is."""
    words, meant = groups()["words"], meant_by(program)
    for way in program.laid():
        if way.terms:  # not each rank may have such a leaf
            mesh(way)
    for wire, how in WAYS[program.ways]:
        said = "", "", None, None
        if dist.get_rank() in program.ranks:
            said = _one(program, meant, wire, how)
        every = [None] * program.size
        dist.all_gather_object(every, said, group=words)
        if found := _judged(every, meant):
            return f"by {wire}, as a {how}: {found}"
    return ""


def _one(program, meant, wire, how):
    """Return what is wrong with a run, its error, what it sent and foretold."""
    run = Run(program)
    with ExitStack() as around:
        around.enter_context(forced(wire))
        if program.small:
            around.enter_context(mock.patch.object(shipping, "LARGE", 16))
            around.enter_context(mock.patch.object(batches, "STATUS_BYTES", 64))
        made, traffic, plan = run.result(how)
    if failed(made):
        if not (oracle.is_ours(made) or isinstance(made, Stopped)):
            raise made  # others may wait for this rank
        return "", told(made), None, None
    if isinstance(meant, Refused):
        if goes_alone(program, meant):
            return "", "", None, None
        if str(meant) in UNSURE:
            with mock.patch.object(oracle_ranks, "check_room"):
                meant = meant_without(program)
    if isinstance(meant, Untold):
        return "", "", None, None
    if isinstance(meant, Refused):
        return f"there is {made}, but {meant}"[:2000], "", None, None
    found = attempt(compare, run, made, meant[run.me], how)
    if failed(found) and "into=" in str(program.steps):
        less = meant_by(dropped_first(program))  # whose buffers others may lie in
        if not isinstance(less, (Refused, Untold)):
            found = attempt(compare, run, made, less[run.me], how)
    if failed(found):
        return f"{found}" or told(found), "", None, None
    if failed(plan) and not isinstance(plan, ValueError):
        return f"explain raises {told(plan)}", "", None, None
    foretold = None
    if plan is not None and not failed(plan) and is_alike(program):
        of_all = sees_all(program, run.me)
        of_own = [] if plan.notes else [run.me]
        told_of = program.ranks if of_all else of_own
        foretold = {rank: plan.traffic(rank) for rank in told_of}
        if of_all and not plan.notes:
            found = found or attempt(rows_as_made, plan, made, run.me)
    return found, "", traffic, foretold


def rows_as_made(plan, made, me):
    """Return what is not as rows of a plan tell it: which leaves come, and where."""
    rows = {row.to: row for row in plan.rows if row.to is not None}
    leaves, spec = take(made)
    if rows.keys() != {*spec.paths()}:
        return f"rows are told of {[*rows]}, not of {spec.paths()}"
    for path, leaf in zip(spec.paths(), leaves, strict=True):
        row, form = rows[path], sd.Abstract.of(leaf)
        told, found = ((x.kind, x.shape, x.dtype) for x in (row.after, form))
        if told != found:
            return f"{path}: told to be {told}, not {found}"
        is_here = row.ranks is None or me in row.ranks
        if is_here is isinstance(leaf, sd.Abstract):
            return f"{path}: told to go to {row.ranks}, and is {type(leaf)} here"
    return ""


def goes_alone(program, refused):
    """Return whether a rank refuses by itself, and each of the others goes on.

    What has no data is known before they meet, unless a step makes it. Of what is
    dropped they share nothing, and it has no buffer.
    """
    drops = "drop(" in str(program.steps)
    if str(refused) == "one here only":
        return drops
    is_apart = not is_shared(program) or drops
    if str(refused) == "a leaf has no data":
        return is_apart and program.steps[0] not in program.exchanges()
    return str(refused) in AT_A_LEAF and (is_apart or program.ends_alone())


def is_shared(program):
    """Return whether ranks share a leaf, so that they hear of each other.

    Of one that a source lacks none moves, nor of one that none has who would hold it.
    """
    if re.search(r"distribute\(.*strict=False", str(program.steps)):
        return False
    pairs = itertools.product(program.trees, program.ranks)
    leaves = ((r, x) for n, r in pairs for _, x in oracle.items(program.build(n, r)))
    return any(way_of(x) and r in x.way.ranks for r, x in leaves)


def is_alike(program):
    """Return whether ranks are alike but for the sets that they are in.

    None can see the ties that only others have, nor plain values that steps make.
    """
    if "rank" in str(program.lines) or "rank" in str(program.trees):
        return False
    if len(program.exchanges()) > 1 or re.search("whole|by\\(", str(program.steps)):
        return False
    is_chosen = "gather(ranks" in str(program.steps)
    if is_chosen and "into" in str(program.steps) and "alias" in str(program.lines):
        return False  # of buffers that only some have
    return all(tied_alike(program, name) for name in program.trees)


def tied_alike(program, name):
    """Return whether two leaves are tied on all ranks that have something of both."""
    trees = {r: program.build(name, r) for r in program.ranks}
    places = [
        {r: memory(x) for r, x in held.items() if is_data(x)}
        for held in table(trees).values()
    ]
    for one, other in itertools.combinations(places, 2):
        both = [(one[r], other[r]) for r in one if r in other]
        if len({here == there for here, there in both if here and there}) > 1:
            return False
    return True


def sees_all(program, rank):
    """Return whether a rank can foretell what all do: it has a part of all they share.

    Else its plan is of its own part, unless it notes what it had to suppose.
    """
    for name in program.trees:
        trees = {r: program.build(name, r) for r in program.ranks}
        for held in table(trees).values():
            if {*held} != {*trees} or len({*map(way_of, held.values())}) > 1:
                return False  # other sets of ranks
            x = held[rank]
            if (
                way_of(x)
                and math.prod(x.shape)
                and not any(t.numel() for t in x.pieces)
            ):
                return False
    return True


def compare(run, made, meant, how):
    """Return what differs from what was meant, empty if nothing does."""
    if isinstance(meant, bool):
        assert made is meant, f"{made}, not {meant}"
    elif how != "stream":
        oracle.assert_same(visible(made), visible(meant), "the result", _turned_ties)
        if how == "reused" or run.program.steps[-1:] != run.program.exchanges()[-1:]:
            return "\n".join(run.changed())  # a copy ties no empty parts
        ties = _blind_ties(made), _blind_ties(meant)
        assert ties[0] == ties[1], (
            f"the result: without a part ties {ties[0]}, not {ties[1]}"
        )
    else:
        got, wanted = dict(made), dict(oracle.items(meant))
        assert len(got) == len(made), "a stream yields a path twice"
        assert got.keys() == wanted.keys(), f"a stream yields {[*got]}, not {[*wanted]}"
        for path, x in wanted.items():
            found = oracle.difference(seen(got[path]), seen(x))
            assert not found, f"the result: {path}: {found}"
    return "\n".join(run.changed())


def _turned_ties(tree):
    """Return how tied leaves lie, each transpose as one of the first that is tied.

    Which of them is made, and which is the transpose of that, is not promised.
    """
    sizes = [t.shape for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    groups = [
        [
            (i, at, tuple(s for s, n in zip(steps, sizes[i], strict=True) if n > 1))
            for i, at, steps in group
        ]
        for group in oracle.ties(tree)
    ]
    return [
        [(*at, s == first if s in (first, first[::-1]) else s) for *at, s in group]
        for group in groups
        for first in [group[0][-1]]
    ]


def _blind_ties(tree):
    """Return which leaves are tied of which this rank has an empty part: one memory."""
    groups = {}
    for i, (_, x) in enumerate(oracle.items(tree)):
        held = seen(x)[1] if way_of(x) or isinstance(x, SHARDED) else []
        if held and math.prod(x.shape) and not any(t.numel() for t in held):
            key = [(t.untyped_storage()._cdata, t.size()) for t in held]
            groups.setdefault(str(key), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


SHARDED = DTensor, ShardedTensor


def _judged(every, meant):
    """Return what is wrong with what all ranks say of a run."""
    for rank, (found, error, _, _) in enumerate(every):
        if found:
            return f"rank {rank}: {found}"
        if error and not isinstance(meant, (Refused, Untold)):
            return f"rank {rank} raises {error}"
    for planner, (_, _, _, foretold) in enumerate(every):
        for rank, traffic in (foretold or {}).items():
            done = every[rank][2]
            if done not in (None, traffic):
                return f"rank {planner} foretells {traffic} for rank {rank}, not {done}"
    return ""
