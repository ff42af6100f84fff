"""Plain values and specs as JSON, bit for bit, and back without importing anything."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdtree.container import ABSENT, State, is_portable, type_name, type_named
from sdtree.errors import UnknownContainer
from sdtree.path import where
from sdtree.shapes import is_mapping
from sdtree.treespec import LEAF, Node, Shape, TreeSpec, node_of, take
from sdtree.typing import Path

Json = Any
FACTORIES: dict[str, Any] = {
    cls.__name__: cls for cls in (list, dict, int, float, str, bytes, bool, set, tuple)
}


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
    """Return the plain value that ``dump`` wrote."""
    if not isinstance(data, dict):
        return data
    [(name, content)] = data.items()
    return _LOAD[name](content)


def _is_short(value: object) -> bool:
    """Return whether any reader of JSON takes the digits of a number as they are."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and value.bit_length() < 64


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def _float(bits: str) -> float:
    return struct.unpack(">d", bytes.fromhex(bits))[0]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _buffer(content: tuple[str, int]) -> io.BytesIO:
    buffer = io.BytesIO(base64.b64decode(content[0]))
    buffer.seek(content[1])
    return buffer


def _is_scalar(value: Any) -> bool:
    """Return whether a numpy scalar is told by the name of its dtype and its bytes."""
    import numpy as np

    dtype = getattr(value, "dtype", None)
    plain = isinstance(value, np.generic) and dtype == np.dtype(value.dtype.str)
    return plain and not value.dtype.hasobject


def _scalar(value: Any) -> Json:
    return [value.dtype.str, _text(value.tobytes())]


def _numpy(content: tuple[str, str]) -> Any:
    import numpy as np

    dtype = np.dtype(content[0])
    return np.ndarray((), dtype, base64.b64decode(content[1]))[()]


def _torch_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _of_torch(cls: type) -> Callable[[str], Any]:
    """Return what finds the constants of a type, such as dtypes, by name in torch."""

    def find(name: str) -> Any:
        found = getattr(torch, name, None)
        if not isinstance(found, cls):
            raise ValueError(f"torch has no {cls.__name__} {name!r}")
        return found

    return find


_NAMED = (torch.dtype, torch.layout, torch.memory_format)
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
_LOAD: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "float": _float,
    "complex": lambda parts: complex(*map(_float, parts)),
    "bytes": base64.b64decode,
    "tuple": lambda parts: tuple(map(load, parts)),
    "numpy": _numpy,
    "Size": torch.Size,
    "device": torch.device,
    "BytesIO": _buffer,
    **{cls.__name__: _of_torch(cls) for cls in _NAMED},
}


# -- specs -------------------------------------------------------------------------


def dump_spec(spec: TreeSpec) -> str:
    """Return a spec as JSON text."""
    return json.dumps(dump_shape(spec.shape))


def load_spec(text: str) -> TreeSpec:
    """Return the spec that ``dump_spec`` wrote."""
    try:
        return TreeSpec(load_shape(json.loads(text)))
    except UnknownContainer:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not the JSON of a TreeSpec: {error!r}") from error


def dump_shape(shape: Shape, path: Path = ()) -> Json:
    """Return a shape as JSON data; raise ``TypeError`` naming what JSON lacks."""
    if not isinstance(shape, Node):
        return "leaf" if shape is LEAF else "absent"
    if not is_portable(shape.cls):
        name = shape.cls.__qualname__
        raise TypeError(
            f"{where(path)}: the container {name} can be read back only by a process "
            f"that registered it; call sd.register_container({name})"
        )
    data: dict[str, Json] = {"type": type_name(shape.cls)}
    if isinstance(shape.keys, range):
        data["size"] = len(shape.keys)
    else:
        data["keys"] = [_dump_key(key, path) for key in shape.keys]
    if shape.children is not None:
        parts = zip(shape.keys, shape.children, strict=True)
        data["children"] = [dump_shape(child, (*path, key)) for key, child in parts]
    if shape.aux:
        data["state"] = {
            name: _dump_state(name, value, path) for name, value in shape.aux.items()
        }
    return data


def load_shape(data: Json) -> Shape:
    """Return the shape that ``dump_shape`` wrote."""
    if data in ("leaf", "absent"):
        return LEAF if data == "leaf" else ABSENT
    cls = type_named(data["type"])
    keys = _load_keys(cls, data)
    state = {
        name: _load_state(name, part) for name, part in data.get("state", {}).items()
    }
    aux = State(state) if state else None
    if "children" not in data:
        return Node(cls, keys, None, aux)
    children = [load_shape(child) for child in data["children"]]
    if len(children) != len(keys):
        raise IndexError(f"{len(keys)} keys and {len(children)} children")
    return node_of(cls, keys, children, aux)


def _load_keys(cls: type, data: Json) -> Sequence[Any]:
    """Return the keys of a container: those that stand there, or its indices."""
    if "size" not in data:
        return tuple(map(load, data["keys"]))
    size = data["size"]
    if type(size) is not int or size < 0 or is_mapping(cls):
        raise ValueError(f"a {cls.__name__} of size {size!r}")
    return range(size)


def _dump_key(key: object, path: Path) -> Json:
    try:
        return dump(key)
    except TypeError:
        raise TypeError(
            f"{where((*path, key))}: JSON cannot say the key {key!r} of type "
            f"{type(key).__qualname__}; rename it to a str or an int"
        ) from None


def _dump_state(name: str, value: object, path: Path) -> Json:
    """Return a part of a container's state: a factory by name, the rest as a tree."""
    if name == "default_factory":
        return _factory_name(value, path)
    found, spec = take(value)
    places = [(*path, f"<{name}>", *inner) for inner in spec.paths()]
    return {
        "spec": dump_shape(spec.shape, path),
        "leaves": [
            dump(leaf, place) for leaf, place in zip(found, places, strict=True)
        ],
    }


def _factory_name(factory: Any, path: Path) -> str | None:
    name = getattr(factory, "__name__", "")
    if factory is None or FACTORIES.get(name) is factory:
        return name or None
    raise TypeError(
        f"{where(path)}: JSON cannot say the default_factory {factory!r}; "
        f"use one of {', '.join(FACTORIES)}"
    )


def _load_state(name: str, data: Json) -> Any:
    if name == "default_factory":
        return data and FACTORIES[data]
    return TreeSpec(load_shape(data["spec"])).make(map(load, data["leaves"]))
