"""The tree that rules make of another, its leaves yet to be put together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sdtree.conversion.binding import Names, misfit, no_leaf
from sdtree.conversion.joining import AS_IT_IS, Joining, Target
from sdtree.conversion.making import Making, used_by
from sdtree.conversion.naming import Pattern, patterns
from sdtree.conversion.reading import Reading
from sdtree.conversion.rule import BoundRule, Rule, names_of, reading_in
from sdtree.conversion.source import Source
from sdtree.errors import ConvertError, listed
from sdtree.kinds.abstract import Abstract
from sdtree.naming.globs import Segments, segments_of
from sdtree.naming.placing import Move, Naming, regrown
from sdtree.tensors.modes import making
from sdtree.transform.overlap import clash_of
from sdtree.tree.alike import Like
from sdtree.tree.pairing import difference
from sdtree.tree.spec import LEAF, TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

RESTS: Final = ("refuse", "keep", "drop")
"""What may become of leaves that no rule names."""

Rules = Sequence[Rule | BoundRule]


class Matched(NamedTuple):
    """The leaves that come of rules, and the positions of those that stay."""

    targets: list[Target]
    kept: list[int]


class Placed(NamedTuple):
    """Which leaves come of which, and where they are to stand, by their numbers.

    Those that stay are the first.
    """

    found: Matched
    spec: TreeSpec
    order: Sequence[int]

    def tree(self, leaves: Sequence[Leaf]) -> Tree:
        """Return the tree of the leaves."""
        return self.spec.make([leaves[i] for i in self.order])


def converted(rules: Rules, like: Like | None, rest: str, tree: Tree) -> Tree:
    """Return the tree that rules make of another, without the data of what is made.

    What is handed on is itself; of others it is told what they are to be made of.
    Whatever does not fit raises ``ConvertError``.
    """
    return Remembered(rules, like, rest)(tree)


@dataclass(slots=True)
class Remembered:
    """``converted`` for trees of one form: what is found of the first is remembered.

    That is but what its form tells: none of its leaves is held.
    """

    rules: Rules
    like: Like | None
    rest: str
    known: tuple[Making, Placed] | None = None

    def __call__(self, tree: Tree) -> Tree:
        """Return the tree that the rules make of another; see ``converted``."""
        with making():
            if self.known is not None:
                make, placed = self.known
                again = make.over(make.source.over(take(tree)[0]))
                return placed.tree(_leaves(again, placed.found))
            make = Making(Source.of(tree))
            leaves, placed = self._found(make)
            self.known = make.over(make.source.without_data()), placed
            return placed.tree(leaves)

    def _found(self, make: Making) -> tuple[list[Leaf], Placed]:
        rules, like, rest = self.rules, self.like, self.rest
        source = make.source
        found = matched(rules, source, None if like is None else like.tree, rest)
        leaves = _leaves(make, found)
        if like is not None:
            _check_forms(like.tree, source, found, leaves)
        return leaves, Placed(found, *_placed(rules, like, rest, source, found))


def compare_data(rules: Rules) -> bool:
    """Return whether some leaves are to have the same data, by agree= or alias=."""
    return any(reading_in(rule).alike for rule in rules)


def _leaves(make: Making, found: Matched) -> list[Leaf]:
    """Return the leaves that stay, and those that are yet to be put together."""
    kept = [make.source.leaves[k] for k in found.kept]
    return [*kept, *map(make.leaf, found.targets)]


def origins(
    rules: Rules, like: Like | None, rest: str, tree: Tree
) -> dict[Path, Sequence[Path]]:
    """Return of each leaf to come the paths of those that it is made of."""
    source = Source.of(tree)
    found = matched(rules, source, None if like is None else like.tree, rest)
    spec, order = _placed(rules, like, rest, source, found)
    used = [[k] for k in found.kept] + [[*used_by(x)] for x in found.targets]
    paths = source.spec.every_path
    parts = ([paths[k] for k in used[i]] for i in order)
    return dict(zip(spec.every_path, parts, strict=True))


def matched(rules: Rules, source: Source, like: Tree | None, rest: str) -> Matched:
    """Return which leaves rules make of which; raise if these do not fit."""
    if source.spec.shape is LEAF:
        raise ConvertError(
            "the tree is one leaf, which has no name that a rule could mean; give "
            "it one, as in {'w': leaf}"
        )
    wanted = None if like is None else names_of(like)
    targets, used, ways = _targets(rules, source, wanted)
    left = [k for k in range(len(source.leaves)) if k not in used]
    if left and rest == "refuse":
        raise _unnamed([source.names[k] for k in left])
    kept = left if rest == "keep" else []
    _check_distinct(source, targets, kept)
    _check_ties(source, ways, kept)
    return Matched(targets, kept)


def _targets(
    rules: Rules, source: Source, like: Names | None
) -> tuple[list[Target], dict[int, Reading], dict[int, Hashable]]:
    """Return the leaves that come of rules, which rule uses which, and ways of ties."""
    targets: list[Target] = []
    used: dict[int, Reading] = {}
    ways, have = dict[int, Hashable](), source.named()
    for rule in rules:
        reading = reading_in(rule)
        writers = [*patterns(reading, reading.target)]
        count = len(targets)
        for group in rule.groups(have, like):
            joining = Joining.of(source, reading, group)
            for k in joining.places.values():
                if used.setdefault(k, reading) is not reading:
                    told = f"{source.names[k]}: it is used by {used[k].text} as well"
                    raise misfit(reading, told)
            _check_once(joining)
            targets += joining.targets(writers, ways)
        if len(targets) == count:
            raise no_leaf(reading, have)
    return targets, used, ways


def _check_once(joining: Joining) -> None:
    """Raise ``ConvertError`` if two texts of a rule mean one leaf."""
    found = [*joining.places.values()]
    if len({*found}) < len(found):
        k = next(k for k in found if found.count(k) > 1)
        told = f"{joining.source.names[k]}: two texts of the rule mean it"
        raise misfit(joining.rule, told)


# -- before the first byte ---------------------------------------------------------


def _unnamed(names: Sequence[str]) -> ConvertError:
    one = len(names) == 1
    return ConvertError(
        f"{listed(names)}: no rule names {'it' if one else 'them'}; add a rule, or "
        "give rest='keep' or rest='drop'"
    )


def _check_distinct(
    source: Source, targets: Sequence[Target], kept: Sequence[int]
) -> None:
    """Raise ``ConvertError`` if two leaves to come have one name."""
    first = {source.names[k]: k for k in kept}
    for target in targets:
        if target.name in first:
            one, other = (source.names[k] for k in (first[target.name], target.home))
            raise ConvertError(
                f"{target.name}: it would be made twice, of {one} and of {other}"
            )
        first[target.name] = target.home


def _check_ties(
    source: Source, ways: Mapping[int, Hashable], kept: Sequence[int]
) -> None:
    """Raise ``ConvertError`` if leaves that share memory go different ways."""
    ways = {**dict.fromkeys(source.tied.intersection(kept), AS_IT_IS), **ways}
    if len({*ways.values()}) < 2:
        return
    places = [k for k in ways for _ in source.tensors[k]]
    ts = [t for k in ways for t in source.tensors[k]]
    colours: list[Hashable] = [ways[k] for k in places]
    if found := clash_of(ts, lambda: colours):
        one, other = (source.names[places[k]] for k in found)
        raise ConvertError(
            f"{one} and {other} share memory, and would not any more, for they go "
            f"different ways; sd.where({one!r}, sd.map(torch.clone)) before parts them"
        )


# -- where the leaves stand --------------------------------------------------------


def _placed(
    rules: Rules, like: Like | None, rest: str, source: Source, found: Matched
) -> tuple[TreeSpec, Sequence[int]]:
    """Return where leaves stand, those that stay being the first.

    That is as in another tree, or where ``rename`` would put them.
    """
    if like is not None:
        spec = take(like.tree)[1]
        return spec, ordered(source, found, spec)
    moves = {k: [Move(None, i)] for i, k in enumerate(found.kept)}
    for i, target in enumerate(found.targets, len(found.kept)):
        segments = segments_of(target.name)
        moves.setdefault(target.home, []).append(Move(segments, i))
        for k in target.parts:
            if k != target.home:
                moves.setdefault(k, []).append(Move(segments, None))
    return regrown(source.spec, moves, _naming(rules), rest != "drop")


def _naming(rules: Rules) -> Naming:
    """Return what tells where rules would put a leaf by its name alone, if they do."""
    pairs: list[tuple[Pattern, Pattern]] = []
    for rule in rules:
        reading = reading_in(rule)
        bare = [term for term in reading.source if not reading.slots_of(term)]
        target = reading.target[0]
        if not reading.slots_of(target):
            writer = Pattern.of(reading, target)
            pairs += [(reader, writer) for reader in patterns(reading, bare)]

    def name(old: Segments) -> Segments | None:
        for reader, writer in pairs:
            if (found := reader.read(".".join(old))) is not None:
                return segments_of(writer.write(found))
        return None

    return name


def _check_forms(
    like: Tree, source: Source, found: Matched, leaves: Sequence[Leaf]
) -> None:
    """Raise ``ConvertError`` unless leaves are whole, of the forms of another tree."""
    given, spec = take(like)
    order = ordered(source, found, spec)
    for i, (name, wanted) in enumerate(zip(spec.unique_names(), given, strict=True)):
        form = Abstract.of(leaves[order[i]])
        check_form(name, form, Abstract.of(wanted))
        if form.layout is not None:
            raise ConvertError(
                f"{name}: it is sharded, and no target is; convert without like= or "
                "into=, or give group= for ranks to exchange what they lack"
            )


def ordered(source: Source, found: Matched, spec: TreeSpec) -> list[int]:
    """Return for each leaf of another tree which it is, those that stay first."""
    made = [source.names[k] for k in found.kept]
    made += [target.name for target in found.targets]
    place, names = {name: i for i, name in enumerate(made)}, spec.unique_names()
    if {*names} != place.keys():
        raise ConvertError(
            difference(place, names, "what the rules make", "the targets")
        )
    return [place[name] for name in names]


def check_form(name: str, form: Abstract, wanted: Abstract) -> None:
    """Raise ``ConvertError`` unless a leaf has the shape and dtype that are wanted."""
    if (form.dtype is None) != (wanted.dtype is None):
        words = {True: "a plain value", False: "a tensor"}
        here, there = (words[x.dtype is None] for x in (form, wanted))
        raise ConvertError(f"{name}: {here} is made, its target is {there}")
    if form.shape != wanted.shape:
        raise ConvertError(f"{name}: {form.shape} is made, its target {wanted.shape}")
    if form.dtype != wanted.dtype:
        raise ConvertError(
            f"{name}: {form.dtype} is made, its target is {wanted.dtype}; sd.cast "
            "before converts it"
        )
