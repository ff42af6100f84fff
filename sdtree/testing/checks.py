"""The laws of leaves and of transforms as checks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from sdtree.errors import NoMatch
from sdtree.kinds.handler import handler_of
from sdtree.kinds.values import same_value
from sdtree.ops.differing import diff
from sdtree.ops.local import copy, empty_like
from sdtree.ops.looking import spec, ties
from sdtree.path import name_of
from sdtree.tensors.bits import bits_of, same_bits
from sdtree.tensors.storage import storage_keys
from sdtree.transform.run import Run, stretches_of
from sdtree.transform.stages import TreeStage
from sdtree.transform.stream import pairs_of
from sdtree.transform.transform import Transform, identity
from sdtree.tree.flattening import items, structure
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree


def check_leaf(
    kind: type, strategy: SearchStrategy[Leaf], *, examples: int = 50
) -> None:
    """Check the law of leaves for a kind, on ``examples`` leaves of a strategy.

    That is: a leaf comes apart into tensors and goes together as it was, of its own
    type, without a copy; and so ``copy``, ``empty_like``, ``spec`` work on it.

    >>> from sdtree.testing import check_leaf, tensors
    >>> check_leaf(torch.Tensor, tensors(), examples=5)
    """

    def check(leaf: Leaf) -> None:
        assert isinstance(leaf, kind), f"the strategy drew a {type(leaf).__name__}"
        check_one_leaf(leaf)

    _for_all(check, strategy, examples)


def check_one_leaf(leaf: Leaf) -> None:
    """Check the law of leaves for one leaf.

    >>> from sdtree.testing import check_one_leaf
    >>> check_one_leaf(torch.arange(6).view(2, 3).T)
    """
    handler = handler_of(leaf)
    ts, aux = handler.flatten(leaf)
    assert all(isinstance(t, Tensor) for t in ts), "flatten gives local tensors"
    back = handler.unflatten(aux, ts)
    if handler.keeps_type:
        assert type(back) is type(leaf), "unflatten gives back the type"
        again, other = handler.flatten(back)
        assert same_value(aux, other), f"aux came back as {other}, not {aux}"
        assert _held(again) == _held(ts), "neither of them copies data"
        assert not diff(back, leaf), f"a leaf came back changed: {diff(back, leaf)}"
        _check_attributes(leaf, back)
    copied = copy({"leaf": leaf})["leaf"]
    assert not diff(copied, back), f"copy changes the leaf: {diff(copied, back)}"
    assert not _shared(copied, leaf), "copy shares storage with the leaf"
    buffer = empty_like({"leaf": back})
    assert not diff(copy({"leaf": back}, into=buffer), {"leaf": back})
    spec(leaf)


def _check_attributes(leaf: Leaf, back: Leaf) -> None:
    """Assert that no tensor is lost, or shared by copies, which flatten leaves out."""
    if isinstance(leaf, Tensor):
        return
    told, copied = (_attributes(x) for x in (back, copy({"leaf": leaf})["leaf"]))
    for name, t in _attributes(leaf).items():
        same = name in told and told[name].shape == t.shape and same_bits(told[name], t)
        assert same, f"flatten leaves out .{name}, and unflatten does not give it back"
        shares = name in copied and _held([copied[name]]) == _held([t]) != []
        assert not shares, f"flatten leaves out .{name}: a copy shares it with the leaf"


NO_DATA: Final = {"__dict__", "__weakref__"}
"""Slots of which some cannot be asked for."""


def _attributes(leaf: Leaf) -> dict[str, Tensor]:
    """Return the tensors that a leaf has as attributes of its own."""
    slots = (getattr(cls, "__slots__", ()) for cls in type(leaf).__mro__)
    names = {*getattr(leaf, "__dict__", ()), *chain.from_iterable(slots)} - NO_DATA
    found = {name: getattr(leaf, name, None) for name in names}
    return {name: t for name, t in found.items() if isinstance(t, Tensor)}


def _held(ts: Sequence[Tensor]) -> list[int]:
    """Return the storage of each tensor that has data."""
    return storage_keys([t for t in ts if t.numel() and not t.is_meta])


def _shared(a: Leaf, b: Leaf) -> set[int]:
    sides = (_held(handler_of(leaf).flatten(leaf)[0]) for leaf in (a, b))
    return set(next(sides)) & set(next(sides))


def check_transform(
    transform: Transform, strategy: SearchStrategy[Tree], *, examples: int = 50
) -> None:
    """Check the laws of transforms for one, on ``examples`` trees of a strategy.

    That is: the input stays as it was; ``identity`` is neutral; windows never show,
    however small; a stream yields what a call returns.

    >>> from sdtree.testing import check_transform, trees
    >>> check_transform(sd.copy() | sd.prefix("model"), trees(), examples=5)
    """
    _for_all(lambda tree: check_transform_on(transform, tree), strategy, examples)


def check_transform_on(transform: Transform, tree: Tree) -> None:
    """Check the laws of transforms for one transform on one tree.

    >>> from sdtree.testing import check_transform_on
    >>> check_transform_on(sd.offload() | sd.prefix("model"), {"w": torch.ones(2)})
    """
    before = snapshot(tree)
    try:
        expected = transform(tree)
    except NoMatch:
        return
    assert snapshot(tree) == before, "the input was changed"
    for same in (identity | transform, transform | identity):
        assert_same(same(tree), expected, "identity is neutral")
    wanted = dict(items(expected))
    for limit in (None, 1):
        streamed = dict(_stream(transform, tree, limit))
        assert set(streamed) == set(wanted), "a stream yields what a call returns"
        for path, leaf in streamed.items():
            assert not diff(leaf, wanted[path]), f"the window shows at {name_of(path)}"
    assert snapshot(tree) == before, "the input was changed"


def _stream(
    transform: Transform, tree: Tree, limit: int | None
) -> Sequence[tuple[Path, Leaf]]:
    *before, last = stretches_of(transform.stages)
    if before or any(isinstance(stage, TreeStage) for stage in last):
        return list(transform.stream(tree))
    return list(pairs_of(Run.of(tree, last), limit))


def assert_same(a: Tree, b: Tree, law: str) -> None:
    """Raise ``AssertionError`` unless two trees are the same: structure, bits, ties.

    >>> from sdtree.testing import assert_same
    >>> tree = {"w": torch.ones(2)}
    >>> assert_same(sd.copy(tree), tree, "copy(t) = t")
    """
    assert structure(a) == structure(b), f"{law}: {structure(a)} is not {structure(b)}"
    assert not diff(a, b), f"{law}:\n{diff(a, b)}"
    assert ties(a) == ties(b), f"{law}: ties {ties(a)} are not {ties(b)}"


def snapshot(tree: Tree) -> Hashable:
    """Return what must not change when a tree is only read: containers and bits.

    >>> from sdtree.testing import snapshot
    >>> tree = {"w": torch.ones(2)}
    >>> before, _ = snapshot(tree), tree["w"].zero_()
    >>> snapshot(tree) == before
    False
    """
    found, structure_ = take(tree)
    marks = [(id(leaf), *_marks(leaf)) for leaf in found]
    return repr(structure_), tuple(marks)


def _marks(leaf: Leaf) -> Iterator[Hashable]:
    """Yield what changes with a leaf: its version, and bits, for not all count theirs.

    Who writes by an array of numpy, or by ``.data``, counts no version.
    """
    if isinstance(leaf, Tensor) and not leaf.is_inference():
        yield leaf._version
    for t in handler_of(leaf).flatten(leaf)[0]:
        if not t.is_meta:
            yield tuple(bits_of(t).flatten().tolist())


def _for_all(
    check: Callable[[Any], None], strategy: SearchStrategy[Any], examples: int
) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.nested_given]
    run = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=quiet,
        report_multiple_bugs=False,
    )
    run(given(strategy)(check))()
