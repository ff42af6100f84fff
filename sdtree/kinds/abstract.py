"""``Abstract``: what a leaf is, without its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter, index
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sdtree.errors import LayoutError, UnknownLeaf
from sdtree.kinds.handler import (
    Handler,
    Makeup,
    add_handler,
    find_handler,
    handler_of,
    no_dtype,
)
from sdtree.kinds.wrapper import is_wrapper
from sdtree.layout.layout import Layout
from sdtree.layout.schedule import layouts_of
from sdtree.path import where, with_place
from sdtree.tensors.modes import uncompiled
from sdtree.tensors.storage import bytes_of, dense_strides, stand_alone
from sdtree.text.showing import html_of, text_of
from sdtree.typing import Aux, Dtype, Leaf, Path

T = TypeVar("T")
_dtype_of = attrgetter("dtype")


@dataclass(frozen=True, slots=True)
class Local:
    """One local tensor without its data. Strides do not compare."""

    shape: tuple[int, ...]
    stride: tuple[int, ...] = field(compare=False)
    dtype: torch.dtype

    @classmethod
    def of(cls, t: Tensor) -> Local:
        return cls(tuple(t.shape), tuple(t.stride()), t.dtype)

    def meta(self) -> Tensor:
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device="meta"
        )


@dataclass(frozen=True, slots=True)
class Abstract:
    """A leaf without its data: its kind, shape, dtype, local tensors and layout.

    ``dtype`` is None for plain values, whose ``tensors`` are empty, and numpy's own
    where torch has none such; ``layout`` is None for what is not sharded, and ``shape``
    is that of the whole. Local transforms act on it: a cast changes its dtype.

    >>> sd.spec({"w": torch.zeros(2, 3)})["w"]
    Abstract(Tensor, (2, 3), float32)
    """

    kind: type
    shape: tuple[int, ...] = ()
    dtype: Dtype | None = None
    tensors: tuple[Local, ...] = ()
    layout: Layout | None = None

    @classmethod
    @uncompiled
    def of(cls, leaf: Leaf) -> Abstract:
        """Return what ``leaf`` is; an ``Abstract`` is itself.

        >>> sd.Abstract.of(torch.ones(2, dtype=torch.half))
        Abstract(Tensor, (2,), float16)
        """
        return look_at([leaf])[0][0]

    @classmethod
    def dense(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Abstract:
        """Return what a contiguous tensor is.

        >>> sd.Abstract.dense((2, 3), torch.float32) == sd.Abstract.of(torch.ones(2, 3))
        True
        """
        return cls(Tensor, shape, dtype, (Local(shape, dense_strides(shape), dtype),))

    def forms(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each local tensor.

        >>> sd.Abstract.of(torch.ones(2)).forms()
        [((2,), torch.float32)]
        """
        return [(local.shape, local.dtype) for local in self.tensors]

    @property
    def is_dense(self) -> bool:
        """Return whether it is a tensor of no other type, its own local tensor.

        >>> sd.Abstract.of(torch.ones(2)).is_dense
        True
        """
        whole = [(self.shape, self.dtype)]
        return self.kind is Tensor and self.layout is None and self.forms() == whole

    @property
    def is_own_tensor(self) -> bool:
        """Return whether it is its one local tensor, of whatever type.

        >>> sd.Abstract.of(torch.nn.Parameter(torch.ones(2))).is_own_tensor
        True
        """
        is_alike = self.layout is None and self.forms() == [(self.shape, self.dtype)]
        return is_alike and issubclass(self.kind, Tensor) and not is_wrapper(self.kind)

    def __repr__(self) -> str:
        if self.dtype is None:
            return f"Abstract({self.kind.__name__})"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Abstract({self.kind.__name__}, {self.shape}, {dtype}{self._held()})"

    def _held(self) -> str:
        """Return in words on which ranks the leaf lies."""
        return "" if self.layout is None else f", {text_of(self)}"

    def _repr_html_(self) -> str:
        return html_of(self)


def look_at(
    leaves: Sequence[Leaf], path: Callable[[int], Path] | None = None
) -> tuple[list[Abstract], list[Sequence[Tensor]]]:
    """Return what each leaf is, an ``Abstract`` being itself, and its local tensors."""
    return sight_of(leaves, path)[:2]


class Sight(NamedTuple):
    """What leaves are, seen together, and the local tensors of each.

    They ``stand_alone`` if each is known to have one that fills a storage of its own.
    """

    forms: list[Abstract]
    held: list[Sequence[Tensor]]
    stand_alone: bool = False


def sight_of(
    leaves: Sequence[Leaf], path: Callable[[int], Path] | None = None
) -> Sight:
    """Return what leaves are; ``path`` tells where the i-th stands, for errors."""
    forms: list[Abstract] = []
    try:
        is_one_type = len({*map(type, leaves)}) == 1
        found = _sight_of_alike(leaves) if is_one_type else None
        return Sight(forms, _look_at_each(leaves, forms)) if found is None else found
    except Exception as error:
        if path is not None and isinstance(error, UnknownLeaf):
            raise UnknownLeaf(f"{where(path(len(forms)))}: {error}") from None
        if path is not None:
            with_place(error, path(len(forms)))
        raise


def _sight_of_alike(leaves: Sequence[Leaf]) -> Sight | None:
    """Return what leaves of one type are that have little to be seen, else None."""
    handler = handler_of(leaves[0])
    ts = handler.locals(leaves)
    if ts is None or not stand_alone(ts):
        return None
    told = _dtype_of if handler.basis is None else handler.basis.of
    forms_of = map(_dtype_of, ts), map(Tensor.size, ts), map(Tensor.stride, ts)
    keys = zip(map(told, leaves), map(_dtype_of, leaves), *forms_of, strict=True)
    known: dict[Hashable, Abstract] = {}
    forms: list[Abstract] = []
    for leaf, t, key in zip(leaves, ts, keys, strict=True):
        form = known.get(key)
        if form is None:
            form = known[key] = _seen(leaf, handler, (t,), key[0])
        forms.append(form)
    return Sight(forms, [(t,) for t in ts], True)


def _look_at_each(
    leaves: Sequence[Leaf], forms: list[Abstract]
) -> list[Sequence[Tensor]]:
    """Return the local tensors of each leaf; one loop, which adds what it is."""
    tensors: list[Sequence[Tensor]] = []
    for leaf in leaves:
        handler = handler_of(leaf)
        ask = handler.tensors
        ts = handler.flatten(leaf)[0] if ask is None else ask(leaf)
        is_form = isinstance(leaf, Abstract)
        forms.append(leaf if is_form else _seen(leaf, handler, ts))
        tensors.append(ts)
    return tensors


def _seen(
    leaf: Leaf, handler: Handler, ts: Sequence[Tensor], ground: Hashable = None
) -> Abstract:
    """Return what a leaf with these local tensors is; its ground may be known."""
    if not ts:
        return _form(type(leaf), (), None, (), None)
    own = getattr(leaf, "dtype", None)
    kind = handler.stands_for(leaf)
    known = own if isinstance(own, torch.dtype) else handler.dtype(leaf) or ts[0].dtype
    held = tuple([(t.size(), t.stride(), t.dtype) for t in ts])
    if handler.layout is None:
        try:
            shape = tuple(map(index, leaf.shape))
        except (AttributeError, TypeError):  # what a user calls so may be anything
            shape = tuple(ts[0].shape)
        return _form(kind, shape, known, held, None)
    if handler.basis is not None:
        of, layout_of = handler.basis
        return _form_of(kind, known, held, layout_of, ground or of(leaf))
    layout = handler.layout(leaf)
    return _form(kind, layout.shape, known, held, layout)


Held = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
"""Sizes, strides and dtypes of local tensors."""


@lru_cache(maxsize=4096)
def _form_of(
    kind: type,
    dtype: Dtype,
    held: Held,
    layout_of: Callable[[Any], Layout],
    basis: Hashable,
) -> Abstract:
    """Return what a leaf is whose layout follows from some basis; the same object."""
    layout = layout_of(basis)
    return _form(kind, layout.shape, dtype, held, layout)


@lru_cache(maxsize=4096)
def _form(
    kind: type,
    shape: tuple[int, ...],
    dtype: Dtype | None,
    held: Held,
    layout: Layout | None,
) -> Abstract:
    """Return what a leaf is: the same object for leaves that are alike."""
    tensors = [Local(tuple(size), tuple(stride), t) for size, stride, t in held]
    return Abstract(kind, shape, dtype, tuple(tensors), layout)


def _flatten(x: Abstract) -> tuple[Sequence[Tensor], Aux]:
    return [local.meta() for local in x.tensors], x


def _unflatten(aux: Abstract, ts: Sequence[Tensor]) -> Abstract:
    """Return the leaf over other local tensors; its dtype follows the one it had."""
    changed = {old.dtype: t.dtype for old, t in zip(aux.tensors, ts, strict=True)}
    dtype = None if aux.dtype is None else changed.get(aux.dtype, aux.dtype)
    return replace(aux, dtype=dtype, tensors=tuple(map(Local.of, ts)))


def _dtype(x: Abstract) -> Dtype | None:
    """Return the dtype as a whole of what it stands for, None if the kind has none."""
    handler = find_handler(x.kind)
    has_dtype = handler is not None and handler.dtype is not no_dtype
    return x.dtype if has_dtype else None


def _cast(x: Abstract, dtype: torch.dtype) -> Abstract | None:
    """Return a wrapper's dtype foretold, None where the local tensors tell.

    How it is cast is for itself to say. Local tensors of its own dtype mostly follow.
    """
    if x.dtype is None or not is_wrapper(x.kind):
        return None
    if x.dtype == dtype or not x.dtype.is_floating_point:
        return x
    held = [replace(t, dtype=dtype) if t.dtype == x.dtype else t for t in x.tensors]
    return replace(x, dtype=dtype, tensors=tuple(held))


# -- forms of many leaves -----------------------------------------------------------


class Groups(NamedTuple):
    """Positions in groups: the first of each group, and of which group each is."""

    first: list[int]
    of: list[int]


def grouped(*columns: Sequence[object]) -> Groups:
    """Return the groups of positions at which every column has one and the same object.

    >>> x, y = "ab"
    >>> grouped([x, y, x])
    Groups(first=[0, 1], of=[0, 1, 0])
    """
    known: dict[Hashable, int] = {}
    found = Groups([], [])
    first, *others = [map(id, column) for column in columns]
    keys = zip(first, *others, strict=True) if others else first
    for i, key in enumerate(keys):
        k = known.setdefault(key, len(known))
        if k == len(found.first):
            found.first.append(i)
        found.of.append(k)
    return found


def by_form(act: Callable[[Abstract], T], forms: Sequence[Abstract]) -> list[T]:
    """Return what a function makes of each form, asked once for one and the same."""
    groups = grouped(forms)
    found = [act(forms[i]) for i in groups.first]
    return [found[k] for k in groups.of]


def check_layouts(
    forms: Sequence[Abstract], fault: Callable[[Abstract], str], paths: Sequence[Path]
) -> None:
    """Raise ``LayoutError`` at the first leaf with a fault, asked once of a form."""
    for i in grouped(forms).first:
        if text := fault(forms[i]):
            raise LayoutError(f"{where(paths[i])}: {text}")


@lru_cache(maxsize=4096)
def nbytes_of(form: Abstract) -> int:
    """Return the bytes of a leaf, all ranks together, each part once."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in wholes_of(form))


def held_bytes(form: Abstract) -> int:
    """Return how many bytes the local tensors of a leaf have."""
    return sum(bytes_of(local.meta()) for local in form.tensors)


def wholes_of(form: Abstract) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each local tensor that a leaf has when it is whole."""
    if form.layout is None or form.dtype is None:
        return form.forms()
    if form.layout.parts is None:
        return [(form.shape, form.dtype)]
    dtypes = [t.dtype for t in form.tensors]
    return [*zip((x.shape for x in layouts_of(form.layout)), dtypes, strict=True)]


@lru_cache(maxsize=4096)
def whole_form(form: Abstract) -> Abstract:
    """Return what a sharded leaf is when it is whole.

    One that is not stays what it is: it may have other strides than one that is equal.
    """
    parts = None if form.layout is None else form.layout.parts
    kind = Tensor if parts is None else parts.kind
    held = [Local(shape, dense_strides(shape), t) for shape, t in wholes_of(form)]
    return Abstract(kind, form.shape, form.dtype, tuple(held))


@lru_cache(maxsize=4096)
def has_no_makeup(form: Abstract) -> bool:
    """Return whether leaves of a form are no more than dense tensors, or none."""
    if form.layout is not None:
        return form.layout.parts is None
    return form.is_own_tensor or form.dtype is None


def parts_of(
    form: Abstract, layout: Layout
) -> Iterator[tuple[Layout, tuple[int, ...], torch.dtype]]:
    """Yield how each local tensor lies in a layout, with its shape and dtype whole."""
    for part, (shape, dtype) in zip(layouts_of(layout), wholes_of(form), strict=True):
        yield part, shape, dtype


def _whole(x: Abstract) -> Makeup | None:
    """Return what a leaf would be that it stands for, beside its tensors."""
    parts = None if x.layout is None else x.layout.parts
    if parts is None and (x.is_own_tensor or x.dtype is None or x.layout is not None):
        return None
    return Makeup(x.kind if parts is None else parts.kind, None, is_known=False)


add_handler(
    Handler(
        Abstract,
        _flatten,
        _unflatten,
        stands_for=lambda leaf: leaf.kind,
        dtype=_dtype,
        cast=_cast,
        is_dense=lambda _: True,
        whole=_whole,
    )
)
