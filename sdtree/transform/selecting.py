"""Selecting: which leaves a stage means, told before the first of them passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import compress, count

from sdtree.naming.closest import no_match
from sdtree.naming.selectors import Selector
from sdtree.path import name_of
from sdtree.transform.stages import Chosen, SelectStage
from sdtree.tree.pairing import Atom, atoms, prune
from sdtree.tree.spec import LEAF, TreeSpec
from sdtree.typing import Leaf


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
