"""Plain values as JSON, bit for bit, and back from text that anyone may write."""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from sdtree.path import where
from sdtree.text.strict_json import FAR as FAR
from sdtree.text.strict_json import Json as Json
from sdtree.text.strict_json import count as count
from sdtree.text.strict_json import expect as expect
from sdtree.text.strict_json import parse as parse
from sdtree.text.strict_json import parts_in
from sdtree.text.strict_json import shortly as shortly
from sdtree.tree.scalars import is_plain, plain_dtype, scalar_of
from sdtree.typing import Path

T = TypeVar("T")


def dump(value: object, path: Path = ()) -> Json:
    """Return a plain value as JSON data; raise ``TypeError`` naming what JSON lacks."""
    cls = type(value)
    if value is None or cls in (bool, str) or _is_short(value):
        return value
    if cls in _DUMP:
        return {cls.__name__: _DUMP[cls](value)}
    if cls.__module__ == "numpy" and _is_scalar(value):
        return {"numpy": _scalar(value)}
    raise TypeError(
        f"{where(path)}: JSON cannot say a {cls.__qualname__}; turn it into a "
        "plain int, float, complex, bool, str or bytes first"
    )


def load(data: Json) -> Any:
    """Return the plain value that ``dump`` wrote; raise ``ValueError`` for any other.

    >>> load(dump(b"x")), load({"Size": [2, 3]})
    (b'x', torch.Size([2, 3]))
    """
    if data is None or type(data) in (bool, str, int, float):
        return data
    if len(expect(data, dict)) == 1:
        [(name, content)] = data.items()
        if name in _LOAD:
            return _LOAD[name](content)
    raise ValueError(f"{shortly(list(data))} names no plain value")


def _is_short(value: object) -> bool:
    """Return whether any reader of JSON takes the digits of a number as they are."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and value.bit_length() < 64


# -- numbers, bytes, tuples --------------------------------------------------------


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def _float(content: Json) -> float:
    bits = bytes.fromhex(expect(content, str))
    if len(bits) != 8:
        raise ValueError(f"{len(bits)} bytes for a float, which has 8")
    return struct.unpack(">d", bits)[0]


def _int(content: Json) -> int:
    return int(expect(content, str), 16)


def _complex(content: Json) -> complex:
    return complex(*map(_float, parts_in(content, 2)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(content: Json) -> bytes:
    return base64.b64decode(expect(content, str), validate=True)


def _tuple(content: Json) -> tuple[Any, ...]:
    return tuple(map(load, expect(content, list)))


def _buffer(content: Json) -> io.BytesIO:
    data, position = parts_in(content, 2)
    buffer = io.BytesIO(_bytes(data))
    buffer.seek(count(position))
    return buffer


# -- of numpy and torch ------------------------------------------------------------


def _is_scalar(value: Any) -> bool:
    """Return whether a numpy scalar is told by the name of its dtype and its bytes."""
    import numpy as np

    return isinstance(value, np.generic) and is_plain(value.dtype)


def _scalar(value: Any) -> Json:
    return [value.dtype.str, _text(value.tobytes())]


def _numpy(content: Json) -> Any:
    code, data = parts_in(content, 2)
    return scalar_of(plain_dtype(code), _bytes(data))


def _size(content: Json) -> torch.Size:
    sizes = [expect(size, int) for size in expect(content, list)]
    if all(-FAR <= size < FAR for size in sizes):
        return torch.Size(sizes)
    raise ValueError(f"{shortly(content)} is no size of a tensor")


def _device(content: Json) -> torch.device:
    try:
        return torch.device(expect(content, str))
    except RuntimeError:
        raise ValueError(f"torch has no device {shortly(content)}") from None


def _torch_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def of_torch(cls: type[T]) -> Callable[[Json], T]:
    """Return what finds the constants of a type, such as dtypes, by name in torch.

    Only what is there is looked at: asked for a name, torch may import a module.
    """

    def find(name: Json) -> T:
        found = vars(torch).get(expect(name, str))
        if not isinstance(found, cls):
            raise ValueError(f"torch has no {cls.__name__} {shortly(name)}")
        return found

    return find


_NAMED = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
_DUMP: dict[type, Callable[[Any], Json]] = {
    int: hex,
    float: _bits,
    complex: lambda z: [_bits(z.real), _bits(z.imag)],
    bytes: _text,
    tuple: lambda key: [dump(part) for part in key],
    torch.Size: list,
    torch.device: str,
    io.BytesIO: lambda buffer: [_text(buffer.getvalue()), buffer.tell()],
    **dict.fromkeys(_NAMED, _torch_name),
}
_LOAD: dict[str, Callable[[Json], Any]] = {
    "int": _int,
    "float": _float,
    "complex": _complex,
    "bytes": _bytes,
    "tuple": _tuple,
    "numpy": _numpy,
    "Size": _size,
    "device": _device,
    "BytesIO": _buffer,
    **{cls.__name__: of_torch(cls) for cls in _NAMED},
}
