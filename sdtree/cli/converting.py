"""What ``sdtree convert`` does: looked through first, then carried out, then told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from sdtree.cli import console
from sdtree.cli.launched import is_first, launched
from sdtree.cli.opening import STDIN, opened_at
from sdtree.cli.recipe import Recipe
from sdtree.errors import NoMatch
from sdtree.io import Opened, convert_file
from sdtree.io.converting.by_window import left_out
from sdtree.io.pickles.foreigners import check_known, without_foreign
from sdtree.naming.globs import segments_of
from sdtree.ops.looking import spec
from sdtree.plan.explaining import explain
from sdtree.text.table import counted, readable_bytes
from sdtree.transform.transform import Transform
from sdtree.tree.flattening import leaves, structure
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Tree

FEW = 3
"""How many prefixes are named of what is left out."""


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion, of which it is known that it can begin."""

    opened: Opened
    recipe: Recipe
    transform: Transform
    target: Path
    notes: Sequence[str]
    keep_names: bool = False
    shard_bytes: int | str | None = None

    @classmethod
    def of(
        cls,
        source: Path,
        target: Path,
        recipe: Recipe,
        *,
        drop_foreign: bool,
        keep_names: bool,
        shard_bytes: int | str | None,
    ) -> Job:
        """Return the job; raise if nothing would be left, or what cannot be written.

        What is given other names must be there.
        """
        if str(target) == STDIN:
            raise ValueError(
                "OUT: - is stdin, and a checkpoint is written to a file or a folder; "
                "give its path, which may be that of IN"
            )
        opened = opened_at(source)
        notes = [*opened.notes]
        if drop_foreign:
            opened, note = _without_foreign(opened)
            notes += note
        forms = leaves(spec(opened.tree))
        misses = [*recipe.misses(structure(opened.tree), forms)]
        if lost := [miss.text for miss in misses if miss.is_fatal]:
            raise NoMatch("; ".join((*lost, "nothing was written")))
        unmatched = [miss.text for miss in misses]
        transform = recipe.transform()
        moved = _moved(opened.tree, transform)
        if leaves(opened.tree) and not leaves(moved):
            raise NoMatch(
                "; ".join((f"nothing is left of {source}", *notes, *unmatched))
            )
        check_known(moved, advice="--drop-foreign")
        left = left_out(opened, target, shard_bytes)
        opened = replace(opened, metadata={}) if left else opened
        notes += [*unmatched, *([left] if left else [])]
        return cls(opened, recipe, transform, target, notes, keep_names, shard_bytes)

    def run(self) -> None:
        """Write the target, with all ranks that were started, and tell of it."""
        began, size = monotonic(), 0
        with (
            launched() as group,
            console.progress(
                f"writing {self.target.name}", hidden=not is_first()
            ) as bar,
        ):

            def report(done: int, total: int) -> None:
                nonlocal size
                size = total
                bar(done, total)

            convert_file(
                self.opened,
                self.target,
                self.transform,
                keep_names=self.keep_names,
                shard_bytes=self.shard_bytes,
                on_progress=report,
                group=group,
            )
        if is_first():
            console.tell("; ".join(self.done(size, monotonic() - began)))

    def plan(self) -> str:
        """Return what a run would do."""
        left = "".join(f"\n{text}" for text in self.gone())
        return f"{explain(self.transform, self.opened.tree)}{left}"

    def done(self, size: int, seconds: float) -> Iterator[str]:
        """Yield what was written, how long it took, and what was left out."""
        kept = len(leaves(_moved(self.opened.tree, self.transform)))
        written = f"{counted(kept, 'leaf', 'leaves')}, {readable_bytes(size)}"
        yield f"{self.target}: {written}, {seconds:.1f} s"
        yield from self.gone()

    def gone(self) -> Iterator[str]:
        """Yield what is left out, if anything, by its first segments."""
        tree, recipe = self.opened.tree, self.recipe
        kept = _kept(tree, recipe.choosing())
        if recipe.rules is not None and recipe.rest == "drop":
            named = replace(recipe, rest="keep").transform()
            kept -= _kept(tree, named) - _kept(tree, self.transform)
        names = enumerate(structure(tree).names())
        heads = Counter(segments_of(name)[0] for i, name in names if i not in kept)
        if heads:
            named = [f"{head} ({count:,})" for head, count in heads.most_common(FEW)]
            more = ["…"] if len(heads) > FEW else []
            count = counted(heads.total(), "leaf", "leaves")
            yield f"{count} left out: {', '.join((*named, *more))}"


def _without_foreign(opened: Opened) -> tuple[Opened, Sequence[str]]:
    """Return a checkpoint without what is of unknown classes, and a note if none is."""
    tree = without_foreign(opened.tree)
    is_same = len(leaves(tree)) == len(leaves(opened.tree))
    notes = ["--drop-foreign leaves out nothing"] if is_same else []
    return replace(opened, tree=tree), notes


def _moved(tree: Tree, transform: Transform) -> Tree:
    """Return the leaves that a transform keeps where it puts them, as they are.

    Of those that it changes there are the forms.
    """
    found, (made, order, place) = leaves(tree), _foretold(tree, transform)
    return order.make([found[place[id(x)]] if id(x) in place else x for x in made])


def _kept(tree: Tree, transform: Transform) -> set[int]:
    """Return the places of the leaves that a transform keeps as they are."""
    made, _, place = _foretold(tree, transform)
    return {place[id(leaf)] for leaf in made if id(leaf) in place}


def _foretold(
    tree: Tree, transform: Transform
) -> tuple[Sequence[Leaf], TreeSpec, Mapping[int, int]]:
    """Return what a transform makes of the forms of leaves, and the place of each."""
    forms = [replace(form) for form in leaves(spec(tree))]
    made, order = take(transform(structure(tree).make(forms)))
    return made, order, {id(form): i for i, form in enumerate(forms)}
