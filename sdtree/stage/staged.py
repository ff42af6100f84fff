"""A snapshot that is on its way to the host, or there."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from sdtree.stage.buffers import Buffers
from sdtree.stage.flight import Flight
from sdtree.typing import Tree


@final
class Staged:
    """A snapshot of a tree: ``wait()`` returns it when its data has come.

    Until ``release()`` nobody writes into its memory. One that is dropped without that
    is released when the last of its tensors has died.
    """

    __slots__ = ("__weakref__", "_buffers", "_error", "_flight", "_free", "_tree")

    def __init__(self, free: Callable[[Buffers], None]) -> None:
        self._free = free
        self._buffers: Buffers | None = None
        self._tree: Tree = None
        self._flight = Flight()
        self._error: Exception | None = None

    def take_off(
        self, buffers: Buffers, tree: Tree, flight: Flight, error: Exception | None
    ) -> Staged:
        """Return itself, now that the copy has begun."""
        self._buffers, self._tree = buffers, tree
        self._flight, self._error = flight, error
        return self

    def wait(self, timeout: float | None = None) -> Tree:
        """Return the snapshot, a tree on the host, when all of it is there.

        Law: it equals ``sd.copy(tree)`` at the time of ``stage``, ties and all. Raises
        ``TimeoutError`` if it is not there in so many seconds, and what went wrong as
        it was copied.

        >>> with sd.Stager() as stager:
        ...     stager.stage({"w": torch.ones(2)}).wait()
        {'w': tensor([1., 1.])}
        """
        if self._buffers is None:
            raise RuntimeError(
                "the snapshot was released, and its memory may hold another; wait() "
                "for it before release(), and copy what is to stay, sd.copy(snapshot)"
            )
        if not self._flight.wait(timeout):
            raise TimeoutError(
                f"the snapshot has not come in {timeout} seconds; call wait() again"
            )
        if self._error is not None:
            raise self._error
        return self._tree

    def ready(self) -> bool:
        """Return whether ``wait()`` would return, or raise, at once."""
        return self._flight.ready()

    def fence(self) -> None:
        """Call on the current streams to wait until the tree was read.

        To be called before the next update in place, where ``Stager(fence=False)``
        staged it; else ``stage`` has done it. The host does not wait.
        """
        self._flight.fence()

    def release(self) -> None:
        """End it: its memory may be used again, once the data has come.

        The tensors of the snapshot show the next one then: copy first what is to stay.
        """
        buffers, self._buffers, self._tree = self._buffers, None, None
        if buffers is not None:
            self._flight.wait()
            self._free(buffers)
