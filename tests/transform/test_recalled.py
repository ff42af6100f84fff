"""Copies into buffers that are made again: known at a look, and no change is missed."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.errors import SpecMismatch, UnknownLeaf
from sdtree.transform import recalled


def world():
    """Return leaves of some sorts, and buffers for them."""
    slab = torch.zeros(8)
    tree = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.arange(6.0, 12.0).view(2, 3),
        "z": torch.ones(2, 3, dtype=torch.complex64),
        "p": torch.nn.Parameter(torch.ones(4)),
        "n": 1,
    }
    buffers = {**sd.empty_like(tree), "p": torch.nn.Parameter(slab[:4])}
    return tree, sd.map(lambda x: x, buffers)


def put(name, make):
    return lambda side, other: side.update({name: make(side, other)})


CHANGES = {
    "nothing": lambda side, other: None,
    "data": lambda side, other: side["a"].add_(1),
    "size": lambda side, other: side["a"].resize_(3, 3),
    "memory": lambda side, other: side["b"].set_(torch.full((2, 3), 7.0)),
    "strides": lambda side, other: side["a"].set_(torch.ones(3, 2).t()),
    "what is under it": lambda side, other: setattr(
        side["b"], "data", torch.full((2, 3), 8.0)
    ),
    "another": put("b", lambda side, other: torch.full((2, 3), 9.0)),
    "another object": put("b", lambda side, other: side["b"].detach()),
    "dtype": put("b", lambda side, other: side["b"].view(torch.int32)),
    "freed": lambda side, other: side["a"].untyped_storage().resize_(0),
    "part freed": lambda side, other: side["a"].untyped_storage().resize_(8),
    "bits": put("z", lambda side, other: side["z"].conj()),
    "tie": put("b", lambda side, other: side["a"]),
    "tie with bits": put("z", lambda side, other: torch.ones(3, 2).mT.cfloat().conj()),
    "the other side": put("b", lambda side, other: other["b"]),
    "beside the other side": put("b", lambda side, other: other["a"]),
    "grad": lambda side, other: side["p"].requires_grad_(False),
    "kind": put("p", lambda side, other: side["p"].detach()),
    "plain value": put("n", lambda side, other: 2),
    "plain for tensor": put("b", lambda side, other: 2),
    "key less": lambda side, other: side.pop("b"),
    "order": lambda side, other: side.update({"a": side.pop("a")}),
    "meta": put("b", lambda side, other: side["b"].to("meta")),
}


def outcome(tree, buffers, run=None):
    """Return what a copy comes to: what it returns and leaves behind, or the error.

    ``run`` makes it if that is prepared.
    """
    try:
        made = run(tree) if run else sd.copy(tree, into=buffers)
    except (SpecMismatch, UnknownLeaf, RuntimeError) as error:
        return type(error), str(error)
    kept = [made[name] is buffers[name] for name in made]
    real = [x for x in made.values() if not getattr(x, "is_meta", False)]
    return [*made], kept, [getattr(x, "tolist", lambda x=x: x)() for x in real]


@given(
    st.sampled_from([*CHANGES]),
    st.booleans(),
    st.integers(0, 6),
    st.sampled_from([torch.no_grad, torch.enable_grad, torch.inference_mode]),
)
def test_a_copy_that_is_made_again_misses_no_change(name, of_target, times, mode):
    """After any number of copies it comes to what it comes to without these."""
    found = []
    for count in (0, times):
        tree, buffers = world()
        for _ in range(count):
            sd.copy(tree, into=buffers)
        sides = (buffers, tree) if of_target else (tree, buffers)
        with torch.no_grad():
            CHANGES[name](*sides)
        with mode():
            found.append([outcome(tree, buffers) for _ in range(2)])
    assert found[0] == found[1]


OF_BARE = [name for name in CHANGES if name not in ("grad", "kind")]


@pytest.mark.parametrize("name", OF_BARE)
@pytest.mark.parametrize("of_target", [False, True])
@pytest.mark.parametrize(("moves", "times"), [(False, 1), (False, 3), (True, 3)])
def test_a_prepared_copy_misses_no_change(name, of_target, moves, times):
    """It comes to what a copy does, or is refused: of leaves that move as well."""
    outcomes = []
    for is_prepared in (True, False):
        tree, buffers = ({**side, "p": 0} for side in world())
        run = sd.copy(into=buffers).prepare(tree)
        for _ in range(times if is_prepared else 0):
            run(sd.copy(tree) if moves else tree)
        tree = sd.copy(tree) if moves else tree
        with torch.no_grad():
            CHANGES[name](*((buffers, tree) if of_target else (tree, buffers)))
        outcomes.append(outcome(tree, buffers, run if is_prepared else None))
    found, wanted = outcomes
    assert found == wanted or (found[0] is SpecMismatch and name != "nothing")


def test_a_copy_that_is_made_again_is_known_at_a_look(monkeypatch):
    tree, buffers = world()
    for _ in range(recalled.OFTEN):
        sd.copy(tree, into=buffers)
    tree["a"].add_(1)
    monkeypatch.setattr("sdtree.transform.into.do_not_clash", None)
    assert sd.copy(tree, into=buffers)["a"].equal(tree["a"])
    other = {**tree, "b": tree["b"].clone()}
    with pytest.raises(TypeError, match="NoneType"):
        sd.copy(other, into=buffers)


def test_of_copies_nothing_is_kept_alive(monkeypatch):
    known = dict[int, recalled.Copied]()
    monkeypatch.setattr(recalled, "_KNOWN", known)
    tree, buffers = world()
    for _ in range(recalled.OFTEN):
        sd.copy(tree, into=buffers)
    assert len(known) == 1
    gone = [weakref.ref(x["a"]) for x in (tree, buffers)]
    gone += [weakref.ref(x["b"].untyped_storage()) for x in (tree, buffers)]
    tree.clear(), buffers.clear()
    assert [x() for x in gone] == [None] * 4
    assert not known


def test_a_process_does_not_fill_with_what_is_known(monkeypatch):
    known = dict[int, recalled.Copied]()
    monkeypatch.setattr(recalled, "_KNOWN", known)
    worlds = [world() for _ in range(recalled.MOST + 5)]
    for tree, buffers in worlds:
        sd.copy(tree, into=buffers)
    assert len(known) == recalled.MOST
