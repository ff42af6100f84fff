"""Leaf kinds: how a leaf comes apart into local tensors, and together again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, is_tensor

from sdtree.errors import UnknownLeaf
from sdtree.kinds.registry import change, era, keep, on_change
from sdtree.kinds.strangers import advice_on
from sdtree.layout.layout import Layout
from sdtree.tensors.bits import Gap, Tolerance
from sdtree.typing import Aux, Dtype, Leaf

Flatten = Callable[[Leaf], tuple[Sequence[Tensor], Aux]]
Unflatten = Callable[[Aux, Sequence[Tensor]], Leaf]
Cast = Callable[[Leaf, torch.dtype], Leaf | None]


class Match(NamedTuple):
    """Where the data of pairs of leaves begins, on both sides, and its bytes."""

    here: list[int]
    there: list[int]
    sizes: list[int]


class Basis(NamedTuple):
    """What the layout of a leaf follows from, and the layout that follows from it."""

    of: Callable[[Leaf], Hashable]
    layout: Callable[[Any], Layout]


def no_dtype(_: Leaf) -> None:
    """Return the dtype, as a whole, of a leaf of a kind that has none such."""


@dataclass(frozen=True, slots=True)
class Handler:
    """The pair of pure functions of one leaf kind, and what they promise.

    ``stands_for`` is the type that a leaf has, or would have if it were not abstract;
    ``is_waiting`` tells of data that is on its way, which flattening waits for;
    ``reduced`` returns, by a collective, a leaf whose layout is not partial any more;
    ``compared`` the leaf as it is compared, one form for all that hold the same;
    ``whole`` what a sharded leaf is beside its tensors when it is whole, None if it is
    a dense tensor then; ``gap`` how far two leaves so compared are apart, where local
    tensors do not tell; ``unfit`` why nothing can be written into a leaf, empty if it
    can. ``dtype`` is that of a leaf as a whole, None if it has none; ``cast`` returns a
    leaf in another, None where its local tensors are converted one by one, those that
    are floating-point.

    ``is_plain``: the kind has no local tensors and its leaves never change;
    ``is_dense``: of an aux, whether it tells but the type and marks of a dense tensor.
    ``tensors``: the local tensors alone, where to flatten takes longer; ``basis``:
    what the layout follows from, which is quick to compare, and how. What is
    cheaper to ask of many leaves of one type at once: ``are_bare``, whether each is its
    own local tensor; ``are_alike``, whether pairs agree in shape and dtype; ``match``,
    where the data of pairs lies that can be copied as they are; ``locals``, the local
    tensor of each if it has but one, which nobody has looked at, and ``over``, what
    leaves that have such are over others of the same form. A no, or None, only means
    that each leaf is asked.
    """

    kind: type
    flatten: Flatten
    unflatten: Unflatten
    layout: Callable[[Leaf], Layout] | None = None
    stands_for: Callable[[Leaf], type] = type
    keeps_type: bool = True
    is_waiting: Callable[[Leaf], bool] = lambda _: False
    reduced: Callable[[Leaf], Leaf] = lambda x: x
    compared: Callable[[Leaf], Leaf] = lambda x: x
    gap: Callable[[Leaf, Leaf, Tolerance | None], Gap] | None = None
    unfit: Callable[[Leaf], str] = lambda _: ""
    dtype: Callable[[Leaf], Dtype] = no_dtype
    cast: Cast = lambda _, __: None
    are_bare: Callable[[Sequence[Leaf]], bool] = lambda _: False
    are_alike: Callable[[Sequence[Leaf], Sequence[Leaf]], bool] = lambda _, __: False
    match: Callable[[Sequence[Leaf], Sequence[Leaf]], Match | None] = lambda _, __: None
    locals: Callable[[Sequence[Leaf]], Sequence[Tensor] | None] = lambda _: None
    over: Callable[[Sequence[Leaf], Sequence[Tensor]], Sequence[Leaf]] | None = None
    is_plain: bool = False
    tensors: Callable[[Leaf], Sequence[Tensor]] | None = None
    basis: Basis | None = None
    is_dense: Callable[[Aux], bool] = lambda _: False
    whole: Callable[[Leaf], Makeup | None] = lambda _: None

    def __reduce__(self) -> tuple[Callable[[type], Handler | None], tuple[type]]:
        """Go to another process by name: there the kind is registered, too."""
        return find_handler, (self.kind,)


class Makeup(NamedTuple):
    """What a leaf is beside its local tensors: its type, and aux if it is known."""

    kind: type
    aux: Aux
    is_known: bool = True


PAIR: Final = (
    "flatten(leaf) returns (local tensors, aux), unflatten(aux, local tensors) the leaf"
)
"""What a kind is, for messages."""

_HANDLERS: Final[dict[type, Handler]] = {}
_LAZY: Final[dict[str, str]] = {}
_ADMITTED: Final[dict[type, Handler]] = {}
on_change(_ADMITTED.clear)


def register_leaf(
    kind: type,
    *,
    flatten: Flatten,
    unflatten: Unflatten,
    layout: Callable[[Leaf], Layout] | None = None,
    cast: Cast | None = None,
) -> type:
    """Register the handler of a leaf kind and return the kind.

    Law: with ``(ts, aux) = flatten(x)``, ``unflatten(aux, ts)`` is ``x`` again, of the
    same type, and flattens to the same ``(ts, aux)``; neither copies data.
    ``sdtree.testing.check_leaf`` checks it. Subclasses of ``kind`` are served too if
    the round trip gives back their own type. A kind that is known already, built in or
    not, is from then on what was registered last. ``layout`` tells of a sharded leaf
    which boxes of the global tensor each rank's local tensors hold, as a
    ``sdtree.layout.Layout``: then it is gathered and distributed as others are.
    ``cast(leaf, dtype)`` returns a leaf as ``sd.cast`` is to make it, of the same type,
    or the leaf itself if it stays as it is; without it, or where it returns None, every
    local tensor that is floating-point is converted.

    >>> class Scaled:
    ...     def __init__(self, data, scale):
    ...         self.data, self.scale = data, scale
    >>> sd.register_leaf(Scaled, flatten=lambda x: ((x.data,), x.scale),
    ...                  unflatten=lambda scale, ts: Scaled(ts[0], scale)).__name__
    'Scaled'
    >>> sd.cast({"w": Scaled(torch.ones(2), 3)}, dtype=torch.bfloat16)["w"].data.dtype
    torch.bfloat16
    """
    if not isinstance(kind, type):
        raise TypeError(f"register_leaf takes a class, not {kind!r}")
    if kind in (dict, list, tuple):
        raise TypeError(f"register_leaf: a {kind.__name__} is a container, not a leaf")
    cast = (lambda _, __: None) if cast is None else cast
    tell = None if layout is None else partial(_layout_told, layout)
    functions = {"flatten": flatten, "unflatten": unflatten, "cast": cast}
    functions |= {} if layout is None else {"layout": layout}
    for name, fn in functions.items():
        if not callable(fn):
            raise TypeError(
                f"register_leaf({kind.__name__}): {name}={fn!r} cannot be called; "
                f"{PAIR}"
            )
    _load(kind)  # so that what it registers does not come later and win
    add_handler(Handler(kind, flatten, unflatten, tell, cast=cast))
    return kind


def _layout_told(layout: Callable[[Leaf], object], leaf: Leaf) -> Layout:
    """Return the layout that a kind of a user tells of a leaf."""
    found = layout(leaf)
    if not isinstance(found, Layout):
        raise TypeError(
            f"layout= of {type(leaf).__name__} returns a {type(found).__name__}; "
            "return a sdtree.layout.Layout, of what lies on one rank "
            "whole(shape, (rank,))"
        )
    return found


def add_handler(handler: Handler) -> None:
    """Put a handler in the registry and forget what was decided without it."""
    change(lambda: _HANDLERS.update({handler.kind: handler}))


def add_lazy(kind: str, module: str) -> None:
    """Have ``module`` imported, to register ``kind``, when such a leaf is first met."""
    _LAZY[kind] = module


def find_handler(cls: type) -> Handler | None:
    """Return the handler that serves ``cls``, its own or a base's, if there is one."""
    for base in cls.__mro__:
        if base not in _HANDLERS:
            _load(base)
        if base in _HANDLERS:
            return _HANDLERS[base]
    return None


def _load(kind: type) -> None:
    """Import what registers a kind, if that is known; wait for one who does already."""
    module = _LAZY.get(f"{kind.__module__}.{kind.__qualname__}")
    if module is not None:
        importlib.import_module(module)


def handler_of(leaf: Leaf) -> Handler:
    """Return the handler of a leaf; raise ``UnknownLeaf`` if no kind serves it."""
    found = _ADMITTED.get(type(leaf))
    return found if found is not None else _admit(leaf)


def makeup_of(leaf: Leaf) -> Makeup | None:
    """Return what a leaf is beside its local tensors.

    Of a sharded one, when it is whole, and of one that stands for another what is known
    of that. None if that is no more than a type and marks.
    """
    handler = handler_of(leaf)
    stands_in = handler.stands_for(leaf) is not type(leaf)
    if handler.layout is not None or handler.is_plain or stands_in:
        return handler.whole(leaf)
    ts, aux = handler.flatten(leaf)
    return None if not ts or handler.is_dense(aux) else Makeup(type(leaf), aux)


def arrived(leaf: Leaf) -> Leaf:
    """Return a leaf waited for, if its data is on its way."""
    handler = handler_of(leaf)
    if not handler.is_waiting(leaf):
        return leaf
    ts, aux = handler.flatten(leaf)
    return handler.unflatten(aux, ts)


def _admit(leaf: Leaf) -> Handler:
    """Look a new type up and see once that its handler keeps the type."""
    cls, since = type(leaf), era()
    handler = find_handler(cls)
    if handler is None:
        raise unknown(cls)
    tensors, aux = _tried_apart(handler, leaf)
    if handler.keeps_type:
        back = type(_tried_together(handler, aux, tensors))
        if back is not cls:
            raise _changed(handler.kind, cls, back)
    keep(since, lambda: _ADMITTED.update({cls: handler}))
    return handler


def _tried_apart(handler: Handler, leaf: Leaf) -> tuple[Sequence[Tensor], Aux]:
    """Return what a handler makes of its first leaf, seen to be what it should be."""
    parts: object = handler.flatten(leaf)
    match parts:
        case ((list() | tuple()) as ts, aux) if all(map(is_tensor, ts)):
            for t in ts:
                _check_is_local(handler.kind, type(t))
            return ts, aux
        case _:
            made = f"a {type(parts).__name__} of other things"
            raise UnknownLeaf(
                f"the flatten of {handler.kind.__name__} returned {made}; {PAIR}"
            )


def _check_is_local(kind: type, cls: type) -> None:
    """Raise if what a leaf came apart into lies on several ranks itself."""
    found = find_handler(cls)
    if found is not None and found.layout is not None:
        name = found.kind.__name__
        raise UnknownLeaf(
            f"the flatten of {kind.__name__} returned a {name}, which is no local "
            f"tensor; return that of the {name}, keep the rest in aux, and give "
            "register_leaf a layout="
        )


def _tried_together(handler: Handler, aux: Aux, tensors: Sequence[Tensor]) -> Leaf:
    try:
        return handler.unflatten(aux, tensors)
    except Exception as error:
        error.add_note(f"in the unflatten of {handler.kind.__name__}; {PAIR}")
        raise


def _changed(kind: type, cls: type, back: type) -> UnknownLeaf:
    """Return the error for a handler that gives back another type."""
    advice = PAIR if kind is cls else registration(cls)
    return UnknownLeaf(
        f"the handler of {kind.__name__} gives a {cls.__name__} back "
        f"as a {back.__name__}; {advice}"
    )


def tensors_of(leaf: Leaf) -> Sequence[Tensor]:
    """Return the local tensors of a leaf."""
    handler = handler_of(leaf)
    return (
        handler.flatten(leaf)[0] if handler.tensors is None else handler.tensors(leaf)
    )


def of_type(cls: type, leaves: Sequence[Leaf]) -> list[Leaf]:
    """Return the leaves of that very type."""
    return [leaf for leaf in leaves if type(leaf) is cls]


def kind_of(leaf: Leaf) -> type:
    """Return the type that a leaf has, or stands for where it is abstract."""
    return served_by(leaf).stands_for(leaf)


def stands_for_another(leaf: Leaf) -> bool:
    """Return whether a leaf only stands for one that has data, as an ``Abstract``."""
    return kind_of(leaf) is not type(leaf)


def served_by(leaf: Leaf) -> Handler:
    """Return the handler of a leaf that may not come apart, and need not here."""
    found = _ADMITTED.get(type(leaf)) or find_handler(type(leaf))
    if found is None:
        raise unknown(type(leaf))
    return found


def unknown(cls: type) -> UnknownLeaf:
    """Return the error for a type that no kind serves."""
    advice = advice_on(cls)
    if advice is not None:
        return UnknownLeaf(f"{cls.__qualname__} is no leaf; {advice}")
    return UnknownLeaf(f"no handler for {cls.__qualname__}; {registration(cls)}")


def registration(cls: type) -> str:
    """Return the advice that names the line which registers ``cls``."""
    name, flatten = cls.__qualname__, "..."
    if hasattr(cls, "__dlpack__"):  # jax, cupy and others lend their memory
        flatten = "lambda x: ((torch.from_dlpack(x),), None)"
    return f"add one with sd.register_leaf({name}, flatten={flatten}, unflatten=...)"
