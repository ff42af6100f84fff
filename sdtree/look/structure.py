"""How the structure of a tree reads: in one line, and as a notebook shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from sdtree.text.html import Html, element, escaped, folded, framed, tag
from sdtree.text.showing import add_showing
from sdtree.text.table import counted, shortened
from sdtree.tree.deep import Deep, run
from sdtree.tree.shape import same_shape, walk
from sdtree.tree.spec import LEAF, Node, Shape, TreeSpec
from sdtree.typing import Key

ROOM: Final = 100
"""How many keys are said in a line, if there are more."""

ROOM_HTML: Final = 600
"""How many keys a notebook shows, at most about."""

SEEN: Final = 8
"""How many keys of one container are, as far as there is room."""

MANY: Final = 3
"""How many neighbours must be alike to be said at once."""

NUMBER: Final = re.compile(r"\d+")


class Part(NamedTuple):
    """A key, or the first and the last of several below which all is alike."""

    label: str
    shape: Shape
    times: int = 1


def spec_text(spec: TreeSpec) -> str:
    """Return a structure in one line: all of it, or of a large one the outline.

    >>> spec_text(sd.structure({"layers": [{"w": i} for i in range(200)]}))
    "{'layers': [0…199: {'w': *}]}"
    """
    return _text(spec.shape, None if _size(spec.shape) <= ROOM else ROOM)


def _size(shape: Shape) -> int:
    """Return how many keys there are, counted as far as it matters."""
    total = 0
    for _, here in walk(shape):
        total += len(here.keys) if isinstance(here, Node) else 0
        if total > ROOM:
            break
    return total


def _text(shape: Shape, room: int | None) -> str:
    if not isinstance(shape, Node):
        return repr(shape)
    is_sequence = shape.cls is list or shape.cls is tuple
    said: list[str] = []
    parts = _parts(shape, room is not None)
    shown, below = _shared(parts, room)
    for label, child, times in shown:
        inner = _text(child, below)
        said.append(inner if is_sequence and times == 1 else f"{label}: {inner}")
    if len(shown) < len(parts):
        said.append(f"… {len(parts) - len(shown):,} more")
    return _bracketed(shape, ", ".join(said))


def _bracketed(shape: Node, inner: str) -> str:
    if shape.cls is list:
        return f"[{inner}]"
    if shape.cls is tuple:
        return f"({inner},)" if len(shape.keys) == 1 else f"({inner})"
    return f"{{{inner}}}" if shape.cls is dict else f"{shape.cls.__name__}({inner})"


def _shared(
    parts: Sequence[Part], room: int | None
) -> tuple[Sequence[Part], int | None]:
    """Return the parts that there is room for, and the room below each of them."""
    if room is None:
        return parts, None
    shown = parts[: max(room // 4, min(room, SEEN))]
    deeper = sum(isinstance(part.shape, Node) for part in shown)
    return shown, (room - len(shown)) // max(deeper, 1)


def _parts(shape: Node, folds: bool) -> list[Part]:
    """Return what stands at each key; neighbours that are alike at once."""
    count = len(shape.keys)
    if folds and count >= MANY and isinstance(shape.keys, range) and not shape.children:
        # They are not looked at one by one: a text can claim any number of leaves.
        return [Part(f"0…{count - 1}", LEAF, count)]
    every = [Part(_key(key), child) for key, child in shape.parts()]
    if not folds:
        return every
    runs = (list(run) for _, run in groupby(every, lambda part: _Likeness(part)))
    return [one for run in runs for one in _united(run)]


class _Likeness:
    """What two parts have in common whose keys differ in numbers alone."""

    __slots__ = ("_label", "_shape")

    def __init__(self, part: Part) -> None:
        self._label, self._shape = NUMBER.sub("0", part.label), part.shape

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Likeness)
            and self._label == other._label
            and same_shape(self._shape, other._shape)
        )

    __hash__ = None  # type: ignore[assignment]


def _united(run: list[Part]) -> list[Part]:
    if len(run) < MANY:
        return run
    return [Part(f"{run[0].label}…{run[-1].label}", run[0].shape, len(run))]


def _key(key: Key) -> str:
    return shortened(repr(key))


# -- as a notebook shows it --------------------------------------------------------


def spec_html(spec: TreeSpec) -> str:
    """Return what a notebook shows of a structure: containers that open and close."""
    head = element("div", element("strong", counted(len(spec), *LEAVES)), cls="head")
    nodes = run(_nodes(Part("", spec.shape), ROOM_HTML, True))
    tree = element("div", *nodes, cls="tree")
    return framed(head, tree, plain=f"TreeSpec({spec_text(spec)})")


LEAVES: Final = "leaf", "leaves"


def _nodes(part: Part, room: int, is_open: bool) -> Deep[list[Html]]:
    """Return the line of a part, and what is below it."""
    shape = part.shape
    if not isinstance(shape, Node) or not shape.keys:
        return [element("div", *_line(part), cls="end")]
    parts = _parts(shape, True)
    shown, below = _shared(parts, room)
    is_seen = is_open and below is not None and below > 0
    inner: list[Html] = []
    for plain, neighbours in groupby(shown, _is_plain):
        if plain:
            inner.append(_keys(neighbours))
            continue
        for child in neighbours:
            inner += yield _nodes(child, below or 0, is_seen)
    if len(shown) < len(parts):
        left = f"… {len(parts) - len(shown):,} more"
        inner.append(element("div", left, cls="end faint"))
    lower = element("div", *inner, cls="below")
    return [folded(_line(part), lower, is_open=is_open)]


def _is_plain(part: Part) -> bool:
    return part.shape is LEAF and part.times == 1


def _keys(parts: Iterable[Part]) -> Html:
    """Return the line of keys of leaves."""
    keys = ", ".join(escaped(part.label) for part in parts)
    return element("div", Html(keys), cls="keys")


def _line(part: Part) -> list[Html]:
    """Return the label of a part and what container stands there."""
    said = [element("span", part.label, cls="name")] if part.label else []
    if part.times > 1:
        said.append(element("span", Html(f"&#160;&#215;{part.times:,}"), cls="faint"))
    if part.shape is LEAF:
        return said
    kind = part.shape.cls.__name__ if isinstance(part.shape, Node) else "ABSENT"
    return [*said, Html("&#160; "), tag(kind, "purple")]


add_showing(TreeSpec, text=spec_text, html=spec_html)
