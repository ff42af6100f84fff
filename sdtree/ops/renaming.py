"""Where leaves stand: ``rename``, ``prefix`` and ``strip_prefix``.

A rule works on the segments of a name and tells for each segment of the new name which
old one it is, if any. Keys that move keep their types so, and containers their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, overload

from sdtree.container import ABSENT, State
from sdtree.errors import NameCollision
from sdtree.path import name_of, where
from sdtree.selectors import Segments, match_glob, no_match, segments_of
from sdtree.stages import Moving
from sdtree.transform import Transform, reject_as_tree, verb
from sdtree.tree import LEAF, Node, Shape, TreeSpec, atoms, is_mapping, node_of
from sdtree.typing import Key, Path, Tree


class Token(NamedTuple):
    """A segment of a new name, and the place in the old name it comes from, or None."""

    text: str
    old: int | None = None


Rule = Callable[[Segments], list[Token] | None]
"""From the segments of a name to those of the new one; None if it does not apply."""


# -- the operations ----------------------------------------------------------------


@verb
def rename(
    rule: Mapping[str, str] | Callable[[str], str] | tuple[Any, str],
    /,
    *,
    missing_ok: bool = False,
) -> Transform:
    """Return the tree with leaves at other names.

    ``rule`` is a pair (pattern, replacement), a mapping of such pairs of which the
    first that matches counts, or a function from name to name. A pattern is a glob,
    whose stars the replacement takes in order, or a compiled regex, which is
    substituted. Keys that move keep their types; a flat tree stays flat; a list whose
    elements move together stays one. The keys of ``_metadata`` move with the names.
    Two leaves at one name raise ``NameCollision``, a pattern without match ``NoMatch``.

    >>> sd.rename({"model": {"encoder": {"w": 1}}}, ("model.encoder.**", "enc.**"))
    {'enc': {'w': 1}}
    >>> sd.rename({"encoder.0.w": 1}, {"encoder.*.w": "layers.*.weight"})
    {'layers.0.weight': 1}
    """
    rules = _rules(rule)
    text = f"rename({_shown(rule)})"
    return Transform((Moving(text, lambda spec: _renamed(spec, rules, missing_ok)),))


@verb
def prefix(segment: str, /) -> Transform:
    """Return the tree below a leading segment.

    A flat tree gets dotted names, a nested one a dict around it. Law:
    ``strip_prefix(prefix(t, s), s) = t``.

    >>> sd.prefix({"w": 1, "b": 2}, "model")
    {'model.w': 1, 'model.b': 2}
    >>> sd.prefix({"layer": {"w": 1}}, "model")
    {'model': {'layer': {'w': 1}}}
    """
    if not isinstance(segment, str):
        raise TypeError(f"prefix takes a str, got {segment!r}")
    head = segments_of(segment)

    def move(spec: TreeSpec) -> tuple[TreeSpec, Sequence[int]]:
        if _is_flat(spec):
            return _moved(spec, lambda old: [*map(Token, head), *_tokens(old)])
        shape = spec.shape
        for key in reversed(head):
            shape = node_of(dict, (key,), [shape], None)
        return TreeSpec(shape), range(len(spec))

    return Transform((Moving(f"prefix({segment!r})", move),))


@overload
def strip_prefix(
    segment: str, /, *segments: str, missing_ok: bool = False
) -> Transform: ...
@overload
def strip_prefix(
    tree: Tree, segment: str, /, *segments: str, missing_ok: bool = False
) -> Tree: ...
def strip_prefix(first: Any, /, *segments: str, missing_ok: bool = False) -> Any:
    """Return the tree without leading segments, each taken off once where it leads.

    Names that do not begin so stay; ``NoMatch`` is raised if none does.

    >>> sd.strip_prefix({"module._orig_mod.w": 1}, "module", "_orig_mod")
    {'w': 1}
    """
    if not isinstance(first, str):
        reject_as_tree("strip_prefix", first)
        return _strip(segments, missing_ok)(first)
    return _strip((first, *segments), missing_ok)


def _strip(segments: Sequence[str], missing_ok: bool) -> Transform:
    if not segments or not all(isinstance(segment, str) for segment in segments):
        raise TypeError(
            "strip_prefix takes the segments to take off: "
            "sd.strip_prefix(tree, 'module') or sd.strip_prefix('module')"
        )
    heads = [segments_of(segment) for segment in segments]
    text = f"strip_prefix({', '.join(map(repr, segments))})"
    rule = Named(text, tuple(f"{s}.**" for s in segments), lambda old: _behead(old, heads))
    return Transform((Moving(text, lambda spec: _renamed(spec, [rule], missing_ok)),))


def _behead(old: Segments, heads: Sequence[Segments]) -> list[Token] | None:
    tokens, left = _tokens(old), list(heads)
    while True:
        texts = tuple(token.text for token in tokens)
        head = next((h for h in left if texts[: len(h)] == h), None)
        if head is None:
            return tokens if len(tokens) < len(old) else None
        left.remove(head)
        tokens = tokens[len(head) :]


# -- rules -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """A rule with the text that messages show, and the globs that hints walk."""

    text: str
    globs: tuple[str, ...]
    apply: Rule
    must_match: bool = True


def _shown(rule: Any) -> str:
    if callable(rule):
        return getattr(rule, "__name__", repr(rule))
    return repr(rule)


def _rules(rule: Any) -> list[Named]:
    if isinstance(rule, Mapping):
        pairs = cast("Mapping[Any, str]", rule).items()
        return [_pair_rule(pattern, text) for pattern, text in pairs]
    if isinstance(rule, tuple) and len(cast("tuple[Any, ...]", rule)) == 2:
        pattern, text = cast("tuple[Any, str]", rule)
        return [_pair_rule(pattern, text)]
    if callable(rule):
        function = cast("Callable[[str], str]", rule)
        return [Named(_shown(rule), (), lambda old: _called(function, old), False)]
    raise TypeError(
        f"rename takes (pattern, replacement), a mapping or a function, got {rule!r}; "
        "write sd.rename(tree, ('model.**', '**'))"
    )


def _pair_rule(pattern: Any, replacement: str) -> Named:
    text = f"({pattern!r}, {replacement!r})"
    if not isinstance(replacement, str) or not isinstance(pattern, (str, re.Pattern)):
        raise TypeError(f"rename: not a pattern and a replacement: {text}")
    if isinstance(pattern, str):
        _check_stars(pattern, replacement)
        return Named(text, (pattern,), lambda old: _globbed(pattern, replacement, old))

    def substituted(old: Segments) -> list[Token] | None:
        new, count = pattern.subn(replacement, ".".join(old))
        return _align(old, [Token(part) for part in segments_of(new)]) if count else None

    return Named(text, (), substituted)


def _called(function: Callable[[str], str], old: Segments) -> list[Token] | None:
    name = ".".join(old)
    try:
        new = function(name)
    except Exception as error:
        error.add_note(f"in the function of rename, at {name}")
        raise
    if not isinstance(new, str):
        raise TypeError(f"{name}: the function of rename returned {new!r}, no str")
    return None if new == name else _align(old, [Token(s) for s in segments_of(new)])


def _check_stars(pattern: str, replacement: str) -> None:
    """Raise unless every star of the replacement has one of the pattern to take."""
    match_glob(pattern, ("",))
    have, want = _stars(pattern), _stars(replacement)
    if len(want) > len(have):
        raise ValueError(
            f"rename: {replacement!r} has {len(want)} stars and {pattern!r} only "
            f"{len(have)}; each takes what one of the pattern matched"
        )
    if any(a == "**" and b == "*" for a, b in zip(have, want, strict=False)):
        raise ValueError(
            f"rename: in {replacement!r} a '*' would take what a '**' of {pattern!r} "
            "matched, any number of segments; write '**' there"
        )


def _stars(glob: str) -> list[str]:
    return re.findall(r"\*\*|\*", glob)


def _globbed(pattern: str, replacement: str, old: Segments) -> list[Token] | None:
    captures = match_glob(pattern, old)
    if captures is None:
        return None
    stars = iter(_captured(pattern, captures))
    tokens: list[Token] = []
    for segment in segments_of(replacement):
        if segment in ("*", "**"):
            tokens.extend(next(stars))
        elif "*" in segment:
            head, *tails = segment.split("*")
            taken = [next(stars)[0].text + tail for tail in tails]
            tokens.append(Token(head + "".join(taken)))
        else:
            tokens.append(Token(segment))
    return _align(old, tokens)


def _captured(pattern: str, captures: Sequence[Segments]) -> Iterable[list[Token]]:
    """Yield for each star the tokens it took; parts of segments come from nowhere."""
    rest, at = iter(captures), 0
    for segment in segments_of(pattern):
        if segment == "**":
            taken = next(rest)
            yield [Token(text, at + i) for i, text in enumerate(taken)]
            at += len(taken)
            continue
        for _ in range(segment.count("*")):
            [text] = next(rest)
            yield [Token(text, at if segment == "*" else None)]
        at += 1


def _tokens(old: Segments) -> list[Token]:
    return [Token(text, i) for i, text in enumerate(old)]


def _align(old: Segments, new: Sequence[Token]) -> list[Token]:
    """Return the tokens, those that evidently are an old one told to be it.

    These are the ones alike at both ends of the name, or next to one that is known.
    """
    ends = [Token("", -1), *new, Token("", len(old))]
    used = {token.old for token in ends}
    for step in (1, -1):
        for i in range(len(new), 0, -1) if step < 0 else range(1, len(new) + 1):
            beside = ends[i - step].old
            if ends[i].old is not None or beside is None:
                continue
            at = beside + step
            if 0 <= at < len(old) and at not in used and old[at] == ends[i].text:
                ends[i] = Token(old[at], at)
                used.add(at)
    return ends[1:-1]


# -- how the tree is rebuilt -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """One atom on its way: where it stood, where it will stand, what it is."""

    old: Path
    new: Path
    shape: Shape
    leaf: int


def _renamed(
    spec: TreeSpec, rules: Sequence[Named], missing_ok: bool
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec after the first rule that applies to each name, and the order."""
    used: set[int] = set()

    def apply(old: Segments) -> list[Token]:
        for i, rule in enumerate(rules):
            tokens = rule.apply(old)
            if tokens is not None:
                used.add(i)
                return tokens
        return _tokens(old)

    for path, _ in atoms(spec):
        apply(_segments(path))
    for i, rule in enumerate(rules):
        if rule.must_match and i not in used and not missing_ok:
            raise no_match(f"rename{rule.text}", rule.globs, spec.names())
    return _moved(spec, apply)


def _moved(
    spec: TreeSpec, rule: Callable[[Segments], list[Token]]
) -> tuple[TreeSpec, Sequence[int]]:
    """Return the spec with every atom where the rule puts it, and the leaves' order."""
    flat, count = _is_flat(spec), iter(range(len(spec)))
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


def _is_flat(spec: TreeSpec) -> bool:
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


def _new_path(path: Path, tokens: Sequence[Token], flat: bool) -> Path:
    """Return the keys that the tokens make.

    Segments of one key that are still neighbours stay one key; a whole key stays the
    very key. A new segment is a key of its own where the old one in its place was.
    """
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
    known = [k for k in (*range(i, -1, -1), *range(i, len(tokens))) if tokens[k].old is not None]
    nearest = known[0] if known else i
    at = (tokens[nearest].old or 0) + i - nearest if known else i
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
        found: set[Path | None] = set()
        for atom in placed:
            tail = atom.new[depth:]
            same = len(tail) <= len(atom.old) and atom.old[-len(tail) :] == tail
            found.add(atom.old[: -len(tail)] if same else None)
        return found.pop() if len(found) == 1 else None


def _fits(node: Node, groups: Mapping[Key, object], with_holes: bool) -> bool:
    """Return whether a list or tuple can go on with these elements."""
    if with_holes:
        return set(groups) <= set(node.keys)
    return set(groups) == set(node.keys)


class Modules:
    """Where the module paths move that are keys of ``_metadata``: with their leaves."""

    def __init__(
        self, rule: Callable[[Segments], list[Token]], placed: Sequence[Placed]
    ) -> None:
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
        names = {key: self._moved(key, _segments(old), _segments(new)) for key in metadata}
        for key in sorted(metadata, key=lambda key: names[key] != key):
            moved[names[key]] = metadata[key]
        return State(node.aux, attributes={**attributes, "_metadata": moved})

    def _moved(self, key: str, old: Segments, new: Segments) -> str:
        """Return the module path relative to where its container goes."""
        full = (*old, *segments_of(key)) if key else old
        found = self._ancestors().get(full, {None})
        target = next(iter(found)) if len(found) == 1 else None
        if target is None:
            target = tuple(token.text for token in self.rule(full))
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
