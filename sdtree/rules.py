"""Rules of renaming: from the segments of a name to those of the new one.

A rule tells for each new segment which old one it is, if any, so that keys that move
keep their types.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from sdtree.calls import Call
from sdtree.selectors import Segments, match_glob, segments_of


class Token(NamedTuple):
    """A segment of a new name, and the place in the old name it comes from, or None."""

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
        f"{reprlib.repr(rule)}; write sd.rename(tree, ('model.**', 'net.**'))"
    )


def _pair_rule(pattern: Any, replacement: str) -> Named:
    if not isinstance(replacement, str) or not isinstance(pattern, (str, re.Pattern)):
        raise TypeError(
            f"rename: {reprlib.repr((pattern, replacement))} is no pattern, a str or a "
            "regex, and replacement, a str; the tree comes before the rule: "
            "sd.rename(tree, ('model.**', 'net.**'))"
        )
    text = f"rename({pattern!r}, {replacement!r})"
    if isinstance(pattern, str):
        _check_stars(pattern, replacement)
        return Named(text, (pattern,), Call(_globbed, pattern, replacement))
    return Named(text, (), Call(_substituted, pattern, replacement))


def _substituted(
    pattern: re.Pattern[str], replacement: str, old: Segments
) -> list[Token] | None:
    new, count = pattern.subn(replacement, ".".join(old))
    return _align(old, [Token(part) for part in segments_of(new)]) if count else None


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


def tokens_of(old: Segments) -> list[Token]:
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
