"""What a source has, as it tells others, and where that does not fit a target."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

import torch

from sdtree.deals import Origin
from sdtree.joint import by_form, once, ties_of
from sdtree.kinds.abstract import Abstract
from sdtree.layout import Layout
from sdtree.path import where
from sdtree.typing import Leaf, Path

MOST_SHOWN: Final = 8


class Misfit(NamedTuple):
    """Where source and target do not fit: paths of either alone, and what differs."""

    missing: tuple[Path, ...]
    unexpected: tuple[Path, ...]
    mismatched: tuple[tuple[Path, str], ...]

    def __bool__(self) -> bool:
        return any(self[:])

    def advice(self) -> str:
        """Return what to do about it, as the end of a message."""
        if any(why.startswith("dtype") for _, why in self.mismatched):
            return "; for other dtypes put sd.cast(like=target) before it"
        if self.mismatched:
            return "; select or drop those leaves, or give a target of their form"
        return "; to keep what only the target has, and skip the rest: strict=False"

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what}: {_listed(names)}"
            for what, names in (
                ("missing", [*map(where, self.missing)]),
                ("unexpected", [*map(where, self.unexpected)]),
                ("mismatched", [f"{where(p)} ({why})" for p, why in self.mismatched]),
            )
            if names
        ]
        return "; ".join(parts) or "no difference"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Given(NamedTuple):
    """What a leaf of the source is like: the same object for leaves that are alike.

    ``forms`` are None where the stages before may still change them; ``layout`` is
    what this rank alone knows of it.
    """

    forms: tuple[tuple[tuple[int, ...], torch.dtype], ...] | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    layout: Layout | None = None

    @classmethod
    def of(cls, form: Abstract) -> Given:
        """Return what a leaf of this form is."""
        return cls(_forms_of(form), form.shape, form.dtype, form.layout)

    @classmethod
    def to_fit(cls, form: Abstract) -> Given:
        """Return what a leaf of the source is that goes where one of this form is."""
        return cls.of(form)._replace(layout=None)


UNKNOWN: Final = Given(None, (), None)
"""What a leaf is like that the stages before may still change."""


@lru_cache(maxsize=4096)
def _forms_of(form: Abstract) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return shape and dtype of each local tensor: one object, told only once."""
    return tuple(form.forms())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a source has: what its leaves are like, ties, and the values of plain ones.

    ``tied`` has the number of its tie for each leaf that is in one. Told to others, the
    values are bytes, to be read one by one.
    """

    given: Mapping[Path, Given] = field(default_factory=dict[Path, Given])
    tied: Mapping[Path, int] = field(default_factory=dict[Path, int])
    values: Mapping[Path, Leaf] = field(default_factory=dict[Path, Leaf])

    def at(self, paths: Iterable[Path]) -> list[Given | None]:
        """Return what there is at each path, None if there is nothing."""
        return [*map(self.given.get, paths)]

    def tie_of(self, path: Path) -> Hashable:
        """Return what the members of a tie have in common, and no others have."""
        return self.tied.get(path, path)

    def told(self) -> bytes:
        """Return what is told to others."""
        every = [*self.given.values()]
        shown = once(lambda i: every[i]._replace(layout=None), every)
        given = dict(zip(self.given, shown, strict=True))
        return pickle.dumps(Manifest(given, self.tied, self._pickled()))

    def _pickled(self) -> dict[Path, bytes]:
        found: dict[Path, bytes] = {}
        for path, value in self.values.items():
            try:
                found[path] = pickle.dumps(value)
            except Exception as error:
                error.add_note(f"at {where(path)}, whose value is to go to other ranks")
                raise
        return found


NOTHING: Final = Manifest()
"""What a source has of which nothing is known."""


def manifest_of(origin: Origin) -> Manifest:
    """Return what the source has, leaf by leaf."""
    forms, paths = origin.forms, origin.spec.paths()
    if forms is None:
        return Manifest(dict.fromkeys(paths, UNKNOWN))
    given = by_form(Given.of, forms)
    held = {i: ts for i, ts in enumerate(origin.held) if ts}
    ties = ties_of(held, lambda _: None)
    return Manifest(
        dict(zip(paths, given, strict=True)),
        {paths[i]: k for k, group in enumerate(ties) for i in group},
        {
            p: x
            for p, x, kind in zip(paths, origin.leaves, given, strict=True)
            if kind.dtype is None
        },
    )


def merged(misfits: Iterable[Misfit]) -> Misfit:
    """Return what does not fit on one rank or another."""
    columns = [
        [*dict.fromkeys(chain(*column))] for column in zip(*misfits, strict=True)
    ]
    return Misfit(*map(tuple, columns))


def misfit_of(
    manifest: Manifest,
    paths: Sequence[Path],
    forms: Sequence[Abstract],
    given: Sequence[Given | None],
) -> Misfit:
    """Return where a source and targets of these forms do not fit.

    ``given`` are what the source has at the paths of the targets.
    """

    def why(i: int) -> str:
        source = given[i]
        return "" if source is None else difference(source, forms[i])

    told = zip(paths, given, once(why, given, forms), strict=True)
    rows = [(path, source is None, reason) for path, source, reason in told]
    targets = {*paths}
    return Misfit(
        tuple(path for path, is_missing, _ in rows if is_missing),
        tuple(path for path in manifest.given if path not in targets),
        tuple((path, reason) for path, _, reason in rows if reason),
    )


def difference(given: Given, form: Abstract) -> str:
    """Return why a leaf of the source cannot go where one of this form is."""
    if given.forms is None:
        return ""
    if given.dtype is None or form.dtype is None:
        words = [
            "plain" if x is None else "a tensor" for x in (given.dtype, form.dtype)
        ]
        same = given.dtype is form.dtype
        return "" if same else f"{words[0]} in the source, {words[1]} in the target"
    whole_of = ((form.shape, form.dtype),)
    local = _forms_of(form) if form.layout is None else whole_of
    for what, here, there in (
        ("shape", given.shape, form.shape),
        ("dtype", given.dtype, form.dtype),
        ("local tensors", given.forms if given.layout is None else local, local),
    ):
        if here != there:
            return f"{what} {here} in the source, {there} in the target"
    return ""
