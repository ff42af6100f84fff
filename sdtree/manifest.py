"""What a source has, as it tells others, and where that does not fit a target."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

import torch

from sdtree.deals import Origin
from sdtree.joint import ties_of
from sdtree.kinds.abstract import Abstract
from sdtree.layout import Layout
from sdtree.leaf import tensors_of
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
    """A leaf of the source: what it is like, its value if plain, and its tie.

    ``forms`` are None where the stages before may still change them; ``layout`` is
    what this rank alone knows of it.
    """

    forms: tuple[tuple[tuple[int, ...], torch.dtype], ...] | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    value: Leaf
    tie: int
    layout: Layout | None = None

    @classmethod
    def of(cls, form: Abstract, leaf: Leaf, tie: int) -> Given:
        """Return what a leaf of this form is; ``leaf`` gives a plain one's value."""
        value = leaf if form.dtype is None else None
        return cls(_forms_of(form), form.shape, form.dtype, value, tie, form.layout)


@lru_cache(maxsize=4096)
def _forms_of(form: Abstract) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return shape and dtype of each local tensor: one object, told only once."""
    return tuple(form.forms())


Manifest = dict[Path, Given]


def as_told(manifest: Manifest) -> bytes:
    """Return what is told to others: values as bytes, to be read one by one."""
    told: Manifest = {}
    for path, given in manifest.items():
        try:
            value = pickle.dumps(given.value) if given.dtype is None else b""
        except Exception as error:
            error.add_note(f"at {where(path)}, whose value is to go to other ranks")
            raise
        told[path] = given._replace(layout=None, value=value)
    return pickle.dumps(told)


def merged(misfits: Iterable[Misfit]) -> Misfit:
    """Return what does not fit on one rank or another."""
    columns = [
        [*dict.fromkeys(chain(*column))] for column in zip(*misfits, strict=True)
    ]
    return Misfit(*map(tuple, columns))


def misfit_of(
    manifest: Manifest, paths: Sequence[Path], forms: Sequence[Abstract]
) -> Misfit:
    """Return where a source and targets of these forms do not fit."""
    targets = dict(zip(paths, forms, strict=True))
    found = [
        (path, why)
        for path, form in targets.items()
        if path in manifest and (why := difference(manifest[path], form))
    ]
    return Misfit(
        tuple(path for path in paths if path not in manifest),
        tuple(path for path in manifest if path not in targets),
        tuple(found),
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


def manifest_of(origin: Origin) -> Manifest:
    """Return what the source has, leaf by leaf."""
    forms = origin.forms()
    paths = origin.spec.paths()
    if forms is None:
        return {path: Given(None, (), None, None, i) for i, path in enumerate(paths)}
    held = {i: x for i, x in enumerate(origin.leaves) if tensors_of(x)}
    tied = {i: group[0] for group in ties_of(held, lambda _: None) for i in group}
    return {
        path: Given.of(Abstract.of(form), leaf, tied.get(i, i))
        for i, (path, form, leaf) in enumerate(
            zip(paths, forms, origin.leaves, strict=True)
        )
    }
