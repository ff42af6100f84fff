"""What the library is to do, said as naively as can be; none of its code is shared.

A tree is taken apart by a walk of its own: a ``Box`` is a container, anything else a
leaf or ``ABSENT``. ``assert_same`` compares all that there is to compare.
"""

import dataclasses
import enum
import io
import struct
import traceback
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdtree import ABSENT, Abstract, errors
from sdtree.errors import NameCollision
from sdtree.path import Keys

# -- trees -------------------------------------------------------------------------


OURS = tuple(
    x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, Exception)
)
"""The errors of the library; it raises standard ones as well, with ``raise``."""


def is_ours(error):
    """Return whether the library itself raised an error, not Python or torch in it."""
    frames = traceback.extract_tb(error.__traceback__)
    is_raised = bool(frames) and str(frames[-1].line).startswith("raise")
    return isinstance(error, OURS) or (is_raised and "/sdtree/" in frames[-1].filename)


def is_of(error, module):
    """Return whether an error comes of a function in a module, that a user gave."""
    names = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    after = [k for k, name in enumerate(names) if "/sdtree/" in name][-1:]
    return any(name.endswith(module) for name in names[after[0] if after else 0 :])


class Box(NamedTuple):
    """A container: its class, what it is beside its children, its children by key."""

    cls: type
    state: dict[str, Any]
    pairs: list[tuple[Any, Any]]


def take(x):
    """Return a tree as boxes."""
    pairs = None if isinstance(x, Box) or x is ABSENT else _pairs(x)
    if pairs is None:
        return x
    if getattr(x, "__dict__", None) is x:
        return Box(type(x), {"__dict__": "itself"}, [(k, take(y)) for k, y in pairs])
    items, state = dict(pairs), _attributes(x)
    own = [k for k in state if k != "data" and state[k] is not items.get(k, items)]
    state = {k: state[k] for k in own}  # that are no items
    state |= {k: getattr(x, k) for k in ("default_factory", "maxlen") if hasattr(x, k)}
    if isinstance(x, (UserDict, UserList)):
        state["data"] = take(x.data)._replace(pairs=[])
    if hasattr(type(x), "n_sequence_fields"):
        state["hidden"] = x.__reduce__()[1][1]
    if isinstance(x, (UserDict, UserList)):
        state["data"] = take(x.data)[:2]
    return Box(type(x), state, [(key, take(child)) for key, child in pairs])


def _pairs(x):
    """Return the keys and children of a container, None for a leaf."""
    if isinstance(x, (UserDict, UserList)):
        return _pairs(x.data)
    if isinstance(x, dict):
        return list((OrderedDict if isinstance(x, OrderedDict) else dict).items(x))
    fields = getattr(type(x), "_fields", getattr(type(x), "__match_args__", ()))
    if isinstance(x, tuple) and fields:
        names = (*fields, *range(len(fields), len(x)))  # some fields have no name
        return list(zip(names, tuple(x), strict=True))
    if isinstance(x, (list, tuple, deque)) and not isinstance(x, torch.Size):
        return list(enumerate(x))
    if dataclasses.is_dataclass(x) and not isinstance(x, (type, Abstract)):
        return [(k, getattr(x, k)) for k in x.__match_args__ if hasattr(x, k)]
    return None


def _attributes(x):
    """Return the instance attributes of an object, those in slots too."""
    slots = [vars(cls).get("__slots__", ()) for cls in type(x).__mro__]
    named = [n for s in slots for n in ([s] if isinstance(s, str) else s)]
    found = {n: getattr(x, n) for n in named if n[:2] != "__" and hasattr(x, n)}
    return {**getattr(x, "__dict__", {}), **found}


def items(tree, path=()):
    """Yield every leaf with its path."""
    if isinstance(tree := take(tree), Box):
        for key, child in tree.pairs:
            yield from items(child, (*path, key))
    elif tree is not ABSENT:
        yield path, tree


def holes(tree, path=()):
    """Yield the paths of the containers that hold nothing."""
    if isinstance(tree, Box):
        for key, child in tree.pairs:
            yield from holes(child, (*path, key))
        yield from () if tree.pairs else (path,)


def refill(tree, leaves):
    """Return the tree with other leaves, which come in order."""
    if not isinstance(tree := take(tree), Box):
        return tree if tree is ABSENT else next(leaves)
    return tree._replace(pairs=[(key, refill(x, leaves)) for key, x in tree.pairs])


def name_of(path, sep="."):
    return sep.join(str(key) for key in path)


def names(tree, sep="."):
    """Return the name of every leaf; no two may be the same."""
    found = [name_of(path, sep) for path, _ in items(tree)]
    if len(set(found)) < len(found):
        raise NameCollision
    return found


# -- sameness ----------------------------------------------------------------------


def mark(x):
    """Return what tells a value from every other: its type, and its bits."""
    if isinstance(x, (Tensor, np.ndarray)):
        parts, form = parts_of(x)
        kind = x.dtype.descr if isinstance(x, np.ndarray) else x.dtype
        inside = [_bits(x) if t is x else mark(t) for t in parts]
        return type(x), (str(kind), tuple(x.shape), form), inside
    if isinstance(x, enum.Enum):
        return type(x), x.name, repr(x.value)
    if isinstance(x, (float, complex)):
        return type(x), struct.pack("dd", x.real, x.imag)
    if isinstance(x, np.generic):
        return type(x), str(x.dtype.descr), x.tobytes()
    if isinstance(x, io.BytesIO):
        return type(x), x.getvalue(), x.tell()
    if isinstance(x, Mapping):
        return type(x), tuple((mark(key), mark(value)) for key, value in x.items())
    if isinstance(x, (list, tuple)):
        kind = tuple if type(x) is Keys else type(x)  # a path is a tuple
        return kind, tuple(mark(value) for value in x)
    if isinstance(x, (set, frozenset)):
        return type(x), str(sorted(str(mark(value)) for value in x))
    return type(x), x


def is_record(x):
    """Return whether a leaf is an element of an array with fields, which it is over."""
    return isinstance(x, np.void) and x.dtype.names is not None


def parts_of(x):
    """Return the tensors and arrays that hold the data of a leaf, and the rest."""
    if isinstance(x, np.ndarray):
        return [x], None
    if is_record(x):
        return [np.asarray(x)], None
    if not isinstance(x, Tensor):
        return [], None
    is_wrapper = hasattr(type(x), "__tensor_flatten__")
    inner, context = x.__tensor_flatten__() if is_wrapper else ((), None)
    attributes = {k: v for k, v in vars(x).items() if k not in inner}
    rest = str(x.device), x.requires_grad, mark(attributes)
    if is_wrapper:
        return [getattr(x, name) for name in inner], (*rest, inner, mark(context))
    if x.layout is torch.strided:
        return [x], (*rest, x.is_quantized and str(x.qscheme()))
    bare = x.detach()
    if x.layout is torch.sparse_coo:
        return [bare._indices(), bare._values()], (*rest, x.is_coalesced())
    by_column = x.layout in (torch.sparse_csc, torch.sparse_bsc)
    get = (
        ["ccol_indices", "row_indices"]
        if by_column
        else ["crow_indices", "col_indices"]
    )
    return [*(getattr(bare, name)() for name in get), bare.values()], (*rest, x.layout)


def _bits(x):
    if isinstance(x, np.ndarray):
        return x.tobytes()
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        if x.is_meta:
            return "meta"
        if x.is_quantized:
            return x.int_repr().tolist(), x.dequantize().tolist()
        dense = x.detach().resolve_conj().resolve_neg().cpu()
        dense = dense.view(torch.uint8) if x.itemsize == 1 else dense
        dense = dense.clone(memory_format=torch.contiguous_format).reshape(-1)
        return dense.view(torch.uint8).numpy().tobytes()


def difference(a, b, bits=True, path=()):
    """Return what two trees first differ in, beside ties; empty if in nothing."""
    a, b, here = take(a), take(b), f"at {path}: "
    if not isinstance(a, Box) or not isinstance(b, Box):
        if a is ABSENT or b is ABSENT or isinstance(a, Box) or isinstance(b, Box):
            kinds = [getattr(x, "cls", type(x)).__name__ for x in (a, b)]
            return "" if a is b else f"{here}{kinds[0]}, not {kinds[1]}"
        one, other = (mark(x) if bits else mark(x)[:2] for x in (a, b))
        return "" if one == other else f"{here}{one}, not {other}"
    if a.cls is not b.cls or mark(a.state) != mark(b.state):
        return f"{here}{a.cls.__name__} {a.state}, not {b.cls.__name__} {b.state}"
    keys, others = ([key for key, _ in box.pairs] for box in (a, b))
    if mark(keys) != mark(others):
        return f"{here}keys {keys}, not {others}"
    both = zip(a.pairs, b.pairs, strict=True)
    found = (difference(x, y, bits, (*path, key)) for (key, x), (_, y) in both)
    return next(filter(None, found), "")


def data_of(leaf):
    """Yield the dense tensors and arrays in a leaf that hold anything."""
    for t in parts_of(leaf)[0]:
        if t is not leaf:
            yield from data_of(t)
        elif t.nbytes and not (isinstance(t, Tensor) and t.is_meta):
            yield t


def address(t):
    return t.ctypes.data if isinstance(t, np.ndarray) else t.data_ptr()


def steps(t):
    """Return the strides in bytes."""
    if isinstance(t, np.ndarray):
        return t.strides
    return tuple(step * t.itemsize for step in t.stride())


def memory(t):
    """Return the piece of memory that a tensor or array lies in: start and end."""
    while (base := _base(t)) is not None:
        t = base
    if isinstance(t, np.ndarray):
        return np.lib.array_utils.byte_bounds(t)
    start = t.untyped_storage().data_ptr()
    return start, start + t.untyped_storage().nbytes()


def _base(t):
    """Return what an array or a record is a view of, None if of nothing known."""
    base = getattr(t, "base", None)
    is_known = isinstance(base, (np.ndarray, Tensor))
    is_view = isinstance(base, np.void) and base.base is not None
    return base if is_known or is_view else None


def pieces(tree):
    """Return the pieces of memory that a tree lies in, those that overlap as one."""
    found = []
    for start, stop in sorted(memory(t) for _, x in items(tree) for t in data_of(x)):
        if found and start < found[-1][1]:
            start, stop = found[-1][0], max(stop, found.pop()[1])
        found.append((start, stop))
    return found


def _piece(found, t):
    return next(piece for piece in found if piece[0] <= memory(t)[0] < piece[1])


def ties(tree):
    """Return which data of a tree share a piece of memory, and how they lie in it."""
    found, groups = pieces(tree), {}
    for i, t in enumerate(t for _, x in items(tree) for t in data_of(x)):
        groups.setdefault(_piece(found, t), []).append((i, address(t), steps(t)))
    tied = [group for group in groups.values() if len(group) > 1]
    return [[(i, at - group[0][1], by) for i, at, by in group] for group in tied]


def kept(tree, source):
    """Yield which leaves are those of another tree, and what lies in its memory.

    Beside it, whether a leaf is in a graph, and whether it is of inference mode.
    """
    known, taken = {id(x) for _, x in items(source)}, pieces(source)
    for _, x in items(tree):
        ours = [memory(t)[0] for t in data_of(x)]
        inside = [any(a <= at < b for a, b in taken) for at in ours]
        is_tensor = isinstance(x, Tensor)
        marks = is_tensor and (x.grad_fn is not None, x.is_inference())
        yield (id(x) in known) if parts_of(x)[0] else None, inside, marks


def assert_same(a, b, law="", tied=ties):
    """Raise unless two trees are the same: containers, keys, order, bits, ties."""
    assert not (found := difference(a, b)), f"{law}: {found}"
    assert tied(a) == tied(b), f"{law}: ties {tied(a)}, not {tied(b)}"


def snapshot(tree):
    """Return all that must not change when a tree is only read."""
    tree = take(tree)
    boxes = str(refill(tree, iter("*" for _ in items(tree))))
    return boxes, [(path, id(x), mark(x)) for path, x in items(tree)], ties(tree)
