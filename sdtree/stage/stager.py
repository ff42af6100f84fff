"""The stager: it copies trees to the host, into buffers that it keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import count as counting
from threading import Condition
from typing import Final, Literal, final

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.stage.buffers import Buffers, joined
from sdtree.stage.flight import Flight, Streams
from sdtree.stage.pinning import Pin, pinned
from sdtree.stage.staged import Staged
from sdtree.stage.waves import Waves
from sdtree.tensors.counting import Count
from sdtree.tensors.forms import Forms, Recurring
from sdtree.tensors.modes import making, uncompiled
from sdtree.tensors.remake import Allocator, buffers_on, remake
from sdtree.tensors.storage import covered_bytes
from sdtree.text.table import readable_bytes
from sdtree.transform.transform import Transform
from sdtree.transform.window import BARE, Parts, apart, blame, simple_types
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, OnProgress, Path, Tree

LOOK = 0.01
"""How many seconds pass before it is seen that a snapshot is gone: nobody tells."""

MANY: Final = 16
"""After how many looks Python is to look for garbage, and after twice as many again."""


@final
class Stager:
    """Copies trees to the host, and uses the memory of earlier snapshots again.

    Law: ``stage(tree).wait()`` equals ``sd.copy(tree)`` at the time of ``stage``,
    whatever is done to the tree afterwards. A tree of the same shapes, strides, dtypes
    and ties as one before takes no new memory.

    ``pin=True`` has page-locked memory, so that an accelerator copies while the host
    goes on: where there is none, it warns, and ``pin="required"`` raises.
    ``share=True`` has memory that other processes can map, one file descriptor for a
    snapshot. With ``buffers`` snapshots held, the next waits for one to be released, or
    raises, as ``when_full`` says. A ``transform`` is applied first, and what it makes
    is staged. ``fence=False`` leaves it to ``staged.fence()`` to protect the tree from
    updates in place that follow on an accelerator.

    A tree of more than ``budget_bytes`` is not taken at once: ``for path, leaf in
    staged`` copies it wave by wave, and until the loop ends the tree must not change.

    >>> stager, state = sd.Stager(), {"w": torch.zeros(2), "step": 3}
    >>> staged, _ = stager.stage(state), state["w"].add_(1)
    >>> staged.wait(), stager
    ({'w': tensor([0., 0.]), 'step': 3}, Stager(1 of 2 snapshots held, of 8 B))
    >>> staged.release(), stager.close(), stager
    (None, None, Stager(closed))
    """

    def __init__(
        self,
        *,
        pin: Pin = False,
        share: bool = False,
        buffers: int = 2,
        when_full: Literal["wait", "raise"] = "wait",
        transform: Transform | None = None,
        fence: bool = True,
        budget_bytes: int | None = None,
    ) -> None:
        _check(buffers, when_full, transform, budget_bytes, share, fence)
        is_pinned = pinned(pin, share)
        self._room = buffers_on(torch.device("cpu"), is_pinned, share)
        self._budget = budget_bytes
        self._limit = buffers
        self._waits = when_full == "wait"
        self._transform = transform
        self._fences = fence
        self._sets: list[Buffers] = []
        self._streams = Streams()
        self._forms = Recurring()
        self._changed = Condition()
        self._is_open = True

    def __enter__(self) -> Stager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = [x.nbytes for x in self._sets if not x.is_free()]
        told = f"{len(held)} of {self._limit} snapshots held"
        told += f", of {readable_bytes(sum(held))}" * bool(held)
        return f"Stager({told if self._is_open else 'closed'})"

    @uncompiled
    def stage(self, tree: Tree, *, on_progress: OnProgress | None = None) -> Staged:
        """Return the snapshot of a tree, on its way to the host.

        What is on the host is copied before it returns; what is on an accelerator is
        being copied if memory is pinned, and updates that follow on the current stream
        wait for that. A leaf that no kind serves raises here, an error of the copy in
        ``wait()``.

        ``on_progress(done, total)`` is called with bytes that are on the host: as they
        are copied, or wave by wave; what an accelerator copies is told of when
        ``wait()`` or ``ready()`` finds it there. At last both are the same.
        """
        count = Count(on_progress)
        made = tree if self._transform is None else self._transform(tree)
        leaves, spec = take(made)

        def path(i: int) -> Path:
            return spec.every_path[i]

        try:
            with making():
                parts, forms = self._apart(leaves, path)
                if count.is_heard:
                    count.expect(_bytes(parts))
                if self._budget is None or _bytes(parts) <= self._budget:
                    return self._staged(parts, forms, spec, count)
            self._check_open()
            blame(leaves, path)
            waves = Waves(leaves, spec, self._room, self._budget, count)
            return Staged.in_waves(waves, self._streams)
        except (UnknownLeaf, RuntimeError, TypeError):
            blame(leaves, path)
            raise

    def close(self) -> None:
        """End staging: wait for what is under way, and let the memory go.

        A snapshot that is still held keeps its own, which goes when it does.
        """
        with self._changed:
            sets, self._sets, self._is_open = self._sets, [], False
            self._changed.notify_all()
        for buffers in sets:
            buffers.flight.wait()

    def _apart(
        self, leaves: list[Leaf], path: Callable[[int], Path]
    ) -> tuple[Parts, Forms | None]:
        """Return leaves come apart, and their forms if they lie where the last lay.

        Dense tensors without marks that are known so are not looked at one by one.
        """
        first = simple_types(leaves[:1])
        if first.keys() == {*map(type, leaves)} and BARE in first.values():
            with self._changed:
                forms = self._forms.known(leaves)
            if forms is not None and not any(map(vars, leaves)):
                return Parts(leaves, leaves, [BARE] * len(leaves), True), forms
        return apart(leaves, path), None

    def _staged(
        self, parts: Parts, forms: Forms | None, spec: TreeSpec, count: Count
    ) -> Staged:
        """Return the snapshot of leaves that came apart."""
        staged, sources = Staged(self._give_back), parts.tensors
        buffers, forms = self._lend(sources, staged, forms)
        try:
            tree = spec.make(joined(parts, buffers.tensors))
            if buffers.hold_some_of(sources, forms):  # of a snapshot that was released
                sources = remake(sources, Allocator())
            flight, error = self._copied(buffers, sources, count)
            if count.error is not None:
                raise count.error
        except BaseException:
            self._give_back(staged, buffers)
            raise
        buffers.flight = flight
        if self._fences:
            flight.fence()
        return staged.take_off(buffers, tree, flight, error)

    def _copied(
        self, buffers: Buffers, sources: Sequence[Tensor], count: Count
    ) -> tuple[Flight, Exception | None]:
        """Copy, and return what is under way, and what went wrong."""
        try:
            there, here = buffers.filled_by(sources)
            return self._streams.copy(there, here, self._room.pin, count), None
        except RuntimeError as error:
            return Flight(), error

    def _lend(
        self, ts: Sequence[Tensor], staged: Staged, forms: Forms | None = None
    ) -> tuple[Buffers, Forms]:
        """Lend buffers for these tensors, of these forms, when some are free."""
        with self._changed:
            forms = forms or self._forms.of(ts)
            for look in counting(1):
                if (buffers := self._find(ts, forms)) is not None:
                    buffers.lend(staged)
                    return buffers, forms
                if look > 1 and not self._waits:
                    break
                self._let_go(look)
        raise RuntimeError(
            f"{self._limit} snapshots are held, as many as buffers= says; "
            "release() one first, or give when_full='wait' or more buffers"
        )

    def _let_go(self, look: int) -> None:
        """Let others give snapshots back, or Python find those that garbage holds.

        So it is where a save has failed: its error and the frames that it came through
        hold one another, and the snapshot. To look for such takes long, so that who can
        wait does it a few times.
        """
        is_due = look >= MANY and look & (look - 1) == 0
        if self._waits and not is_due:
            self._changed.wait(LOOK)
        else:
            gc.collect()

    def _find(self, ts: Sequence[Tensor], forms: Forms) -> Buffers | None:
        """Return free buffers that fit, else new ones if there may be, else None."""
        self._check_open()
        free = [buffers for buffers in self._sets if buffers.is_free()]
        for buffers in free:
            if buffers.fits(forms):
                return buffers
        if len(self._sets) == self._limit:
            if not free:
                return None
            self._sets.remove(free.pop())
        free.clear()  # so that what goes is gone before the new is made
        made = Buffers(ts, forms, self._room)
        self._sets.append(made)
        return made

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the stager is closed; make another")

    def _give_back(self, staged: Staged, buffers: Buffers) -> None:
        """Take buffers back from who has them; another thread may have given them."""
        with self._changed:
            if buffers.holder is not None and buffers.holder() is staged:
                buffers.holder = None
                self._changed.notify_all()


def _bytes(parts: Parts) -> int:
    """Return how many bytes the leaves cover."""
    return covered_bytes([t for t in parts.tensors if not t.is_meta])


def _check(
    buffers: int,
    when_full: str,
    transform: object,
    budget_bytes: int | None,
    share: object,
    fence: object,
) -> None:
    """Raise for an option that means nothing."""
    for name, flag in (("share", share), ("fence", fence)):
        if type(flag) is not bool:
            raise TypeError(f"{name}={flag!r}; give True or False")
    if type(buffers) is not int or type(budget_bytes) not in (int, type(None)):
        raise TypeError(
            f"buffers={buffers!r}, budget_bytes={budget_bytes!r}: give whole numbers"
        )
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes={budget_bytes}: give the bytes of a wave")
    if buffers < 1:
        raise ValueError(f"buffers={buffers}: one snapshot at least is to be held")
    if when_full not in ("wait", "raise"):
        raise ValueError(f"when_full={when_full!r}: give 'wait' or 'raise'")
    if not isinstance(transform, Transform | None):
        raise TypeError(
            f"transform={transform!r} is no Transform; give one such as "
            "sd.select('model.**') | sd.cast(dtype=torch.bfloat16)"
        )
