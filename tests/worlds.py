"""Worlds: trees as users bring them, drawn as the code that makes them.

A ``World`` is text, so that it can be made again, sent to other processes, and pasted
into a test. ``worlds()`` draws them.
"""

import enum
import io
import time
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

from sdtree import ABSENT
from sdtree.testing import Color, Layer, Pair, Rows, State, dense


@dataclass(frozen=True)
class World:
    """A tree, as the lines that make what it shares and the expression of it."""

    lines: tuple[str, ...]
    tree: str

    def build(self):
        """Return the tree, made anew."""
        names = dict(NAMES)
        exec("\n".join(self.lines), names)
        return eval(self.tree, names)


# -- what the code may call --------------------------------------------------------


class Small(enum.IntEnum):
    ZERO = 0
    ONE = 1


class Word(enum.StrEnum):
    W = "w"


class Text(str):
    """A str of a type of its own."""


class Open(dict):
    """A dict whose keys are attributes by properties of the class, and one more."""

    note = "none"


class Three(NamedTuple):
    x: Any
    y: Any
    z: Any = None


@dataclass
class Slotted:
    """A dataclass with slots."""

    __slots__ = ("left", "right")
    left: Any
    right: Any


@dataclass
class Partly:
    """A dataclass of which a field is not set, and another attribute is."""

    here: Any
    there: Any = field(init=False)


def ordered(*pairs):
    """Return what ``Module.state_dict`` does: an OrderedDict that has metadata."""
    new = OrderedDict(pairs)
    modules = {"": {"version": 1}, **{str(key): {"version": 2} for key, _ in pairs}}
    new._metadata = OrderedDict(modules)
    return new


def turned(*pairs):
    """Return an OrderedDict whose order is not that in which it was filled."""
    new = OrderedDict(pairs)
    for key in list(new)[:1]:
        new.move_to_end(key)
    return new


def state(*pairs):
    new = State(3)
    new.update(pairs)
    return new


def opened(*pairs):
    new = Open(pairs)
    new.note = "kept"
    return new


def layer(weight, bias):
    new = object.__new__(Layer)
    new.weight, new.bias = weight, bias
    return new


def partly(here):
    new = Partly(here)
    new.extra = (1, -0.0)
    return new


def rows(*children):
    new = Rows(children)
    new.label = "rows"
    return new


def deep(depth, tree):
    """Return a tree below many containers, lists and dicts in turn."""
    for i in range(depth):
        tree = [tree] if i % 2 else {"a": tree}
    return tree


def wide(width, tree):
    return {f"k{i}": tree for i in range(width)}


def frozen(array):
    array = array.view()
    array.flags.writeable = False
    return array


def noted(t):
    t = t.detach()
    t.note = "kept"
    return t


def learned(t):
    """Return a tensor that requires grad and is a leaf of the graph."""
    return t.detach().requires_grad_()


def computed(t):
    """Return a tensor inside a graph."""
    return learned(t) * 1


def buffer(data, position):
    new = io.BytesIO(data)
    new.seek(position)
    return new


def shown(array):
    """Return a tensor over the memory of an array."""
    return torch.from_numpy(array)


NAMES = {
    **{"torch": torch, "np": np, "time": time, "ABSENT": ABSENT, "Color": Color},
    **{"OrderedDict": OrderedDict, "defaultdict": defaultdict, "deque": deque},
    **{"UserDict": UserDict, "UserList": UserList, "Pair": Pair, "dense": dense},
    **{"Small": Small, "Word": Word, "Text": Text, "Three": Three, "layer": layer},
    **{"Slotted": Slotted, "partly": partly, "ordered": ordered, "turned": turned},
    **{"state": state, "opened": opened, "rows": rows, "deep": deep, "wide": wide},
    **{"frozen": frozen, "noted": noted, "learned": learned, "computed": computed},
    **{"buffer": buffer, "shown": shown, "Parameter": Parameter},
    **{"TwoTensor": TwoTensor, "set_": torch.Tensor.set_},
}

# -- leaves ------------------------------------------------------------------------

DTYPES = "float32 float64 float16 bfloat16 float8_e4m3fn int8 uint8 int64 bool".split()
DTYPES += "uint16 complex64 complex32 complex128 int32 float8_e5m2 uint64".split()
VIEWS = (
    *("{}", "{}.detach()", "{}.view(4, 6)", "{}.view(4, 6).t()", "{}[2:5]", "{}[20:]"),
    *(
        "{}[::2]",
        "{}[1::2]",
        "{}[:0]",
        "{}[3]",
        "{}[7:8].view(())",
        "{}[6].expand(2, 2)",
    ),
    *("{}.view(4, 6)[:, 0].expand(2, 4)", "{}.as_strided((2, 2), (4, 4), 1)"),
    *("{}.view(4, 6)[:, 1:3]", "{}.view(2, 12).chunk(3, dim=1)[0]"),
    *("{}.view(2, 12).chunk(3, dim=1)[1]", "{}.view(2, 12).chunk(3, dim=1)[2]"),
    *("{}.as_strided((3, 2), (2, 1), 4)", "{}.view(torch.uint8)", "{}.conj()"),
    *("{}.view(torch.uint8)[3:9]", "Parameter({}.view(4, 6), requires_grad=False)"),
    *("noted({}[4:8])", "{}.view(4, 6)[::3]", "{}.as_strided((3,), (9,), 2)"),
    *("{}.clone()", "{}.to('meta')", "{}.view(2, 3, 4).permute(2, 0, 1)"),
)
FLOAT_VIEWS = (
    *("Parameter({})", "learned({})", "computed({})", "learned({}[3:7])"),
    "TwoTensor({0}[:4], {0}[4:8])",
)
DOUBLED = {"complex64": "float32", "complex128": "float64"}
ARRAYS = ("<f4", ">f4", "<f8", "<f2", "<i8", ">i4", "?", "<u2", "<c8", "S3", "<U2")
ARRAYS += ("M8[s]", "V3", "i1,<f4", "<f4,<i8", "V0", "<c16", "g")
CUTS = (
    *("{}", "{}[2:5]", "{}[::-1]", "{}.reshape(3, 4)", "{}.reshape(3, 4).T", "{}[:0]"),
    *("{}[3:4].reshape(())", "{}[4]", "{}[::2]", "frozen({}[1:])", "{}[:1]", "{}[7:]"),
    *("np.broadcast_to({}[:3], (2, 3))", "{}.copy()", "{}.reshape(3, 4)[1:, ::-2]"),
)
FIELDS = ("{}['f1']", "{}['f1'][2:4]", "{}[0]['f0']")
SHOWN = ("shown({}[1:4])", "shown({}[:4])", "shown({})", "shown({}.reshape(3, 4))")
SPARSE = (
    *("torch.eye(3).to_sparse()", "torch.eye(3).to_sparse_csr()"),
    "torch.eye(3).to_sparse_csc()",
    "torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,))",
    "torch.eye(4).to_sparse_bsr((2, 2))",
)
QUANTIZED = (
    "torch.quantize_per_tensor(torch.arange(4.0), 0.5, 3, torch.qint8)",
    "torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([0.5, 0.1]), "
    "torch.tensor([0, 1]), 0, torch.quint8)",
)
PLAIN = (
    *("None", "True", "1", "0", "1.0", "0.0", "-0.0", "float('nan')", "float('inf')"),
    *("'text'", "''", "b'bytes'", "2**70", "1+2j", "complex(-0.0, 0.0)", "Color.RED"),
    *("Small.ONE", "Word.W", "Text('w')", "torch.float32", "torch.Size([2, 3])"),
    *("torch.device('cpu')", "torch.strided", "buffer(b'abc', 1)", "np.float32(0.5)"),
    *(
        "np.int64(7)",
        "np.datetime64('2020-01-01')",
        "np.void(b'abc')",
        "np.bool_(True)",
    ),
    *("np.str_('é')", "np.complex64(1j)", "'\\ud800'", "torch.preserve_format"),
)


@st.composite
def _bases(draw):
    """Return lines that make storages and arrays, and the leaves over them."""
    lines, leaves = [], []
    for i in range(draw(st.integers(0, 2))):
        dtype = draw(st.sampled_from(DTYPES))
        lines.append(f"b{i} = dense((24,), torch.{dtype}, {draw(st.integers(0, 9))})")
        views = [*VIEWS]
        if dtype.startswith(("float", "bfloat")) and "8" not in dtype:
            views += FLOAT_VIEWS
        views += ["{}.conj().imag"] * (dtype in DOUBLED)
        views += ["{}.numpy()[2:7]", "{}.numpy()"] * (dtype in ("float32", "int64"))
        leaves += [view.format(f"b{i}") for view in views]
    for i in range(draw(st.integers(0, 1))):
        dtype = draw(st.sampled_from(ARRAYS))
        flat = f"np.frombuffer(bytes(range(192)) * 2, 'u1')[: 12 * np.dtype({dtype!r}).itemsize].copy()"
        lines.append(
            f"n{i} = np.zeros(12, {dtype!r})"
            if dtype in ("V0", "<U2")
            else f"n{i} = {flat}.view({dtype!r})"
        )
        cuts = [*CUTS, *FIELDS] if "," in dtype else [*CUTS]
        cuts += SHOWN if dtype in ("<f4", "<f8", "<i8", "<c8", "<f2") else ()
        leaves += [cut.format(f"n{i}") for cut in cuts]
    return lines, leaves


KEYS = (
    *("'w'", "'b'", "0", "'0'", "1", "'a.b'", "'weight'", "''", "'module'", "None"),
    *("True", "1.0", "0.0", "-0.0", "False", "b'k'", "(0, 'w')", "(False, 'w')", "-1"),
    *("Small.ONE", "Word.W", "Text('w')", "Color.RED", "'é'", "'a*'", "2.5", "'w.b'"),
    *("frozenset({1})", "2**70", "np.int64(1)", "('',)"),
)
TWINS = {
    "1": ("True", "1.0", "Small.ONE", "np.int64(1)"),
    "0": ("False", "0.0", "-0.0", "Small.ZERO"),
    "'w'": ("Word.W", "Text('w')"),
    "(0, 'w')": ("(False, 'w')", "(0.0, 'w')", "(0, Word.W)"),
    "0.0": ("-0.0", "0"),
}
MAPPINGS = (
    *("dict([{}])", "dict([{}])", "dict([{}])", "OrderedDict([{}])", "ordered({})"),
    *("turned({})", "state({})", "opened({})", "defaultdict(list, [{}])"),
    "UserDict([{}])",
)
SEQUENCES = (
    *("[{}]", "[{}]", "({},)", "rows({})", "deque([{}], maxlen=9)", "UserList([{}])"),
)


def _mapping(make, pairs):
    return make.format(", ".join(f"({key}, {child})" for key, child in pairs))


def _containers(children):
    keys = st.lists(st.sampled_from(KEYS), max_size=4, unique=True)
    pairs = keys.flatmap(
        lambda ks: st.tuples(*[st.tuples(st.just(k), children) for k in ks])
    )
    mappings = st.builds(_mapping, st.sampled_from(MAPPINGS), pairs)
    several = st.lists(st.one_of(children, children, st.just("ABSENT")), max_size=3)
    sequences = st.builds(
        lambda make, xs: make.format(", ".join(xs)) if xs else "[]",
        st.sampled_from(SEQUENCES),
        several,
    )
    two = st.tuples(children, children)
    fixed = st.builds(
        lambda make, both: f"{make}({both[0]}, {both[1]})",
        st.sampled_from(["Pair", "layer", "Three", "Slotted"]),
        two,
    )
    odd = st.builds(
        lambda make, child: make.format(child),
        st.sampled_from(
            ["partly({})", "deep(3, {})", "wide(3, {})", "deep(60, {})", "wide(40, {})"]
        ),
        children,
    )
    return st.one_of(mappings, mappings, sequences, fixed, _siblings(children), odd)


@st.composite
def _siblings(draw, children):
    """Return a container of dicts whose keys are alike, in another order perhaps."""
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    rows_ = []
    for _ in range(draw(st.integers(2, 3))):
        mine = [draw(st.sampled_from([k, *TWINS.get(k, ())])) for k in keys]
        mine = draw(st.permutations(mine))
        rows_.append(_mapping("dict([{}])", [(k, draw(children)) for k in mine]))
    return draw(st.sampled_from(["[{}]", "({},)", "deque([{}])"])).format(
        ", ".join(rows_)
    )


@st.composite
def worlds(draw, max_leaves=8):
    """Return worlds that hold the nasty cases."""
    lines, over = draw(_bases())
    plain = st.sampled_from(PLAIN)
    others = st.sampled_from([*SPARSE, *QUANTIZED])
    data = st.sampled_from(over) if over else plain
    leaves = st.one_of(data, data, data, plain, plain, others)
    if draw(st.integers(0, 3)) == 0:
        keys = draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
        pairs = [(key, draw(leaves)) for key in keys]
        lines = [*lines, f"d = {_mapping('dict([{}])', pairs)}"]
        leaves = st.one_of(leaves, leaves, st.just("d"))
    tree = draw(st.recursive(leaves, _containers, max_leaves=max_leaves))
    return World(tuple(lines), tree)
