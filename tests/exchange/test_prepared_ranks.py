"""Prepared on ranks: agreed on once; a tree of another form is refused by all."""

import os
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from rank_laws import by_each_wire, laws, options, others, trees
from shards import assert_works, caught, me, said, shard, together, whole
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.errors import NoMatch, RankFailed, RankMismatch, SpecMismatch
from sdtree.exchange import convert as conversion
from sdtree.exchange import exchange
from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.gather import Gathering
from sdtree.kinds.handler import tensors_of
from sdtree.tensors.bits import same_bits
from sdtree.testing import full_of, sharded_of
from sdtree.tree.spec import take
from sdtree.wire import messages
from sdtree.wire.collectives import forced, record


def assert_same(a, b):
    """Assert that two trees are the same on this rank: structure, kinds, bits."""
    (xs, one), (ys, two) = take(a), take(b)
    assert one == two
    for path, x, y in zip(one.paths(), xs, ys, strict=True):
        assert sd.Abstract.of(x) == sd.Abstract.of(y), path
        if not isinstance(x, sd.Abstract):
            assert all(map(same_bits, tensors_of(x), tensors_of(y))), path


# -- the law -----------------------------------------------------------------------


def comes_again(tree, **told):
    """Assert that what is prepared does what it does not prepared, for other data."""
    given, full = sharded_of(tree), full_of(tree)
    other, others_full = sharded_of(others(tree)), full_of(others(tree))
    found = []
    for f, t, u in (
        (sd.gather(**told), given, other),
        (sd.gather(ranks=1, **told) | sd.copy(), given, other),
        (sd.distribute(like=given, **told), full, others_full),
        (sd.broadcast(like=given, src=2, **told), full, others_full),
        (sd.redistribute(like=given, **told), full, others_full),
    ):
        with f.prepare(t) as run, f.prepare(t, reuse=True) as again:
            found += [(f(u), run(t), run(u), again(t), again(u))]
    for expected, _, made, _, reused in found:
        assert_same(made, expected)
        assert sd.ties(made) == sd.ties(expected)
        assert_same(reused, expected)
        assert sd.ties(reused) == sd.ties(sd.copy(expected))  # but of empty parts


@settings(laws, max_examples=4)
@given(trees, options)
def test_prepared_is_the_transform(tree, options):
    """f.prepare(t)(u) = f(u), for every layout, kind, tie, bucket, by both wires."""
    by_each_wire(comes_again, tree, **options)


def is_written_again(tree, **told):
    """Assert that what is prepared writes what it does not prepared, for other data."""
    given, full = sharded_of(tree), full_of(tree)
    other, others_full = sharded_of(others(tree)), full_of(others(tree))
    blank, buffers = sharded_of(others(others(tree))), sd.copy(sd.gather(given))
    for f, t, u, into, expected in (
        (sd.gather(into=buffers, **told), given, other, buffers, sd.gather(other)),
        (sd.distribute(into=blank, **told), full, others_full, blank, other),
        (sd.broadcast(into=blank, src=1, **told), full, others_full, blank, other),
        (sd.redistribute(into=blank, **told), full, others_full, blank, other),
    ):
        with f.prepare(t) as run:
            run(t)
            made = run(u)
        assert_same(made, expected)
        pairs = zip(sd.leaves(made), sd.leaves(into), strict=True)
        assert all(x is y for x, y in pairs if isinstance(x, torch.Tensor))


@settings(laws, max_examples=3)
@given(trees, options)
def test_prepared_writes_what_the_transform_does(tree, options):
    """As above, into what was given: nothing that was written before is left."""
    by_each_wire(is_written_again, tree, **options)


def is_read_where_it_lies(tree, **told):
    """Assert that data is read anew of what lies where it lay, and of what does not."""
    given, full = sharded_of(tree), full_of(tree)
    other, others_full = sharded_of(others(tree)), full_of(others(tree))
    blank, buffers = sharded_of(others(others(tree))), sd.copy(sd.gather(given))
    found = []
    for f, t, u in (
        (sd.gather(**told), given, other),
        (sd.gather(into=buffers, **told), given, other),
        (sd.broadcast(into=blank, src=1, **told), full, others_full),
        (sd.distribute(like=blank, **told), full, others_full),
        (sd.redistribute(into=blank, **told), given, other),
    ):
        with f.prepare(t) as run:
            for x in (t, t, t, u, u, u, t):
                found.append([sd.copy(g(x)) for g in (f, run)])
            sd.copy(u, into=t)
            found += [[sd.copy(g(x)) for g in (f, run)] for x in (t, u, u)]
    for expected, made in found:
        assert_same(made, expected)


@settings(laws, max_examples=2)
@given(trees, options)
def test_prepared_reads_what_lies_where_it_lay(tree, options):
    """As above, for trees that come from one place again and again, and from others."""
    by_each_wire(is_read_where_it_lies, tree, **options)


def rows(start):
    """Return whole leaves of one form, none of them tied, and their shards."""
    full = {name: whole(8, 6, start=start + k) for k, name in enumerate("abc")}
    return full, {name: shard(x) for name, x in full.items()}


def keeps_no_other(name):
    """Assert that what is kept of one place is not taken for what lies in another."""
    (full, given), (others_full, other), (_, blank) = rows(0), rows(100), rows(200)
    f, t, u = {
        "gather": (sd.gather(), given, other),
        "gather into": (sd.gather(into=sd.copy(full)), given, other),
        "broadcast": (sd.broadcast(into=blank, src=1), full, others_full),
        "distribute": (sd.distribute(like=blank), full, others_full),
    }[name]
    found = []
    with f.prepare(t) as run:
        for x in (t, t, t, t, u, u, t, t, t):
            found.append((sd.copy(run(x)), sd.copy(f(x))))
        kept = any(window.kept for window in run._begun.known.windows)
        sd.copy(u, into=t)
        found.append((sd.copy(run(t)), sd.copy(f(t))))
    if me() == 1:  # of a broadcast the source
        assert kept
    for made, expected in found:
        assert_same(made, expected)


@pytest.mark.parametrize("name", ["gather", "gather into", "broadcast", "distribute"])
def test_what_is_kept_of_one_place_is_not_taken_for_another(name):
    together(keeps_no_other, name)


def is_where_another_was():
    """Assert that memory is not taken for that which was there, and is gone."""
    tree, blank = {"w": whole(64, 32)}, {"w": shard(torch.zeros(64, 32))}
    with sd.broadcast(into=blank).prepare(tree) as run:
        for _ in range(4):
            run(tree)
        old = tree["w"].data_ptr()
        tree["w"].untyped_storage().resize_(0)
        kept = [torch.full((64, 32), float(k)) for k in range(1000)]
        found = [t for t in kept if t.data_ptr() == old] or kept[-1:]
        made = [sd.gather(run({"w": found[0]}), ranks=0)["w"] for _ in range(4)]
    assert me() or all(x.equal(found[0]) for x in made)


def test_memory_is_not_taken_for_what_was_there():
    together(is_where_another_was)


def receives_again(f, wire, least):
    """Assert that results are received where they are, as long as they are there."""
    (full, given), (others_full, other) = rows(0), rows(100)
    names = [*"ac"] if len(f.stages) > 1 else [*"abc"]
    with ExitStack() as stack:
        stack.enter_context(forced(wire))
        stack.enter_context(mock.patch.object(messages, "LARGE", least))
        run = stack.enter_context(f.prepare(given, reuse=True))

        def comes(tree, expected):
            made = run(tree)
            assert [*made] == names
            assert not sd.ties(made)
            for name, x in made.items():
                assert torch.equal(x, expected[name])
                assert not x.requires_grad
            return [*made.values()]

        first, second = comes(given, full), comes(other, others_full)
        assert all(x is y for x, y in zip(first, second, strict=True))
        second[0].data = torch.zeros(8, 6)
        third = comes(given, full)
        third[1].requires_grad_()
        comes(other, others_full)
        own = comes(given, full)
        with torch.no_grad():
            own[1].zero_()
        assert torch.equal(own[0], full["a"])
        assert own[0].untyped_storage().nbytes() == own[0].nbytes


@pytest.mark.parametrize("wire", ["pairs", "collective"])
@pytest.mark.parametrize(
    "f", [sd.gather(), sd.gather(bucket_bytes=200) | sd.drop("b")], ids=str
)
@pytest.mark.parametrize("least", [16, 2**17], ids=["alone", "together"])
def test_what_is_gathered_again_is_received_in_its_place(f, wire, least):
    """And made anew if a user has given it another place or form."""
    together(receives_again, f, wire, least)


def receives_what_it_sends(least, beside):
    (full, given), part = rows(0), slice(2 * me(), 2 * me() + 2)
    mesh, given = given["a"].device_mesh, given | beside
    with mock.patch.object(messages, "LARGE", least):
        run = sd.gather().prepare(given, reuse=True)
        last = run(given)
        turned = dict(zip("abc", ("b", "c", "a"), strict=True))
        locals = {name: last[other][part] for name, other in turned.items()}
        sent = {k: DTensor.from_local(x, mesh, [Shard(0)]) for k, x in locals.items()}
        made = run(sent | beside)
        run.close()
    for name, other in turned.items():
        assert torch.equal(made[name], full[other]), name
        assert torch.equal(last[name], full[name]), name


PARAMETER = {"p": torch.nn.Parameter(torch.ones(2))}


@pytest.mark.parametrize("least", [16, 2**17], ids=["alone", "together"])
@pytest.mark.parametrize("beside", [{}, PARAMETER], ids=["alike", "and a parameter"])
def test_nothing_is_received_into_what_is_sent(least, beside):
    """Parts of the last result are a source as any other, beside whatever it lies."""
    together(receives_what_it_sends, least, beside)


def ties_a_result_to_another():
    """Tie what stays to what is received, where both are equal at the time."""

    def tree(w, p):
        return {"w": shard(torch.full((8,), w)), "p": torch.full((8,), p)}

    with sd.gather().prepare(tree(0.0, 0.0), reuse=True) as run:
        last = run(tree(1.0, 1.0))
        last["p"].data = last["w"].data
        made = run(tree(2.0, 3.0))
    return made["w"].tolist(), made["p"].tolist()


def test_what_a_user_has_tied_comes_apart_when_it_is_received_again():
    for w, p in together(ties_a_result_to_another):
        assert w == [2.0] * 8
        assert p == [3.0] * 8


def calls_another(count):
    """Return what ranks raise of which one calls another prepared transform."""
    (_, some), others = rows(0), {f"{k}": shard(whole(8, 6)) for k in range(count)}
    with sd.gather().prepare(some) as run, sd.gather().prepare(others) as other:
        error = caught(lambda: other(others) if me() == 2 else run(some))
        run(some)
        other(others)
    with sd.gather().prepare(some) as run, sd.gather().prepare(some) as other:
        made = other(some) if me() == 2 else run(some)  # it is the same
    return error, said(error), [*made]


@pytest.mark.parametrize("count", [3, 4])
def test_ranks_that_call_other_prepared_transforms_hear_of_it(count):
    for error, text, made in together(calls_another, count):
        assert isinstance(error, RankMismatch)
        assert error.ranks == (0, 2)
        assert "ranks [2] call another prepared transform" in text
        assert made == ["a", "b", "c"]


def requires_grad_or_not():
    marked = {name: x.requires_grad_(name == "b") for name, x in rows(0)[1].items()}
    with sd.gather().prepare(rows(0)[1], reuse=True) as run:
        made = [run(tree).values() for tree in (rows(0)[1], marked)]
    return [[x.requires_grad for x in xs] for xs in made]


def test_what_is_received_again_has_the_marks_of_each_call():
    for before, after in together(requires_grad_or_not):
        assert before == [False] * 3
        assert after == [False, True, False]


def fails_on_the_way():
    (full, given), (_, other) = rows(0), rows(100)
    part_of, asked = Gathering.part_of, []

    def fails_late(*args):
        asked.append(args)
        if me() == 3 and len(asked) > 1:
            raise ValueError("it is too much")
        return part_of(*args)

    with sd.gather(bucket_bytes=200).prepare(given, reuse=True) as run:
        run(given)
        broken = mock.patch.object(Gathering, "part_of", fails_late)
        error = caught(broken(lambda: run(other)))
        assert all(map(torch.equal, run(given).values(), full.values()))
    return said(error)


def test_a_call_that_fails_tells_of_the_results_of_the_last():
    for rank, text in enumerate(together(fails_on_the_way)):
        assert "it is too much" in text, rank
        assert "the results of the call before are partly overwritten" in text


def plans_no_more(name):
    """Assert that trees of one form go as was agreed on, with no other plan."""
    given, full = {"w": shard(whole(8, 3))}, {"w": whole(8, 3)}
    f, tree = {
        "gather": (sd.gather(), given),
        "gather into": (sd.gather(into=sd.copy(full)), given),
        "distribute": (sd.distribute(like=given), full),
        "broadcast": (sd.broadcast(into=given, src=2), full),
        "redistribute": (sd.redistribute(like=sd.copy(given)), given),
    }[name]
    with f.prepare(tree) as run, ExitStack() as around:
        around.enter_context(mock.patch.object(ExchangePlan, "of", None))
        around.enter_context(mock.patch.object(exchange, "cut", None))
        run(tree)
        run(tree)


@pytest.mark.parametrize(
    "name", ["gather", "gather into", "distribute", "broadcast", "redistribute"]
)
def test_what_is_prepared_is_planned_once(name):
    together(plans_no_more, name)


# -- another form ------------------------------------------------------------------


def state(n=0):
    """Return what this rank has of a state."""
    rows = shard(whole(8, 3, start=n))
    norm = shard(whole(4, start=n), None, Replicate())
    return {"rows": rows, "tied": rows, "norm": norm, "plain": whole(2), "n": n}


def other(name):
    made = state(5)
    made |= {
        "a shape": {"plain": whole(3)},
        "a dtype": {"rows": shard(whole(8, 3).double())},
        "a layout": {"norm": shard(whole(4))},
        "strides": {"plain": whole(4)[::2]},
        "a key more": {"more": 1},
        "a tie": {"tied": sd.copy(made["tied"])},
        "a kind": {"plain": torch.nn.Parameter(whole(2))},
    }.get(name, {})
    if name == "a key less":
        del made["plain"]
    return made


TRANSFORMS = {
    "gather": lambda **told: sd.gather(**told),
    "to one": lambda **told: sd.gather(ranks=2, **told) | sd.cast(dtype=torch.half),
    "distribute": lambda **told: sd.drop("**.n") | sd.redistribute(like=LIKE(), **told),
    "after a map": lambda **told: sd.map(lambda x: x) | sd.gather(**told),
    "inside": lambda **told: sd.where("rows", sd.gather(**told)),
}
CHANGES = {
    "a shape": "plain",
    "a dtype": "rows",
    "a layout": "norm",
    "strides": "plain",
    "a key more": "more",
    "a key less": "plain",
    "a tie": "rows",
    "a kind": "plain",
}


def LIKE():
    return sd.drop(state(9), "n")


def refuses(how, rank, verify):
    """Return what ranks raise if one of them has other trees; between, all is well."""
    f = TRANSFORMS[how](verify=verify)
    errors = []
    with f.prepare(state()) as run:
        for name in CHANGES:
            tree = other(name) if me() == rank else state(1)
            error = caught(partial(run, tree))
            errors.append((type(error), str(error)))
            assert_works()
            assert sd.equal(run(state(2)), f(state(2)))
    return errors


@pytest.mark.parametrize("how", TRANSFORMS)
def test_a_tree_of_another_form_on_one_rank_is_refused_by_all(how):
    """Each names the first path that differs, and the next call is as before."""
    for rank, errors in enumerate(together(refuses, how, 1, True)):
        for (kind, text), name in zip(errors, CHANGES, strict=True):
            told = "" if rank == 1 else "on rank 1, "
            assert kind is SpecMismatch
            assert text.startswith(f"{told}{CHANGES[name]}: "), (name, text)
            assert "nothing was moved" in text


@pytest.mark.parametrize("how", TRANSFORMS)
def test_without_a_word_before_nobody_waits_either(how):
    """Who has the wrong tree says so, and the others that it failed.

    They went on with junk, so none says that nothing was moved.
    """
    for rank, errors in enumerate(together(refuses, how, 3, False)):
        for kind, text in errors:
            assert kind is (SpecMismatch if rank == 3 else RankFailed), text
            assert "nothing was moved" not in text


QK = sd.rule(["q [a ...]", "k [b ...]"], "qk [(a + b) ...]", a=8, b=4)


def apart(n, dtype=torch.float32):
    """Return what this rank has of what the rule joins."""
    q = whole(8, 3, start=n)
    return {"q": shard(q), "k": shard(whole(4, 3, start=2 * n).to(dtype))}


def converts_again():
    """Return what ranks raise if one of them gives another dtype to a conversion."""
    f = sd.convert(QK, like={"qk": shard(whole(12, 3))})
    wrong = torch.float64 if me() == 1 else torch.float32
    with f.prepare(apart(0)) as run:
        for n in (1, 2):
            assert sd.equal(run(apart(n)), f(apart(n)))
        error = caught(lambda: run(apart(3, wrong)))
        assert_works()
        found = sd.gather(run(apart(4)))["qk"]
    expected = torch.cat([whole(8, 3, start=4), whole(4, 3, start=8)])
    assert torch.equal(found, expected)
    return type(error), str(error)


def test_a_prepared_conversion_is_the_conversion_and_refuses_what_differs():
    for rank, (kind, text) in enumerate(together(converts_again)):
        assert kind is SpecMismatch
        assert text.startswith("k: " if rank == 1 else "on rank 1, k: ")


def keeps_its_plan(option):
    """Return how often a prepared conversion is planned, and what overlaps."""
    buffers = {"qk": shard(torch.zeros(12, 3))}
    f = sd.convert(QK, **{option: buffers})
    planned = []
    with pytest.MonkeyPatch.context() as patch:
        known = conversion.matched
        patch.setattr(
            conversion, "matched", lambda *given: planned.append(1) or known(*given)
        )
        with f.prepare(apart(0)) as run:
            for n in (1, 2):
                found = sd.gather(run(apart(n)))["qk"]
                expected = torch.cat([whole(8, 3, start=n), whole(4, 3, start=2 * n)])
                assert torch.equal(found, expected)
            tree = apart(3)
            if option == "into":
                buffers["qk"] = shard(torch.zeros(12, 3))
                run(tree)
                assert torch.equal(sd.gather(buffers)["qk"][:8], whole(8, 3, start=3))
                room, mesh = torch.zeros(9), tree["q"].device_mesh
                for there, name, rows in ((buffers, "qk", 3), (tree, "q", 2)):
                    part = room[: 3 * rows].view(rows, 3)
                    there[name] = DTensor.from_local(part, mesh, [Shard(0)])
                return len(planned), str(caught(lambda: run(tree)))
    return len(planned), ""


@pytest.mark.parametrize("option", ["like", "into"])
def test_a_prepared_conversion_keeps_its_plan(option):
    """What is written into may be other buffers, and is looked at."""
    for count, text in together(keeps_its_plan, option):
        assert count == 1
        assert ("overlap" in text) == (option == "into"), text


def agrees_again():
    """Return what ranks raise if what is to agree does not, in a later call."""
    rule = sd.rule("{p:q|k} [a c]", "qk [a c]", agree="p")
    f = sd.convert(rule, like={"qk": shard(whole(8, 3))})

    def twins(n):
        return {name: shard(whole(8, 3, start=n * i)) for i, name in enumerate("qk")}

    with f.prepare(twins(0)) as run:
        assert torch.equal(sd.gather(run(twins(0)))["qk"], whole(8, 3))
        error = caught(lambda: run(twins(1)))
        assert_works()
    return str(error)


def test_what_is_to_agree_is_compared_at_each_call():
    assert all("agree" in text for text in together(agrees_again))


def other_target():
    """Return what ranks raise if what one was given as like= is changed meanwhile."""
    like = state()
    f = sd.redistribute(like=like)
    with f.prepare(state()) as run:
        run(state(1))
        if me() == 0:
            like["plain"].resize_(3)
        return str(caught(lambda: run(state(1))))


def test_a_target_that_was_changed_is_refused_by_all():
    for rank, text in enumerate(together(other_target)):
        assert text.startswith("" if rank == 0 else "on rank 0, ")
        assert "plain: expected shape (2,), got (3,); what was given to" in text


def cannot_begin(verify):
    """Return what ranks raise if one of them cannot prepare for its tree."""
    tree = {"rows": shard(whole(8, 3)), **({"more": 1} if me() != 2 else {})}
    f = sd.drop("more") | sd.gather(verify=verify)
    error = caught(lambda: f.prepare(tree))
    assert_works()
    return type(error)


@pytest.mark.parametrize("verify", [True, False])
def test_who_cannot_prepare_tells_the_others(verify):
    kinds = together(cannot_begin, verify)
    assert kinds == [RankFailed, RankFailed, NoMatch, RankFailed]


def cannot_copy_first(verify):
    """Return what ranks raise if one cannot prepare what comes before they meet."""
    rows = shard(whole(8, 3))
    into = {"rows": rows if me() == 2 else sd.copy(rows)}
    f = sd.copy(into=into) | sd.map(torch.neg) | sd.gather(verify=verify)
    error = caught(lambda: f.prepare({"rows": rows})({"rows": rows}))
    assert_works()
    return said(error)


@pytest.mark.parametrize("verify", [True, False])
def test_who_cannot_prepare_what_comes_before_ranks_meet_tells_the_others(verify):
    """They are told at once, or without a word before when they call."""
    texts = together(cannot_copy_first, verify)
    assert all("into= overlaps the source" in text for text in texts)


def not_ready(verify):
    """Return what ranks raise if one of them gives no tree, or has closed it alone."""
    f, tree = sd.gather(verify=verify), state()
    run, closed = f.prepare(tree), f.prepare(tree)
    given = "state.pt" if me() == 1 else tree
    errors = [caught(partial(call, given)) for call in (run, f.prepare, f)]
    if me() == 1:
        closed.close()
    if verify:
        errors.append(caught(partial(closed, tree)))
    assert sd.equal(run(state(2)), f(state(2)))
    return [*map(type, errors)]


@pytest.mark.parametrize("verify", [True, False])
def test_who_is_not_ready_tells_the_others(verify):
    """No tree given, or closed on one rank alone: others hear of it."""
    for rank, kinds in enumerate(together(not_ready, verify)):
        told = [TypeError] * 3 + [RuntimeError] * verify
        assert kinds == (told if rank == 1 else [RankFailed] * len(told))


def called_in_two_ways(alone):
    """Return what ranks raise if one of them alone calls the one, others the other."""
    f, tree = sd.gather(), state()
    run, errors = f.prepare(tree), []
    for is_prepared in (True, False):
        act = run if (me() == alone) is is_prepared else f
        errors.append(caught(partial(act, tree)))
    assert sd.equal(run(state(2)), f(state(2)))
    return [(type(error), str(error), error.ranks) for error in errors]


def test_who_calls_what_is_prepared_and_who_does_not_hear_of_it():
    for errors in together(called_in_two_ways, 2):
        again, anew = ([2], [0, 1, 3]), ([0, 1, 3], [2])
        for (kind, text, told), ranks, rest in zip(errors, again, anew, strict=True):
            assert kind is RankMismatch
            assert told == (ranks[0], *rest)
            assert f"ranks {ranks} call what they have prepared" in text


# -- what it costs -----------------------------------------------------------------


def counted(verify):
    """Return what a prepared gather sends, and what is left of many."""
    run = sd.gather(verify=verify).prepare(state())
    with record() as traffic:
        run(state(1))
    before = held()
    for n in range(30):
        run(state(n))
    return dict(traffic.messages), [
        now - was for was, now in zip(before, held(), strict=True)
    ]


def held():
    return len(os.listdir("/proc/self/fd")), len(dist.distributed_c10d._world.pg_map)


def test_a_call_begins_with_one_word():
    """And ends with one; nothing is left of many calls."""
    for sent, left in together(counted, True):
        assert sent["all_reduce"] == sent["all_gather"] == 1
        assert left
    assert all(found["all_reduce"] == 1 for found, _ in together(counted, False))
