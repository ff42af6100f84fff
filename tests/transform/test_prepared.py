"""Prepared: planned once, and then the same as the transform for trees of one form."""

import copy
import gc
import pickle
import weakref
from collections import OrderedDict

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ingredients import noted
from torch.nn import Parameter

import sdtree as sd
from sdtree.conversion import binding, converting, making, source
from sdtree.errors import SpecMismatch
from sdtree.layout import whole
from sdtree.testing import trees


def state(n=0, **more):
    """Return a state of which every tree made here is of the same form."""
    base = torch.arange(6.0) + n
    held = OrderedDict(
        weight=base.view(2, 3), bias=torch.full((2,), n, dtype=torch.half)
    )
    held._metadata = {"": {"version": 1}}
    return {"model": held, "tied": base[:2], "step": n, **more}


F = sd.drop("step") | sd.cast(dtype=torch.bfloat16) | sd.prefix("saved")


def is_on(path, x):
    return (isinstance(x, torch.Tensor) and bool(x.any())) or (type(x) is int and x > 1)


CHOICES = (
    *(sd.select(is_on), sd.drop(is_on), sd.select((is_on, "zz"))),
    *(sd.select("*") | sd.select(~sd.selector(is_on)), sd.where(is_on, sd.drop("*"))),
    *(sd.prefix("x") | sd.drop(is_on) | sd.copy(), sd.copy() | sd.select(is_on)),
    sd.drop(is_on) | sd.gather() | sd.prefix("x"),
)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("f", CHOICES, ids=repr)
def test_a_choice_by_data_is_made_anew(f, reuse):
    """What a leaf holds, or a plain value is, is no part of the form of a tree."""

    def tree(*on):
        return {"a": torch.zeros(2) + on[0], "b": torch.zeros(2) + on[1], "n": on[2]}

    every = [tree(1, 0, 1), tree(0, 1, 2), tree(1, 0, 2), tree(1, 1, 1)]
    with f.prepare(every[0], reuse=reuse) as run:
        assert any("is_on" in text for text in run.anew)
        for u in every:
            found = oracle.difference(run(u), f(u))
            assert not found


@pytest.mark.parametrize("f", [sd.identity, F, sd.whole(sd.copy()) | F], ids=repr)
def test_what_is_written_into_the_first_tree_changes_nothing(f):
    """``load_state_dict`` writes into the _metadata of what it is given."""
    first = state()
    with f.prepare(first) as run:
        first["model"]._metadata[""]["assign_to_params_buffers"] = True
        found = oracle.difference(run(state(1)), f(state(1)))
        assert not found


def test_a_step_of_training_that_a_person_can_read():
    """New objects and other data at each call; what the transform does comes of it."""
    with F.prepare(state()) as run:
        for n in range(3):
            found = oracle.difference(run(state(n)), F(state(n)))
            assert not found


CHANGES = {
    "a shape": (lambda s: s["model"].update(bias=torch.zeros(3).half()), "model.bias"),
    "a dtype": (lambda s: s["model"].update(bias=torch.zeros(2)), "model.bias"),
    "strides": (lambda s: s["model"].update(bias=torch.zeros(4).half()[::2]), "bias"),
    "a device": (
        lambda s: s["model"].update(bias=s["model"]["bias"].to("meta")),
        "bias",
    ),
    "a type": (lambda s: s.update(step=1.0), "step"),
    "a kind": (
        lambda s: s["model"].update(bias=torch.nn.Parameter(s["model"]["bias"])),
        "model.bias",
    ),
    "a key more": (lambda s: s.update(more=1), "more"),
    "a key less": (lambda s: s.pop("tied"), "tied"),
    "another order": (lambda s: s.update(tied=s.pop("tied")), "step"),
    "a container": (lambda s: s.update(model=dict(s["model"])), "model"),
    "metadata": (lambda s: s["model"]._metadata.update(a={}), "model"),
    "no tie": (lambda s: s.update(tied=s["tied"].clone()), "model.weight"),
    "a leaf for a container": (lambda s: s.update(model=torch.ones(1)), "model"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("f", [sd.identity, F, sd.gather()], ids=repr)
def test_another_form_is_refused_where_it_differs(f, name):
    """By the first path; and the next tree that fits is done as before."""
    change, place = CHANGES[name]
    other = state(1)
    change(other)
    with f.prepare(state()) as run:
        with pytest.raises(SpecMismatch, match=place) as error:
            run(other)
        assert "transform.prepare(tree)" in str(error.value)
        assert not oracle.difference(run(state(2)), f(state(2)))


def test_an_object_that_stays_may_be_another():
    """Its identity proves nothing: shape and memory are looked at."""
    t = state()
    for change in (
        lambda x: x.resize_(3),
        lambda x: x.set_(torch.zeros(3).half()),
        lambda x: setattr(x, "data", torch.zeros(4).half()[::2]),
    ):
        run = sd.copy().prepare(t)
        change(t["model"]["bias"])
        with pytest.raises(SpecMismatch, match="bias"):
            run(t)
        t = state()


@given(trees(portable=False), st.sampled_from([sd.copy(), sd.prefix("a")]))
def test_reuse_gives_the_same_tensors(tree, f):
    """They are the result of the last call, and nobody else's memory."""
    before = oracle.snapshot(tree)
    run = f.prepare(tree, reuse=True)
    first, second = run(tree), run(tree)
    pairs = zip(oracle.items(first), oracle.items(second), strict=True)
    for (_, x), (_, y) in pairs:
        is_data = bool([*oracle.data_of(x)])
        assert not is_data or x is y
    assert not oracle.difference(second, f(tree))
    assert oracle.snapshot(tree) == before


@given(trees(), st.lists(st.randoms(use_true_random=False), min_size=2, max_size=4))
def test_marks_are_those_of_each_call(tree, draws):
    """They are no part of a form, and come and go."""
    every = [marked_anew(sd.copy({"tree": tree}), random) for random in draws]
    for f in (sd.copy(), sd.prefix("a"), sd.copy() | sd.prefix("a")):
        for options in ({}, {"reuse": True}):
            with f.prepare(every[0], **options) as run:
                for u in every:
                    found = oracle.difference(run(u), f(u))
                    assert not found


def marked_anew(tree, random):
    """Return a tree of which some leaves want a gradient, and some have a note."""
    for _, leaf in oracle.items(tree):
        if not isinstance(leaf, torch.Tensor) or leaf.is_inference():
            continue
        if leaf.is_floating_point():
            leaf.requires_grad_(random.random() < 0.3)
        if random.random() < 0.3:
            leaf.note = random.randrange(2)
    return tree


def marked(is_trained, note):
    w = torch.nn.Parameter(torch.ones(2), requires_grad=is_trained)
    w.note = note
    return {"w": w, "plain": torch.ones(2)}


def test_what_lies_where_it_lay_is_known_at_a_look(monkeypatch):
    """Its ties are found out anew only when it lies elsewhere."""
    held = torch.arange(6.0)
    shards = sd.Shards(torch.ones(2), whole((2,), (0,)))
    for more in ({}, {"n": 1}, {"n": 1, "shards": shards}):
        tree = {"a": held, "b": held[2:], **more}
        with sd.copy().prepare(tree) as run, monkeypatch.context() as patch:
            run(tree)
            patch.setattr("sdtree.transform.form.TreeForm", None)
            patch.setattr("sdtree.transform.form.ties_of", None)
            assert not oracle.difference(run(tree), tree)
            with pytest.raises(TypeError):
                run(sd.copy(tree))


def test_buffers_that_lie_where_they_lay_are_known_at_a_look(monkeypatch):
    tree = {"a": torch.arange(6.0), "n": 1}
    buffers = sd.copy(tree)
    with sd.copy(into=buffers).prepare(tree) as run, monkeypatch.context() as patch:
        run(tree)
        tree["a"].add_(1)
        patch.setattr("sdtree.transform.into.writer", None)
        patch.setattr("sdtree.transform.into.Fitting", None)
        assert run(tree)["a"] is buffers["a"]
        assert not oracle.difference(buffers, tree)


@pytest.mark.parametrize("change", ["dtype", "size"])
def test_buffers_that_became_others_where_they_lie_are_looked_at_again(change):
    """What is of another form lies there as it lay."""
    tree = {"a": torch.ones(2, 3), "b": torch.ones(3)}
    buffers = sd.empty_like(tree)
    run = sd.copy(into=buffers).prepare(tree)
    for _ in range(3):
        run(tree)
    a = buffers["a"]
    a.data = {"dtype": a.view(torch.int32), "size": a.view(3, 2)}[change]
    with pytest.raises(SpecMismatch, match=f"a: {change.replace('size', 'shape')}"):
        run(tree)


def test_leaves_that_lie_elsewhere_each_time_are_known_at_a_look(monkeypatch):
    """But not if they lie in the buffers, or are not tied as they were."""
    slab = torch.zeros(12)
    buffers = {"a": slab[:4], "b": slab[6:10]}
    make = sd.map(lambda t: t + 1)
    w = torch.arange(4.0)
    with sd.copy(into=buffers).prepare(make({"a": w, "b": w})) as run:
        for _ in range(3):
            run(make({"a": w, "b": w}))
        for part in (slab[1:5], slab[7:11]):
            with pytest.raises(SpecMismatch, match="overlap"):
                run({"a": w, "b": part})
        with pytest.raises(SpecMismatch, match="tied"):
            run({"a": w, "b": w})
        run(make({"a": w, "b": w}))
        monkeypatch.setattr("sdtree.transform.into.writer", None)
        monkeypatch.setattr("sdtree.transform.form.TreeForm.of", None)
        assert run(make({"a": w, "b": w}))["b"].tolist() == [1, 2, 3, 4]
        assert buffers["a"].tolist() == [1, 2, 3, 4]


def test_reuse_passes_on_what_has_no_data():
    form = sd.Abstract.of(torch.ones(2))
    tree = {"far": form, "n": 1, "w": torch.ones(3)}
    with sd.copy().prepare(tree, reuse=True) as run:
        first = run(tree)
        again = run({**tree, "n": 2, "w": torch.zeros(3)})
    assert (again["far"], again["n"]) == (form, 2)
    assert again["w"] is first["w"]
    assert again["w"].tolist() == [0, 0, 0]
    assert [*again] == [*tree]
    with sd.identity.prepare({"far": form}, reuse=True) as run:
        assert run({"far": form}) == {"far": form}


def test_reuse_has_new_buffers_for_results_of_another_form():
    tree, n = {"w": torch.arange(6.0)}, 4
    run = sd.map(lambda t: t[:n]).prepare(tree, reuse=True)
    for n in (4, 4, 2, 2, 4):
        assert run(tree)["w"].tolist() == [*range(n)]


@pytest.mark.parametrize("f", [sd.identity, sd.copy()], ids=str)
def test_reuse_has_new_buffers_for_what_a_call_returned(f):
    """A result may be given again, or parts of it in another order."""
    tree = {"a": torch.arange(3.0), "b": torch.arange(3.0) + 10}
    with f.prepare(tree, reuse=True) as run:
        first = run(tree)
        turned = {"a": first["b"], "b": first["a"]}
        made = run(turned)
    assert made["a"].tolist() == [10, 11, 12]
    assert made["b"].tolist() == [0, 1, 2]
    assert not sd.ties(made)


def test_reuse_has_new_buffers_when_a_user_has_changed_them():
    """What the user has made of them stays."""
    tree, other = {"w": torch.arange(6.0)}, torch.zeros(6)
    run = sd.copy().prepare(tree, reuse=True)
    for change in (lambda t: t.resize_(2), lambda t: t.set_(other[::2])):
        changed = run(tree)["w"]
        change(changed)
        assert run(tree)["w"].tolist() == [*range(6)]
        assert changed.tolist() in ([0, 1], [0, 0, 0])


@pytest.mark.parametrize("beside", [1, torch.ones(2), Parameter(torch.ones(2))])
@pytest.mark.parametrize("kind", [torch.clone, Parameter, noted])
@pytest.mark.parametrize("array", [0, np.ones(2)])
def test_reuse_does_not_write_where_a_user_has_put_a_result(kind, beside, array):
    """Whatever else is in it: where it lies may not be seen at a look."""
    tree = {"w": kind(torch.arange(3.0)), "b": beside, "n": array}
    run = sd.copy().prepare(tree, reuse=True)
    for _ in range(3):
        own = torch.zeros(3)
        run(tree)
        run(tree)["w"].data = own
        assert torch.equal(run(tree)["w"], tree["w"])
        assert not own.any()
    first, second = run(tree), run(tree)
    assert first["w"] is second["w"]
    assert first["n"] is second["n"]


@pytest.mark.parametrize("f", [sd.copy(), sd.cast(dtype=torch.bfloat16)], ids=str)
def test_reuse_takes_no_marks_over_that_a_user_has_made(f):
    for requires_grad in (False, True):
        tree = {"w": torch.nn.Parameter(torch.ones(2), requires_grad)}
        with f.prepare(tree, reuse=True) as run:
            first = run(tree)["w"]
            first.requires_grad_(not requires_grad)
            second = run(tree)["w"]
            assert second.requires_grad is requires_grad
            second.tag = "x"
            third = run(tree)["w"]
            assert not hasattr(third, "tag")
            third.grad = torch.ones_like(third) if requires_grad else None
            fourth = run(tree)["w"]
            assert fourth.grad is None
            assert run(tree)["w"] is fourth


def test_reuse_keeps_up_with_marks():
    """Whether a gradient is wanted, and attributes: of each result its own."""
    run = sd.copy().prepare(marked(True, "a"), reuse=True)
    for told in [(True, "a"), (False, "a"), (False, "b"), (True, "b")]:
        first, second = run(marked(*told)), run(marked(*told))
        assert first["w"] is second["w"]
        assert (second["w"].requires_grad, second["w"].note) == told


def test_reuse_is_of_memory_of_the_same_sort():
    """What other processes are to see is in shared memory, and the rest is not."""
    f = sd.where("shared.*", sd.offload(share=True)) | sd.where("own", sd.copy())
    w = torch.ones(4)
    tree = {"shared": {"a": w, "b": w[2:]}, "own": torch.ones(2), "none": w[:0]}
    run = f.prepare(tree, reuse=True)
    for make in (f, run, run):
        made = make(tree)
        assert sd.equal(made, f(tree))
        assert all(x.is_shared() for x in made["shared"].values())
        assert not made["own"].is_shared()
        assert sd.ties(made) == sd.ties(tree)


def test_what_runs_anew_is_told():
    """A function of leaves, a choice by what they have become, a function of trees."""
    same = sd.whole(lambda tree: tree)
    f = sd.map(abs) | sd.copy() | sd.select(int) | same | sd.prefix("a")
    with f.prepare({"n": -1}) as run:
        assert run.anew == ["map(abs)", "select(int)", "whole(<lambda>)", "prefix('a')"]
        assert "anew at each call: map(abs), select(int)" in repr(run)
        assert "map(abs)" in run._repr_html_()
        assert run({"n": -2}) == {"a.n": 2}
    assert repr(F.prepare(state())) == f"Prepared({F}, for 4 leaves of 36 B)"


def test_the_plan_is_that_of_explain():
    """As long as it is open."""
    run = F.prepare(state())
    assert str(run.plan) == str(sd.explain(F, state()))
    tree = state()
    with F.prepare(tree) as late:
        tree["model"]["more"] = tree.pop("tied")
        assert str(late.plan) == str(sd.explain(F, state()))
    run.close()
    for ask in (lambda: run.plan, lambda: run(state())):
        with pytest.raises(RuntimeError, match=r"closed\).* make another"):
            ask()
    assert repr(run) == f"Prepared({F}, closed)"
    run.close()


def test_it_holds_nothing_when_it_is_closed():
    """Nor what it was called on."""
    tree, other = state(), state(1)
    held = [weakref.ref(x["tied"]) for x in (tree, other)]
    run = sd.copy().prepare(tree)
    run(other)
    run.close()
    del tree, other
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_it_stays_in_its_process():
    """Where it was agreed on: a copy of it says what to do."""
    run = F.prepare(state())
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickle the transform, and prepare"):
            leave(run)
    pickle.loads(pickle.dumps(F)).prepare(state())


def test_a_difference_is_told_that_a_kind_does_not_show():
    """As of sparse tensors with more elements, and of one that does not come apart."""
    few, many = (t.to_sparse() for t in (torch.eye(3), torch.ones(3, 3)))
    with pytest.raises(SpecMismatch, match="which differ in what is not shown"):
        sd.copy().prepare({"a": few})({"a": many})
    run = sd.copy().prepare({"a": torch.ones(3)})
    with pytest.raises(SpecMismatch, match="expected a dense tensor, got a tensor in"):
        torch.vmap(lambda x: run({"a": x})["a"])(torch.ones(2, 3))


def test_what_would_fail_at_each_call_fails_at_once():
    with pytest.raises(sd.errors.NoMatch):
        sd.drop("nothing").prepare(state())
    with pytest.raises(TypeError, match="a transform is no tree"):
        sd.copy().prepare(sd.copy())
    with pytest.raises(TypeError, match="reuse"):
        sd.copy().prepare(state(), reuse="yes")


FUSE = sd.rule(["{x:**}.q [a c]", "{x:**}.k [b c]"], "{x:**}.qk [(a + b) c]")
PERMUTE = sd.rule("{x:**}.qk [(h two d) c]", "{x:**}.w [(h d two) c]", h=3, two=2)


def projections(n=0):
    """Return layers of one form, in which one is tied to another."""
    layer = {"q": torch.arange(32.0).view(8, 4) + n, "k": torch.full((4, 4), n)}
    layer["k"] = layer["k"].float()
    other = {"q": torch.arange(8.0, 40).view(8, 4) + n, "k": torch.zeros(4, 4)}
    return {"a": layer, "b": {**layer}, "c": other, "step": n}


def test_a_convert_finds_out_once_which_leaves_become_which(monkeypatch):
    """Bound, matched and placed by prepare; calls after put together what is there."""
    like, into = (sd.convert(projections(), FUSE, rest="drop") for _ in range(2))
    chains = [
        sd.convert(FUSE, rest="keep"),
        sd.convert(FUSE, rest="keep") | sd.convert(PERMUTE, rest="keep"),
        sd.convert(FUSE, rest="drop", like=like),
        sd.convert(FUSE, rest="drop", into=into),
    ]
    prepared = [chain.prepare(projections()) for chain in chains]
    wanted = [[sd.copy(chain(projections(n))) for n in range(3)] for chain in chains]

    def refuse(*_args, **_options):
        raise AssertionError("it is planned anew")

    for name in ("matched", "_placed", "regrown", "_check_forms", "look_at", "through"):
        for module in (converting, source, making):
            monkeypatch.setattr(module, name, refuse, raising=False)
    monkeypatch.setattr(binding, "bind", refuse)
    for run, made in zip(prepared, wanted, strict=True):
        assert run.anew == []
        for n in range(3):
            assert not oracle.difference(run(projections(n)), made[n])


def test_a_prepared_convert_holds_no_tree_once_closed():
    """It remembers forms, and nothing of the leaves."""
    tree = projections()
    held = weakref.ref(tree["a"]["q"])
    run = sd.convert(FUSE, rest="keep").prepare(tree)
    run(projections(1))
    run.close()
    del tree
    gc.collect()
    assert held() is None


def test_targets_of_a_prepared_convert_that_have_changed_are_told():
    """Else the leaves would be put together for what they were."""
    like = sd.convert(projections(), FUSE, rest="drop")
    run = sd.convert(FUSE, rest="drop", like=like).prepare(projections())
    like["a"]["qk"] = torch.zeros(12, 4, dtype=torch.half)
    with pytest.raises(SpecMismatch, match=r"a\.qk: .*what was given to convert"):
        run(projections())


def test_what_is_to_agree_is_compared_at_each_call():
    """What its data is, the form of a tree does not tell."""
    rule = sd.rule("s.{i}.step", "step", agree="i")
    run = sd.convert(rule).prepare({"s": [torch.ones(()), torch.ones(())]})
    with pytest.raises(sd.errors.ConvertError, match="agree"):
        run({"s": [torch.ones(()), torch.zeros(())]})
