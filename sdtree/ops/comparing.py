"""Two trees side by side: ``similar`` and ``equal``."""

from __future__ import annotations

from operator import is_
from typing import Any

from sdtree.exchange.meeting import decide, looked, rank_group_for
from sdtree.kinds.handler import handler_of, of_type
from sdtree.kinds.strangers import reject_file_names
from sdtree.kinds.values import same_leaf
from sdtree.tensors.modes import uncompiled
from sdtree.transform.window import handled
from sdtree.tree.alike import paired, same_form
from sdtree.typing import Tree


@uncompiled
def similar(a: Tree, b: Tree, /) -> bool:
    """Return whether two trees are alike in all but the data.

    That is structure, leaf kinds, shapes, dtypes and layouts, and the types of plain
    values. The order of keys in mappings is free. An ``Abstract`` is like what it
    stands for.

    >>> sd.similar({"a": 1, "w": torch.ones(2)}, {"w": torch.zeros(2), "a": 5})
    True
    """
    reject_file_names(a, b)
    return handled(lambda: _are_similar(a, b), a, b)


def _are_similar(a: Tree, b: Tree) -> bool:
    sides = paired(a, b)
    if sides is None:
        return False
    here, there = sides
    if not all(map(is_, map(type, here), map(type, there))):
        return all(map(same_form, here, there))
    for cls in {*map(type, here)}:
        ours, theirs = of_type(cls, here), of_type(cls, there)
        handler = handler_of(ours[0])
        if handler.is_plain or handler.are_alike(ours, theirs):
            continue
        if not all(map(same_form, ours, theirs)):
            return False
    return True


@uncompiled
def equal(a: Tree, b: Tree, /, *, group: Any = None) -> bool:
    """Return whether two trees are similar and hold the same bits; nan equals nan.

    Devices, strides, ``requires_grad`` and the order of keys do not count.

    Collective if a tree has sharded leaves: each rank looks at its parts, and all
    return the same. A rank that holds none takes part by giving ``group``.

    >>> sd.equal({"w": torch.tensor(float("nan"))}, {"w": torch.tensor(float("nan"))})
    True
    """
    reject_file_names(a, b)
    rank_group = rank_group_for("equal", a, b, group)
    if not rank_group.others:
        return _are_same(a, b)
    return decide(rank_group, looked(a, b), lambda: _are_same(a, b))


def _are_same(a: Tree, b: Tree) -> bool:
    def compare() -> bool:
        sides = paired(a, b)
        return sides is not None and all(map(same_leaf, *sides))

    return handled(compare, a, b)
