"""The errors of sdtree, each also a standard one, so that callers can catch either."""

from collections.abc import Hashable


class NameCollision(ValueError):
    """Two paths of a tree would share one name, or two leaves one path."""


class NoMatch(KeyError):
    """A selector or a rule matches no leaf of the tree."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownLeaf(TypeError):
    """A leaf has no handler, or its handler does not give it back as it was."""


class UnknownContainer(TypeError):
    """A container cannot be taken apart and rebuilt as it was."""


class LayoutError(ValueError):
    """A leaf's layout cannot do what is asked of it."""


class SpecMismatch(ValueError):
    """Two trees that must have the same structure, shapes or dtypes do not."""


class FileError(ValueError):
    """A file is not what it should be: truncated, foreign or unsafe to read."""


class _OfRanks(RuntimeError):
    """An error about ranks, with the paths and the ranks that it speaks of."""

    def __init__(
        self,
        text: str,
        paths: tuple[tuple[Hashable, ...], ...] = (),
        ranks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(text, paths, ranks)
        self.paths = paths
        self.ranks = ranks

    def __str__(self) -> str:
        return str(self.args[0])


class RankMismatch(_OfRanks):
    """Ranks were about to do different things; nothing was moved.

    ``paths`` are the first that differ, ``ranks`` those that do not agree there.
    """


class RankFailed(_OfRanks):
    """Another rank failed, which raises its own error.

    ``ranks`` are those that failed, ``paths`` where, as far as they could tell.
    """
