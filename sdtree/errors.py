"""The errors of sdtree, each also a standard one, so that callers can catch either."""


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
