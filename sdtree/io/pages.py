"""Pages of mapped files, given back when they have been read or written.

The system would take them back when it needs them; till then they count as memory of
this process, and a conversion would look as large as its files.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from sdtree.kinds.calls import Call
from sdtree.transform.stages import LeafStage, StageContext
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window, apart
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree

MAPS = Path("/proc/self/maps")


def releaser(ts: Iterable[Tensor]) -> Callable[[], None]:
    """Return what gives back the pages of the files that hold these tensors.

    They are read anew when looked at. It does nothing where the system does not tell
    what is mapped. Tensors mapped privately must not have been written to.
    """
    ranges = _mapped_ranges(sorted(t.data_ptr() for t in ts if t.numel()))
    if not ranges:
        return lambda: None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def release() -> None:
        for start, stop in ranges:
            advise(start, stop - start, mmap.MADV_DONTNEED)

    return release


def releasing(tree: Tree) -> Transform:
    """Return a step that changes nothing, and gives back pages after each window."""
    release = releaser(apart(take(tree)[0], lambda i: (i,)).tensors)
    return Transform((LeafStage("releasing", Call(_bound, release), by_leaf=True),))


def _bound(release: Callable[[], None], _: StageContext) -> Any:
    return Call(_passed, release)


def _passed(release: Callable[[], None], window: Window) -> list[Leaf]:
    release()
    return window.leaves


def _mapped_ranges(addresses: list[int]) -> list[tuple[int, int]]:
    """Return the stretches of memory that have a file and one of the addresses."""
    found: list[tuple[int, int]] = []
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        bounds, _, _, _, inode, *_ = line.split()
        start, stop = (int(bound, 16) for bound in bounds.split("-"))
        k = bisect_left(addresses, start)
        if inode != "0" and k < len(addresses) and addresses[k] < stop:
            found.append((start, stop))
    return found
