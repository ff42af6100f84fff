"""Parts of mapped files, read ahead of their use: those that a rank has, and no others.

Left to itself the system reads on where it is looked at, up to megabytes of what other
ranks have.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import Final

import torch.distributed as dist
from torch import Tensor

from sdtree.io.disk.pages import Pages
from sdtree.io.leaves.restriding import Regions
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import served_by
from sdtree.layout.layout import Region
from sdtree.transform.stages import LeafStage
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

NEAR: Final = 2**17
"""How many bytes are read in one go, and what lies between others that are, too."""


def fetching(like: Tree, pages: Pages) -> Transform:
    """Return a step that changes nothing, and reads ahead what a rank has of leaves.

    ``like`` has the layouts. What it lacks, or has whole, is read whole.
    """
    pages.advise_all(mmap.MADV_RANDOM)
    action = Call(_fetch, regions_of(like), pages)
    stage = LeafStage.by("fetching", action, by_leaf=True, on_abstract=True)
    return Transform((stage,))


def _fetch(regions: Regions, pages: Pages, window: Window) -> list[Leaf]:
    for path, leaf in zip(window.paths(), window.leaves, strict=True):
        if type(leaf) is not Tensor or leaf.is_meta or not leaf.is_contiguous():
            continue
        whole = ((0,) * leaf.dim(), tuple(leaf.shape))
        for region in regions.get(path, (whole,)):
            fetch(pages, leaf.data_ptr(), region, tuple(leaf.shape), leaf.itemsize)
    return window.leaves


def fetch(
    pages: Pages, begin: int, region: Region, shape: tuple[int, ...], itemsize: int
) -> None:
    """Read ahead a region of what is mapped at an address, contiguous."""
    for start, stop in runs(region, shape, NEAR // itemsize):
        pages.fetch(begin + start * itemsize, begin + stop * itemsize, NEAR)


def regions_of(like: Tree) -> Regions:
    """Return what this rank has of each leaf that is in parts, but for odd ones."""
    leaves, spec = take(like)
    me = dist.get_rank() if dist.is_initialized() else 0
    found: dict[Path, Sequence[Region]] = {}
    for path, leaf in zip(spec.every_path, leaves, strict=True):
        layout_of = served_by(leaf).layout
        layout = None if layout_of is None else layout_of(leaf)
        if layout is not None and layout.parts is None:
            boxes = layout.boxes.get(me, ())
            found[path] = [(box.offset, box.size) for box in boxes]
    return found


def runs(
    region: Region, shape: tuple[int, ...], near: int
) -> Iterator[tuple[int, int]]:
    """Yield where the elements of a region lie, [start, stop), in a contiguous tensor.

    Those that are as ``near`` to each other as that are taken together.

    >>> [*runs(((2, 0), (2, 5)), (4, 5), near=1)]
    [(10, 20)]
    >>> [*runs(((2, 1), (2, 3)), (4, 5), near=1)], [*runs(((2, 1), (2, 3)), (4, 5), 9)]
    ([(11, 14), (16, 19)], [(11, 19)])
    """
    offset, size = region
    if 0 in size:
        return
    inner = [*accumulate(reversed(shape[1:]), mul, initial=1)][::-1]
    first = sum(i * step for i, step in zip(offset, inner, strict=False))
    last = first + sum((n - 1) * s for n, s in zip(size, inner, strict=False))
    if size[1:] == shape[1:] or inner[0] <= near:
        yield first, last + 1
        return
    for i in range(offset[0], offset[0] + size[0]):
        for start, stop in runs((offset[1:], size[1:]), shape[1:], near):
            yield i * inner[0] + start, i * inner[0] + stop
