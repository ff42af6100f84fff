"""Pickles of which Python's own unpickler may be trusted with the time and the memory.

It makes whatever a pickle tells: a place in its memo takes all memory below it, and a
tuple in which another stands twice, and so on, is hashed for ever. Our own machine has
room for no such thing, and takes forty times as long. So a pickle must be one as Python
writes it, of records: its tuples hold no tuples, but for the arguments of a call, and
none is in the memo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pickle import UnpicklingError
from typing import Final

PROTOCOLS: Final = (b"\x80\x04", b"\x80\x05")
FRAME: Final = b"\x95"
LONG: Final = b"X"
SHORT: Final = 4
"""How many bytes a frame has at least."""
MANY: Final = 64
"""How many lengths long texts may have: each is a part of a pattern."""

FORGOTTEN: Final = b"N\x940"
"""Puts None into the memo, and nothing onto the stack."""


def plain(data: bytes) -> bytes:
    """Return a pickle that holds the same, of which that is sure, or raise.

    What a reference to a tuple would give is None.
    """
    body = _without_frames(data)
    tuples, rest = _patterns(*_lengths(body))
    *parts, (_, end) = tuples.findall(body) or [(b"", b"")]
    if not rest.fullmatch(end):
        raise UnpicklingError("it is not pickled as Python pickles records")
    return FORGOTTEN.join([*(part for part, _ in parts), end])


def _without_frames(data: bytes) -> bytes:
    """Return what stands in the frames of a pickle, and texts too long for them."""
    if not data.startswith(PROTOCOLS):
        raise UnpicklingError("it is no pickle of protocol 4 or 5")
    found = list[bytes]()
    bare = at = 2
    while (at := _next_frame(data, at)) >= 0:
        found.append(data[bare:at])
        head, count = (9, 8) if data.startswith(FRAME, at) else (0, 4)
        stop = at + 1 + count + int.from_bytes(data[at + 1 : at + 1 + count], "little")
        if stop > len(data):
            raise UnpicklingError("it is cut")
        found.append(data[at + head : stop])
        bare = at = stop
    return b"".join([*found, data[bare:]])


def _next_frame(data: bytes, at: int) -> int:
    """Return where a frame or a long text begins, here or behind what is too short for
    a frame; -1 if none does.
    """
    places = range(at, at + SHORT)
    return next((k for k in places if data.startswith((FRAME, LONG), k)), -1)


def _lengths(data: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return the lengths, as they are written, that short and long texts may have."""
    short: list[bytes] = re.findall(rb"\x8c(?=(.))", data, re.DOTALL)
    heads: list[bytes] = re.findall(rb"X(?=(.{4}))", data, re.DOTALL)
    long = {x for x in heads if 255 < int.from_bytes(x, "little") < len(data)}
    if len(long) > MANY:
        raise UnpicklingError("it has long names of too many lengths")
    return {*short}, long


def _patterns(
    short: set[bytes], long: set[bytes]
) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what matches up to a tuple that goes into the memo, and what the rest.

    The first matches all that is left, too, where it comes to no such tuple. No part is
    looked at more than a few times, whatever stands there. All but such a tuple takes
    the memo that follows with it, so that one behind a tuple is what is left.
    """
    texts = rb"\x8c(?:%s)|X(?:%s)" % (_counted(short), _counted(long))
    numbers = rb"M..|[jJ]....|\x8a(?:%s)" % _counted(bytes([n]) for n in range(10))
    atom = rb"(?:[hK].|[N\x88\x89]|%s|%s)\x94?+" % (numbers, texts)
    atoms = rb"%s(?:\x85|%s(?:[\x85\x86]|(?:%s)++[\x85-\x87]?+)?+)?+" % (*[atom] * 3,)
    called = rb"%s(?:\x85\x94?+R\x94?+)?+" % atom
    marked = rb"\((?:(?:%s|\x93\x94?+)++t)?+" % called
    one = rb"[})\]\x81\x93R]\x94?+|[seuab]|\x85(?=\x94?R)"
    other = rb"(?:%s|%s|%s)" % (atoms, one, marked)
    tuples = rb"(%s*+)(?<=[t\x85-\x87])\x94|(.+)" % other
    return re.compile(tuples, re.DOTALL), re.compile(rb"%s*+\." % other, re.DOTALL)


def _counted(lengths: Iterable[bytes]) -> bytes:
    """Return a pattern of as many bytes as one of these tells, or of none."""
    found = [(x, int.from_bytes(x, "little")) for x in sorted(lengths)]
    return b"|".join(re.escape(x) + b".{%d}" % n for x, n in found) or rb"(?!)"
