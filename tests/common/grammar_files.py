"""Forged files, drawn from the grammar of the formats and wrong at any node of it.

``forged_safetensors()`` and ``forged_zips()`` are strategies of the bytes of a file.
"""

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

import sdtree as sd
from sdtree.testing import arrays, plain_values, tensors, trees, views

EARLIER_FILE = Path(__file__).with_name("earlier.safetensors")
EARLIER = EARLIER_FILE.read_bytes()

COUNTS = [
    0,
    1,
    2,
    3,
    4,
    8,
    127,
    -1,
    -(2**63),
    2**31,
    2**32,
    2**62,
    2**63,
    2**64,
    10**30,
]
"""Sizes, offsets, strides and lengths as they should not be."""

# -- safetensors -------------------------------------------------------------------

DTYPES = ["F32", "U8", "BOOL", "F4", "F6_E2M3", "F8_E8M0", "C64", "F128", "f32", ""]
ATOMS: list[Any] = [
    *(
        None,
        True,
        False,
        *COUNTS,
        0.5,
        1e400,
        float("nan"),
        "",
        "a",
        "\ud800",
        "\x1b[31m",
    ),
    *([*DTYPES, "leaf", "absent", "dict", "list", "OrderedDict", "os.system", "O"]),
    *([], {}, [0], [1, -1], ["a"], [[[[[]]]]], {"a": 1}, {"": ""}, [0] * 100),
]
VALUES: list[Any] = [
    {"numpy": ["O", "QUFBQUFBQUE="]},
    {"numpy": ["<f8", "QUFBQUFBQUE="]},
    {"numpy": ["<f8", "QQ=="]},
    {"numpy": ["V1000000000", ""]},
    {"numpy": ["i4,O", "QUFB"]},
    {"numpy": ["M8[s]", "QUFBQUFBQUE="]},
    {"ndarray": ["O", [], True]},
    {"ndarray": ["<f4", [0, 7], True]},
    {"ndarray": [None, [-1], None]},
    {"ndarray": [">i4", [], True]},
    {"Parameter": True},
    {"Tensor": True},
    {"int": "0x" + "f" * 50},
    {"int": "zz"},
    {"float": "7ff8000000000000"},
    {"float": "7f"},
    {"complex": ["00", "00"]},
    {"bytes": "Q"},
    {"BytesIO": ["QQ==", -1]},
    {"BytesIO": ["QQ==", 2**70]},
    {"Size": [-1]},
    {"Size": ["a"]},
    {"device": "cuda:99"},
    {"device": "nowhere"},
    {"dtype": "float32"},
    {"dtype": "load"},
    {"layout": "strided"},
    {"tuple": [1, [2]]},
    {"type": "dict", "keys": ["a", "a"]},
    {"type": "dict", "size": 3},
    {"type": "list", "size": 10**15},
    {"type": "list", "size": -1},
    {"type": "Counter", "keys": [1, True, 1.0]},
    {"type": "defaultdict", "keys": [], "state": {"default_factory": "eval"}},
    {"type": "deque", "size": 1, "state": {"maxlen": {"spec": "leaf", "leaves": []}}},
    {"type": "tests.models:Evil", "keys": []},
    {"type": "builtins.eval", "keys": ["1"]},
]
"""What stands in a document, right and wrong."""

NODES = st.sampled_from(ATOMS) | st.sampled_from(VALUES)
SAVED = st.one_of(
    trees(
        tensors(meta=False, max_dims=2) | plain_values() | arrays(),
        unique_names=True,
        max_leaves=4,
    ),
    views(max_views=3),
    st.dictionaries(st.sampled_from("abc"), tensors(meta=False), max_size=3),
)


@st.composite
def forged_safetensors(draw: DrawFn) -> bytes:
    """Return safetensors files that may be wrong anywhere: in the header, its length,
    the document in its metadata, and the bytes after it.
    """
    header, data = split(draw(st.just(EARLIER) | SAVED.map(written)))
    where = draw(st.sampled_from(["document", "document", "header", "anywhere"]))
    metadata = header["__metadata__"]
    if where != "header":
        metadata["sdtree"] = draw(forged_json(json.loads(metadata["sdtree"])))
    if where == "document":
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data
    text = draw(forged_json(header)).encode()
    if where == "header":
        return struct.pack("<Q", len(text)) + text + data
    lie = draw(st.sampled_from([0, 0, 1, -1, 8, -8, 2**31, 2**63 - len(text) - 1]))
    length = min(max(len(text) + lie, 0), 2**64 - 1)
    cut = draw(st.sampled_from([0] * 12 + [1, 8, len(data)]))
    more = draw(st.sampled_from([b""] * 12 + [b"\0", b"{}" * 9]))
    return struct.pack("<Q", length) + text + data[: len(data) - cut] + more


def written(tree: object) -> bytes:
    """Return the safetensors file of a tree, of an empty one if it has no room."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        try:
            sd.save(tree, path)
        except (TypeError, ValueError):
            sd.save({}, path)
        return path.read_bytes()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    stop = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:stop]), content[stop:]


@st.composite
def forged_json(draw: DrawFn, data: Any) -> str:
    """Return JSON text like the data, with up to three of its nodes forged."""
    for _ in range(draw(st.integers(0, 3))):
        nodes = [*nodes_of(data)]
        values = [at for at in nodes if any(name in OF_VALUES for name in at[-2:-1])]
        at = draw(st.sampled_from(nodes) | st.sampled_from(values or nodes))
        changes = [_replace] if at in values else [_drop, _twice, _count, _replace]
        change = draw(st.sampled_from(changes))
        data = changed(data, at, lambda node, c=change: c(draw, node))
    return text_of(data)


class Pairs(list[Any]):
    """An object of JSON as pairs, in which a name may stand twice."""


OF_VALUES = {"plain", "kinds", "keys", "leaves"}
"""Under which names a document has values, such as those of ``VALUES``."""

DROPPED = object()


def _drop(draw: DrawFn, node: Any) -> Any:
    return DROPPED


def _twice(draw: DrawFn, node: Any) -> Any:
    if isinstance(node, dict):
        pairs = list(node.items())
        return Pairs(
            pairs + draw(st.lists(st.sampled_from(pairs or [("", 0)]), max_size=2))
        )
    return [node, node]


def _count(draw: DrawFn, node: Any) -> Any:
    near = [node - 1, node + 1] if type(node) is int else []
    return draw(st.sampled_from(COUNTS + near))


def _replace(draw: DrawFn, node: Any) -> Any:
    return draw(NODES)


def nodes_of(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each node of JSON data."""
    yield at
    for key, node in inner_of(data).items():
        yield from nodes_of(node, (*at, key))


def inner_of(data: Any) -> dict[Any, Any]:
    """Return what a node of JSON data holds, by key or index."""
    if isinstance(data, dict):
        return dict(data)
    return dict(enumerate(data)) if type(data) is list else {}


def changed(data: Any, at: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return JSON data with one of its nodes changed, or without it."""
    if not at:
        return change(data)
    inner = inner_of(data)
    inner[at[0]] = changed(inner[at[0]], at[1:], change)
    kept = {key: node for key, node in inner.items() if node is not DROPPED}
    return kept if isinstance(data, dict) else list(kept.values())


def text_of(data: Any) -> str:
    """Return JSON text, also of what JSON should not say."""
    if isinstance(data, dict | Pairs):
        pairs = data.items() if isinstance(data, dict) else data
        inside = ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in pairs)
        return f"{{{inside}}}"
    if isinstance(data, list):
        return f"[{','.join(map(text_of, data))}]"
    return "" if data is DROPPED else json.dumps(data)


# -- zips --------------------------------------------------------------------------


def name(module: str, attribute: str) -> bytes:
    """Return the opcode that names something."""
    return f"c{module}\n{attribute}\n".encode()


def many(parts: list[bytes]) -> bytes:
    """Return the opcodes of a tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(what: bytes, *parts: bytes) -> bytes:
    """Return the opcodes of a call."""
    return what + many([*parts]) + b"R"


def plain(x: object) -> bytes:
    """Return the opcodes of a plain value, without those around them."""
    return pickle.dumps(x, protocol=2)[2:-1]


GLOBALS = [
    *(name("os", "system"), name("builtins", "eval"), name("antigravity", "fly")),
    *(name("collections", "OrderedDict"), name("collections", "Counter")),
    *(name("builtins", "set"), name("_codecs", "encode"), name("torch", "Size")),
    *(name("torch", "device"), name("torch", "float32"), name("numpy", "dtype")),
    *(name("torch._utils", "_rebuild_tensor_v2"), name("torch", "FloatStorage")),
    *(name("torch._utils", "_rebuild_parameter"), name("numpy", "ndarray")),
    *(name("torch._utils", "_rebuild_sparse_tensor"), name("torch", "_tensor")),
    *(name("torch._utils", "_rebuild_qtensor"), name("torch", "UntypedStorage")),
    *(name("torch._utils", "_rebuild_wrapper_subclass"), name("torch", "Tensor")),
    *(name("torch._utils", "_rebuild_meta_tensor_no_storage"), name("", "")),
    *(name("numpy._core.multiarray", "_reconstruct"), name("argparse", "Namespace")),
    *(
        name("numpy._core.multiarray", "scalar"),
        name("sdtree.tree.containers", "ABSENT"),
    ),
    *(name("datetime", "datetime"), name("pathlib", "PosixPath"), name("a", "b.c")),
]
OF_STORAGES = ["FloatStorage", "DoubleStorage", "ByteStorage", "BoolStorage"]
NUMBERS = st.sampled_from(COUNTS) | st.integers(0, 4)


@st.composite
def storages(draw: DrawFn) -> bytes:
    """Return the opcodes of a storage that a record of the file holds, or should."""
    kind = draw(st.sampled_from([*OF_STORAGES, "UntypedStorage", "Size"]))
    key = draw(st.sampled_from(["0", "0", "1", "2", "../0", "", "0/0"]))
    place = draw(st.sampled_from(["cpu", "cpu", "cpu", "meta", "cuda:0", "nowhere"]))
    parts = [plain("storage"), name("torch", kind), plain(key), plain(place)]
    return many([*parts, plain(draw(NUMBERS))]) + b"Q"


@st.composite
def pickled_tensors(draw: DrawFn) -> bytes:
    """Return the opcodes of tensors of any sizes, strides and offsets."""
    size, stride = (
        draw(st.lists(NUMBERS, max_size=3)),
        draw(st.lists(NUMBERS, max_size=3)),
    )
    if draw(st.booleans()):
        stride = [1] * len(size)
    hooks = call(name("collections", "OrderedDict"))
    parts = [plain(draw(NUMBERS)), plain(tuple(size)), plain(tuple(stride))]
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    made = call(rebuild, draw(storages()), *parts, plain(draw(st.booleans())), hooks)
    if draw(st.booleans()):
        return made
    return call(name("torch._utils", "_rebuild_parameter"), made, plain(True), hooks)


@st.composite
def pickled_arrays(draw: DrawFn) -> bytes:
    """Return the opcodes of numpy arrays and scalars, of any dtype and state."""
    code = draw(
        st.sampled_from(["f8", "<i4", "O", "O8", "V8", "U1", "M8", "f8,O", "x"])
    )
    dtype = call(name("numpy", "dtype"), plain(code), plain(False), plain(True))
    state = (3, draw(st.sampled_from("<>|=O")), None, None, None, -1, -1, 0)
    dtype += plain(draw(st.sampled_from([state, state, state[:4], (*state, 3), None])))
    dtype += b"b"
    text = draw(st.sampled_from(["A" * 8, "", "A" * 64]))
    data = call(name("_codecs", "encode"), plain(text), plain("latin1"))
    if draw(st.booleans()):
        return call(name("numpy._core.multiarray", "scalar"), dtype, data)
    empty = call(name("numpy", "ndarray"), plain((0,)), plain(b"b"))
    rebuild = name("numpy._core.multiarray", "_reconstruct")
    if draw(st.booleans()):
        parts = [name("numpy", "ndarray"), plain((0,)), plain(b"b")]
        empty = call(rebuild, *parts)
    shape = plain(tuple(draw(st.lists(NUMBERS, max_size=2))))
    return (
        empty + many([plain(1), shape, dtype, plain(draw(st.booleans())), data]) + b"b"
    )


def pickled() -> SearchStrategy[bytes]:
    """Return the opcodes of values of every sort, of those that none may load, too."""
    simple = st.one_of(
        plain_values().filter(lambda x: type(x) is not io.BytesIO).map(plain),
        pickled_tensors(),
        pickled_tensors(),
        pickled_arrays(),
        storages(),
        st.sampled_from(GLOBALS),
        st.sampled_from([b"h\0", b"h\1", b"j\xff\xff\xff\x7f", b"0", b"R", b"b", b"e"]),
    )
    return st.recursive(simple, _containers, max_leaves=6)


def _containers(inner: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    several = st.lists(inner, max_size=3)
    keys = st.sampled_from([plain(key) for key in ("a", "b", 0, True, (1,), None)])
    pairs = st.lists(st.tuples(keys, inner).map(b"".join), max_size=3)
    called = st.tuples(st.sampled_from(GLOBALS), several)
    return st.one_of(
        several.map(lambda xs: b"](" + b"".join(xs) + b"e"),
        several.map(many),
        pairs.map(lambda xs: b"}(" + b"".join(xs) + b"u"),
        pairs.map(lambda xs: call(GLOBALS[3]) + b"(" + b"".join(xs) + b"u"),
        called.map(lambda found: call(found[0], *found[1])),
        st.tuples(inner, inner).map(lambda both: b"%sb" % b"".join(both)),
        inner.map(lambda x: b"]q\0(" + x + b"h\0e"),  # holds itself
        inner.map(shared_lists),
    )


def shared_lists(x: bytes) -> bytes:
    """Return lists that each hold the one before twice: few bytes and many leaves."""
    levels = (b"q%c](h%ch%ce" % (k, k, k) for k in range(2, 40))
    return b"](" + x + b"e" + b"".join(levels)


@st.composite
def forged_zips(draw: DrawFn) -> bytes:
    """Return .pt files that may be wrong anywhere: in what they pickle, in the records
    that hold their data, and in how the zip tells of them.
    """
    records = draw(st.one_of(forged_records(), SAVED.map(saved_records)))
    for _ in range(draw(st.integers(0, 2))):
        records = draw(st.sampled_from(RECORD_CHANGES))(draw, records)
    whole = bytearray(zipped(draw, records))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, max(len(whole) - 1, 0)))
        whole[at : at + 1] = bytes([draw(st.integers(0, 255))])
    cut = draw(st.sampled_from([0] * 8 + [1, 22, 100]))
    return bytes(whole[: len(whole) - cut])


Records = list[tuple[str, bytes]]


@st.composite
def forged_records(draw: DrawFn) -> Records:
    """Return the records of a .pt file of parts that were never saved."""
    made = [b"\x80\2", draw(pickled()), b"."]
    sizes = draw(st.lists(st.sampled_from([0, 1, 8, 64]), max_size=3))
    data = [(f"archive/data/{i}", bytes(range(n))) for i, n in enumerate(sizes)]
    return [("archive/data.pkl", b"".join(made)), *data, ("archive/version", b"3\n")]


def saved_records(tree: object) -> Records:
    """Return the records of a .pt file of a tree."""
    from zipfile import ZipFile

    buffer = io.BytesIO()
    try:
        torch.save(tree, buffer)
    except RuntimeError:  # it has views of several dtypes
        torch.save([], buffer)
    with ZipFile(buffer) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _renamed(draw: DrawFn, records: Records) -> Records:
    k = draw(st.integers(0, len(records) - 1))
    head = records[k][0].partition("/")[0]
    new = ["../x", "/x", "x" * 300, "", f"{head}/data/9", f"{head}/constants.pkl"]
    new += [f"{head}/code/x.py", f"{head}/byteorder", f"{head}/.format_version"]
    return [
        *records[:k],
        (draw(st.sampled_from(new)), records[k][1]),
        *records[k + 1 :],
    ]


def _without(draw: DrawFn, records: Records) -> Records:
    k = draw(st.integers(0, len(records) - 1))
    return [*records[:k], *records[k + 1 :]] or records


def _doubled(draw: DrawFn, records: Records) -> Records:
    return [*records, draw(st.sampled_from(records))]


def _resized(draw: DrawFn, records: Records) -> Records:
    k = draw(st.integers(0, len(records) - 1))
    name, data = records[k]
    new = draw(
        st.sampled_from([b"", data[:-1], data + b"\0", data * 2, b"big", b"\xff" * 9])
    )
    return [*records[:k], (name, new), *records[k + 1 :]]


RECORD_CHANGES = [_renamed, _without, _doubled, _resized]


def zipped(draw: DrawFn, records: Records) -> bytes:
    """Return a zip of records, some of whose numbers may be lies."""
    lie = draw(
        st.sampled_from([None] * 6 + ["size", "packed", "method", "offset", "crc"])
    )
    liar = draw(st.integers(0, len(records) - 1))
    number = draw(st.sampled_from([0, 1, 8, 12, 99, 2**31, 2**32 - 1]))
    deflate = draw(st.sampled_from([False] * 5 + [True]))
    body, directory = b"", b""
    for k, (name, data) in enumerate(records):
        raw = zlib.compress(data, 9)[2:-4] if deflate else data
        told = {"method": 8 if deflate else 0, "crc": zlib.crc32(data)}
        told |= {"packed": len(raw), "size": len(data), "offset": len(body)}
        encoded = name.encode()
        gap = -(len(body) + 30 + len(encoded) + 4) % 64
        extra = struct.pack("<HH", 0x4246, gap) + b"Z" * gap
        if k == liar and lie:
            told[lie] = number % 2**16 if lie == "method" else number
        common = struct.pack(
            *("<HHHHHIIIHH", 20, 0, told["method"], 0, 0, told["crc"]),
            *(told["packed"], told["size"], len(encoded)),
            len(extra),
        )
        directory += b"PK\1\2" + struct.pack("<H", 20) + common[:-2] + b"\0\0"
        directory += struct.pack("<HHHII", 0, 0, 0, 0, told["offset"]) + encoded
        body += b"PK\3\4" + common + encoded + extra + raw
    count = (
        len(records) if lie != "crc" else draw(st.sampled_from([0, len(records), 99]))
    )
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end
