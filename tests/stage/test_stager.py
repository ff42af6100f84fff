"""Staging: a snapshot is the tree as it was, in memory that is used again."""

import gc
import os
import sys
import warnings
from threading import Thread
from types import SimpleNamespace

import oracle
import pytest
import torch
from heard import assert_grows, listened
from hypothesis import given
from hypothesis import strategies as st
from odd_bools import odd_trees
from torch.utils._python_dispatch import TorchDispatchMode

import sdtree as sd
from sdtree.kinds.handler import tensors_of


def local(tree):
    """Return the tensors in a tree that can be written into."""
    every = [t for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    return [t for t in every if isinstance(t, torch.Tensor) and not t.is_meta]


def spoil(tree):
    """Write into every tensor of a tree, and take away what its dicts hold."""
    with torch.no_grad():
        for t in local(tree):
            raw = t.untyped_storage()
            torch.empty(0, dtype=torch.uint8).set_(raw).bitwise_not_()
    if isinstance(tree, dict):
        tree.clear()


class Makings(TorchDispatchMode):
    """Notes the calls of torch that make new memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith(("empty", "clone", "zeros", "_to_copy", "_foreach_clone")):
            self.names.append(name)
        return made


@given(odd_trees(portable=False), st.booleans(), st.integers(1, 3))
def test_a_snapshot_is_the_tree_as_it_was(tree, share, times):
    """stage then wait equals the tree then, each time, whatever is done to it after."""
    with sd.Stager(share=share, buffers=1) as stager:
        for _ in range(times):
            staged = stager.stage(tree)
            result = staged.wait()
            assert sd.ties(result) == sd.ties(tree)
            assert sd.equal(result, tree) if share else True
            if not share:
                oracle.assert_same(result, tree, "staged")
            staged.release()
        expected = sd.copy()(tree)
        staged = stager.stage(tree)
        spoil(tree)
        assert sd.equal(staged.wait(), expected)


@given(st.permutations(range(3)), st.booleans(), st.booleans())
def test_what_lies_in_released_memory_is_staged_as_it_is(order, share, is_array):
    """stage(t).wait() equals sd.copy(t), be t made of a snapshot that was released."""
    with sd.Stager(share=share, buffers=1) as stager:
        earlier = stager.stage([torch.full((4,), float(k)) for k in range(3)])
        held = earlier.wait()
        earlier.release()
        for _ in range(2):
            tree = [held[k] for k in order]
            tree = [torch.from_numpy(t.numpy()) if is_array else t for t in tree]
            expected = sd.copy(tree)
            staged = stager.stage(tree)
            assert sd.equal(staged.wait(), expected)
            staged.release()


def test_what_is_released_twice_at_once_is_given_back_once():
    """Another thread releases it, and stages, while the first waits for the data."""
    with sd.Stager(buffers=1, when_full="raise") as stager:
        one, held = stager.stage({"w": torch.ones(2)}), []
        buffers, flight = one._buffers, one._flight

        def wait():
            one._buffers, one._flight = buffers, flight
            one.release()
            held.append(stager.stage({"w": torch.zeros(2)}))

        one._flight = SimpleNamespace(wait=wait)
        one.release()
        with pytest.raises(RuntimeError, match="1 snapshots are held"):
            stager.stage({"w": torch.full((2,), 7.0)})
        assert held[0].wait()["w"].tolist() == [0, 0]


def test_twice_the_same_takes_no_new_memory():
    """New tensor objects of the same forms go where the ones before them went."""
    tree = {
        "w": torch.ones(4, 3).t(),
        "b": [torch.ones(()), torch.ones(2).expand(3, 2)],
    }
    tree["tied"] = tree["w"][1:]
    with sd.Stager(buffers=1) as stager:
        first = stager.stage(tree)
        places = [t.data_ptr() for t in sd.leaves(first.wait())]
        first.release()
        alike = {**tree, "w": tree["w"][:], "b": [torch.zeros(()), tree["b"][1]]}
        with Makings() as makings:
            second = stager.stage(alike).wait()
        assert not makings.names
        assert [t.data_ptr() for t in sd.leaves(second)] == places
        assert second["b"][0] == 0
        assert second["w"].untyped_storage().data_ptr() == (
            second["tied"].untyped_storage().data_ptr()
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "w": torch.ones(3, 2)},
        lambda t: {**t, "w": torch.ones(3, 2).t()},
        lambda t: {**t, "w": torch.ones(2, 3, dtype=torch.float64)},
        lambda t: {**t, "v": t["w"]},
        lambda t: {**t, "more": torch.ones(1)},
        lambda t: {"w": t["w"]},
        lambda t: {**t, "w": torch.ones(2, 3, device="meta")},
    ],
)
def test_another_spec_has_other_buffers(change):
    tree = {"w": torch.ones(2, 3), "v": torch.zeros(2, 3)}
    with sd.Stager(buffers=1) as stager:
        stager.stage(tree).release()
        other = change(tree)
        staged = stager.stage(other)
        assert sd.equal(staged.wait(), other)
        assert sd.ties(staged.wait()) == sd.ties(other)
        staged.release()
        assert sd.equal(stager.stage(tree).wait(), tree)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.requires_grad_(),
        lambda t: t.set_(torch.zeros(1, 2, 2)),
        lambda t: t.squeeze_(),
        lambda t: t.transpose_(1, 2),
        lambda t: t.resize_(1),
        lambda t: t.untyped_storage().resize_(0),
        lambda t: setattr(t, "mark", 1),
        lambda t: setattr(t, "data", t.data.view(torch.int32)),
    ],
)
def test_what_was_done_to_a_snapshot_is_not_in_the_next(spoil):
    tree = {"w": torch.ones(1, 2, 2), "v": torch.ones(4)}
    with sd.Stager(buffers=1) as stager:
        staged = stager.stage(tree)
        spoil(staged.wait()["w"])
        staged.release()
        result = stager.stage(tree).wait()
        assert sd.equal(result, tree)
        assert result["w"].shape == (1, 2, 2)
        assert result["w"].is_contiguous()
        assert not result["w"].requires_grad
        assert not vars(result["w"])


def test_a_third_snapshot_waits_for_one_to_be_released():
    stager = sd.Stager()
    one, two = (stager.stage({"w": torch.full((2,), float(i))}) for i in (1, 2))
    made = []
    other = Thread(
        target=lambda: made.append(stager.stage({"w": torch.full((2,), 3.0)}))
    )
    other.start()
    assert one.wait()["w"].tolist() == [1, 1]
    one.release()
    other.join(60)
    assert made[0].wait()["w"].tolist() == [3, 3]
    assert two.wait()["w"].tolist() == [2, 2]
    stager.close()


def test_a_third_snapshot_raises_if_that_is_wanted():
    with sd.Stager(buffers=1, when_full="raise") as stager:
        staged = stager.stage({"w": torch.ones(1)})
        with pytest.raises(RuntimeError, match=r"release\(\) one first"):
            stager.stage({"w": torch.ones(1)})
        staged.release()
        stager.stage({"w": torch.ones(1)})


def test_memory_is_free_when_nobody_sees_it():
    """A view of a leaf, or an array over it, is enough to keep a snapshot."""
    tree = {"w": torch.ones(4), "v": torch.ones(2)}
    with sd.Stager(buffers=1, when_full="raise") as stager:
        snapshot = stager.stage(tree).wait()
        view = snapshot["w"][:2]
        del snapshot
        with pytest.raises(RuntimeError, match="held"):
            stager.stage(tree)
        array = view.numpy()
        del view
        with pytest.raises(RuntimeError, match="held"):
            stager.stage(tree)
        assert array.tolist() == [1, 1]
        del array
        storage = stager.stage(tree).wait()["v"].untyped_storage()
        with pytest.raises(RuntimeError, match="held"):
            stager.stage(tree)
        del storage
        stager.stage(tree)


@pytest.fixture
def no_garbage():
    """Have Python look for garbage only where it is asked to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("when_full", ["raise", "wait"])
@pytest.mark.usefixtures("no_garbage")
def test_garbage_keeps_no_snapshot(when_full):
    """Nor does what holds itself, as an error and its frames do."""
    with sd.Stager(buffers=1, when_full=when_full) as stager:
        places = set()
        for _ in range(3):
            around = [stager.stage({"w": torch.ones(4)}).wait()["w"]]
            places.add(around[0].data_ptr())
            around.append(around)
            del around
    assert len(places) == 1


@pytest.mark.parametrize(
    "tree",
    [
        lambda: {"w": torch.ones(4, device="meta")},
        lambda: sd.spec({"w": torch.ones(4)}),
        lambda: {**sd.spec({"w": torch.ones(4)}), "v": torch.ones(4)},
    ],
    ids=["meta", "spec", "both"],
)
def test_what_has_no_data_keeps_no_snapshot(tree):
    """As a gather gives it to the ranks that are not to have a leaf."""
    with sd.Stager(buffers=1, when_full="raise") as stager:
        for _ in range(3):
            stager.stage(tree())
            assert repr(stager) == "Stager(0 of 1 snapshots held)"


def test_a_snapshot_that_was_released_is_not_given_out():
    with sd.Stager() as stager:
        staged = stager.stage({"w": torch.ones(1)})
        assert staged.ready()
        assert staged.wait(timeout=0.1)["w"] == 1
        staged.release()
        staged.release()
        with pytest.raises(RuntimeError, match="was released"):
            staged.wait()


def test_a_leaf_that_fails_leaves_the_stager_as_it_was():
    tree = {"a": torch.ones(2), "w": torch.ones(1 << 10)}
    with sd.Stager(buffers=1, when_full="raise") as stager:
        stager.stage(tree).release()
        with pytest.raises(sd.errors.UnknownLeaf, match=r"x: "):
            stager.stage({**tree, "x": (i for i in ())})
        freed = torch.ones(1 << 10)
        freed.untyped_storage().resize_(0)
        with pytest.raises(sd.errors.UnknownLeaf, match=r"w: .*freed"):
            stager.stage({**tree, "w": freed})
        assert sd.equal(stager.stage(tree).wait(), tree)


def test_a_closed_stager_stages_no_more():
    with sd.Stager() as stager:
        snapshot = stager.stage({"w": torch.ones(1)}).wait()
    with pytest.raises(RuntimeError, match="closed"):
        stager.stage({"w": torch.ones(1)})
    assert snapshot["w"] == 1


def test_what_a_transform_makes_is_staged():
    tree = {"model": {"w": torch.ones(2)}, "optimizer": torch.ones(3)}
    transform = sd.select("model.**") | sd.cast(dtype=torch.bfloat16)
    with sd.Stager(transform=transform) as stager:
        result = stager.stage(tree).wait()
    assert sd.equal(result, transform(tree))


def test_options_are_checked():
    with pytest.raises(ValueError, match="buffers"):
        sd.Stager(buffers=0)
    with pytest.raises(ValueError, match="when_full"):
        sd.Stager(when_full="never")
    with pytest.raises(ValueError, match="pin"):
        sd.Stager(pin="maybe")
    with pytest.raises(TypeError, match="Transform"):
        sd.Stager(transform=sd.select)
    for option, value in (("buffers", 1.5), ("buffers", True), ("budget_bytes", 1.5)):
        with pytest.raises(TypeError, match=f"{option}={value}.*whole numbers"):
            sd.Stager(**{option: value})
    for option in ("share", "fence"):
        with pytest.raises(TypeError, match=f"{option}='yes'; give True or False"):
            sd.Stager(**{option: "yes"})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory can be pinned")
def test_where_nothing_can_be_pinned():
    """pin=True goes on with one warning, "required" raises."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with sd.Stager(pin=True) as stager:
            for _ in range(3):
                stager.stage({"w": torch.ones(1)}).release()
    assert [w.category for w in seen] == [RuntimeWarning]
    assert seen[0].filename == __file__
    with pytest.raises(RuntimeError, match="no accelerator"):
        sd.Stager(pin="required")


@pytest.mark.skipif(sys.platform != "linux", reason="it counts what Linux tells")
@pytest.mark.parametrize("share", [False, True])
def test_two_hundred_stages_take_no_more(share):
    """Neither memory nor descriptors grow, released or dropped."""
    tree = {str(i): torch.ones(i % 7, 3) for i in range(50)}
    tree["large"] = torch.ones(1 << 16)

    def held():
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])  # noqa: SIM115
        return len(os.listdir("/proc/self/fd")), pages

    with sd.Stager(share=share) as stager:
        both = [stager.stage(tree), stager.stage(tree)]
        for staged in both:
            staged.release()
        descriptors, pages = held()
        for i in range(200):
            staged = stager.stage(tree)
            staged.wait()
            if i % 2:
                staged.release()
        assert held()[0] == descriptors
        assert held()[1] < pages + 1000
    del staged, stager, both
    assert held()[0] <= descriptors - 2 * share


@given(odd_trees(portable=False), st.integers(1, 200), st.booleans())
def test_waves_bring_every_leaf(tree, budget, share):
    """With too little room for all, leaves come in order of waves, each as it is."""
    expected = sd.copy()(tree)
    with sd.Stager(budget_bytes=budget, share=share) as stager:
        staged = stager.stage(tree)
        come = dict(staged)
        assert staged.ready()
        staged.release()
    assert come.keys() == dict(sd.items(expected)).keys()
    assert sd.equal(come, dict(sd.items(expected)))


def test_what_no_kind_serves_is_told_before_the_first_wave():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
    tree = {"w": torch.ones(8), "x": {"n": nested}}
    with (
        sd.Stager(budget_bytes=8) as stager,
        pytest.raises(sd.errors.UnknownLeaf, match=r"^x\.n: a nested tensor"),
    ):
        stager.stage(tree)


def test_waves_are_not_ready_before_their_end():
    tree = {"a": torch.ones(8), "b": torch.ones(8), "c": torch.ones(8)}
    with sd.Stager(budget_bytes=40) as stager:
        staged = stager.stage(tree)
        assert not staged.ready()
        with pytest.raises(RuntimeError, match="loop over it"):
            staged.wait()
        come = iter(staged)
        next(come)
        assert not staged.ready()
        assert len([*come]) == 2
        assert staged.ready()
        staged = stager.stage(tree)
        come = iter(staged)
        next(come)
        staged.release()  # no more of it comes
        with pytest.raises(RuntimeError, match="waves, which are over"):
            list(come)
        with pytest.raises(RuntimeError, match="waves, which are over"):
            next(iter(staged))


# -- progress ----------------------------------------------------------------------


@given(odd_trees(portable=False), st.none() | st.integers(1, 200))
def test_progress_ends_when_all_has_come(tree, budget):
    """Also wave by wave, and the snapshot is none the worse for it."""
    expected = sd.copy()(tree)
    with sd.Stager(budget_bytes=budget) as stager:
        staged, told = listened(stager.stage, tree)
        assert sd.equal(dict(staged), dict(sd.items(expected)))
        staged.release()
    assert_grows(told)
    metas = (any(t.is_meta for t in tensors_of(x)) for x in sd.leaves(tree))
    here = [x for x, meta in zip(sd.leaves(tree), metas, strict=True) if not meta]
    assert told[-1][1] == sd.nbytes(here)


def test_whoever_is_told_may_stop_it_and_the_memory_is_free():
    def refuse(done, total):
        raise RuntimeError("that is enough")

    tree = {"w": torch.ones(4)}
    with sd.Stager(buffers=1, when_full="raise") as stager:
        with pytest.raises(RuntimeError, match="that is enough"):
            stager.stage(tree, on_progress=refuse)
        assert sd.equal(stager.stage(tree).wait(), tree)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t["w"], "note", 1),
        lambda t: t["w"].requires_grad_(),
        lambda t: t.update(w=torch.nn.Parameter(t["w"])),
        lambda t: t.update(w=t["w"].view(torch.int32)),
        lambda t: t.update(v=t["w"]),
        lambda t: t.update(w=7),
        lambda t: t["w"].data.fill_(3),
    ],
)
def test_what_came_before_is_staged_as_it_is_now(change):
    """However often it came: marks, memory and data are those of now."""
    tree = {"v": torch.zeros(2, 3), "w": torch.ones(2, 3)}
    with sd.Stager(buffers=1) as stager:
        for _ in range(5):
            stager.stage(tree).release()
        change(tree)
        staged = stager.stage(tree)
        oracle.assert_same(staged.wait(), tree, "staged")
