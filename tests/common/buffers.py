"""Buffers for ``copy(into=)`` and trees for ``cast(like=)``, good and bad ones."""

from collections import OrderedDict

import oracle
import torch
from programs import is_dense

import sdtree as sd

SIGNED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
"""Dtypes of which torch reads negatives."""


class Buffers:
    """Buffers for a tree, and trees to cast like, made when the code asks for them."""

    def __init__(self, tree):
        self.tree = tree
        self.made = {}

    def names(self):
        return {"into": self.into, "like": self.like}

    def into(self, sort):
        if sort not in self.made:
            self.made[sort] = getattr(self, f"_{sort}")()
        return self.made[sort]

    def like(self, dtype):
        if dtype not in self.made:
            self.made[dtype] = sd.map(lambda x: _as(x, dtype), self.tree)
        return self.made[dtype]

    def _alike(self):
        return sd.empty_like()(self.tree)

    def _copied(self):
        return sd.copy(self.tree)

    def _apart(self):
        """Return buffers without ties, dense."""
        return sd.map(lambda x: _fresh(x, lambda t: t), self.tree)

    def _strided(self):
        """Return buffers of which each is every second column of a wider one."""
        return sd.map(lambda x: _fresh(x, _every_second), self.tree)

    def _lazy(self):
        """Return buffers that read as the negative, or conjugate, of what they hold."""
        return sd.map(lambda x: _fresh(x, _lazily), self.tree)

    def _repeating(self):
        """Return buffers of which some hold one element in several places."""
        return sd.map(lambda x: _fresh(x, _repeated), self.tree)

    def _gaps(self):
        """Return buffers that repeat elements which lie apart."""
        return sd.map(lambda x: _fresh(x, _with_gaps), self.tree)

    def _redressed(self):
        """Return buffers in other mappings, in another order."""
        return _redressed(sd.empty_like()(self.tree))

    def _slab(self):
        """Return buffers that lie in one slab, some on top of each other."""
        data = [t for _, x in oracle.items(self.tree) for t in oracle.data_of(x)]
        longest = max([t.nbytes for t in data], default=0)
        slab = torch.zeros(128 + longest, dtype=torch.uint8)
        count = iter(range(10**6))

        def cut(t):
            at = 16 * (next(count) * 5 % 7)
            return slab[at : at + t.nbytes].view(t.dtype).view(t.shape)

        return sd.map(lambda x: _fresh(x, cut), self.tree)

    def _heap(self):
        """Return buffers that begin where their leaves do in a copy of their memory.

        They are dense, so some lie on top of each other and not as their leaves do.
        """
        found, slabs = oracle.pieces(self.tree), {}

        def cut(t):
            start, stop = next(p for p in found if p[0] <= t.data_ptr() < p[1])
            size = 2 * (stop - start) + t.nbytes
            slab = slabs.setdefault(start, torch.zeros(size, dtype=torch.uint8))
            at = t.data_ptr() - start
            return slab[at : at + t.nbytes].view(t.dtype).view(t.shape)

        return sd.map(lambda x: _fresh(x, lambda _: cut(x)), self.tree)

    def _opposed(self):
        """Return buffers as of ``heap``, every second lazy: one may undo another."""
        count = iter(range(10**6))
        return sd.map(lambda x: _opposed(x, next(count) % 2), self._heap())

    def _source(self):
        """Return the tree itself for buffers."""
        return sd.identity(self.tree)

    def _shorter(self):
        """Return buffers of which one lacks an element."""
        return sd.map(lambda x: _fresh(x, lambda t: t[..., 1:]), self.tree)


def _as(x, dtype):
    is_plain = type(x) is torch.Tensor and x.layout is torch.strided
    is_real = is_plain and x.is_floating_point() and not x.requires_grad
    return torch.empty(x.shape, dtype=dtype, device="cpu") if is_real else x


def _fresh(x, change):
    """Return a dense buffer for a tensor of no other sort, changed as told."""
    if not isinstance(x, torch.Tensor) or not is_dense(x) or x.is_quantized:
        return sd.empty_like({"x": x})["x"]
    t = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return change(t) if t.numel() and t.dim() and not t.is_meta else t


def _lazily(t):
    if t.is_complex():
        return t.conj()
    return torch._neg_view(t) if t.dtype in SIGNED else t


def _opposed(x, is_odd):
    is_whole = type(x) is torch.Tensor and is_dense(x) and not x.is_quantized
    return _lazily(x) if is_odd and is_whole else x


def _every_second(t):
    wide = torch.zeros((*t.shape[:-1], t.shape[-1] * 2), dtype=t.dtype)
    return wide[..., ::2]


def _redressed(x):
    if type(x) is dict or (type(x) is OrderedDict and not vars(x)):
        pairs = [(key, _redressed(child)) for key, child in x.items()]
        return OrderedDict(pairs[::-1])
    return [_redressed(child) for child in x] if type(x) is list else x


def _with_gaps(t):
    if t.dim() != 2:
        return _repeated(t)
    if t.shape[1] != 6:
        return torch.zeros(4 * sum(t.shape), dtype=t.dtype).as_strided(t.shape, (4, 4))
    return torch.zeros((t.shape[1], 3), dtype=t.dtype)[:, 0].expand(t.shape)


def _repeated(t):
    return t[:1].expand(t.shape) if t.shape[0] > 1 else t
