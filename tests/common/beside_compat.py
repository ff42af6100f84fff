"""What two calls came to, ours and torch's, held against each other."""

from typing import Any

import torch

import sdtree as sd


def same(a: Any, b: Any) -> bool:
    """Return whether two trees hold the same bits, whatever their dicts are called."""
    return sd.equal(plain(a), plain(b))


def plain(tree: Any) -> Any:
    """Return a tree of dicts and lists alone, with detached tensors.

    Torch makes lists of tuples where it flattens a state dict and comes back.
    """
    if isinstance(tree, dict):
        return {key: plain(x) for key, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [*map(plain, tree)]
    return tree.detach() if isinstance(tree, torch.Tensor) else tree
