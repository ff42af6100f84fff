"""What the options of the command line ask for, as steps and as one transform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from sdtree.conversion.rule import Rule
from sdtree.errors import RuleError
from sdtree.look.listing import dtype_name
from sdtree.naming.closest import closest_keys
from sdtree.naming.selectors import Selector, selector
from sdtree.ops.choosing import drop, select
from sdtree.ops.converting import convert
from sdtree.ops.local import cast
from sdtree.ops.renaming import prefix, rename, strip_prefix
from sdtree.transform.transform import Transform, chain
from sdtree.tree.flattening import structure
from sdtree.tree.plain_json import parse
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf


class Step(NamedTuple):
    """One option at work: how it is written, which names it is for, what it does."""

    option: str
    globs: Sequence[str]
    transform: Transform


class Miss(NamedTuple):
    """A glob that matches no leaf where it is used, and what is there."""

    option: str
    glob: str
    text: str

    @property
    def is_fatal(self) -> bool:
        """Return whether what is made would lack what it is made for: other names."""
        return self.option in ("--rename", "--strip-prefix")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is kept of a tree, under which names and in which dtype; done in this order.

    A transform needs no glob to match: ``misses`` tells which do not.

    >>> Recipe(select=["model.**"], rename=["model.**=**"], cast="bfloat16").transform()
    select('model.**') | rename({'model.**': '**'}) | cast(dtype=torch.bfloat16)
    """

    select: Sequence[str] = ()
    drop: Sequence[str] = ()
    rename: Sequence[str] = ()
    strip_prefix: Sequence[str] = ()
    prefix: str | None = None
    cast: str | None = None
    rules: Sequence[Rule] | None = None
    rest: str = "refuse"

    def transform(self) -> Transform:
        """Return the transform that makes all steps."""
        return chain(*(step.transform for step in self.steps()))

    def steps(self) -> Iterator[Step]:
        """Yield the steps in order."""
        if self.select:
            which = _any_of(self.select)
            yield Step("--select", self.select, select(which, missing_ok=True))
        if self.drop:
            which = _any_of(self.drop)
            yield Step("--drop", self.drop, drop(which, missing_ok=True))
        if self.rules is None and self.rest != "refuse":
            raise ValueError("--rest is for leaves that no rule of --rules names")
        if self.rules is not None:
            found = convert([*self.rules], rest=self.rest)
            yield Step("--rules", (), found)
        if self.rename:
            rules = _rules(self.rename)
            yield Step("--rename", tuple(rules), rename(rules, missing_ok=True))
        for head in self.strip_prefix:
            stripped = strip_prefix(head, missing_ok=True)
            yield Step("--strip-prefix", (f"{head}.**",), stripped)
        if self.prefix == "":
            raise ValueError("--prefix puts a name before others; give it one")
        if self.prefix is not None:
            yield Step("--prefix", (), prefix(self.prefix))
        if self.cast is not None:
            yield Step("--cast", (), cast(dtype=dtype_named(self.cast)))

    def misses(
        self, spec: TreeSpec, forms: Sequence[Leaf] | None = None
    ) -> Iterator[Miss]:
        """Yield the globs that match no leaf where they are used.

        Rules of conversion must know the forms of the leaves.
        """
        tree = spec.make(range(len(spec)) if forms is None else forms)
        for step in self.steps():
            for glob in step.globs:
                test = selector(glob)
                if not any(test(path, None) for path in spec.paths()):
                    closest = closest_keys((glob,), spec.names())
                    text = f"{step.option} {glob!r} matches no leaf; {closest}"
                    yield Miss(step.option, glob, text)
            tree = step.transform(tree)
            spec = structure(tree)

    def choosing(self) -> Transform:
        """Return the steps that leave leaves out, however the others go on."""
        steps = (x for x in self.steps() if x.option in ("--select", "--drop"))
        return chain(*(step.transform for step in steps))


def rules_in(path: str | PathLike[str]) -> list[Rule]:
    """Return the rules of a JSON file, which has one or a list of them.

    >>> path = getfixture("tmp_path") / "rules.json"
    >>> _ = path.write_text('[{"source": "a", "target": "b"}]')
    >>> rules_in(path)
    [rule('a', 'b')]
    """
    text = Path(path).read_bytes()
    try:
        data = parse(text.decode())
    except (ValueError, RecursionError) as error:
        raise RuleError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, list):
        return [_rule_of(str(path), data)]
    if not data:
        raise RuleError(
            f"{path}: an empty list, and convert takes a rule or more, such as "
            '[{"source": "old", "target": "new"}]'
        )
    places = (f"{path}: rule {i} of {len(data)}" for i in range(1, len(data) + 1))
    return [*map(_rule_of, places, data)]


def _rule_of(place: str, data: object) -> Rule:
    try:
        return Rule.from_data(data)
    except RuleError as error:
        raise RuleError(f"{place}: {error}") from None


def _any_of(globs: Sequence[str]) -> Selector:
    return reduce(or_, map(selector, globs))


def _rules(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pattern, replacement in map(_rule, texts):
        if found.setdefault(pattern, replacement) != replacement:
            raise ValueError(
                f"--rename gives {pattern!r} two names, {found[pattern]!r} and "
                f"{replacement!r}; give it one"
            )
    return found


def _rule(text: str) -> tuple[str, str]:
    pattern, sign, replacement = text.partition("=")
    if not (pattern and sign and replacement):
        raise ValueError(
            f"--rename {text!r} is not PATTERN=REPLACEMENT, such as 'model.**=**'"
        )
    return pattern, replacement


def dtype_named(name: str) -> torch.dtype:
    """Return the floating-point dtype that torch has under a name.

    >>> dtype_named("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, name, None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    dtypes = {x for x in vars(torch).values() if isinstance(x, torch.dtype)}
    known = sorted(dtype_name(dtype) for dtype in dtypes if dtype.is_floating_point)
    longer = [each for each in known if each.startswith(name)]
    near = ", ".join(longer or get_close_matches(name, known, cutoff=0.4) or known)
    raise ValueError(f"{name!r} is no floating-point dtype of torch; near it: {near}")
