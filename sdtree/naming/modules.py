"""Where the module paths move that are keys of ``_metadata``: with what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from sdtree.errors import NameCollision, UnknownContainer, UnknownLeaf
from sdtree.kinds.values import same_value
from sdtree.naming.globs import Segments, segments_of
from sdtree.naming.rekeying import Placed, segments_at
from sdtree.naming.rules import Rule
from sdtree.path import where
from sdtree.tree.containers import State, container_of
from sdtree.typing import Path

Metadata = Mapping[str, Any]
"""What ``Module.state_dict`` knows of each module, by its path."""


def metadata_of(state: State | None) -> Metadata | None:
    """Return the ``_metadata`` of a container, None if it has none that can be read."""
    found = (state or {}).get("attributes", {}).get("_metadata")
    if not isinstance(found, Mapping):
        return None
    given = cast("Mapping[object, Any]", found)
    try:
        container = container_of(type(given))
    except (UnknownContainer, UnknownLeaf):
        return None
    known = container is not None and all(isinstance(key, str) for key in given)
    return cast("Metadata", given) if known else None


def with_metadata(state: State, items: Metadata) -> State:
    """Return a state with other items in its ``_metadata``, which keeps its type."""
    attributes = state["attributes"]
    metadata = attributes["_metadata"]
    container = container_of(type(metadata))
    assert container is not None
    _, _, aux = container.apart(metadata)
    made = container.together(tuple(items), list(items.values()), aux)
    return State(state, attributes={**attributes, "_metadata": made})


class Entry(NamedTuple):
    """A module at its new path; ``is_seen`` if what it held stands there."""

    old: str
    new: str
    is_seen: bool


class Modules:
    """Where each module goes.

    It is where what stood directly below it stands now, in several places if that is
    parted. One of which nothing is left, or never was, goes where the rule puts it.
    """

    def __init__(self, rule: Rule, placed: Sequence[Placed]) -> None:
        self.rule = rule
        self.placed = placed
        self.moves: dict[Segments, dict[Segments, None]] = {}

    def state(self, state: State | None, old: Path, new: Path) -> State | None:
        """Return the state of a container that goes on at another path."""
        metadata = metadata_of(state)
        if state is None or metadata is None:
            return state
        here, there = segments_at(old), segments_at(new)
        moved = [x for key in metadata for x in self._entries(key, here, there)]
        kept = _settled(moved, metadata, new)
        return with_metadata(state, {x.new: metadata[x.old] for x in kept})

    def _entries(self, key: str, old: Segments, new: Segments) -> Iterator[Entry]:
        """Yield where a module goes, seen from where its container goes."""
        full = (*old, *segments_of(key)) if key else old
        seen = [path for path in self._seen().get(full, ()) if path[: len(new)] == new]
        for path in seen:
            yield Entry(key, ".".join(path[len(new) :]), True)
        if not seen:
            tokens = self.rule(full)
            path = full if tokens is None else tuple(token.text for token in tokens)
            inside = path[: len(new)] == new
            yield Entry(key, ".".join(path[len(new) :]) if inside else key, False)

    def _seen(self) -> dict[Segments, dict[Segments, None]]:
        """Return for each module the paths directly below which its own stand now."""
        if not self.moves:
            for atom in self.placed:
                old, new = segments_at(atom.old), atom.name
                for k, i in _firsts(atom, len(old)):
                    self.moves.setdefault(old[:i], {}).setdefault(new[:k])
        return self.moves


def _firsts(atom: Placed, count: int) -> Iterator[tuple[int, int]]:
    """Yield the place of each segment, new and old, of several the first."""
    if atom.tokens is None:
        yield from ((k, k) for k in range(count))
        return
    last = None
    for k, token in enumerate(atom.tokens):
        if token.old is not None and token.old != last:
            yield k, token.old
            last = token.old


def _settled(
    moved: Sequence[Entry], metadata: Metadata, place: Path
) -> Sequence[Entry]:
    """Return the entries to keep: of several at one path the one that is seen there."""
    kept: dict[str, Entry] = {}
    for entry in sorted(moved, key=lambda entry: not entry.is_seen):
        other = kept.setdefault(entry.new, entry)
        same = same_value(metadata[other.old], metadata[entry.old], in_order=True)
        if entry.is_seen == other.is_seen and not same:
            raise NameCollision(
                f"{where(place)}: the modules {other.old!r} and {entry.old!r} would "
                f"both be {entry.new!r}, and their _metadata differs; rename one of "
                "them otherwise, or take _metadata off the tree"
            )
    return [entry for entry in moved if kept[entry.new] is entry]
