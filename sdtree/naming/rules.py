"""Rules of renaming: from the segments of a name to those of the new one.

A rule tells for each new segment in the place of which old one it stands, if any, so
that what does not change stays in its key, and keys that move keep their types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple, cast

from sdtree.errors import reraise
from sdtree.kinds.calls import Call
from sdtree.naming.globs import (
    Capture,
    Segments,
    match_glob,
    only_name,
    patterns_of,
    reject_bytes,
    reject_glued,
    segments_of,
    takers,
    wildcards_of,
)


class Token(NamedTuple):
    """A segment of a new name, and the place in the old name that it takes, or None.

    Places never go down from one token to the next. Several may have one.
    """

    text: str
    old: int | None = None


Rule = Callable[[Segments], list[Token] | None]
"""From the segments of a name to those of the new one; None if it does not apply."""


@dataclass(frozen=True, slots=True)
class Named:
    """A rule with the text that messages show, and the globs that hints walk."""

    text: str
    globs: tuple[str, ...]
    apply: Rule
    must_match: bool = True

    @property
    def name(self) -> Segments | None:
        """Return the only name that the rule is for, None if it may be for others."""
        return only_name(self.globs[0]) if len(self.globs) == 1 else None


def shown(rule: Any) -> str:
    if callable(rule):
        return getattr(rule, "__name__", repr(rule))
    return repr(rule)


def rules_of(rule: Any) -> list[Named]:
    if isinstance(rule, Mapping):
        pairs = cast("Mapping[Any, str]", rule).items()
        return [_pair_rule(pattern, text) for pattern, text in pairs]
    if isinstance(rule, tuple) and len(cast("tuple[Any, ...]", rule)) == 2:
        pattern, text = cast("tuple[Any, str]", rule)
        return [_pair_rule(pattern, text)]
    if callable(rule):
        function = cast("Callable[[str], str]", rule)
        return [Named(shown(rule), (), Call(_called, function), False)]
    raise TypeError(
        "rename takes (pattern, replacement), a mapping or a function, got "
        f"{_shown_side(rule)}; write sd.rename(tree, ('model.**', 'net.**'))"
    )


def _pair_rule(pattern: Any, replacement: str) -> Named:
    if not isinstance(replacement, str) or not isinstance(pattern, (str, re.Pattern)):
        sides = ", ".join(map(_shown_side, (pattern, replacement)))
        raise TypeError(
            f"rename: ({sides}) is no pattern, a str or a regex, and replacement, a "
            "str; the tree comes before the rule: "
            "sd.rename(tree, ('model.**', 'net.**'))"
        )
    text = f"rename({pattern!r}, {replacement!r})"
    if isinstance(pattern, str):
        _check_stars(pattern, replacement)
        return Named(text, (pattern,), Call(_globbed, pattern, replacement))
    _check_groups(pattern, replacement)
    return Named(text, (), Call(_substituted, pattern, replacement))


def _shown_side(x: object) -> str:
    return repr(x) if isinstance(x, (str, re.Pattern)) else f"a {type(x).__name__}"


def _substituted(
    pattern: re.Pattern[str], replacement: str, old: Segments
) -> list[Token] | None:
    new, count = pattern.subn(replacement, ".".join(old))
    return align(old, [Token(part) for part in segments_of(new)]) if count else None


def _called(function: Callable[[str], str], old: Segments) -> list[Token] | None:
    name = ".".join(old)
    try:
        new = function(name)
    except Exception as error:
        reraise(error, f"in the function of rename, at {name}")
    if not isinstance(new, str):
        raise TypeError(f"{name}: the function of rename returned {new!r}, no str")
    return None if new == name else align(old, [Token(s) for s in segments_of(new)])


def _check_groups(pattern: re.Pattern[str], replacement: str) -> None:
    """Raise unless the replacement has no group but those of the pattern."""
    reject_bytes(pattern)
    try:
        pattern.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(
            f"rename: {replacement!r} does not fit {pattern!r}, which has "
            f"{pattern.groups} groups: {error}"
        ) from None


def _check_stars(pattern: str, replacement: str) -> None:
    """Raise unless every star of the replacement has a wildcard of the pattern."""
    have, *others = map(takers, patterns_of(pattern))
    if any(other != have for other in others):
        raise ValueError(
            f"rename: what the braces of {pattern!r} offer is more than a part of a "
            "segment, or has wildcards; write a rule for each"
        )
    wild = set(wildcards_of(pattern)) & set(wildcards_of(replacement))
    if wild:
        raise ValueError(
            f"rename: in {replacement!r} a '*' takes what a wildcard of {pattern!r} "
            f"matched; write one in place of {min(wild)!r}"
        )
    want = [star for segment in segments_of(replacement) for star in _stars(segment)]
    if len(want) > len(have):
        raise ValueError(
            f"rename: {replacement!r} has more stars than {pattern!r}, {len(want)} and "
            f"{len(have)}; each takes what one of the pattern matched"
        )
    pairs = [*zip(have, want, strict=False)]
    if ("?", "**") in pairs:
        raise ValueError(
            f"rename: in {replacement!r} a '**' would take what a wildcard of "
            f"{pattern!r} matched that is no '**'; write '*' for it before"
        )
    if ("**", "*") in pairs:
        raise ValueError(
            f"rename: in {replacement!r} a '*' would take what a '**' of {pattern!r} "
            "matched, any number of segments; write '**' there"
        )


def _stars(segment: str) -> list[str]:
    if segment == "**":
        return [segment]
    reject_glued(segment)
    return ["*"] * segment.count("*")


def _globbed(pattern: str, replacement: str, old: Segments) -> list[Token] | None:
    captures = match_glob(pattern, old)
    if captures is None:
        return None
    stars = map(_captured, captures)
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
    return align(old, tokens)


def _captured(capture: Capture) -> list[Token]:
    """Return the tokens that a wildcard took; parts of segments come from nowhere."""
    at = capture.at
    return [
        Token(text, None if at is None else at + i)
        for i, text in enumerate(capture.taken)
    ]


def tokens_of(old: Segments) -> list[Token]:
    return [Token(text, i) for i, text in enumerate(old)]


# -- which segment stands in the place of which --------------------------------------


def align(old: Segments, new: Sequence[Token]) -> list[Token]:
    """Return the tokens with the place of the old segment that each stands for.

    Between those that are known, what is alike at both ends and then in the middle
    keeps its place; of the others the first stands for the first that is left. What is
    added has no place.
    """
    found: list[Token] = []
    run: list[str] = []
    low = 0
    for token in (*new, Token("", len(old))):
        if token.old is None:
            run.append(token.text)
            continue
        found += map(Token, run, _places(old, low, token.old, run))
        found.append(token)
        run, low = [], token.old + 1
    return found[:-1]


def _places(
    old: Segments, low: int, high: int, run: Sequence[str]
) -> Iterator[int | None]:
    """Yield for each text of a run which of the segments from low to high it is for."""
    count = min(high - low, len(run))
    head = next((k for k in range(count) if old[low + k] != run[k]), count)
    count -= head
    tail = next((k for k in range(count) if old[high - 1 - k] != run[-1 - k]), count)
    yield from range(low, low + head)
    yield from _inner(old, low + head, high - tail, run[head : len(run) - tail])
    yield from range(high - tail, high)


def _inner(
    old: Segments, low: int, high: int, run: Sequence[str]
) -> Iterator[int | None]:
    """Yield the same for a run that is not alike at an end."""
    at, start = low, 0
    for i, k, size in _blocks(old[low:high], run):
        same = low + i
        for step in range(k - start):
            yield min(at + step, same - 1) if same > at else None
        yield from range(same, same + size)
        at, start = same + size, k + size


MOST: Final = 10_000
"""How many pairs of segments are looked at to find what two runs have in common."""


def _blocks(a: Sequence[str], b: Sequence[str]) -> Sequence[tuple[int, int, int]]:
    """Return where the two are alike, and their ends."""
    if len(a) * len(b) > MOST or set(a).isdisjoint(b):
        return [(len(a), len(b), 0)]
    return SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
