"""What each operation means, said as naively as can be; no code is the library's.

The functions take what the library's functions of these names take, but for the tree,
and return a function from a tree to what is to come out, as boxes of ``oracle``.
"""

import ctypes
import io
import re
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import torch
from oracle import (
    Box,
    address,
    items,
    memory,
    name_of,
    parts_of,
    pieces,
    refill,
    take,
)
from torch import Tensor

from sdtree import ABSENT
from sdtree.errors import NameCollision, NoMatch

# -- selecting ---------------------------------------------------------------------


def globbed(glob, name):
    """Return the match of a name with a dot behind it, what stars took as groups."""
    texts = [re.escape(s).replace(r"\*", "([^.]*)") + r"\." for s in glob.split(".")]
    stars = [s == "**" for s in glob.split(".")]
    both = zip(stars, texts, strict=True)
    whole = "".join(r"((?:[^.]*\.)*)" if star else text for star, text in both)
    return re.fullmatch(whole, f"{name}.")


class Selector(NamedTuple):
    """A test of (path, leaf); ``by_name`` where it does not look at the leaf."""

    test: Any
    by_name: bool

    def __and__(self, other):
        test = lambda p, x: self.test(p, x) and other.test(p, x)  # noqa: E731
        return Selector(test, self.by_name and other.by_name)

    def __invert__(self):
        return Selector(lambda p, x: not self.test(p, x), self.by_name)

    def __or__(self, other):
        return ~(~self & ~selector(other))


def selector(x):
    if isinstance(x, Selector):
        return x
    if isinstance(x, str):
        return Selector(lambda p, _: bool(globbed(x, name_of(p))), True)
    if isinstance(x, re.Pattern):
        return Selector(lambda p, _: bool(x.search(name_of(p))), True)
    if isinstance(x, (type, tuple)):
        return Selector(lambda _, leaf: isinstance(leaf, x), False)
    return Selector(x, False)


GONE = object()


def _prune(x, keep, path=()):
    """Return what is kept, ``GONE`` if nothing is."""
    if not isinstance(x, Box) or not x.pairs:
        return x if keep(path, x) or (isinstance(x, Box) and not path) else GONE
    left = [(key, _prune(child, keep, (*path, key))) for key, child in x.pairs]
    is_left = any(child is not GONE for _, child in left)
    if issubclass(x.cls, (dict, UserDict)):
        left = [(key, child) for key, child in left if child is not GONE]
    holes = [(key, ABSENT if child is GONE else child) for key, child in left]
    return x._replace(pairs=holes) if is_left or not path else GONE


def _choose(which, missing_ok, keeps):
    which = selector(which)

    def keep(path, x):
        is_leaf = x is not ABSENT and not isinstance(x, Box)
        hit = (which.by_name or is_leaf) and which.test(path, x)
        return bool(hit) == keeps

    def run(tree):
        tree = take(tree)
        if not missing_ok and not any(which.test(p, x) for p, x in items(tree)):
            raise NoMatch
        left = _prune(tree, keep)
        return ABSENT if left is GONE else left

    return run


def select(which, missing_ok=False):
    return _choose(which, missing_ok, True)


def drop(which, missing_ok=False):
    return _choose(which, missing_ok, False)


def combine(a, b, path=()):
    if a is ABSENT or b is ABSENT:
        return b if a is ABSENT else a
    if not isinstance(a, Box) or not isinstance(b, Box):
        raise NameCollision
    left, right = dict(a.pairs), dict(b.pairs)
    both = [(k, combine(x, right.pop(k)) if k in right else x) for k, x in left.items()]
    return a._replace(pairs=[*both, *right.items()])


def where(which, inside, missing_ok=False):
    def run(tree):
        matched = inside(select(which, missing_ok)(tree))
        whole = combine(matched, drop(which, True)(tree))
        leaves, order = dict(items(whole)), [path for path, _ in items(tree)]
        if leaves.keys() == set(order):
            return refill(tree, iter([leaves[path] for path in order]))
        return whole

    return run


# -- tensors -----------------------------------------------------------------------


def _remade(change, keeps=lambda t: False, device=None):
    """Return the function to new data for all but what is kept, tied as it was.

    ``change`` says the dtype that data takes, ``keeps`` which leaves stay.
    """

    def run(tree):
        tree, made = take(tree), {}
        known = pieces(tree)

        def new(t):
            to = change(t)
            if isinstance(t, Tensor) and (
                not t.nbytes or "meta" in (device, str(t.device))
            ):
                return t.detach().to("meta" if t.is_meta else device, to, copy=True)
            if not t.nbytes:
                return _viewed(torch.empty(0, dtype=torch.uint8), t, 0, to)
            start, stop = next(p for p in known if p[0] <= memory(t)[0] < p[1])
            bits = (t.is_conj(), t.is_neg()) if isinstance(t, Tensor) else ()
            changes = to != t.dtype or any(bits)
            key = (start, t.dtype, to, bits) if changes else start
            if key not in made:
                made[key] = _bytes(start, stop)
                if changes:
                    made[key] = _converted(made[key], t, to)
            return _viewed(made[key], t, address(t) - start, to)

        leaves = [x for _, x in items(tree)]
        return refill(tree, iter([x if keeps(x) else _over(x, new) for x in leaves]))

    return run


def _bytes(start, stop):
    """Return a copy of a piece of memory."""
    raw = (ctypes.c_uint8 * (stop - start)).from_address(start)
    return torch.from_numpy(np.ctypeslib.as_array(raw).copy())


def _converted(raw, t, to):
    """Return the data of a piece of memory, all of it, in another dtype."""
    if isinstance(t, np.ndarray):
        whole = raw.numpy()[: len(raw) // t.itemsize * t.itemsize].view(t.dtype)
        return torch.from_numpy(whole.astype(to)).view(torch.uint8)
    whole = raw[: len(raw) // t.itemsize * t.itemsize].view(t.dtype)
    whole = whole.conj().resolve_conj() if t.is_conj() else whole
    whole = torch._neg_view(whole).resolve_neg() if t.is_neg() else whole
    return whole.to(to).view(torch.uint8)


def _viewed(raw, t, offset, to):
    """Return the data at an offset in bytes of the old dtype, strided as it was."""
    if isinstance(t, np.ndarray):
        scale = np.dtype(to).itemsize / t.itemsize
        by = tuple(int(step * scale) for step in t.strides)
        new = np.ndarray(t.shape, to, raw.numpy().data, int(offset * scale), by)
        new.flags.writeable = t.flags.writeable
        return new
    new = torch.empty(0, dtype=to, device="cpu")
    place = offset // t.itemsize, t.shape, t.stride()
    return new.set_(raw.untyped_storage(), *place)


def _over(x, new):
    """Return the leaf over other data."""
    if isinstance(x, io.BytesIO):
        copied = io.BytesIO(x.getvalue())
        copied.seek(x.tell())
        return copied
    if not isinstance(x, Tensor):
        return new(x) if isinstance(x, np.ndarray) else x
    parts, _ = parts_of(x)
    if hasattr(type(x), "__tensor_flatten__"):
        inner, context = x.__tensor_flatten__()
        made = dict(zip(inner, [_over(part, new) for part in parts], strict=True))
        bare = type(x).__tensor_unflatten__(made, context, x.size(), x.stride())
    elif x.is_quantized:
        bare = x.detach().clone()
    elif x.layout is torch.strided:
        bare = new(x)
    elif x.layout is torch.sparse_coo:
        data = [new(part) for part in parts]
        rest = {"is_coalesced": x.is_coalesced(), "check_invariants": False}
        bare = torch.sparse_coo_tensor(*data, x.shape, **rest)
    else:
        rest = {"layout": x.layout, "check_invariants": False}
        data = [new(part) for part in parts]
        bare = torch.sparse_compressed_tensor(*data, x.shape, **rest)
    if type(bare) is not type(x):
        bare = Tensor._make_subclass(type(x), bare)
    bare.requires_grad_(x.requires_grad)
    vars(bare).update({k: v for k, v in vars(x).items() if k not in vars(bare)})
    return bare


def copy():
    return _remade(lambda t: t.dtype)


def offload(device="cpu", pin=False, share=False):
    return _remade(lambda t: t.dtype, device=str(device))


def to(device):
    def stays(x):
        return all(str(t.device) in ("meta", str(device)) for t in _tensors(x))

    return _remade(lambda t: t.dtype, stays, str(device))


def _tensors(x):
    """Return the tensors in a leaf, those that hold nothing too."""
    return [u for t in parts_of(x)[0] for u in ([t] if t is x else _tensors(t))]


def cast(dtype):
    def wanted(t):
        if isinstance(t, np.ndarray):
            as_array = torch.empty(0, dtype=dtype).numpy().dtype
            return as_array if t.dtype.kind == "f" and t.itemsize < 16 else t.dtype
        return dtype if t.is_floating_point() else t.dtype

    return _remade(wanted, lambda x: all(wanted(t) == t.dtype for t in _tensors(x)))


def wait():
    return take


def map(fn):
    return map_with_path(lambda _, leaf: fn(leaf))


def map_with_path(fn):
    def run(tree):
        made = [fn(path, x) for path, x in items(tree)]
        if any(isinstance(take(x), Box) or x is ABSENT for x in made):
            raise TypeError
        return refill(tree, iter(made))

    return run
