"""Plain values and specs as JSON, bit for bit, and back without importing anything."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sdtree.container import ABSENT, State, is_portable, type_name, type_named
from sdtree.path import where
from sdtree.tree import LEAF, Node, Shape, TreeSpec, node_of, take
from sdtree.typing import Path

Json = Any
FACTORIES: dict[str, Any] = {
    cls.__name__: cls for cls in (list, dict, int, float, str, bytes, bool, set, tuple)
}


def dump(value: object, path: Path = ()) -> Json:
    """Return a plain value as JSON data; raise ``TypeError`` naming what JSON lacks."""
    cls = type(value)
    if value is None or cls in (bool, int, str) or _is_finite(value):
        return value
    if cls not in _DUMP:
        raise TypeError(
            f"{where(path)}: JSON cannot say a {cls.__qualname__}; turn it into a "
            "plain int, float, complex, bool, str or bytes first"
        )
    return {cls.__name__: _DUMP[cls](value)}


def load(data: Json) -> Any:
    """Return the plain value that ``dump`` wrote."""
    if not isinstance(data, dict):
        return data
    [(name, content)] = data.items()
    return _LOAD[name](content)


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


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


def _torch_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch")
    return found


_DUMP: dict[type, Callable[[Any], Json]] = {
    float: _bits,
    complex: lambda z: [_bits(z.real), _bits(z.imag)],
    bytes: _text,
    tuple: lambda key: [dump(part) for part in key],
    torch.Size: list,
    torch.dtype: _torch_name,
    torch.device: str,
    io.BytesIO: lambda buffer: [_text(buffer.getvalue()), buffer.tell()],
}
_LOAD: dict[str, Callable[[Any], Any]] = {
    "float": _float,
    "complex": lambda parts: complex(*map(_float, parts)),
    "bytes": base64.b64decode,
    "tuple": lambda parts: tuple(map(load, parts)),
    "Size": torch.Size,
    "dtype": _dtype,
    "device": torch.device,
    "BytesIO": _buffer,
}


# -- specs -------------------------------------------------------------------------


def dump_spec(spec: TreeSpec) -> str:
    """Return a spec as JSON text."""
    return json.dumps(_dump_shape(spec.shape, ()))


def load_spec(text: str) -> TreeSpec:
    """Return the spec that ``dump_spec`` wrote."""
    try:
        return TreeSpec(_load_shape(json.loads(text)))
    except (KeyError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not the JSON of a TreeSpec: {error!r}") from error


def _dump_shape(shape: Shape, path: Path) -> Json:
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
        data["children"] = [_dump_shape(child, (*path, key)) for key, child in parts]
    if shape.aux:
        data["state"] = {
            name: _dump_state(name, value, path) for name, value in shape.aux.items()
        }
    return data


def _load_shape(data: Json) -> Shape:
    if data in ("leaf", "absent"):
        return LEAF if data == "leaf" else ABSENT
    cls = type_named(data["type"])
    keys: Sequence[Any] = (
        range(data["size"]) if "size" in data else tuple(map(load, data["keys"]))
    )
    state = {name: _load_state(name, part) for name, part in data.get("state", {}).items()}
    aux = State(state) if state else None
    if "children" not in data:
        return Node(cls, keys, None, aux)
    children = [_load_shape(child) for child in data["children"]]
    if len(children) != len(keys):
        raise IndexError(f"{len(keys)} keys and {len(children)} children")
    return node_of(cls, keys, children, aux)


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
        if value is not None and FACTORIES.get(getattr(value, "__name__", "")) is not value:
            raise TypeError(
                f"{where(path)}: JSON cannot say the default_factory {value!r}; use one "
                f"of {', '.join(FACTORIES)}"
            )
        return value and getattr(value, "__name__", None)
    found, spec = take(value)
    places = [(*path, f"<{name}>", *inner) for inner in spec.paths()]
    return {
        "spec": _dump_shape(spec.shape, path),
        "leaves": [dump(leaf, place) for leaf, place in zip(found, places, strict=True)],
    }


def _load_state(name: str, data: Json) -> Any:
    if name == "default_factory":
        return data and FACTORIES[data]
    return TreeSpec(_load_shape(data["spec"])).make(map(load, data["leaves"]))


def dump_leaves(spec: TreeSpec, leaves: Mapping[int, object]) -> dict[str, Json]:
    """Return plain leaves, given by position, as JSON data."""
    paths = spec.paths()
    return {str(i): dump(leaf, paths[i]) for i, leaf in leaves.items()}
