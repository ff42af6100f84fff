"""The types that signatures speak of. ``Any`` stands here and nowhere else."""

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

Leaf: TypeAlias = Any
"""Whatever a registered kind, or a plain value, may be."""

Tree: TypeAlias = Any
"""A leaf, or a container of trees."""

Aux: TypeAlias = Any
"""What a kind or a container remembers beside its parts."""

Dtype: TypeAlias = Any
"""A dtype of torch, or numpy's own where torch has none like it."""

Key: TypeAlias = Hashable
"""One step of a path: a dict key as it is, an index, a field name."""

Path: TypeAlias = tuple[Key, ...]
"""The keys from the root to a leaf: its identity."""

LeafFunction: TypeAlias = Callable[..., Leaf]
