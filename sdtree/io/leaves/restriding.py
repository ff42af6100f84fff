"""What a file holds as it is read, and the strides that mapped leaves are still to get.

Mapped leaves are contiguous, as the file has them: in others their data would be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.io.leaves.places import Place, placed
from sdtree.io.texts import Metadata
from sdtree.kinds.calls import Call
from sdtree.layout.layout import Region
from sdtree.tensors.storage import identity_of
from sdtree.transform.stages import LeafStage, Pour
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window, apart
from sdtree.typing import Leaf, Path, Tree

Strides = Mapping[Path, tuple[int, ...]]
Regions = Mapping[Path, Sequence[Region]]
Fill = Callable[[bool, Regions], Transform]


class Read(NamedTuple):
    """The tree of a file, what is to be noted, and the strides that leaves had.

    ``entries`` has the name under which a leaf lies in a file, by its position, where
    a document tells it; ``files`` the file that a leaf lies in, where there are many.
    ``fill`` makes the step that reads those leaves that are not read yet, if any are:
    told whether they are to have memory of their own, and which regions are wanted.
    ``pour`` reads such a leaf into a contiguous tensor; it tells whether it was one.
    """

    tree: Tree
    notes: Sequence[str] = ()
    strides: Strides = MappingProxyType({})
    metadata: Metadata = MappingProxyType({})
    entries: Mapping[int, str] = MappingProxyType({})
    files: Mapping[Path, str] = MappingProxyType({})
    fill: Fill | None = None
    pour: Pour | None = None

    @property
    def loaded(self) -> Transform:
        """Return the step that makes of mapped leaves what ``load`` returns."""
        return self.filled(own=False) | restrided(self.strides)

    def filled(
        self, *, own: bool, regions: Regions = MappingProxyType({})
    ) -> Transform:
        """Return the step that reads the leaves that are not read yet."""
        return self.fill(own, regions) if self.fill else Transform()


def restrided(strides: Strides) -> Transform:
    """Return the transform that makes of mapped leaves what ``load`` returns.

    It moves the data of those that had strides, window by window.
    """
    if not strides:
        return Transform()
    action = Call(_act, strides)
    stage = LeafStage.by("restrided", action, by_leaf=True, on_abstract=True)
    return Transform((stage,))


def _act(strides: Strides, window: Window) -> list[Leaf]:
    parts = apart(window.leaves, window.path)
    made: dict[Hashable, Tensor] = {}
    ts = list(parts.tensors)
    for k, owner in enumerate(parts.owners()):
        stride = strides.get(window.path(owner))
        if stride is not None:
            key = identity_of([ts[k]])
            if key not in made:
                made[key] = _laid(ts[k], stride)
            ts[k] = made[key]
    return parts.join_changed(ts)


def _laid(t: Tensor, stride: tuple[int, ...]) -> Tensor:
    if t.is_meta:
        return torch.empty_strided(t.size(), stride, dtype=t.dtype, device="meta")
    [made] = placed([Place(0, 0, stride)], [t]) or [t]
    return made
