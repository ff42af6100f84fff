"""Whether a tree can be read back from a file of torch: tried before it is written.

The data of tensors is left out, which any such file may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from sdtree.container import ABSENT, container_of
from sdtree.io.refusal import reason
from sdtree.ops.comparing import equal
from sdtree.path import where
from sdtree.tree import structure, take
from sdtree.typing import Leaf, Path, Tree
from sdtree.window import apart

Restore = Callable[[object], Any]
"""Returns what a file would give back."""


def check_readable(tree: Tree, restore: Restore) -> None:
    """Raise ``TypeError`` if a file would not give a tree back: what, and where."""
    leaves, spec = take(tree)
    parts = apart(leaves, lambda i: spec.paths()[i])
    with_data = [joint.count > 0 for joint in parts.joints]
    bare = spec.make(
        0 if has_data else leaf
        for has_data, leaf in zip(with_data, leaves, strict=True)
    )
    if _failure(bare, restore):
        raise _refusal(*_blamed(bare, (), restore), restore)
    for i, x in _unusual(compress(enumerate(leaves), with_data)):
        if _failure(x, restore):
            raise _refusal(spec.paths()[i], x, restore)


def _unusual(leaves: Iterable[tuple[int, Leaf]]) -> Iterator[tuple[int, object]]:
    """Yield what is to be tried of leaves: the first of each type, and attributes."""
    known: set[type] = {Tensor, Parameter}
    for i, leaf in leaves:
        if type(leaf) not in known:
            known.add(type(leaf))
            yield i, leaf
        elif isinstance(leaf, Tensor) and leaf.__dict__:
            yield i, leaf.__dict__


def _failure(x: object, restore: Restore) -> str:
    """Return why a file would not give something back, empty if it would."""
    try:
        back = restore(x)
    except Exception as error:  # whatever pickling it or building it raises
        return reason(str(error))
    same = structure(back) == structure(x) and equal(back, x)
    return "" if same else "it would come back changed"


def _blamed(x: Tree, path: Path, restore: Restore) -> tuple[Path, Tree]:
    """Return the smallest part of a tree that is not given back, and its path."""
    container = None if x is ABSENT else container_of(type(x))
    if container is not None:
        keys, children, _ = container.apart(x)
        for key, child in zip(keys, children, strict=True):
            if _failure(child, restore):
                return _blamed(child, (*path, key), restore)
    return path, x


def _refusal(path: Path, x: object, restore: Restore) -> TypeError:
    return TypeError(
        f"{where(path)}: a .pt file would not give back this {type(x).__qualname__}: "
        f"{_failure(x, restore)}; or convert it, drop it, register its container with "
        "sd.register_container, or save a .safetensors file"
    )
