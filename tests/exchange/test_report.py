"""What a load leaves out is told, with the tree: a report, the same on every rank."""

import pytest
import torch
from foretelling import as_foretold
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import caught, me, said, shard, together, whole
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import sdtree as sd
from sdtree.errors import RankFailed, SpecMismatch

# -- the report --------------------------------------------------------------------

MADE = {
    "tensor": lambda n: whole(3, start=n),
    "sharded": lambda n: shard(whole(6, start=n)),
    "plain": lambda n: n,
}
WHOLE = {**MADE, "sharded": lambda n: whole(6, start=n)}
names = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([*MADE]))
sides = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.sampled_from([*MADE]), st.integers(0, 3))
)
ONLY_HERE, ONLY_THERE, BOTH = 0, 1, 2
BEFORE = {"none": sd.identity, "copy": sd.copy(), "map": sd.map(lambda x: x)}


def loaded(leaves, extra, verb, name, before, streams):
    """Return what a load comes to on this rank, and what it should, told naively."""
    source = {k: WHOLE[kind](5) for k, (kind, at) in leaves.items() if at != ONLY_THERE}
    target = {k: MADE[kind](1) for k, (kind, at) in leaves.items() if at != ONLY_HERE}
    if me() in extra:
        target[f"of {me()}"] = me()
    options = {name: target, "strict": False, "report": True}
    f = BEFORE[before] | getattr(sd, verb)(**options)
    given = source if verb == "distribute" or me() == 0 else None
    if streams:
        found = dict(f.stream(given))
        report = found.pop((1,))
        tree = {key: leaf for (_, key), leaf in found.items()}
    else:
        tree, report = f(given)
    told = {
        "missing": [*({*target} - {*source} - {f"of {me()}"})]
        + [f"of {rank}" for rank in extra],
        "unexpected": [*({*source} - {*target})],
    }
    for key, leaf in tree.items():
        want = 5 if key in source else (1 if key in leaves else me())
        kind = leaves[key][0] if key in leaves else "plain"
        assert (
            sd.equal(leaf, MADE[kind](want))
            if kind != "sharded"
            else torch.equal(leaf.to_local(), MADE[kind](want).to_local())
        )
    return report, told, [*tree]


@settings(max_examples=25)
@given(
    sides,
    st.sets(st.integers(0, 3), max_size=2),
    st.sampled_from(["distribute", "broadcast"]),
    st.sampled_from(["like", "into"]),
    st.sampled_from([*BEFORE]),
    st.booleans(),
)
def test_a_report_tells_what_was_left_out_on_every_rank(
    leaves, extra, verb, name, before, streams
):
    """All names, of plain leaves that only one rank has too, the same everywhere."""
    every = together(loaded, leaves, extra, verb, name, before, streams)
    reports = [report for report, _, _ in every]
    assert all(report == reports[0] for report in reports)
    for report, told, _ in every:
        for what, names in told.items():
            paths = getattr(report, what)
            assert len(paths) == len({*paths})
            assert {*paths} == {(name,) for name in names}
        assert report.mismatched == ()
        assert bool(report) == any(told.values())
        for name in (*told["missing"], *told["unexpected"]):
            assert name in str(report)


NEW = {"flat": torch.arange(1.0, 5), "head": torch.full((2,), 7.0), "meta": whole(2)}


def load_into_parts(has, overlapping, verb):
    """Return what becomes of a flat buffer and a part, and whether this rank raised."""
    flat, is_odd = torch.zeros(4), me() in overlapping
    head = flat[:2] if is_odd else torch.zeros(2)
    none = torch.empty(2, device="meta" if is_odd else "cpu")
    buffers = {"flat": flat, "head": head, "meta": none}
    source = {name: NEW[name] for name in has}
    given = source if verb == "distribute" or me() == 0 else None
    load = getattr(sd, verb)
    error = caught(lambda: load(given, into=buffers, strict=False))
    assert error is None or type(error) in (SpecMismatch, RankFailed)
    return flat.tolist(), head.tolist(), error is not None


@settings(max_examples=25)
@given(
    st.sets(st.sampled_from([*NEW])),
    st.sets(st.integers(0, 3)),
    st.sampled_from(["distribute", "broadcast"]),
)
def test_what_is_not_written_may_lie_anywhere(has, overlapping, verb):
    """A flat buffer beside its parts, or one without data, of which none comes."""
    every = together(load_into_parts, has, overlapping, verb)
    is_bad = bool(overlapping) and ("meta" in has or has >= {"flat", "head"})
    for rank, (flat, head, is_refused) in enumerate(every):
        assert is_refused == is_bad
        if is_refused:
            assert (flat, head) == ([0.0] * 4, [0.0] * 2)
            continue
        wanted = NEW["flat"].tolist() if "flat" in has else [0.0] * 4
        above = NEW["head"].tolist() if "head" in has else [0.0] * 2
        if rank in overlapping:
            wanted[:2] = above = wanted[:2] if "flat" in has else above
        assert (flat, head) == (wanted, above)


def foretold(verb, verify):
    source, like = {"w": whole(6), "n": 1}, {"w": shard(whole(6)), "m": 0}
    f = getattr(sd, verb)(like=like, strict=False, report=True, verify=verify)
    as_foretold(f, source if verb == "distribute" or me() == 0 else None, like)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_what_ranks_hear_of_a_report_is_foretold(verb, verify):
    together(foretold, verb, verify)


def test_a_report_goes_with_the_tree_through_a_chain():
    """The pair is a tree: steps after act on it, and may drop the report."""
    model, file = {"w": torch.zeros(2), "head": 0}, {"w": torch.ones(2), "step": 3}
    load = sd.copy() | sd.distribute(like=model, strict=False, report=True)
    tree, report = load(file)
    assert tree["w"].tolist() == [1, 1]
    assert type(report) is sd.Mismatch
    assert sd.Mismatch is sd.errors.Mismatch
    assert str(report) == "1 missing: head; 1 unexpected: step"
    assert sd.Mismatch() == sd.distribute(model, like=model, report=True)[1]
    assert not sd.Mismatch()
    twice = sd.map(lambda x: x if isinstance(x, sd.Mismatch) else x * 2)
    doubled, same = (load | twice)(file)
    assert doubled["w"].tolist() == [2, 2]
    assert same == report
    assert (load | sd.drop("1") | sd.select("0.w"))(file)[1] is sd.ABSENT


# -- an optimizer's state ----------------------------------------------------------


def trained():
    """Return a model and its optimizer, which has made a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def fresh():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    return model, torch.optim.AdamW(model.parameters())


NAMED = {
    "by number into none": (
        lambda: trained()[1].state_dict(),
        lambda: fresh()[1].state_dict(),
    ),
    "by number into named": (
        lambda: trained()[1].state_dict(),
        lambda: get_optimizer_state_dict(*fresh()),
    ),
    "named into none": (
        lambda: get_optimizer_state_dict(*trained()),
        lambda: fresh()[1].state_dict(),
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("case", NAMED)
def test_an_optimizer_does_not_lose_all_of_its_state(case, nested, strict):
    """Not even where less is allowed; the recipe that the error names works."""
    source, like = (make() for make in NAMED[case])
    name = "state"
    if nested:
        source, like, name = {"opt": source}, {"opt": like}, "opt.state"
    with pytest.raises(SpecMismatch) as error:
        sd.distribute(source, like=like, strict=strict)
    for text in (f" {name} ", "get_optimizer_state_dict(model, optimizer)"):
        assert text in str(error.value)
    assert "strict=False" not in str(error.value)
    without = sd.drop(source, f"{name}.**")
    assert f"sd.drop(source, '{name}.**')" in str(error.value)
    sd.distribute(without, like=like, strict=False)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ((0, 1), "the source has it by number and the target by name;"),
        (("b", "c"), "the source has it by other names than the target;"),
        ((0, "b"), "the source has it by other names than the target;"),
    ],
)
def test_why_an_optimizers_state_would_be_lost_is_told(keys, told):
    source = {"state": {key: {"step": 1} for key in keys}, "param_groups": [1]}
    like = {"state": {"w": {"step": 0}}, "param_groups": [1]}
    with pytest.raises(SpecMismatch, match=told):
        sd.distribute(source, like=like, strict=False)


def test_the_recipe_for_an_optimizers_state():
    """What ``get_optimizer_state_dict`` makes of both sides fits."""
    model, optimizer = trained()
    raw = optimizer.state_dict()
    there = fresh()
    there[1].load_state_dict(raw)
    like = get_optimizer_state_dict(*fresh())
    made, report = sd.distribute(
        get_optimizer_state_dict(*there), like=like, report=True
    )
    assert not report
    assert sd.equal(made["state"], get_optimizer_state_dict(model, optimizer)["state"])


def fails_on_the_report(streams):
    def read(x):
        if me() == 1 and isinstance(x, sd.Mismatch):
            raise ValueError("it is not to be read")
        return x

    like = {"w": shard(whole(6))}
    f = sd.broadcast(like=like, strict=False, report=True) | sd.map(read)
    source = {"w": whole(6)}
    return caught(lambda: [*f.stream(source)] if streams else f(source))


@pytest.mark.parametrize("streams", [False, True])
def test_who_fails_on_the_report_tells_the_others(streams):
    for rank, error in enumerate(together(fails_on_the_report, streams)):
        assert type(error) is (ValueError if rank == 1 else RankFailed), error
        assert "it is not to be read" in said(error)


def steps_that_run():
    seen = []

    def note(x):
        seen.append(len(x))
        return x

    like = {"w": shard(whole(6))}
    f = sd.map(note) | sd.distribute(like=like, strict=False)
    f({"w": whole(6), "more": whole(7)})
    return seen


def test_steps_are_not_run_for_what_the_target_lacks():
    """As with what a later step drops by its name."""
    assert all(seen == [6] for seen in together(steps_that_run))


def looks_for_nothing(streams):
    f = sd.gather() | sd.select(lambda path, x: False)
    tree = {"w": shard(whole(6)), "n": 1}
    return caught(lambda: [*f.stream(tree)] if streams else f(tree))


@pytest.mark.parametrize("streams", [False, True])
def test_a_choice_behind_an_exchange_that_finds_nothing_says_so(streams):
    for error in together(looks_for_nothing, streams):
        assert type(error) is sd.errors.NoMatch, error


def plain_for_a_tensor(verify):
    source = {"n": 3, "w": whole(6)} if me() == 0 else None
    like = {"n": torch.zeros(2) if me() == 1 else 0, "w": shard(whole(6))}
    f = sd.map(lambda x: x) | sd.broadcast(like=like, verify=verify)
    return caught(lambda: f(source))


@pytest.mark.parametrize("verify", [True, False])
def test_plain_values_that_steps_make_are_compared_on_all_ranks(verify):
    for error in together(plain_for_a_tensor, verify):
        assert isinstance(error, SpecMismatch), error
        assert "n (plain in the source" in said(error)


def fill_what_others_have_no_place_for(verb):
    full = {"a": whole(4), "b": whole(4, start=9)}
    mine = "a" if me() == 0 else "b"
    into = {mine: torch.zeros(4)}
    source = full if me() == 0 or verb == "distribute" else None
    getattr(sd, verb)(source, into=into, strict=False)
    assert torch.equal(into[mine], full[mine])


@pytest.mark.parametrize("verb", ["broadcast", "distribute"])
def test_a_source_fills_what_it_has_no_place_for_itself(verb):
    """Into the buffers of others, with what is missing left out."""
    together(fill_what_others_have_no_place_for, verb)


def load_by_number():
    source = trained()[1].state_dict() if me() == 0 else None
    like = trained()[1].state_dict() if me() < 2 else fresh()[1].state_dict()
    return caught(lambda: sd.broadcast(source, like=like, strict=False))


def test_one_rank_whose_optimizer_is_fresh_stops_all():
    """No rank goes on with a state that others lack."""
    for rank, error in enumerate(together(load_by_number)):
        assert type(error) in (SpecMismatch, RankFailed, sd.errors.RankMismatch)
        assert rank < 2 or "state" in said(error)
