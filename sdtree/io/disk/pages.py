"""Pages of mapped files, given back when they have been read or written.

The system would take them back when it needs them; till then they count as memory of
this process, and a conversion would look as large as its files.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from sdtree.kinds.calls import Call
from sdtree.transform.stages import LeafStage
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window
from sdtree.typing import Leaf

MAPS = Path("/proc/self/maps")


class Pages:
    """The stretches of memory that are mapped to the files that hold some tensors.

    There are none where the system does not tell what is mapped.
    """

    __slots__ = ("_advise", "ranges")

    def __init__(self, ts: Iterable[Tensor]) -> None:
        self.ranges = _mapped_ranges(sorted(t.data_ptr() for t in ts))
        self._advise: Any = ctypes.CDLL(None).madvise if self.ranges else None
        if self.ranges:
            self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def advise_all(self, advice: int) -> None:
        """Tell the system how all of them will be used."""
        for start, stop in self.ranges:
            self._advise(start, stop - start, advice)

    def fetch(self, start: int, stop: int, step: int) -> None:
        """Have the system read what is mapped at these addresses.

        It reads no more at a time than it would by itself, so it is told in steps.
        """
        place = bisect_right(self.ranges, start, key=itemgetter(0)) - 1
        if place < 0 or stop > self.ranges[place][1]:
            return
        start -= start % mmap.PAGESIZE
        for begin in range(start, stop, step):
            self._advise(begin, min(step, stop - begin), mmap.MADV_WILLNEED)

    def release(self) -> None:
        """Give them back; they are read anew when looked at.

        What is mapped privately must not have been written to.
        """
        self.advise_all(mmap.MADV_DONTNEED)


def releaser(ts: Iterable[Tensor]) -> Callable[[], None]:
    """Return what gives back the pages of the files that hold these tensors."""
    return Pages(ts).release


def releasing(pages: Pages) -> Transform:
    """Return a step that changes nothing, and gives back pages after each window."""
    return Transform((LeafStage.by("releasing", Call(_passed, pages), by_leaf=True),))


def _passed(pages: Pages, window: Window) -> list[Leaf]:
    pages.release()
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
