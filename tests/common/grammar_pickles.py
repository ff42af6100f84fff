"""Files of torch as they may come from anyone: pickles built by their grammar, forged.

``foreign_pickles`` draws files, in which anything may be wrong; ``foreign_trees`` draws
trees with objects of classes of this module, which a reader that has not these classes
is to see as they are.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

RUN: list[str] = []
"""What was run that must not be."""


def boom(*args: object) -> None:
    RUN.append("boom")


NAMES = st.sampled_from(
    [
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
        *("torch._utils _rebuild_tensor", "torch._utils _rebuild_qtensor"),
        *("torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor"),
        *("torch._utils _rebuild_parameter_with_state", "torch.nn.parameter Parameter"),
        *("torch._utils _rebuild_nested_tensor", "torch._tensor _rebuild_from_type_v2"),
        *("torch._utils _rebuild_meta_tensor_no_storage", "torch FloatStorage"),
        *("torch._utils _rebuild_wrapper_subclass", "torch.storage UntypedStorage"),
        *("torch Tensor", "torch FloatTensor", "torch Size", "torch device"),
        *("torch float32", "torch qint8", "torch per_tensor_affine", "torch load"),
        *("torch.serialization _get_layout", "torch._dynamo optimize", "torch hub"),
        *("collections OrderedDict", "collections defaultdict", "collections deque"),
        *("collections Counter", "__builtin__ set", "__builtin__ frozenset"),
        *("__builtin__ bytearray", "__builtin__ complex", "_codecs encode"),
        *("__builtin__ getattr", "__builtin__ eval", "__builtin__ object", "os system"),
        *("copy_reg _reconstructor", "copyreg __newobj__", "copyreg __newobj_ex__"),
        *("_io BytesIO", "datetime datetime", "datetime timezone", "pathlib PosixPath"),
        *("numpy dtype", "numpy ndarray", "numpy._core.multiarray scalar"),
        *("numpy.core.multiarray _reconstruct", "numpy._core.numeric _frombuffer"),
        *("grammar_pickles boom", "grammar_pickles Thing", "this s", "antigravity fly"),
        *("sdtree.testing.samples Pair", "sdtree.testing.samples Layer"),
        *("sdtree.testing.samples State", "sdtree.testing.samples Rows"),
        *("sdtree.tree.containers ABSENT", "sdtree.io.pickles.foreign Foreign"),
        *("sdtree.kinds.shards restored", "sdtree.kinds.shards Shards"),
    ]
)
NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 255, 2**31 - 1, -1])
ON_RANK_0 = '{"shape":[],"boxes":[[[0],[[0,[],[],[]]]]],"partial":false,"doubt":""}'
TEXTS = st.sampled_from(
    [
        ON_RANK_0,
        *("w", "0", "storage", "cpu", "latin1", "idna", "f4", "O8", "|O", "V8", "M8"),
        *("<", ">", "|", "__class__", "__dict__", "items", "data", "torch.strided"),
    ]
)
KEYS = ("0", "1")
"""Under which a file has data."""


PUT = b"Nq\x000}q\x010]q\x020)q\x030"
"""What puts something at each place that parts refer to."""


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _name(value: str) -> bytes:
    module, _, name = value.partition(" ")
    return f"c{module}\n{name}\n".encode()


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _called(name: bytes, *args: bytes) -> bytes:
    return name + _tuple(*args) + b"R"


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


# -- parts of pickles: each leaves one object on the stack -------------------------


def atoms() -> SearchStrategy[bytes]:
    return st.one_of(
        st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f"]),
        NUMBERS.map(_int),
        TEXTS.map(_text),
        st.sampled_from([b"", b"\0" * 8, b"AAAAAAAA"]).map(_bytes),
        NAMES.map(_name),
        st.integers(0, 3).map(lambda place: b"h" + bytes([place])),
        claims(),
    )


def claims() -> SearchStrategy[bytes]:
    """Return texts and bytes that are said to be longer than any file."""
    long = st.builds(
        lambda kind, size: kind + struct.pack("<Q", size) + b"abc",
        st.sampled_from([b"\x8d", b"\x8e", b"\x96"]),
        st.sampled_from([2**33, 2**40, 2**60, 2**63 - 1, 2**64 - 1]),
    )
    short = st.sampled_from([b"X", b"B", b"T", b"\x8b"])
    return long | short.map(lambda kind: kind + struct.pack("<I", 2**31 - 1) + b"abc")


@st.composite
def tensors(draw: DrawFn) -> bytes:
    """Return a tensor, of sizes and strides that need not fit its storage."""
    kind = draw(st.sampled_from(["FloatStorage", "LongStorage", "UntypedStorage"]))
    key, count = draw(st.sampled_from([*KEYS, "2"])), draw(st.sampled_from([4, 4, 9]))
    place = (_text("storage"), _name(f"torch {kind}"), _text(key), _text("cpu"))
    storage = _tuple(*place, _int(count)) + b"Q"
    size = draw(st.lists(st.sampled_from([0, 1, 2, 2, 5, -1]), max_size=3))
    stride = draw(st.lists(st.sampled_from([0, 1, 2, 2**31 - 1]), max_size=3))
    if draw(st.booleans()):
        stride = [*stride, 1, 1, 1][: len(size)]
    numbers = (_tuple(*map(_int, group)) for group in (size, stride))
    offset = _int(draw(st.sampled_from([0, 0, 1, 99, -1])))
    rest = (b"\x89", _called(_name("collections OrderedDict")))
    name = _name("torch._utils _rebuild_tensor_v2")
    return _called(name, storage, offset, *numbers, *rest)


def arrays() -> SearchStrategy[bytes]:
    """Return arrays of numpy, of plain dtypes and of others."""

    def made(code: str, order: str, count: int, data: bytes) -> bytes:
        rest = (b"N", b"N", b"N", _int(-1), _int(-1), _int(0))
        state = _tuple(_int(3), _text(order), *rest) + b"b"
        dtype = _called(_name("numpy dtype"), _text(code), b"\x89", b"\x88") + state
        name = _name("numpy._core.multiarray _reconstruct")
        bare = _called(name, _name("numpy ndarray"), _tuple(_int(0)), _bytes(b"b"))
        shape = _tuple(_int(count))
        return bare + _tuple(_int(1), shape, dtype, b"\x89", _bytes(data)) + b"b"

    codes = st.sampled_from(["f4", "f8", "O8", "V8", "U1", "M8", "T"])
    data = st.sampled_from([b"", b"\0" * 8, b"A" * 16])
    return st.builds(made, codes, st.sampled_from("<>|?"), NUMBERS, data)


def objects(inner: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Return containers and objects over other parts."""
    several = st.lists(inner, max_size=3)
    pairs = st.lists(st.tuples(inner, inner), max_size=2).map(
        lambda found: b"".join(b"".join(pair) for pair in found)
    )
    args = several.map(lambda parts: _tuple(*parts))
    name = NAMES.map(_name)
    return st.one_of(
        args,
        several.map(lambda parts: b"](" + b"".join(parts) + b"e"),
        pairs.map(lambda parts: b"}(" + parts + b"u"),
        several.map(lambda parts: b"(" + b"".join(parts) + b"\x91"),
        several.map(lambda parts: b"\x8f(" + b"".join(parts) + b"\x90"),
        st.builds(lambda x, y: x + y + b"R", name, args),
        st.builds(lambda x, y: x + y + b"\x81", name, args),
        st.builds(lambda x, y: x + y + b"\x92", name, args.map(lambda a: a + b"}")),
        st.builds(lambda x, y: x + y + b"b", inner, inner),
        st.builds(lambda x, y: x + b"(" + y + b"u", inner, pairs),
        st.builds(lambda x, y: x + b"(" + b"".join(y) + b"e", inner, several),
        st.builds(lambda x, y: x + b"(" + b"".join(y) + b"\x90", inner, several),
        st.builds(lambda x, place: x + b"q" + bytes([place]), inner, st.integers(0, 3)),
    )


def laughs(depth: int) -> bytes:
    """Return a list of two that are one, and so on: small, and larger than all."""
    return b"](K\1K\1e" + b"q\0](h\0h\0e" * depth


# -- files -------------------------------------------------------------------------


@st.composite
def foreign_pickles(draw: DrawFn) -> bytes:
    """Return files in the format of torch, with parts of any class, true or forged."""
    part = st.recursive(atoms() | tensors() | arrays(), objects, max_leaves=6)
    deep = st.sampled_from([b"]" * 3000 + b"a" * 2999, laughs(60), laughs(2000)])
    body = draw(part if draw(st.integers(0, 9)) else deep)
    data = b"\x80\2" + PUT + body + b"."
    if draw(st.integers(0, 3)) == 0:
        data = _shuffled(draw, data)
    make = draw(st.sampled_from([zipped, zipped, zipped, old]))
    return make(data)


def _shuffled(draw: DrawFn, data: bytes) -> bytes:
    """Return a pickle with an operation left out, or moved."""
    try:
        starts = [place for _, _, place in pickletools.genops(data)]
    except (ValueError, OverflowError):
        return data
    ends = [*starts[1:], len(data)]
    operations = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    taken = operations.pop(draw(st.integers(0, len(operations) - 1)))
    if draw(st.booleans()):
        operations.insert(draw(st.integers(0, len(operations))), taken)
    return b"".join(operations)


def zipped(data: bytes) -> bytes:
    """Return an archive with a pickle and the data of some storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for key in KEYS:
            archive.writestr(f"a/data/{key}", bytes(32))
    return buffer.getvalue()


def old(data: bytes) -> bytes:
    """Return a file of the old format with a pickle and the data of its storages."""
    used = [key for key in KEYS if b"Q" in data and _text(key) in data]
    head = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}."
    keys = b"\x80\2](" + b"".join(map(_text, used)) + b"e."
    return head + data + keys + (struct.pack("<q", 4) + bytes(16)) * len(used)


# -- trees with objects of classes that a reader does not know ---------------------


class Thing:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Called:
    """An object that is made by a call."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return Called, self.args


class Listed(list[Any]):
    """A list of a class."""


class Mapped(dict[Any, Any]):
    """A dict of a class."""


FOREIGN = (Thing, Called, Listed, Mapped)
MOMENTS = st.sampled_from(
    [
        *(date(2024, 2, 29), datetime(2024, 2, 29, 1, 2, 3, 4), timedelta(1, 2, 3)),
        datetime(1999, 12, 31, tzinfo=timezone(timedelta(hours=1))),
        *(PurePosixPath("a/b"), PurePosixPath("/")),
    ]
)


def known_values() -> SearchStrategy[Any]:
    """Return plain values that are read as they are."""
    words = st.text(max_size=3)
    return st.one_of(
        *(st.integers(), st.floats(), st.booleans(), words, st.binary(max_size=4)),
        *(st.none(), MOMENTS, st.complex_numbers(), st.just(torch.ones(2))),
        st.sets(st.integers(0, 3) | words),
        st.frozensets(st.tuples(st.integers(0, 3), words)),
        st.binary(max_size=3).map(bytearray),
    )


def foreign_trees() -> SearchStrategy[Any]:
    """Return trees of values that are known, containers, and objects that are not."""
    return st.recursive(known_values(), _holders, max_leaves=8)


def _holders(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
    keys = st.text("abc", max_size=2) | st.integers(0, 3)
    pairs = st.dictionaries(keys, inner, max_size=3)
    makers: list[Callable[[Any], Any]] = [dict, OrderedDict, Mapped, _default, _counter]
    return st.one_of(
        st.builds(lambda make, found: make(found), st.sampled_from(makers), pairs),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda found: deque(found, 5)),
        st.lists(inner, max_size=3).map(Listed),
        st.lists(inner, max_size=3).map(lambda found: Called(*found)),
        inner.map(lambda x: Thing(x=x, same=x)),
        inner.map(lambda x: [x, x]),
    )


def _default(pairs: dict[Any, Any]) -> Any:
    return defaultdict(list, pairs)


def _counter(pairs: dict[Any, Any]) -> Any:
    new: Counter[Any] = Counter()
    dict.update(new, pairs)
    return new
