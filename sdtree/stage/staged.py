"""A snapshot that is on its way to the host, or there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from sdtree.stage.buffers import Buffers
from sdtree.stage.flight import Flight, Streams
from sdtree.stage.waves import Waves
from sdtree.text.table import readable_bytes
from sdtree.tree.flattening import items
from sdtree.typing import Leaf, Path, Tree


@final
class Staged:
    """A snapshot of a tree: ``wait()`` returns it when its data has come.

    Until ``release()`` nobody writes into its memory. One that is dropped without that
    is released when the last of its tensors has died.

    >>> with sd.Stager() as stager:
    ...     stager.stage({"w": torch.ones(2)})
    Staged(8 B, ready)
    """

    __slots__ = (
        *("__weakref__", "_buffers", "_error", "_flight", "_free", "_tree"),
        *("_streams", "_waves"),
    )

    def __init__(self, free: Callable[[Staged, Buffers], None]) -> None:
        self._free = free
        self._buffers: Buffers | None = None
        self._tree: Tree = None
        self._flight = Flight()
        self._error: Exception | None = None
        self._waves: Waves | None = None
        self._streams = Streams()

    @classmethod
    def in_waves(cls, waves: Waves, streams: Streams) -> Staged:
        """Return the snapshot of a tree that comes wave by wave."""
        staged = cls(lambda _, __: None)
        staged._waves, staged._streams = waves, streams
        return staged

    def __iter__(self) -> Iterator[tuple[Path, Leaf]]:
        """Yield each (path, leaf), as it comes where there is no room for all.

        >>> with sd.Stager(budget_bytes=8) as stager:
        ...     [*stager.stage({"w": torch.ones(2), "b": torch.zeros(1)})]
        [(('w',), tensor([1., 1.])), (('b',), tensor([0.]))]
        """
        if self._waves is None:
            yield from items(self.wait())
        else:
            self._waves.check_open()
            yield from self._waves.drain(self._streams)

    def __repr__(self) -> str:
        told = ["ready" if self.ready() else "on its way"]
        if self._waves is not None:
            told = ["in waves", "over" if self._waves.is_over else "to be looped over"]
        elif self._buffers is None:
            told = ["released"]
        else:
            told = [readable_bytes(self._buffers.nbytes), *told]
        return f"Staged({', '.join(told)})"

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
        if self._waves is not None:
            raise RuntimeError(
                "the tree takes more than budget_bytes=, and is not there at once; "
                "loop over it, for path, leaf in staged, or give a larger budget"
            )
        self._check_held()
        if not self._flight.wait(timeout):
            raise TimeoutError(
                f"the snapshot has not come in {timeout} seconds; call wait() again"
            )
        if self._error is not None:
            raise self._error
        tree = self._tree
        self._check_held()  # another thread may have released it meanwhile
        return tree

    def _check_held(self) -> None:
        if self._buffers is None:
            raise RuntimeError(
                "the snapshot was released, and its memory may hold another; wait() "
                "for it before release(), and copy what is to stay, sd.copy(snapshot)"
            )

    def ready(self) -> bool:
        """Return whether all has come: ``wait()`` would not wait, or waves are over."""
        return self._flight.ready() if self._waves is None else self._waves.is_over

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
            self._free(self, buffers)
        if self._waves is not None:
            self._waves.end()
