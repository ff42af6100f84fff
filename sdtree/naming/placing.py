"""Putting leaves at new paths, in containers that go on where they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import merge
from typing import NamedTuple

from sdtree.errors import NameCollision, NoMatch
from sdtree.kinds.calls import Call
from sdtree.naming.closest import no_match
from sdtree.naming.globs import Segments
from sdtree.naming.modules import Modules, metadata_of
from sdtree.naming.rekeying import Placed, placed_by, segments_at
from sdtree.naming.rules import Named, Rule, Token, align
from sdtree.path import distinct, exact, same_key, where
from sdtree.tree.containers import ABSENT, is_mapping
from sdtree.tree.deep import Deep, run
from sdtree.tree.pairing import atoms, prune
from sdtree.tree.spec import LEAF, Node, Shape, TreeSpec, node_of
from sdtree.typing import Key, Path


def renamed(
    rules: Sequence[Named], missing_ok: bool, spec: TreeSpec
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec after the first rule that applies to each name, and the order."""
    used: set[int] = set()
    may_apply = _lookup(rules)

    @cache
    def apply(old: Segments) -> list[Token] | None:
        for i in may_apply(old):
            tokens = rules[i].apply(old)
            if tokens is not None:
                used.add(i)
                return tokens
        return None

    names = dict.fromkeys(segments_at(path) for path, _ in atoms(spec))
    for name in names:
        apply(name)
    for i, rule in enumerate(rules):
        if rule.must_match and i not in used and not missing_ok:
            raise _unused(rule, names, spec)
    return moved(spec, apply)


def _unused(rule: Named, names: Iterable[Segments], spec: TreeSpec) -> NoMatch:
    """Return the error for a rule that matches nothing, or nothing that is left."""
    taken = next((name for name in names if rule.apply(name) is not None), None)
    if taken is None:
        return no_match(rule.text, rule.globs, spec.names())
    return NoMatch(
        f"{rule.text} matches only what an earlier rule matches, {'.'.join(taken)!r} "
        "for one; put it first. missing_ok=True allows it"
    )


def _lookup(rules: Sequence[Named]) -> Callable[[Segments], Iterator[int]]:
    """Return what yields the rules to try on a name in order, by their places.

    One for a single name is looked up: there may be one for each of very many.
    """
    single: dict[Segments, int] = {}
    others: list[int] = []
    for i, rule in enumerate(rules):
        if rule.name is None:
            others.append(i)
        else:
            single.setdefault(rule.name, i)
    return lambda old: merge(others, [single[old]] if old in single else [])


def moved(spec: TreeSpec, rule: Rule) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec with every atom where the rule puts it, and the leaves' order."""
    flat, count = is_flat(spec), iter(range(len(spec)))
    placed = [
        placed_by(rule, path, flat, shape, next(count) if shape is LEAF else None)
        for path, shape in atoms(spec)
    ]
    return _built(spec, placed, Modules(rule, placed))


def _built(
    spec: TreeSpec, placed: Sequence[Placed], modules: Modules
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec with atoms where they are placed, and the leaves' order."""
    _reject_merged(placed)
    builder = Builder(_nodes(spec), [], modules)
    return TreeSpec(run(builder.build(placed, 0))), builder.order


class Move(NamedTuple):
    """Where a leaf goes, None for where it is; and the number of what stands there.

    It has none where another leaf, which it has become a part of, stands for it.
    """

    name: Segments | None
    leaf: int | None


Naming = Callable[[Segments], Segments | None]
"""From the segments of a name to those of the new one, None for the same."""


def regrown(
    spec: TreeSpec, moves: Mapping[int, Sequence[Move]], naming: Naming, with_rest: bool
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec of leaves that come from those of another, and their order.

    They stand where ``moved`` would put them, and so do the keys of ``_metadata``. What
    is no leaf goes by its name, or with the rest.
    """
    flat, count = is_flat(spec), iter(range(len(spec)))
    is_aligned = not flat or _has_metadata(spec)

    @cache
    def named(old: Segments) -> list[Token] | None:
        return _tokens(old, naming(old), is_aligned)

    first: dict[Segments, list[Token] | None] = {}
    placed: list[Placed] = []
    parts: list[Placed] = []
    for path, shape in atoms(spec):
        old = segments_at(path)
        if shape is not LEAF:
            if with_rest or named(old) is not None:
                placed.append(placed_by(named, path, flat, shape, None))
            continue
        for new, leaf in moves.get(next(count), ()):
            if leaf is None and not is_aligned:
                continue
            tokens = _tokens(old, new, is_aligned)
            first.setdefault(old, tokens)
            into = parts if leaf is None else placed
            into.append(placed_by(Call(_always, tokens), path, flat, shape, leaf))
    if not placed:
        return prune(spec, [False] * len(atoms(spec))), ()
    modules = Modules(lambda old: first.get(old) or named(old), [*placed, *parts])
    return _built(spec, placed, modules)


def _has_metadata(spec: TreeSpec) -> bool:
    return isinstance(spec.shape, Node) and metadata_of(spec.shape.aux) is not None


def _always(tokens: list[Token] | None, _: Segments) -> list[Token] | None:
    return tokens


def _tokens(
    old: Segments, new: Segments | None, is_aligned: bool
) -> list[Token] | None:
    """Return the tokens of a new name, with the places of old ones where they count."""
    if new is None or new == old:
        return None
    tokens = list(map(Token, new))
    return align(old, tokens) if is_aligned else tokens


def is_flat(spec: TreeSpec) -> bool:
    """Return whether a tree is one mapping from names to leaves."""
    shape = spec.shape
    return (
        isinstance(shape, Node)
        and is_mapping(shape.cls)
        and shape.children is None
        and len(shape.keys) > 0
        and all(isinstance(key, str) for key in shape.keys)
    )


def _nodes(spec: TreeSpec) -> dict[Path, Node]:
    found: dict[Path, Node] = {}
    stack: list[tuple[Path, Shape]] = [((), spec.shape)]
    while stack:
        path, shape = stack.pop()
        if isinstance(shape, Node):
            found[path] = shape
            stack.extend(((*path, key), child) for key, child in shape.parts())
    return found


@dataclass(frozen=True, slots=True)
class Builder:
    """Puts atoms at their new paths, into containers that go on where they can."""

    nodes: Mapping[Path, Node]
    order: list[int]
    modules: Modules

    def build(self, placed: Sequence[Placed], depth: int) -> Deep[Shape]:
        """Return the shape that holds the atoms, which agree in their first keys."""
        placed = _without_holes(placed, depth)
        ended = next((atom for atom in placed if len(atom.new) == depth), None)
        if ended is not None:
            return self._end(ended, placed)
        here = placed[0].new[:depth]
        old = _source(placed, depth)
        node = self.nodes.get(old)
        groups = _grouped(placed, depth, node)
        stays = exact(old) == exact(here)
        if node is not None and not _fits(node, groups, with_holes=stays):
            node, groups = None, _grouped(placed, depth, None)
        keys = tuple(groups) if node is None or is_mapping(node.cls) else node.keys
        children: list[Shape] = []
        for key in keys:
            inner = groups.get(key)
            child = ABSENT if inner is None else (yield self.build(inner, depth + 1))
            children.append(child)
        if node is None:  # a dict, which has no place for holes
            kept = [i for i, child in enumerate(children) if child is not ABSENT]
            own = tuple(keys[i] for i in kept)
            return node_of(dict, own, [children[i] for i in kept], None)
        state = self.modules.state(node.aux, old, here)
        return node_of(node.cls, keys, children, state)

    def _end(self, atom: Placed, placed: Sequence[Placed]) -> Shape:
        for other in placed:
            if other is not atom:
                raise _collision(atom, other)
        if atom.leaf is not None:
            self.order.append(atom.leaf)
        return atom.shape


def _without_holes(placed: Sequence[Placed], depth: int) -> Sequence[Placed]:
    """Return the atoms without those that yield to others: ``ABSENT`` at its place."""
    filled = [x for x in placed if x.shape is not ABSENT or len(x.new) > depth]
    return filled or placed[:1]


def _source(placed: Sequence[Placed], depth: int) -> Path:
    """Return the path of the container that keys at a depth come from, or that here."""
    found = {
        atom.old[:home] for atom in placed if (home := atom.homes[depth]) is not None
    }
    return found.pop() if len(found) == 1 else placed[0].new[:depth]


def _grouped(
    placed: Sequence[Placed], depth: int, node: Node | None
) -> dict[Key, list[Placed]]:
    """Return the atoms by their key at a depth; text that says an index is one."""
    fields: dict[str, Key] = {}
    if node is not None and not is_mapping(node.cls):
        fields = {str(key): key for key in node.keys}
    own: dict[Key, Key] = {}
    groups: dict[Key, list[Placed]] = {}
    for atom in placed:
        key = atom.new[depth]
        key = fields.get(key, key) if type(key) is str else key
        if not same_key(own.setdefault(key, key), key):
            raise _collision(groups[key][0], atom)
        groups.setdefault(key, []).append(atom)
    return groups


def _fits(node: Node, groups: Mapping[Key, object], with_holes: bool) -> bool:
    """Return whether a container can go on with these keys; a mapping takes any."""
    if is_mapping(node.cls):
        return True
    filled = distinct(key for key, child in node.parts() if child is not ABSENT)
    found = distinct(groups)
    return found <= distinct(node.keys) and (with_holes or filled <= found)


def _reject_merged(placed: Sequence[Placed]) -> None:
    """Raise if two leaves of different names would have one."""
    first: dict[Segments, Placed] = {}
    for atom in placed:
        if atom.shape is LEAF:
            other = first.setdefault(atom.name, atom)
            if other is not atom and segments_at(other.old) != segments_at(atom.old):
                raise _collision(other, atom)


def _collision(a: Placed, b: Placed) -> NameCollision:
    places = dict.fromkeys((where(a.new), where(b.new)))
    stand = "both stand at" if len(places) == 1 else "stand in each other's way at"
    return NameCollision(
        f"{where(a.old)} and {where(b.old)} would {stand} {' and '.join(places)}; "
        "rename or drop one of them first"
    )
