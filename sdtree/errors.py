"""The errors of sdtree, each also a standard one, so that callers can catch either.

And ``Mismatch``, which tells where two trees do not fit: in one of them, or by itself.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

MOST_SHOWN: Final = 8
"""How many names of a sort are shown."""


class NameCollision(ValueError):
    """Two paths of a tree would share one name, or two leaves one path.

    >>> try:
    ...     sd.flatten({0: "int", "0": "str"})
    ... except sd.errors.NameCollision as error:
    ...     print(str(error).partition(";")[0])
    '0' is the name of two paths, (0,) and ('0',)
    """


class NoMatch(KeyError):
    """A selector or a rule matches no leaf of the tree.

    >>> try:
    ...     sd.drop({"model": {"w": 1}}, "modle.**")
    ... except sd.errors.NoMatch as error:
    ...     print(str(error).partition(";")[2].partition(".")[0])
     no 'modle' in the names, where there is 'model'
    """

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownLeaf(TypeError):
    """A leaf has no handler, or its kind cannot do what is asked of it.

    >>> try:
    ...     sd.copy({"model": torch.nn.Linear(2, 2)})
    ... except sd.errors.UnknownLeaf as error:
    ...     print(error)
    model: Linear is no leaf; give its state_dict()
    """


class UnknownContainer(TypeError):
    """A container cannot be taken apart and rebuilt as it was.

    >>> try:
    ...     sd.leaves({"steps": range(3)})
    ... except sd.errors.UnknownContainer as error:
    ...     print(str(error).partition(";")[0])
    steps: range is a container that cannot be rebuilt
    """


class LayoutError(ValueError):
    """A leaf's layout cannot do what is asked of it.

    >>> from sdtree.layout import Box, Layout
    >>> half = Layout((4,), {0: (Box(0, (0,), (0,), (2,)),)})
    >>> try:
    ...     half.check_coverage()
    ... except sd.errors.LayoutError as error:
    ...     print(error)
    2 of 4 elements of a tensor of shape (4,) lie in no box; the boxes are [0:2]
    """


class SpecMismatch(ValueError):
    """Two trees that must have the same structure, shapes or dtypes do not.

    >>> try:
    ...     sd.copy({"w": torch.ones(2)}, into={"w": torch.ones(3)})
    ... except sd.errors.SpecMismatch as error:
    ...     print(str(error).partition(";")[0])
    into= does not fit, nothing was written
    """


class RuleError(ValueError):
    """The text of a rule is wrong; the message shows it, with the part that is marked.

    >>> try:
    ...     sd.rule("w [a b]", "w [a c]")
    ... except sd.errors.RuleError as error:
    ...     print(error)
    the part (a b) goes nowhere; if it is to, name an axis in drop=
        w [a b]
           ^ ^
    """


class ConvertError(ValueError):
    """A rule of conversion does not fit the tree; nothing was made.

    >>> try:
    ...     sd.convert({"q": torch.ones(2)}, sd.rule("k", "key"), rest="keep")
    ... except sd.errors.ConvertError as error:
    ...     print(error)
    no leaf is named as the rule says; no 'k' in the names, where there is 'q'; ...
    """


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What a load leaves out: the report that ``report=True`` returns with its tree.

    ``missing`` are the paths that only the target has, ``unexpected`` those that only
    the source has, ``mismatched`` pairs of a path and why the leaves there do not fit.
    It is falsy if there is nothing to tell, and prints as text.

    >>> model = {"body": torch.zeros(2), "head": torch.zeros(3)}
    >>> file = {"body": torch.ones(2), "step": 7}
    >>> loaded, report = sd.distribute(file, like=model, strict=False, report=True)
    >>> report, report.missing
    (1 missing: head; 1 unexpected: step, (('head',),))
    """

    missing: tuple[tuple[Hashable, ...], ...] = ()
    unexpected: tuple[tuple[Hashable, ...], ...] = ()
    mismatched: tuple[tuple[tuple[Hashable, ...], str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what}: {listed(names)}"
            for what, names in (
                ("missing", [*map(_name, self.missing)]),
                ("unexpected", [*map(_name, self.unexpected)]),
                ("mismatched", [f"{_name(p)} ({why})" for p, why in self.mismatched]),
            )
            if names
        ]
        return "; ".join(parts) or "nothing is left out"

    __repr__ = __str__


def text_of(error: BaseException) -> str:
    """Return what an error says, whose class may be anyone's: that can fail, too.

    >>> text_of(ValueError("w: too large"))
    'w: too large'
    """
    try:
        return str(error)
    except Exception as another:
        return f"a {type(error).__name__}, whose text raises {type(another).__name__}"


def reraise(error: Exception, note: str) -> NoReturn:
    """Raise the error of a function of a user with a note of where it was called.

    A ``StopIteration`` is told by a RuntimeError: to whatever iterates it says that all
    is done.

    >>> try:
    ...     reraise(KeyError("w"), "at model.w")
    ... except KeyError as error:
    ...     print(error.__notes__)
    ['at model.w']
    """
    error.add_note(note)
    try:
        if not isinstance(error, StopIteration):
            raise error
        raise _for_iterators(note) from error
    finally:
        del error  # it would hold this frame, and the frame it


def _for_iterators(note: str) -> RuntimeError:
    found = RuntimeError(
        "a function that was given raised StopIteration, which is for iterators; let "
        "it raise another error, or write next(it, default)"
    )
    found.add_note(note)
    return found


def one_of(cls: type) -> str:
    """Return how to call an instance of a class.

    >>> one_of(int), one_of(dict)
    ('an int', 'a dict')
    """
    name = cls.__qualname__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def listed(found: Sequence[str], sep: str = ", ", *, more: int = 0) -> str:
    """Return the first of some texts, and how many more there are, ``more`` elsewhere.

    >>> listed(["a", "b"]), listed([*"abcdefghij"], "; ")
    ('a, b', 'a; b; c; d; e; f; g; h and 2 more')
    """
    more += max(len(found) - MOST_SHOWN, 0)
    return sep.join(found[:MOST_SHOWN]) + (f" and {more} more" if more else "")


def _name(path: tuple[Hashable, ...]) -> str:
    return ".".join(map(str, path)) or "<root>"


class FileError(ValueError):
    """A file is not what it should be: truncated, foreign or unsafe to read.

    >>> path = getfixture("tmp_path") / "notes.pt"
    >>> _ = path.write_text("no checkpoint")
    >>> try:
    ...     sd.load(path)
    ... except sd.errors.FileError as error:
    ...     print(str(error).partition(": ")[2])
    neither a .pt nor a .safetensors file; it begins with b'no checkp'
    """


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

    >>> error = sd.errors.RankMismatch("not the same", paths=(("w",),), ranks=(0, 2))
    >>> error, error.paths, error.ranks
    (RankMismatch('not the same', (('w',),), (0, 2)), (('w',),), (0, 2))
    """


class RankFailed(_OfRanks):
    """Another rank failed, which raises its own error.

    ``ranks`` are those that failed, ``paths`` where, as far as they could tell.

    >>> error = sd.errors.RankFailed("rank 1 failed", ranks=(1,))
    >>> isinstance(error, RuntimeError), error.ranks, error.paths
    (True, (1,), ())
    """
