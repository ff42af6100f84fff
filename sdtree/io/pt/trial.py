"""Whether a tree can be read back from a file of torch: tried before it is written.

The data of tensors is left out, which any such file may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sdtree.io.refusal import gist
from sdtree.io.safetensors.packing import Pack
from sdtree.kinds.handler import handler_of
from sdtree.kinds.shards import Shards
from sdtree.ops.comparing import equal
from sdtree.path import where
from sdtree.tensors.storage import BESIDE, tie_groups
from sdtree.transform.window import Parts, apart_in
from sdtree.tree.containers import ABSENT, container_of, is_portable
from sdtree.tree.flattening import structure
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

Restore = Callable[[object], Any]
"""Returns what a file would give back."""


def check_readable(tree: Tree, restore: Restore, holder: str = "a .pt file") -> None:
    """Raise ``TypeError`` if a file would not give a tree back: what, and where."""
    leaves, spec = take(tree)
    parts = apart_in(spec, leaves)
    _check_ties(parts, spec.paths(), holder)
    with_data = [leaf_def.count > 0 for leaf_def in parts.defs]
    bare = spec.make(
        0 if has_data else leaf
        for has_data, leaf in zip(with_data, leaves, strict=True)
    )
    if _failure(bare, restore):
        raise _refusal(*_blamed(bare, (), restore), restore, holder)
    for i, x in _samples(compress(enumerate(leaves), with_data)):
        if _failure(x, restore):
            raise _refusal(spec.every_path[i], x, restore, holder)


def _check_ties(parts: Parts, paths: Sequence[Path], holder: str) -> None:
    """Raise ``TypeError`` if a storage has leaves of several dtypes, or other kinds.

    Whoever makes a leaf of such a kind ties its own parts.
    """
    owners = parts.owners()
    for i, *others in tie_groups(parts.tensors):
        first, *rest = dict.fromkeys(owners[j] for j in (i, *others))
        for k in (first, *rest) if rest else ():
            if not isinstance(parts.leaves[k], (Tensor, Shards)):
                raise TypeError(
                    f"{where(paths[k])}: {holder} would not keep this "
                    f"{type(parts.leaves[k]).__qualname__} tied to "
                    f"{where(paths[rest[0] if k == first else first])}; copy one of "
                    "them, or save a .safetensors file"
                )
        for j in others:
            here, there = parts.tensors[i].dtype, parts.tensors[j].dtype
            if here != there:
                raise TypeError(
                    f"{where(paths[owners[j]])}: {holder} has no room for a {there} "
                    f"that shares memory with the {here} at {where(paths[owners[i]])}; "
                    "clone one of them, or save a .safetensors file"
                )


def _samples(leaves: Iterable[tuple[int, Leaf]]) -> Iterator[tuple[int, object]]:
    """Yield what stands for leaves that have data: one for those that are alike."""
    seen: set[object] = set()
    for i, leaf in leaves:
        if type(leaf) not in (Tensor, Parameter):
            sort, sample = _sort_of(leaf), leaf
        else:
            sort = (type(leaf), leaf.dtype, leaf.layout, leaf.requires_grad)
            sample = _emptied(leaf)
            if leaf.__dict__:
                yield i, leaf.__dict__
        if sort not in seen:
            seen.add(sort)
            yield i, sample


def _sort_of(leaf: Leaf) -> object:
    """Return what must be alike for one leaf to stand for another."""
    ts, aux = handler_of(leaf).flatten(leaf)
    return type(leaf), repr(aux), tuple((t.dtype, t.numel() == 0) for t in ts)


def _emptied(t: Tensor) -> Tensor:
    """Return a tensor that has all of ``t`` but its data, where that is simple."""
    if t.layout is not torch.strided or t.dtype in BESIDE or t.is_nested:
        return t
    empty = torch.empty(0, dtype=t.dtype, device=t.device)
    if type(t) is Parameter:
        return Parameter(empty, requires_grad=t.requires_grad)
    return empty.requires_grad_(t.requires_grad)


def _failure(x: object, restore: Restore) -> str:
    """Return why a file would not give something back, empty if it would."""
    try:
        back = restore(x)
    except Exception as error:  # whatever pickling it or building it raises
        return gist(str(error))
    same = structure(back) == structure(x) and equal(back, x)
    return "" if same else "it would come back changed"


def _blamed(x: Tree, path: Path, restore: Restore) -> tuple[Path, Tree]:
    """Return the smallest part of a tree that is not given back, and its path."""
    while (container := None if x is ABSENT else container_of(type(x))) is not None:
        keys, children, _ = container.apart(x)
        parts = zip(keys, children, strict=True)
        found = next((part for part in parts if _failure(part[1], restore)), None)
        if found is None:
            break
        path, x = (*path, found[0]), found[1]
    return path, x


def _refusal(path: Path, x: object, restore: Restore, holder: str) -> TypeError:
    name, ways = type(x).__qualname__, list[str]()
    if container_of(type(x)) is None:
        ways += ["make what it holds of it with sd.map"]
    elif not is_portable(type(x)):
        ways += [f"call sd.register_container({name})"]
    if _has_room(x):
        ways += ["save as .safetensors"]
    return TypeError(
        f"{where(path)}: {holder} would not give back this {name}: "
        f"{_failure(x, restore)}; {', or '.join((*ways, 'drop it'))}"
    )


def _has_room(x: Tree) -> bool:
    """Return whether a safetensors file has room for what a .pt file refuses."""
    try:
        Pack.of({"x": x}).document.to_json()
    except (TypeError, ValueError):
        return False
    return True
