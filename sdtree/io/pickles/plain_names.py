"""What pickles name of Python and numpy that is plain, and how it is made, checked.

Each takes what the pickle has for it and returns the value, or ``NotImplemented`` if it
is none of those that are plain.
"""

from __future__ import annotations

import datetime
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from sdtree.errors import FileError, one_of
from sdtree.io.pickles.foreign import Foreign
from sdtree.io.pickles.instances import COLLECTIONS
from sdtree.io.pickles.machine import Unfinished
from sdtree.tree.scalars import plain_dtype, scalar_of

Make = Callable[..., Any]
LONG_PATH: Final = 4096


def _encoded(text: str, coding: str = "") -> Any:
    """Return bytes, as older pickles tell them: their numbers as characters."""
    if isinstance(text, str) and coding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    return NotImplemented


def _bytes(*args: Any) -> Any:
    return b"" if not args else NotImplemented


def _bytearray(*args: Any) -> Any:
    is_plain = len(args) == 1 and isinstance(args[0], bytes)
    data = args[0] if is_plain else _encoded(*args) if args else b""
    return bytearray(data) if isinstance(data, bytes) else NotImplemented


def _of_elements(make: Callable[[Any], Any]) -> Make:
    def made(elements: Sequence[Any] = ()) -> Any:
        return make(elements) if type(elements) in (list, tuple) else NotImplemented

    return made


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


# -- moments and paths -------------------------------------------------------------


def _moment(cls: Any, size: int) -> Make:
    """Return what makes a moment of its bytes, and of its time zone if it has one."""

    def made(state: Any, zone: Any = None) -> Any:
        raw = state.encode("latin-1") if isinstance(state, str) else state
        if not isinstance(raw, bytes) or len(raw) != size:
            return NotImplemented
        if zone is None:
            return cls(raw).replace()  # which looks at each number
        is_known = isinstance(zone, datetime.timezone)
        return cls(raw, zone).replace() if is_known else NotImplemented

    return made


def _path(cls: Any) -> Make:
    def made(*parts: Any) -> Any:
        are_texts = all(isinstance(part, str) for part in parts)
        if not are_texts or sum(map(len, parts)) > LONG_PATH:
            return NotImplemented
        try:
            return cls(*parts)
        except NotImplementedError:  # a path of another system
            return NotImplemented

    return made


def _buffer() -> io.BytesIO:
    return io.BytesIO()


# -- numpy -------------------------------------------------------------------------


class _Type(Unfinished):
    """A dtype of numpy whose byte order and unit of time are still to come."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype

    def finish(self, state: Any) -> Any:
        _, order, subtype, names, fields, *more = state
        if subtype or names or fields:
            return NotImplemented
        if self.dtype.kind in "mM":
            metadata, (unit, count, *_) = more[3]
            if metadata:
                return NotImplemented
            if unit != b"generic":
                self.dtype = plain_dtype(
                    f"{self.dtype.char}8[{count:d}{unit.decode()}]"
                )
        return self.dtype.newbyteorder(order)

    def told(self, state: Any) -> str:
        return "numpy.dtype"


class _Array(Unfinished):
    """An array of numpy whose shape and data are still to come."""

    def finish(self, state: Any) -> Any:
        _, shape, dtype, by_columns, data = state
        return _array(data, dtype, shape, "F" if by_columns else "C")

    def told(self, state: Any) -> str:
        dtype = state[2]
        code = str((dtype.args or [""])[0] if isinstance(dtype, Foreign) else dtype)
        return f"numpy.ndarray of {_SORTS.get(code[:1], code)}"


_SORTS: Final = {"O": "Python objects", "V": "records"}


def _dtype(code: Any, *_: Any) -> Any:
    try:
        return _Type(plain_dtype(code))
    except (ValueError, ImportError):
        return NotImplemented


def _empty_array(cls: Any, *_: Any) -> Any:
    is_base = isinstance(cls, Foreign) and cls.name == "numpy.ndarray"
    return _Array() if is_base else NotImplemented


def _scalar(dtype: Any, data: Any = None) -> Any:
    if isinstance(dtype, Foreign) or not isinstance(data, bytes):
        return NotImplemented
    return scalar_of(_finished(dtype), data)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Return an array of its own over a copy of bytes, which are as many as it has."""
    if isinstance(dtype, Foreign) or not isinstance(data, (bytes, bytearray)):
        return NotImplemented
    import numpy as np

    made = np.ndarray(shape, _finished(dtype), data, order=order)
    if made.nbytes != len(data):
        raise FileError(f"{len(data)} bytes for an array of {made.nbytes}")
    return made.copy(order="K")


def _from_buffer(
    data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> Any:
    made = _array(data, dtype, shape, "F" if order == "F" else "C")
    return made if axes is None or made is NotImplemented else made.transpose(axes)


def _finished(dtype: Any) -> Any:
    """Return a dtype, of which only the byte order may be missing."""
    import numpy as np

    found = dtype.dtype if isinstance(dtype, _Type) else dtype
    if not isinstance(found, np.dtype):
        raise FileError(f"{one_of(type(dtype))} for a dtype of numpy")
    return found


# -- all of them -------------------------------------------------------------------

PLAIN_NAMES: Final[dict[str, Make]] = {
    **COLLECTIONS,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.set": _of_elements(set),
    "builtins.frozenset": _of_elements(frozenset),
    "builtins.complex": _complex,
    "_io.BytesIO": _buffer,
    "datetime.date": _moment(datetime.date, 4),
    "datetime.time": _moment(datetime.time, 6),
    "datetime.datetime": _moment(datetime.datetime, 10),
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
for path in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
    for module in ("pathlib", "pathlib._local"):
        PLAIN_NAMES[f"{module}.{path}"] = _path(getattr(pathlib, path))
