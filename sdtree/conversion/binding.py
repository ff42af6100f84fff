"""The leaves of a tree that a rule means, group by group, all sizes known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from sdtree.conversion.naming import At, Found, Key, Pattern, glob_of, patterns
from sdtree.conversion.reading import Reading, dims_and_slots, names_in
from sdtree.conversion.solving import Equation, Unsolved, solved
from sdtree.conversion.text import REST, Axis, Expr, Term
from sdtree.errors import MOST_SHOWN, ConvertError, listed
from sdtree.naming.closest import closest_keys
from sdtree.naming.globs import glob_regex

Shape = tuple[int, ...]
Sized = tuple[tuple[str, int], ...]
"""The sizes of axes, in order of their names."""


class Names(NamedTuple):
    """The leaves of a tree by their names, and their shapes."""

    names: Sequence[str]
    shapes: Sequence[Shape]


class Group(NamedTuple):
    """Leaves that a rule makes others of, and the sizes of all axes.

    ``sources`` has for each term which leaf stands at which place of its family.
    """

    key: Key
    sizes: Sized
    sources: Sequence[Mapping[At, int]]


Known = Mapping[Key, Sized]
"""What is known of the sizes of groups."""

Family = dict[At, int]


def bind(
    rule: Reading, have: Names, like: Names | None = None, known: Known | None = None
) -> Iterator[Group]:
    """Yield the groups of leaves that a rule means, in the order of their first leaves.

    ``like`` are leaves to come, which tell of sizes as well; ``known`` are those of a
    rule that was bound. Whatever does not fit raises ``ConvertError``.
    """
    here = _gathered(rule, rule.source, have.names)
    if known is not None and (lost := known.keys() - here.keys()):
        names = [shown(rule, rule.source[0], key) for key in sorted(lost, key=str)]
        raise misfit(
            rule, f"{listed(names)}: no such leaf, and the rule was bound to it"
        )
    there = _gathered(rule, rule.target, like.names) if like else {}
    _check_keys(rule, [*here])
    for key, families in here.items():
        _check_all_there(rule, key, families, have)
        told = [(i, family, have) for i, family in enumerate(families)]
        if like and key in there:
            found = enumerate(there[key], len(families))
            told += [(i, family, like) for i, family in found if family]
        yield Group(key, _sizes(rule, key, told, known), families)


def _gathered(
    rule: Reading, terms: Sequence[Term], names: Sequence[str]
) -> dict[Key, list[Family]]:
    """Return for each key which names each term means."""
    found: dict[Key, list[Family]] = {}
    for i, pattern in enumerate(patterns(rule, terms)):
        match, said = pattern.regex.fullmatch, pattern.said
        for k, name in enumerate(names):
            if (texts := match(name)) is None:
                continue
            key, at = said(texts.groups())
            families = found.get(key)
            if families is None:
                families = found[key] = [{} for _ in terms]
            families[i][at] = k
    return found


# -- what is to be there -----------------------------------------------------------


def misfit(rule: Reading, reason: str) -> ConvertError:
    """Return the error for a rule that does not fit the tree."""
    return ConvertError(f"{reason}; the rule is {rule.text}")


def no_leaf(rule: Reading, have: Names) -> ConvertError:
    """Return the error for a rule that means none of the leaves, with close names."""
    globs = [*map(glob_of, rule.source)]
    regexes = [*map(glob_regex, globs)]
    dotted = ((name, f"{name}.") for name in have.names)
    near = next((x for x, y in dotted if any(r.fullmatch(y) for r in regexes)), None)
    if near is not None:  # but for its slots it would be one
        advice = "an index in a name is 0, 1, 2, ..., and by {i:02} 00, 01, 02, ..."
        return misfit(
            rule, f"no leaf is named as the rule says, nor is {near}; {advice}"
        )
    closest = closest_keys(globs, have.names)
    return misfit(rule, f"no leaf is named as the rule says; {closest}")


def _check_keys(rule: Reading, keys: Sequence[Key]) -> None:
    """Raise ``ConvertError`` unless axes that batch have all values that sizes tell."""
    named = {slot.axis for term in rule.terms for slot in term.slots if slot.names}
    for i, axis in enumerate(rule.keys):
        size = rule.sizes.get(axis)
        if size is None:
            continue
        every: dict[Key, set[object]] = {}
        for key in keys:
            every.setdefault((*key[:i], *key[i + 1 :]), set()).add(key[i])
        for values in every.values():
            found = {*map(str, values)}
            strange = sorted(x for x in found if not _is_below(x, size))
            if strange:
                told = f"{axis} is {listed(strange)} in names, and {axis}={size}"
                raise misfit(rule, told)
            if len(found) < size and axis not in named:
                lost = _missing(found, size)
                raise misfit(rule, f"no leaf with {axis} {lost}, and {axis}={size}")


def _is_below(text: str, size: int) -> bool:
    """Return whether a text is an index below a size, as it is written."""
    is_short = len(text) <= len(str(size)) and text.isascii() and text.isdecimal()
    return is_short and str(int(text)) == text and int(text) < size


def _missing(found: Collection[str], size: int) -> str:
    """Return in words the indices below a size that are not found.

    The size may be any number: no more of them are looked at than are told.
    """
    first = range(min(size, len(found) + MOST_SHOWN))
    lost = [text for text in map(str, first) if text not in found][:MOST_SHOWN]
    return listed(lost, more=size - len(found) - len(lost))


def _check_all_there(
    rule: Reading, key: Key, families: Sequence[Family], have: Names
) -> None:
    """Raise ``ConvertError`` if a leaf of a group has no partner, or one has a hole."""
    for term, family in zip(rule.source, families, strict=True):
        if not family:
            other = next(f for f in families if f)
            name = have.names[next(iter(other.values()))]
            missing = shown(rule, term, key)
            raise misfit(rule, f"{name}: no leaf {missing} is there to go with it")
        counts = _counts(family)
        if len(family) != prod(counts):
            order = enumerate([*sorted(family), None])
            lost = next(own for k, at in order if at != (own := _nth(k, counts)))
            name = have.names[next(iter(family.values()))]
            missing = Pattern.of(rule, term).write(Found(key, lost))
            raise misfit(rule, f"{name}: no leaf {missing} is there to go with it")


def _counts(family: Family) -> tuple[int, ...]:
    """Return how many values each slot has, if there is no hole."""
    return tuple([1 + max(column) for column in zip(*family, strict=True)])


def _nth(k: int, counts: Sequence[int]) -> At:
    """Return where the leaf stands in a family that is the k-th of it, from 0 on."""
    found: list[int] = []
    for count in reversed(counts):
        k, place = divmod(k, count)
        found.append(place)
    return tuple(reversed(found))


def shown(rule: Reading, term: Term, key: Key) -> str:
    """Return the name of a leaf whose keys are known, with its other slots open."""
    if rule.slots_of(term):
        return repr(term.text)
    return Pattern.of(rule, term).write(Found(key, ()))


# -- sizes -------------------------------------------------------------------------

Told = tuple[int, Family, Names]
"""The place of a term in the rule, the leaves that it means, and where they are."""


def _sizes(rule: Reading, key: Key, told: Sequence[Told], known: Known | None) -> Sized:
    """Return the sizes of all axes of a group."""
    if known is not None and key not in known:
        _, family, have = told[0]
        name = have.names[next(iter(family.values()))]
        raise misfit(rule, f"{name}: the rule was bound to a tree without it")
    forms = tuple([_form(rule, *each) for each in told])
    try:
        return _solved(rule, forms, known[key] if known is not None else None)
    except Unsolved as error:
        names = [have.names[next(iter(family.values()))] for _, family, have in told]
        raise misfit(rule, f"{', '.join(names)}: {error}") from None


Form = tuple[int, tuple[int, ...], Shape]
"""A term's place, how many values its slots have, and the shape of each leaf."""


def _form(rule: Reading, term: int, family: Family, have: Names) -> Form:
    """Return what the sizes of a family follow from; its leaves are alike."""
    first, *others = family.values()
    shape = have.shapes[first]
    for k in others:
        if have.shapes[k] != shape:
            raise misfit(
                rule,
                f"{have.names[k]}: its shape is {have.shapes[k]}, and that of "
                f"{have.names[first]} {shape}",
            )
    return term, _counts(family), shape


@lru_cache(maxsize=4096)
def _solved(rule: Reading, forms: Sequence[Form], known: Sized | None) -> Sized:
    """Return the sizes that follow from the forms of the leaves of a group."""
    sizes = {axis: n for axis, n in rule.sizes.items() if axis not in rule.keys}
    sizes |= dict(known or ())
    rank = _rank(rule, forms, known)
    equations = [each for form in forms for each in _equations(rule, form)]
    found = solved(equations, sizes)
    for term in rule.terms:
        slots, dims = dims_and_slots(term, rule.keys)
        _check_known([*slots, *written_out(dims, rank)], found)
    for axis in sorted(rule.alike):
        if not found[axis]:
            raise Unsolved(f"{axis} is 0, and of none there is none to keep")
    return tuple(sorted(found.items()))


def _check_known(exprs: Sequence[Expr], found: Mapping[str, int]) -> None:
    unknown = sorted(names_in(exprs) - found.keys())
    if unknown:
        given = ", ".join(f"{axis}=" for axis in unknown)
        raise Unsolved(
            f"the size of {listed(unknown)} follows from nothing; give {given}"
        )


def _rank(rule: Reading, forms: Iterable[Form], known: Sized | None) -> int:
    """Return how many dims ``...`` stands for, which are as many in each leaf."""
    found = dict[int, str]()
    if known is not None:
        found[rank_of(dict(known))] = "the bound rule"
    for i, _, shape in forms:
        term = rule.terms[i]
        named = sum(dim != Axis(REST) for dim in term.dims)
        rest = len(shape) - named
        if rest < 0 or (rest and named == len(term.dims)):
            dims = f"{named} dim{'s' * (named != 1)}"
            raise Unsolved(f"a leaf of shape {shape} is no {term.text!r}, of {dims}")
        if named < len(term.dims):
            found.setdefault(rest, term.text)
    if len(found) > 1:
        ranks = " and ".join(f"{n} dims in {text!r}" for n, text in found.items())
        raise Unsolved(f"'...' would be {ranks}")
    return next(iter(found), 0)


def rank_of(sizes: Mapping[str, int]) -> int:
    """Return how many dims ``...`` stands for where sizes are known."""
    return sum(axis.startswith(REST) for axis in sizes)


def written_out(dims: Sequence[Expr], rank: int) -> list[Expr]:
    """Return dims with an axis for each of those that ``...`` stands for."""
    found: list[Expr] = []
    for dim in dims:
        rest = [Axis(f"{REST}{k}") for k in range(rank)]
        found += rest if dim == Axis(REST) else [dim]
    return found


def _equations(rule: Reading, form: Form) -> Iterator[Equation]:
    """Yield what the leaves of a family tell of the sizes of axes."""
    i, counts, shape = form
    term = rule.terms[i]
    slots, dims = dims_and_slots(term, rule.keys)
    out = written_out(dims, len(shape) - sum(dim != Axis(REST) for dim in dims))
    for expr, count in zip(slots, counts, strict=True):
        yield Equation(expr, count, f"the number of leaves {term.text!r}")
    for k, (expr, size) in enumerate(zip(out, shape, strict=True)):
        yield Equation(expr, size, f"dim {k}")
