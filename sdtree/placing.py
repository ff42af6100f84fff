"""Putting leaves at new paths, in containers that go on where they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import NamedTuple

from sdtree.container import ABSENT, State
from sdtree.errors import NameCollision
from sdtree.path import name_of, where
from sdtree.rules import Named, Rule, Token
from sdtree.selectors import Segments, no_match, segments_of
from sdtree.shapes import atoms, is_mapping
from sdtree.treespec import LEAF, Node, Shape, TreeSpec, node_of
from sdtree.typing import Key, Path


@dataclass(frozen=True, slots=True)
class Placed:
    """One atom on its way: where it stood, where it will stand, what it is."""

    old: Path
    new: Path
    shape: Shape
    leaf: int


def renamed(
    rules: Sequence[Named], missing_ok: bool, spec: TreeSpec
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec after the first rule that applies to each name, and the order."""
    used: set[int] = set()

    @cache
    def apply(old: Segments) -> list[Token] | None:
        for i, rule in enumerate(rules):
            tokens = rule.apply(old)
            if tokens is not None:
                used.add(i)
                return tokens
        return None

    for path, _ in atoms(spec):
        apply(_segments(path))
    for i, rule in enumerate(rules):
        if rule.must_match and i not in used and not missing_ok:
            raise no_match(rule.text, rule.globs, spec.names())
    return moved(spec, apply)


def moved(spec: TreeSpec, rule: Rule) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec with every atom where the rule puts it, and the leaves' order."""
    flat, count = is_flat(spec), iter(range(len(spec)))
    placed = [
        Placed(
            path,
            _new_path(path, rule(_segments(path)), flat),
            shape,
            next(count) if shape is LEAF else -1,
        )
        for path, shape in atoms(spec)
    ]
    builder = Builder(_nodes(spec), [], Modules(rule, placed))
    return TreeSpec(builder.build(placed, 0)), builder.order


def _segments(path: Path) -> Segments:
    return segments_of(name_of(path)) if path else ()


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


class Origin(NamedTuple):
    """Where a segment of an old name stands: which key, and which part of it."""

    key: int
    part: int
    parts: int


def _origins(path: Path) -> list[Origin]:
    counts = [len(segments_of(str(key))) for key in path]
    return [Origin(k, i, n) for k, n in enumerate(counts) for i in range(n)]


def _new_path(path: Path, tokens: Sequence[Token] | None, flat: bool) -> Path:
    """Return the keys that the tokens make, or the very path if there are none.

    Segments of one key that are still neighbours stay one key; a whole key stays the
    very key. A new segment is a key of its own where the old one in its place was.
    """
    if tokens is None:
        return path
    origins = _origins(path)
    groups: list[list[Token]] = []
    for i, token in enumerate(tokens):
        if i and (flat or _is_inside(tokens, i, origins)):
            groups[-1].append(token)
        else:
            groups.append([token])
    return tuple(_key(group, path, origins) for group in groups)


def _is_inside(tokens: Sequence[Token], i: int, origins: Sequence[Origin]) -> bool:
    """Return whether a token goes on inside a key, as the old one in its place did.

    The place of a new token is told by the nearest one before it that is old, or else
    behind it.
    """
    near = chain(range(i, -1, -1), range(i, len(tokens)))
    known = next((k for k in near if tokens[k].old is not None), None)
    at = i if known is None else (tokens[known].old or 0) + i - known
    return bool(origins) and origins[min(max(at, 0), len(origins) - 1)].part > 0


def _key(group: Sequence[Token], path: Path, origins: Sequence[Origin]) -> Key:
    found = [None if token.old is None else origins[token.old] for token in group]
    first = found[0]
    if first is not None and found == [
        Origin(first.key, i, first.parts) for i in range(first.parts)
    ]:
        return path[first.key]
    return ".".join(token.text for token in group)


@dataclass(frozen=True, slots=True)
class Builder:
    """Puts atoms at their new paths, into containers that go on where they can."""

    nodes: Mapping[Path, Node]
    order: list[int]
    modules: Modules

    def build(self, placed: Sequence[Placed], depth: int) -> Shape:
        """Return the shape that holds the atoms, which agree in their first keys."""
        ended = [atom for atom in placed if len(atom.new) == depth]
        if ended:
            return self._end(ended[0], placed)
        groups: dict[Key, list[Placed]] = {}
        for atom in placed:
            groups.setdefault(atom.new[depth], []).append(atom)
        here = placed[0].new[:depth] if placed else ()
        source = self._source(placed, depth)
        node = self.nodes.get(here if source is None else source)
        if node is not None and not is_mapping(node.cls):
            stays = source is None or source == here
            if not _fits(node, groups, with_holes=stays):
                node = None
        if node is None or is_mapping(node.cls):
            keys: Sequence[Key] = tuple(groups)
        else:
            keys = node.keys
        children = [
            self.build(groups[key], depth + 1) if key in groups else ABSENT
            for key in keys
        ]
        if node is None:
            return node_of(dict, keys, children, None)
        old = here if source is None else source
        return node_of(node.cls, keys, children, self.modules.state(node, old, here))

    def _end(self, atom: Placed, placed: Sequence[Placed]) -> Shape:
        if len(placed) > 1:
            other = next(one for one in placed if one is not atom)
            raise NameCollision(
                f"{where(atom.old)} and {where(other.old)} would both stand at "
                f"{where(atom.new)}; rename or drop one of them first"
            )
        if atom.shape is LEAF:
            self.order.append(atom.leaf)
        return atom.shape

    def _source(self, placed: Sequence[Placed], depth: int) -> Path | None:
        """Return the path of the container that all atoms come from as they are."""
        moving = [atom for atom in placed if atom.new is not atom.old]
        found = {_above(atom, depth) for atom in moving}
        if len(moving) < len(placed):
            found.add(placed[0].new[:depth])
        return found.pop() if len(found) == 1 else None


def _above(atom: Placed, depth: int) -> Path | None:
    """Return what an atom stood below with the keys that it keeps from a depth on."""
    tail = atom.new[depth:]
    same = len(tail) <= len(atom.old) and atom.old[-len(tail) :] == tail
    return atom.old[: -len(tail)] if same else None


def _fits(node: Node, groups: Mapping[Key, object], with_holes: bool) -> bool:
    """Return whether a list or tuple can go on with these elements."""
    if with_holes:
        return set(groups) <= set(node.keys)
    return set(groups) == set(node.keys)


class Modules:
    """Where the module paths move that are keys of ``_metadata``: with their leaves."""

    def __init__(self, rule: Rule, placed: Sequence[Placed]) -> None:
        self.rule = rule
        self.placed = placed
        self.moves: dict[Segments, set[Segments | None]] = {}

    def state(self, node: Node, old: Path, new: Path) -> State | None:
        """Return the state of a container that goes on at another path."""
        attributes = (node.aux or {}).get("attributes", {})
        if "_metadata" not in attributes:
            return node.aux
        metadata = attributes["_metadata"]
        moved = type(metadata)()
        names = {
            key: self._moved(key, _segments(old), _segments(new)) for key in metadata
        }
        for key, value in metadata.items():
            if names[key] != key or key not in moved:
                moved[names[key]] = value
        return State(node.aux, attributes={**attributes, "_metadata": moved})

    def _moved(self, key: str, old: Segments, new: Segments) -> str:
        """Return the module path relative to where its container goes."""
        full = (*old, *segments_of(key)) if key else old
        found = self._ancestors().get(full, {None})
        target = next(iter(found)) if len(found) == 1 else None
        if target is None:
            tokens = self.rule(full)
            target = full if tokens is None else tuple(t.text for t in tokens)
        if target[: len(new)] != new:
            return key
        return ".".join(target[len(new) :])

    def _ancestors(self) -> dict[Segments, set[Segments | None]]:
        """Return for each module above a leaf where its leaves say that it goes."""
        if not self.moves:
            for atom in self.placed:
                old, new = _segments(atom.old), _segments(atom.new)
                for i in range(len(old)):
                    tail = old[i:]
                    kept = new[-len(tail) :] == tail
                    found = new[: -len(tail)] if kept else None
                    self.moves.setdefault(old[:i], set()).add(found)
        return self.moves
