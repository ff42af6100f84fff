"""What becomes of tensors and arrays, said as naively as can be.

The functions take what the library's functions of these names take, but for the tree,
and return a function from a tree to what is to come out, as boxes of ``oracle``. No
code is the library's.
"""

import ctypes
import io

import numpy as np
import torch
from ingredients import Coded
from oracle import (
    address,
    data_of,
    is_record,
    items,
    memory,
    parts_of,
    pieces,
    refill,
    steps,
    take,
)
from torch import Tensor

from sdtree.errors import SpecMismatch, UnknownLeaf


def copy(into=None):
    if into is not None:
        return lambda tree: _written(tree, into)
    return offload(device=None)


def offload(device="cpu", pin=False, share=False):
    return lambda tree: _remade(tree, lambda t: t.dtype, device=device)


empty_like = offload


def wait():
    return take


def to(device):
    def run(tree):
        there = [{str(t.device) for t in _tensors(x)} for _, x in items(tree)]
        stays = [here <= {"meta", str(device)} for here in there]
        return _remade(tree, lambda t: t.dtype, stays, str(device))

    return run


def cast(dtype=None, like=None):
    def run(tree):
        tree = refill(tree, iter([_recoded(x, dtype) for _, x in items(tree)]))
        here = [_dtypes(x, lambda t: t.dtype) for _, x in items(tree)]
        there = {path: _dtypes(x, lambda t: t.dtype) for path, x in items(like)}
        if like is None:
            wanted = [_dtypes(x, _to(x, dtype)) for _, x in items(tree)]
        elif there.keys() != {path for path, _ in items(tree)}:
            raise SpecMismatch
        else:
            wanted = [there[path] for path, _ in items(tree)]
        both = [(a == b, b) for a, b in zip(here, wanted, strict=True)]
        order = iter([to for same, every in both if not same for to in every])
        stays = [same for same, _ in both]
        return _remade(tree, lambda t: next(order), stays, copies=False)

    return run


def _recoded(x, dtype):
    """Return a leaf of codes in another dtype: what is inside stays."""
    return x.to(dtype) if isinstance(x, Coded) and dtype is not None else x


def _to(x, dtype):
    return lambda t: t.dtype if isinstance(x, Coded) else _cast(t, dtype)


def _dtypes(x, dtype_of):
    return [dtype_of(t) for t in _tensors(x)]


def _cast(t, dtype):
    if isinstance(t, Tensor):
        return dtype if t.is_floating_point() else t.dtype
    if t.dtype.kind != "f":
        return t.dtype
    is_odd = not t.flags.aligned or any(step % t.itemsize for step in t.strides)
    if is_odd or t.itemsize > 8 or not t.dtype.isnative:
        raise UnknownLeaf  # what is laid out as no tensor can be
    return torch.empty(0, dtype=dtype).numpy().dtype


def _tensors(x):
    """Return the tensors and arrays in a leaf, those that hold nothing too."""
    return [u for t in parts_of(x)[0] for u in ([t] if t is x else _tensors(t))]


# -- new data ----------------------------------------------------------------------


def _remade(tree, change, stays=None, device=None, copies=True):
    """Return the tree over new data, tied as the old is.

    ``change`` says the dtype that data takes, in order; ``stays`` which leaves stay.
    Without ``copies`` data of which the dtype does not change stays, too.
    """
    tree, made = take(tree), {}
    known, leaves = pieces(tree), [x for _, x in items(tree)]

    def new(t):
        to = change(t)
        if to == t.dtype and not copies:
            return t
        if isinstance(t, Tensor) and t.is_quantized and device == "meta":
            raise UnknownLeaf  # torch has none there
        if isinstance(t, Tensor) and (
            not t.nbytes or "meta" in (device, t.device.type)
        ):
            return t.detach().to("meta" if t.is_meta else device, to, copy=True)
        if isinstance(t, np.ndarray) and device == "meta":
            raise TypeError
        if not t.nbytes:
            return _viewed(torch.empty(0, dtype=torch.uint8, device="cpu"), t, 0, to)
        if isinstance(t, Tensor) and t.is_quantized:
            return made.setdefault((address(t), t.shape), t.detach().clone()).detach()
        start, stop = next(p for p in known if p[0] <= memory(t)[0] < p[1])
        bits = _bits(t)
        changes = to != t.dtype or any(bits)
        names = [str(dtype).removeprefix("torch.") for dtype in (t.dtype, to)]
        key = (start, *names, bits) if changes else start
        if key not in made:
            raw = _bytes(start, stop)
            made[key] = _converted(raw, t, to) if changes else raw
        return _viewed(made[key], t, address(t) - start, to)

    stays = stays or [False] * len(leaves)
    both = zip(leaves, stays, strict=True)
    return refill(tree, iter([x if stay else _over(x, new) for x, stay in both]))


def _bytes(start, stop):
    """Return a copy of a piece of memory."""
    raw = (ctypes.c_uint8 * (stop - start)).from_address(start)
    return torch.from_numpy(np.ctypeslib.as_array(raw).copy())


def _converted(raw, t, to):
    """Return the data of a piece of memory, all of it, in another dtype."""
    whole = raw[: len(raw) // t.itemsize * t.itemsize]
    if isinstance(t, np.ndarray):
        changed = whole.numpy().view(t.dtype).astype(to)
        return torch.from_numpy(changed.view(np.uint8))
    whole = whole.view(t.dtype)
    whole = whole.conj().resolve_conj() if t.is_conj() else whole
    whole = torch._neg_view(whole).resolve_neg() if t.is_neg() else whole
    return whole.to(to).view(torch.uint8)


def _viewed(raw, t, offset, to):
    """Return the data at an offset in bytes of the old dtype, strided as it was."""
    if isinstance(t, np.ndarray):
        scale = np.dtype(to).itemsize / (t.itemsize or 1)
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
    if is_record(x):
        return new(np.asarray(x))[()]
    if not isinstance(x, Tensor):
        return new(x) if isinstance(x, np.ndarray) else x
    bare = _joined(x, new)
    if type(bare) is not type(x):
        bare = Tensor._make_subclass(type(x), bare)
    bare.requires_grad_(x.requires_grad)
    vars(bare).update({k: v for k, v in vars(x).items() if k not in vars(bare)})
    return bare


def _joined(x, new):
    """Return the tensor over other data, of no subclass if it holds its own."""
    if hasattr(type(x), "__tensor_flatten__"):
        inner, context = x.__tensor_flatten__()
        made = {name: _over(getattr(x, name), new) for name in inner}
        return type(x).__tensor_unflatten__(made, context, x.size(), x.stride())
    data = [new(part) for part in parts_of(x)[0]]
    if x.layout is torch.strided:
        return data[0]
    if x.layout is torch.sparse_coo:
        rest = {"is_coalesced": x.is_coalesced(), "check_invariants": False}
        return torch.sparse_coo_tensor(*data, x.shape, **rest)
    rest = {"layout": x.layout, "check_invariants": False}
    return torch.sparse_compressed_tensor(*data, x.shape, **rest)


# -- into buffers ------------------------------------------------------------------


def _written(tree, into):
    """Return the tree of the buffers, or raise ``SpecMismatch``."""
    sources, targets = dict(items(tree)), dict(items(into))
    if sources.keys() != targets.keys():
        raise SpecMismatch
    taken = {byte for x in sources.values() for t in data_of(x) for byte in places(t)}
    filled = {}
    for path, x in sources.items():
        if _form(x) != _form(targets[path]) or _is_frozen(targets[path]):
            raise SpecMismatch
        for a, b in zip(data_of(x), data_of(targets[path]), strict=True):
            bits = tuple(x != y for x, y in zip(_bits(a), _bits(b), strict=True))
            for here, there in zip(places(a), places(b), strict=True):
                if filled.setdefault(there, (here, bits)) != (here, bits):
                    raise SpecMismatch
    if taken & filled.keys():
        raise SpecMismatch
    leaves = [targets[p] if parts_of(x)[0] else x for p, x in items(tree)]
    return refill(tree, iter(leaves))


def _bits(t):
    return (t.is_conj(), t.is_neg()) if isinstance(t, Tensor) else (False, False)


def _is_frozen(x):
    arrays = [t for t in _tensors(x) if isinstance(t, np.ndarray)]
    return not all(array.flags.writeable for array in arrays)


def _form(x):
    """Return what a leaf and its buffer must have in common."""
    if not parts_of(x)[0]:
        return ()
    inside = [(t.dtype, tuple(t.shape), str(t.device) == "meta") for t in _tensors(x)]
    return type(x), x.dtype, tuple(x.shape), inside


def places(t):
    """Return where each byte of each element lies, element by element."""
    at = np.array(address(t))
    for size, step in [*zip(t.shape, steps(t), strict=True), (t.itemsize, 1)]:
        at = at[..., None] + np.arange(size) * step
    return at.ravel().tolist()
