"""Selecting: which leaves a stage means, by name before a run and by look in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import partial
from itertools import compress, count

from sdtree.naming.closest import no_match
from sdtree.naming.selectors import Selector
from sdtree.path import name_of
from sdtree.transform.stages import Action, Check, Chosen, LeafStage, SelectStage
from sdtree.transform.window import Window
from sdtree.tree.containers import ABSENT
from sdtree.tree.pairing import Atom, atoms, prune
from sdtree.tree.spec import LEAF, TreeSpec
from sdtree.typing import Leaf

Matching = Callable[[Window], list[bool]]
"""What tells of each leaf of a window whether it is meant."""


def chosen(
    stage: SelectStage, spec: TreeSpec, ids: Sequence[int], source: Sequence[Leaf]
) -> Chosen:
    """Return what is left of a spec, and of the places of its leaves in a source.

    That a stage finds nothing raises ``NoMatch``. What names tell is remembered.
    """
    if stage.selector.by_name:
        spec, kept = stage.last.of(spec, partial(_chosen, stage, None))
    else:
        spec, kept = _chosen(stage, [source[i] for i in ids], spec)
    return spec, [ids[k] for k in kept]


def _chosen(
    stage: SelectStage, leaves: Sequence[Leaf] | None, spec: TreeSpec
) -> Chosen:
    """Return what a stage keeps of a spec, and the places of the leaves there."""
    found = atoms(spec)
    matched = _matched(stage.selector, found, leaves)
    if not any(matched) and not stage.missing_ok:
        names = [name_of(path) for path, _ in found]
        raise no_match(stage.text, stage.selector.globs, names)
    keep = [match == stage.keeps for match in matched]
    kept = [k for k, (_, shape) in zip(keep, found, strict=True) if shape is LEAF]
    return prune(spec, keep), [*compress(count(), kept)]


def _matched(
    test: Selector, found: Sequence[Atom], leaves: Sequence[Leaf] | None
) -> list[bool]:
    """Return which of the atoms that come to a stage match."""
    if leaves is None:
        return test.by_paths([path for path, _ in found])
    rest = iter(leaves)
    return [shape is LEAF and test(path, next(rest)) for path, shape in found]


def left_by(dropped: set[int], ids: Sequence[int], leaves: Sequence[Leaf]) -> list[int]:
    """Return the places of the leaves that are left, and note the ``dropped`` ones."""
    kept = [k for k, leaf in enumerate(leaves) if leaf is not ABSENT]
    dropped.update({*ids}.difference(ids[k] for k in kept))
    return kept


def pruned(
    spec: TreeSpec,
    ids: Sequence[int],
    stages: Sequence[tuple[LeafStage | SelectStage, Set[int]]],
    all_gone: Set[int],
) -> TreeSpec:
    """Return what stages leave of a spec, of whose leaves each has dropped these.

    One after the other: a container that loses all to two is not dropped by either.
    What is gone in the end is at the last, if no other has noted it.
    """
    drops = [(x, gone) for x, gone in stages if isinstance(x, SelectStage)]
    drops[-1] = drops[-1][0], all_gone
    for stage, gone in drops:
        rest = iter(ids)
        keep = [
            next(rest) not in gone if shape is LEAF else not stage.keeps
            for _, shape in atoms(spec)
        ]
        spec, ids = prune(spec, keep), [i for i in ids if i not in gone]
    return spec


def dropping(
    stage: SelectStage, spec: TreeSpec, at_end: Callable[[Check], None]
) -> Action:
    """Return the action that drops leaves for what the steps have made of them."""
    keeps, text = stage.keeps, stage.text
    matches = matching(text, stage.selector, stage.missing_ok, spec, at_end)
    return lambda window: [
        leaf if match == keeps else ABSENT
        for match, leaf in zip(matches(window), window.leaves, strict=True)
    ]


def matching(
    text: str,
    test: Selector,
    missing_ok: bool,
    spec: TreeSpec,
    at_end: Callable[[Check], None],
) -> Matching:
    """Return what tells which leaves of a window match.

    That none does is an error, told when all have passed, or now if names tell it.
    """
    seen: list[bool] = []

    def matches(window: Window) -> list[bool]:
        found = window.matches(test)
        seen.extend([True] * any(found))
        return found

    def check(left_out: Callable[[], Window]) -> None:
        if not (missing_ok or seen or any(left_out().matches(test))):
            raise no_match(text, test.globs, spec.names())

    if test.by_name and not any(test(path, None) for path in spec.every_path):
        check(lambda: Window(spec, [], []))
    at_end(check)
    return matches
