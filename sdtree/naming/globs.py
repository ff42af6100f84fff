"""Globs over names: what one matches, and what its wildcards take.

Nothing goes back: what a star takes is found in one go, so that no glob takes longer
than its length times that of the name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, Final, NamedTuple

from sdtree.path import where

Segments = tuple[str, ...]


class Chars(NamedTuple):
    """Characters of a glob that match as many of a name; ``takes`` if they are wild."""

    text: str
    regex: str
    width: int
    takes: bool = False


Piece = tuple[Chars, ...]
"""What stands between two stars of a segment."""

Wild = tuple[Piece, ...]
"""A segment as its pieces; one of no piece is ``**``."""

Pattern = tuple[Wild, ...]
"""A glob in which each brace has made its choice."""


class Capture(NamedTuple):
    """What a wildcard took: segments from the place ``at`` on, or a part of one."""

    taken: Segments
    at: int | None


MOST: Final = 1000
"""How many choices the braces of one glob may make together."""


def segments_of(text: str) -> Segments:
    """Return the segments of a name."""
    return tuple(text.split("."))


def prefix_of(name: str, depth: int) -> str:
    """Return the prefix that a leaf is counted below, of so many segments at most.

    >>> prefix_of("layers.0.weight", 1), prefix_of("weight", 1)
    ('layers', '<root>')
    """
    if type(depth) is not int or depth < 0:
        raise ValueError(
            f"depth={depth!r}: give how many segments a prefix has, a whole number "
            "from 0 on"
        )
    return ".".join(segments_of(name)[:-1][:depth]) or where(())


def escape(name: str) -> str:
    """Return the glob that matches this name alone.

    >>> escape("blocks[0].{x,y}")
    'blocks[[]0].[{]x,y}'
    """
    return re.sub(r"[*?[{]", r"[\g<0>]", name)


@lru_cache(maxsize=4096)
def glob_regex(glob: str) -> re.Pattern[str]:
    """Return the regex that a name matches, with a dot behind it, if ``glob`` does.

    Each segment brings its own dot, and ``**`` brings as many as it takes. What stands
    between two ``**`` is taken where it first fits: if the rest does not fit behind
    that, it does not fit behind any later place.
    """
    return re.compile("|".join(map(_pattern_regex, patterns_of(glob))))


def _pattern_regex(pattern: Pattern) -> str:
    first, *rest = _blocks(pattern)
    between = "".join(
        rf"(?>(?:[^.]*\.)*?{_regex(block)})" for block in rest[:-1] if block
    )
    last = rf"(?:[^.]*\.)*{_regex(rest[-1])}" if rest else ""
    return _regex(first) + between + last


def _blocks(pattern: Pattern) -> list[Pattern]:
    """Return the segments before, between and behind the ``**`` of a pattern."""
    stops = [-1, *(i for i, wild in enumerate(pattern) if not wild), len(pattern)]
    return [pattern[start + 1 : stop] for start, stop in pairwise(stops)]


def _regex(block: Pattern) -> str:
    return "".join(map(_segment_regex, block))


def _segment_regex(segment: Wild) -> str:
    """Return the regex of a segment and its dot; a piece stands where it first fits."""
    head, *rest = map(_piece_regex, segment)
    between = "".join(rf"(?>[^.]*?{piece})" for piece in rest[:-1])
    last = f"[^.]*{rest[-1]}" if rest else ""
    return rf"(?>{head}{between}{last}\.)" if between else rf"{head}{last}\."


def _piece_regex(piece: Piece) -> str:
    return "".join(chars.regex for chars in piece)


def reject_bytes(pattern: re.Pattern[Any]) -> None:
    """Raise a TypeError if a regex is for bytes: names are str."""
    if isinstance(pattern.pattern, bytes):
        raise TypeError(
            f"{pattern!r} is a regex of bytes, and names are str; write "
            f"re.compile({pattern.pattern.decode('latin-1')!r})"
        )


# -- how a glob is read ------------------------------------------------------------

DOT: Final = Chars(".", "", 0)
STAR: Final = Chars("*", "", 0)
DEEP: Final = Chars("**", "", 0)


@lru_cache(maxsize=4096)
def patterns_of(glob: str) -> tuple[Pattern, ...]:
    """Return what a glob stands for: one pattern for each choice of its braces."""
    tokens = _tokens(glob)
    braces = _braces(tokens)
    found: list[list[tuple[Chars, ...]]] = [[()]]
    choices: list[list[tuple[Chars, ...]]] = []
    for i, token in enumerate(tokens):
        if i not in braces:
            found[-1] = [(*read, _chars(token)) for read in found[-1]]
        elif token == "{":
            choices.append([])
            found.append([()])
        else:
            choices[-1] += map(_choice, found.pop())
            more = token == ","
            found.append([()] if more else _both(found.pop(), choices.pop(), glob))
    return tuple(dict.fromkeys(_pattern(read) for read in found[0]))


def _tokens(glob: str) -> list[str]:
    """Return the parts of a glob; a bracket that holds no character is none."""
    return re.findall(r"[^*?\[{},.]+|\*\*+|\[!?+.[^\]]*\]|.", glob, re.DOTALL)


def _braces(tokens: Sequence[str]) -> set[int]:
    """Return where braces and commas stand that offer a choice, as in a shell."""
    found: set[int] = set()
    opened: list[list[int]] = []
    for i, token in enumerate(tokens):
        if token == "{":
            opened.append([i])
        elif opened and token in (",", "}"):
            opened[-1].append(i)
            if token == "}" and len(places := opened.pop()) > 2:
                found.update(places)
    return found


def _choice(read: tuple[Chars, ...]) -> tuple[Chars, ...]:
    """Return a choice as characters taken at once, if it is within a segment."""
    if any(chars in (DOT, STAR, DEEP) for chars in read):
        return read
    text = "".join(chars.text for chars in read)
    return (Chars(text, _piece_regex(read), _width(read), takes=True),)


def _both(
    heads: Sequence[tuple[Chars, ...]], tails: Sequence[tuple[Chars, ...]], glob: str
) -> list[tuple[Chars, ...]]:
    if len(heads) * len(tails) > MOST:
        raise ValueError(
            f"the braces of {glob!r} make more than {MOST} choices together; write a "
            "compiled regex"
        )
    return [head + tail for head, tail in product(heads, tails)]


def _chars(token: str) -> Chars:
    if token in (".", "*", "**"):
        return {".": DOT, "*": STAR, "**": DEEP}[token]
    if token == "?":
        return Chars(token, "[^.]", 1, takes=True)
    if _is_character(token):
        return Chars(token, re.escape(token[1]), 1)
    if token[0] == "[" and len(token) > 1:
        shell = fnmatch.translate(token)  # (?s:[...]), and what ends a text
        regex = shell[: shell.rindex(")") + 1]
        return Chars(token, rf"(?!\.){regex}", 1, takes=True)
    reject_glued(token)
    return Chars(token, re.escape(token), len(token))


def _is_character(token: str) -> bool:
    """Return whether a token is a bracket around one character, which is not wild.

    A dot in one matches nothing, as brackets match no dot.
    """
    return token[0] == "[" and len(token) == 3 and token[1] != "."


def _pattern(read: Iterable[Chars]) -> Pattern:
    segments: list[list[Chars]] = [[]]
    for chars in read:
        if chars is DOT:
            segments.append([])
        else:
            segments[-1].append(chars)
    return tuple(map(_wild, segments))


def _wild(segment: Sequence[Chars]) -> Wild:
    if DEEP in segment:
        reject_glued("".join(chars.text for chars in segment))
        return ()
    pieces: list[Piece] = [()]
    for chars in segment:
        if chars is STAR:
            pieces.append(())
        else:
            pieces[-1] += (chars,)
    return tuple(pieces)


def reject_glued(segment: str) -> None:
    """Raise a ValueError if ``**`` stands in a segment with something beside it."""
    if "**" in segment and segment != "**":
        raise ValueError(
            f"'**' stands for whole segments, and alone between dots; write "
            f"{_unglued(segment)!r} for {segment!r}"
        )


def _unglued(segment: str) -> str:
    """Return a glob in which ``**`` stands alone, for one in which it does not.

    >>> _unglued("**norm**"), _unglued("a**b"), _unglued("***")
    ('**.*norm*.**', 'a*.**.*b', '**')
    """
    texts = re.split(r"\*{2,}", segment)
    last = len(texts) - 1
    starred = [f"{'*'[:k]}{x}{'*'[: last - k]}" * bool(x) for k, x in enumerate(texts)]
    return ".**.".join(starred).strip(".")


def shown(segment: Wild) -> str:
    """Return a segment as it stands in a glob."""
    pieces = ("".join(chars.text for chars in piece) for piece in segment)
    return "*".join(pieces) if segment else "**"


def wildcards_of(glob: str) -> list[str]:
    """Return the wildcards of a glob but for its stars, as they are written."""
    return [
        chars.text
        for pattern in patterns_of(glob)
        for segment in pattern
        for piece in segment
        for chars in piece
        if chars.takes
    ]


def only_name(glob: str) -> Segments | None:
    """Return the name that a glob matches alone, None if it may match others."""
    [first, *others] = patterns_of(glob)
    if others or takers(first):
        return None
    texts = [x[1] if _is_character(x) else x for x in _tokens(glob)]
    return segments_of("".join(texts))


def takers(pattern: Pattern) -> list[str]:
    """Return each star of a pattern, and ``?`` for each other wildcard, in order."""
    return [taker for segment in pattern for taker in _takers(segment)]


def _takers(segment: Wild) -> list[str]:
    pieces = [["?" for chars in piece if chars.takes] for piece in segment]
    first, *rest = pieces or [["**"]]
    return [*first, *(taker for piece in rest for taker in ("*", *piece))]


# -- what its wildcards take ---------------------------------------------------------


def match_glob(glob: str, name: Segments) -> tuple[Capture, ...] | None:
    """Return what each wildcard of ``glob`` takes of a name, None if it does not match.

    A ``**`` takes as many segments as it can, the first one first, and so does a star
    in a segment with characters. Of what braces offer, the first counts that matches.
    """
    if glob_regex(glob).fullmatch(".".join(name) + ".") is None:
        return None
    found = (_match(pattern, name) for pattern in patterns_of(glob))
    return next((captures for captures in found if captures is not None), None)


def _match(pattern: Pattern, name: Segments) -> tuple[Capture, ...] | None:
    text = ".".join(name) + "."
    if re.fullmatch(_pattern_regex(pattern), text) is None:
        return None
    first, *rest = _blocks(pattern)
    if not name:  # the root, which is no key of no characters
        return None if any((first, *rest)) else (Capture((), 0),) * len(rest)
    found = [(0, first)]
    stop = len(name)
    for block in reversed(rest):
        stop -= len(block)
        while _wildcards(block, name, stop) is None:
            stop -= 1
        found.insert(1, (stop, block))
    return tuple(_captures(found, name))


def _captures(
    blocks: Iterable[tuple[int, Pattern]], name: Segments
) -> Iterator[Capture]:
    """Yield what each wildcard takes, if the blocks stand at these places of a name."""
    end = None
    for start, block in blocks:
        if end is not None:
            yield Capture(name[end:start], end)
        yield from _wildcards(block, name, start) or ()
        end = start + len(block)


def _wildcards(block: Pattern, name: Segments, start: int) -> list[Capture] | None:
    """Return what the wildcards of a block take where it stands at a place."""
    found: list[Capture] = []
    for at, segment in enumerate(block, start):
        taken = parts(segment, name[at])
        if taken is None:
            return None
        is_whole = taken == [name[at]] and _is_alone(segment)
        found += (Capture((text,), at if is_whole else None) for text in taken)
    return found


def _is_alone(segment: Wild) -> bool:
    """Return whether a segment is one wildcard, and nothing beside it."""
    return len([chars for piece in segment for chars in piece]) + len(segment) == 2


def parts(segment: Wild, text: str) -> list[str] | None:
    """Return what the wildcards of a segment take, the first star the most."""
    head, *rest = segment
    if not rest:
        return _taken(head, text, 0) if len(text) == _width(head) else None
    start, end = _width(head), len(text) - _width(rest[-1])
    ends = _taken(head, text, 0), _taken(rest[-1], text, end)
    if start > end or ends[0] is None or ends[1] is None:
        return None
    found: list[str] = ends[1]
    for piece in reversed(rest[:-1]):
        at = _last(piece, text, start, end)
        if at < 0:
            return None
        behind = text[at + _width(piece) : end]
        found = [*(_taken(piece, text, at) or ()), behind, *found]
        end = at
    return [*ends[0], text[start:end], *found]


def _width(piece: Piece) -> int:
    return sum(chars.width for chars in piece)


def _last(piece: Piece, text: str, start: int, end: int) -> int:
    """Return the last place where a piece stands between two, -1 if there is none."""
    places = range(end - _width(piece), start - 1, -1)
    return next((at for at in places if _taken(piece, text, at) is not None), -1)


def _taken(piece: Piece, text: str, at: int) -> list[str] | None:
    """Return what is wild in a piece that stands at this place, None if it does not."""
    if at < 0 or re.compile(_piece_regex(piece)).match(text, at) is None:
        return None
    found: list[str] = []
    for chars in piece:
        if chars.takes:
            found.append(text[at : at + chars.width])
        at += chars.width
    return found
