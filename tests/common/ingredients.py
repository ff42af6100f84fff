"""What the code of worlds calls: containers and leaves as users bring them."""

import enum
import io
import time
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

from sdtree import ABSENT
from sdtree.testing import Color, Layer, Pair, Rows, State
from sdtree.testing import dense as random_bits
from sdtree.testing.samples import Mirror, Text


class Small(enum.IntEnum):
    ZERO = 0
    ONE = 1


class Word(enum.StrEnum):
    W = "w"


class Open(dict):
    """A dict whose keys are attributes by properties of the class, and one more."""

    note = "none"


class Attributed(dict):
    """A dict whose items are its attributes, as EasyDict and others have it."""

    def __init__(self, *pairs):
        super().__init__(pairs)
        self.__dict__ = self


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


@dataclass(repr=False)
class Partly:
    """A dataclass of which a field is not set, and another attribute is."""

    here: Any
    there: Any = field(init=False)


class Coded(Tensor):
    """A tensor of codes and a scale; of which dtype it is to be, neither tells."""

    def __new__(cls, codes, scale, dtype):
        options = {"strides": codes.stride(), "dtype": dtype, "device": codes.device}
        new = Tensor._make_wrapper_subclass(cls, codes.size(), **options)
        new.codes, new.scale = codes, scale
        return new

    def __tensor_flatten__(self):
        return ["codes", "scale"], self.dtype

    @classmethod
    def __tensor_unflatten__(cls, inner, dtype, size, stride):
        return cls(inner["codes"], inner["scale"], dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten._to_copy.default:
            raise NotImplementedError(func)
        [x], given = args, {"dtype": args[0].dtype, **kwargs}
        inner = [t.to(given.get("device")) for t in (x.codes, x.scale)]
        return cls(*inner, given["dtype"])

    def __repr__(self):
        return f"Coded({self.codes}, {self.scale}, {self.dtype})"


def dense(shape, dtype, seed):
    """Return random bits, without nan of half: which one a cast makes of it is open."""
    t = random_bits(shape, dtype, seed)
    if dtype in (torch.float16, torch.complex32):
        return t.view(torch.float16).nan_to_num(1).view(dtype)
    return t


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


def timed(x):
    """Return a struct sequence, two fields of which are none of its elements."""
    return time.struct_time((x, 0, 0, 0, 0, 0, 0, 0, 0, "UTC", 3600))


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


def mirrored(*pairs):
    """Return a dict whose items are attributes as well."""
    return Mirror(pairs)


def boxed(*pairs):
    """Return a wrapper of a wrapper, which has attributes of its own."""
    new = UserDict()
    new.data = UserDict(pairs)
    new.data.note = "kept"
    return new


def listed(*children):
    """Return a wrapper of a list that is of no usual type."""
    new = UserList()
    new.data = rows(*children)
    return new


def deep(depth, tree):
    """Return a tree below many containers, lists and dicts in turn."""
    for i in range(depth):
        tree = [tree] if i % 2 else {"a": tree}
    return tree


def wide(width, tree):
    return {f"k{i}": tree for i in range(width)}


def many(count, size):
    """Return tensors that share nothing."""
    return {f"k{i}": dense((size,), torch.float32, i) for i in range(count)}


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


def counted(dtype):
    """Return an array of twelve elements, all of them different as far as they can."""
    size = np.dtype(dtype).itemsize
    if size == 0 or np.dtype(dtype).kind == "U":
        return np.zeros(12, dtype)
    raw = np.arange(12 * size, dtype=np.uint8)
    return (raw % 2 if dtype == "?" else raw).view(dtype)


def jagged():
    ts = [torch.ones(2), torch.ones(3)]
    return torch.nested.nested_tensor(ts, layout=torch.jagged)


def faked():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(2, 3)


def packed(dtype):
    """Return a tensor of which each byte holds several elements, or less than one."""
    return torch.empty(4, dtype=dtype, device="cpu")


def functional():
    return torch._to_functional_tensor(torch.ones(2))


def batched():
    """Return a tensor that was kept beyond the map that it is of."""
    kept = []
    torch.vmap(lambda t: kept.append(t) or t)(torch.ones(2, 3))
    return kept[0]


def graded():
    """Return a tensor that was kept beyond the gradient that it is of."""
    kept = []
    torch.func.grad(lambda t: kept.append(t) or t.sum())(torch.ones(3))
    return kept[0]


def freed(size=0, start=0, step=1):
    """Return a tensor whose storage was made smaller than what it covers of it."""
    whole = torch.ones(start + 4 * step)
    made = whole[start::step]
    whole.untyped_storage().resize_(size)
    return made


def inferred():
    with torch.inference_mode():
        return torch.ones(3)


class Broken:
    """A leaf that says nothing of itself."""

    def __repr__(self):
        raise RuntimeError("no repr")


def per_channel(t):
    """Return a quantized tensor that has a scale for each row."""
    scales, zeros = torch.tensor([0.5, 0.1]), torch.tensor([0, 1])
    return torch.quantize_per_channel(t, scales, zeros, 0, torch.quint8)


def shown(array):
    """Return a tensor over the memory of an array."""
    return torch.from_numpy(array)


CALLED = (
    *(OrderedDict, defaultdict, deque, UserDict, UserList, Pair, Three, Slotted, Color),
    *(Small, Word, Text, Parameter, TwoTensor, Coded, Attributed, Broken, datetime),
    *(dense, ordered, turned, state, opened, mirrored, boxed, layer, partly, timed),
    *(rows, listed, deep, wide, many, noted, learned, computed, buffer, per_channel),
    *(counted, frozen, shown, jagged, faked, functional, batched, inferred, packed),
    *(graded, freed),
)
NAMES = {x.__name__: x for x in CALLED}
NAMES |= {"torch": torch, "np": np, "ABSENT": ABSENT}
