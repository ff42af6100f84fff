"""``Rule``: an equality of leaves, as a value; ``BoundRule``: one with all sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Final, NoReturn

from sdtree.conversion.binding import Group, Names, Sized, bind, no_leaf
from sdtree.conversion.naming import Key
from sdtree.conversion.reading import Fill, Reading, dims_and_slots, read
from sdtree.conversion.solving import follow
from sdtree.conversion.text import Term
from sdtree.errors import RuleError, listed
from sdtree.kinds.abstract import look_at
from sdtree.kinds.strangers import reject_file_names
from sdtree.tensors.modes import making, uncompiled
from sdtree.text.showing import html_of
from sdtree.tree.plain_json import parse
from sdtree.tree.spec import take
from sdtree.typing import Tree

Texts = str | Sequence[str]

LISTS: Final = ("drop", "agree", "alias")
"""The options that name axes."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Rule:
    """What stands between leaves and others: both sides, in named axes.

    ``sd.rule`` makes one. It is right as it stands: whatever the sizes are, each
    element is used once and each place filled once. Law: ``r.inverse()`` undoes ``r``.

    >>> r = sd.rule("w [(h two d) ...]", "w [(h d two) ...]", h=4, two=2)
    >>> r.inverse()
    rule('w [(h d two) ...]', 'w [(h two d) ...]', h=4, two=2)
    >>> sd.Rule.from_json(r.to_json()) == r
    True
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    fill: tuple[tuple[str, Fill], ...] = ()
    drop: tuple[str, ...] = ()
    agree: tuple[str, ...] = ()
    alias: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fill = tuple((axis, _one_nan(value)) for axis, value in self.fill)
        object.__setattr__(self, "fill", fill)
        reading_of(self)

    def inverse(self, *, fill: Mapping[str, Fill] | None = None) -> Rule:
        """Return the rule from the target to the source.

        What is dropped has no way back: ``fill`` tells what is to stand there. Sizes
        that follow from the source alone must be given, or come with a bound rule.

        >>> sd.rule("w [(v + n)]", "w [v]", drop="n", n=2).inverse(fill={"n": 0})
        rule('w [v]', 'w [(v + n)]', fill={'n': 0}, n=2)
        """
        found = self._turned(fill)
        lost = _follow(reading_of(self)) - _follow(reading_of(found))
        if lost:
            given = ", ".join(f"{axis}=" for axis in sorted(lost))
            raise RuleError(
                f"{self}: the size of {listed(sorted(lost))} follows from the source "
                f"alone; give {given} to the rule, or invert rule.bind(tree)"
            )
        return found

    def bind(self, tree: Tree, /) -> BoundRule:
        """Return the rule with the sizes of all axes, as they are in a tree.

        >>> fuse = sd.rule(["q [a ...]", "k [b ...]"], "qk [(a + b) ...]")
        >>> fuse.bind({"q": torch.ones(4), "k": torch.ones(2)}).inverse()
        rule('qk [(a + b) ...]', ['q [a ...]', 'k [b ...]']) bound to 1 group
        """
        have = names_of(tree)
        groups = list(self.groups(have))
        if not groups:
            raise no_leaf(reading_of(self), have)
        return BoundRule(self, tuple((group.key, group.sizes) for group in groups))

    def to_json(self) -> str:
        """Return the rule as JSON text, which ``Rule.from_json`` reads.

        >>> sd.rule("a", "b").to_json()
        '{"source": ["a"], "target": ["b"]}'
        """
        return json.dumps(self.to_data())

    def to_data(self) -> dict[str, Any]:
        """Return the rule as JSON data.

        >>> sd.rule("a [x]", "a [(x + n)]", fill={"n": 0.0}, n=2).to_data()["fill"]
        {'n': 0.0}
        """
        fill = {axis: _told(value) for axis, value in self.fill}
        data = {"source": [*self.source], "target": [*self.target]}
        options = {"sizes": dict(self.sizes), "fill": fill}
        lists = {name: [*getattr(self, name)] for name in LISTS}
        return data | {name: x for name, x in (options | lists).items() if x}

    @staticmethod
    def from_json(text: str) -> Rule:
        """Return the rule that ``to_json`` wrote.

        >>> sd.Rule.from_json('{"source": ["a"], "target": ["b"]}')
        rule('a', 'b')
        """
        try:
            data = parse(text)
        except (ValueError, RecursionError) as error:
            raise RuleError(f"not the JSON of a rule: {error}") from None
        return Rule.from_data(data)

    @staticmethod
    def from_data(data: object) -> Rule:
        """Return the rule that ``to_data`` told.

        >>> sd.Rule.from_data({"source": "a", "target": ["b", "c"]})
        Traceback (most recent call last):
        sdtree.errors.RuleError: the part (...) stands in 'b', too
            c
        """
        known = {"source", "target", "sizes", "fill", *LISTS}
        if not isinstance(data, dict) or not {"source", "target"} <= data.keys():
            raise RuleError("the JSON of a rule is an object with source and target")
        if strange := data.keys() - known:
            raise RuleError(f"a rule has no {listed(sorted(map(str, strange)))}")
        fill = _mapping("fill", data.get("fill", {}))
        return _rule(
            data["source"],
            data["target"],
            {axis: _meant(value) for axis, value in fill.items()},
            _mapping("sizes", data.get("sizes", {})),
            {name: data.get(name, ()) for name in LISTS},
        )

    def groups(self, have: Names, like: Names | None = None) -> Iterable[Group]:
        """Return the groups of leaves that the rule means.

        >>> from sdtree.conversion.binding import Names
        >>> [group.sizes for group in sd.rule("a", "b").groups(Names(["a"], [(2,)]))]
        [(('...0', 2),)]
        """
        return bind(reading_of(self), have, like)

    def _turned(self, fill: Mapping[str, Fill] | None) -> Rule:
        """Return the rule with its sides changed over."""
        values = dict(_fills(fill))
        if lost := [axis for axis in self.drop if axis not in values]:
            raise RuleError(
                f"{self} drops {listed(lost)}, and nothing is there to put back; give "
                f"inverse(fill={{{lost[0]!r}: 0}})"
            )
        if strange := sorted(values.keys() - {*self.drop}):
            raise RuleError(f"{self} does not drop {listed(strange)}")
        back = tuple(sorted(values.items()))
        gone = tuple(axis for axis, _ in self.fill)
        return Rule(
            self.target, self.source, self.sizes, back, gone, self.agree, self.alias
        )

    def __reduce__(self) -> tuple[object, ...]:
        fields = ("source", "target", "sizes", "fill", *LISTS)
        return Rule, tuple(getattr(self, name) for name in fields)

    def __eq__(self, other: object) -> bool:
        """Return whether another is written alike: 0.0 is no -0.0, nor 1 True."""
        return isinstance(other, Rule) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return _shown(self)

    def _repr_html_(self) -> str:
        return html_of(self)


@dataclass(frozen=True, slots=True, repr=False)
class BoundRule:
    """A rule of which all sizes are known, for each group of leaves of a tree.

    It stands wherever a rule does, for trees with the same names.

    >>> bound = sd.rule("w [(a b)]", "w [a b]", a=2).bind({"w": torch.ones(6)})
    >>> bound.inverse()
    rule('w [a b]', 'w [(a b)]', a=2) bound to 1 group
    """

    rule: Rule
    sizes: tuple[tuple[Key, Sized], ...]

    def inverse(self, *, fill: Mapping[str, Fill] | None = None) -> BoundRule:
        """Return the rule from the target to the source; all sizes are known.

        >>> bound = sd.rule("w [(a b)]", "w [a b]", a=2).bind({"w": torch.ones(6)})
        >>> sd.convert({"w": torch.ones(2, 3)}, bound.inverse())["w"].shape
        torch.Size([6])
        """
        return BoundRule(self.rule._turned(fill), self.sizes)

    def groups(self, have: Names, like: Names | None = None) -> Iterable[Group]:
        """Return the groups of leaves that the rule means.

        >>> from sdtree.conversion.binding import Names
        >>> bound = sd.rule("a", "b").bind({"a": torch.ones(2)})
        >>> [*bound.groups(Names(["a"], [(2,)]))][0].key
        ()
        """
        return bind(reading_of(self.rule), have, like, dict(self.sizes))

    def __repr__(self) -> str:
        count = len(self.sizes)
        return f"{self.rule} bound to {count} group{'s' * (count != 1)}"

    def _repr_html_(self) -> str:
        return html_of(self)


@uncompiled
def rule(
    source: Texts,
    target: Texts,
    /,
    *,
    fill: Mapping[str, Fill] | None = None,
    drop: Texts = (),
    agree: Texts = (),
    alias: Texts | None = None,
    **sizes: int,
) -> Rule:
    """Return the rule that leaves named and laid out in one way are others in another.

    A side is one text or several: a name with slots in ``{ }``, and the dims of the
    leaf in ``[ ]``, made of named axes. ``(a b)`` is a dim merged of two, ``(a + b)``
    one of two that stand one behind the other, ``...`` the rest of the dims, ``1`` an
    axis of one. A slot ``{i}`` that is alone in a name on all sides batches; else the
    leaves are stacked along it. ``{p:gate|up}`` is an axis with names, ``{i:02}`` one
    in two digits, ``{x:**}`` any number of segments. Where slots could share a name in
    several ways, the first takes as much as it can, as a star of ``rename`` does.

    Both sides must have the same parts when multiplied out: then each element is used
    once, and each place filled once. What is not to be is named: axes of the source in
    ``drop``, axes of the target in ``fill``, with the value. Along the axes of
    ``agree``, which one side alone has, all is the same: one is kept, and each gets
    its copy. Along those of ``alias`` leaves are tied. ``RuleError`` shows what is
    wrong.

    >>> sd.rule(["L.{i}.q [a ...]", "L.{i}.k [b ...]"], "L.{i}.qk [(a + b) ...]")
    rule(['L.{i}.q [a ...]', 'L.{i}.k [b ...]'], 'L.{i}.qk [(a + b) ...]')
    """
    lists = {"drop": drop, "agree": agree, "alias": () if alias is None else alias}
    return _rule(source, target, fill, sizes, lists)


def _rule(
    source: object,
    target: object,
    fill: object,
    sizes: Mapping[str, int],
    lists: Mapping[str, object],
) -> Rule:
    return Rule(
        _texts("source", source),
        _texts("target", target),
        tuple(sorted((axis, as_index(size)) for axis, size in sizes.items())),
        _fills(fill),
        *(tuple(sorted(_texts(name, axes))) for name, axes in lists.items()),
    )


def _texts(option: str, given: object) -> tuple[str, ...]:
    """Return one text or several as a tuple."""
    found = (given,) if isinstance(given, str) else given
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(text, str) for text in found
    ):
        raise RuleError(f"{option}: a text or several, and not {given!r}")
    if not found and option in ("source", "target"):
        raise RuleError(f"the {option} of a rule has at least one text")
    return tuple(found)


def _mapping(option: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RuleError(f"{option}: values by axis, and not {given!r}")
    return dict(given)


def _fills(given: object) -> tuple[tuple[str, Fill], ...]:
    """Return values by axis, in order, as the plain numbers that JSON has."""
    found = {} if given is None else _mapping("fill", given)
    for axis, value in found.items():
        if not isinstance(axis, str):
            raise RuleError(f"fill= names {axis!r}, and an axis is a text")
        if not isinstance(value, Real):
            raise RuleError(f"fill= of {axis!r} is {value!r}, and no number")
    return tuple(sorted((axis, _plain(value)) for axis, value in found.items()))


def _plain(value: Real) -> Fill:
    """Return a number as one of Python's own, and not of a subclass or numpy's."""
    if isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def as_index(value: Any) -> Any:
    """Return a whole number as one of Python's own, and what is none as it is."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole else value


def _one_nan(value: Fill) -> Fill:
    """Return a value, the one nan that is the same as itself for all others."""
    return math.nan if value != value else value


def _told(value: Fill) -> Fill | str:
    """Return a value as JSON has it, which has no nan and no infinity."""
    is_finite = isinstance(value, int) or math.isfinite(value)
    return value if is_finite else str(value)


def _meant(value: object) -> Any:
    special = {str(x): x for x in (math.nan, math.inf, -math.inf)}
    return special.get(value, value) if isinstance(value, str) else value


# -- what is known of a rule -------------------------------------------------------


@lru_cache(maxsize=1024)
def reading_of(rule: Rule) -> Reading:
    """Return a rule as it is read; raise ``RuleError`` if it is wrong."""
    options = dict(rule.sizes), dict(rule.fill), rule.drop, rule.agree, rule.alias
    return read(repr(rule), rule.source, rule.target, *options)


def reading_in(rule: Rule | BoundRule) -> Reading:
    """Return a rule as it is read, whether it is bound or not."""
    return reading_of(rule.rule if isinstance(rule, BoundRule) else rule)


def _follow(rule: Reading) -> set[str]:
    """Return the axes whose sizes the source tells."""
    slots, dims = _sides(rule, rule.source)
    return follow([*slots, *dims], {*rule.sizes})


def _sides(rule: Reading, terms: Sequence[Term]) -> tuple[list[Any], list[Any]]:
    both = [dims_and_slots(term, rule.keys) for term in terms]
    return [x for slots, _ in both for x in slots], [
        x for _, dims in both for x in dims
    ]


def names_of(tree: Tree) -> Names:
    """Return the names and shapes of the leaves of a tree."""
    reject_file_names(tree)
    leaves, spec = take(tree)
    names = spec.unique_names()
    with making():
        forms, _ = look_at(leaves, spec.every_path.__getitem__)
    return Names(names, [form.shape for form in forms])


def _shown(rule: Rule) -> str:
    """Return the call that makes a rule."""
    sides = (x[0] if len(x) == 1 else [*x] for x in (rule.source, rule.target))
    lists = {name: getattr(rule, name) for name in LISTS}
    options = {"fill": dict(rule.fill)} | {
        name: x[0] if len(x) == 1 else x for name, x in lists.items()
    }
    given = {name: x for name, x in options.items() if x} | dict(rule.sizes)
    named = (f"{name}={x!r}" for name, x in given.items())
    return f"rule({', '.join([*map(repr, sides), *named])})"


def reject_rule(x: object) -> NoReturn:
    """Raise a TypeError for what is no rule, and say what is one."""
    raise TypeError(
        f"convert takes a rule or several, and a {type(x).__name__} is none; write "
        "sd.convert(sd.rule('w [a b]', 'w [b a]'))"
    )
