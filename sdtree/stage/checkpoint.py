"""Staging for ``torch.distributed.checkpoint.async_save``."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from torch.distributed.checkpoint.staging import AsyncStager

from sdtree.stage.pinning import Pin
from sdtree.stage.staged import Staged
from sdtree.stage.stager import Stager
from sdtree.transform.transform import Transform


class DCPStager(AsyncStager):
    """The ``async_stager=`` of ``dcp.async_save``: a ``Stager`` for many saves.

    Law: what is saved is the tree at the time of ``async_save``, whatever is done to it
    meanwhile. A save that is over gives its memory back by itself: it is free when the
    tensors of its snapshot have died. With more than ``buffers`` saves under way, the
    next waits. The options are those of ``sd.Stager``; ``share=True`` is for
    ``AsyncCheckpointerType.PROCESS``, which hands the snapshot to another process.
    ``close()`` after the last save.

    >>> stager = sd.stage.DCPStager()
    >>> stager.stage({"w": torch.ones(2)})
    {'w': tensor([1., 1.])}
    >>> stager.close()
    """

    _synchronize_after_execute = False

    def __init__(
        self,
        *,
        pin: Pin = False,
        share: bool = False,
        buffers: int = 2,
        when_full: Literal["wait", "raise"] = "wait",
        transform: Transform | None = None,
    ) -> None:
        self._stager = Stager(
            pin=pin,
            share=share,
            buffers=buffers,
            when_full=when_full,
            transform=transform,
        )
        self._waiting: ThreadPoolExecutor | None = None

    def stage(self, state_dict: dict[str, Any]) -> Any:
        """Return the snapshot, or its future where an accelerator still copies."""
        staged = self._stager.stage(state_dict)
        if staged.ready():
            return staged.wait()
        if self._waiting is None:
            self._waiting = ThreadPoolExecutor(1, "sdtree-stage")
        return self._arriving(staged)

    def _arriving(self, staged: Staged) -> Future[Any]:
        assert self._waiting is not None
        return self._waiting.submit(staged.wait)

    def synchronize_staging(self) -> None:
        """Do nothing: ``async_save`` waits for the future."""

    def close(self) -> None:
        """Wait for what is under way and let the memory go."""
        if self._waiting is not None:
            self._waiting.shutdown()
        self._stager.close()
