"""Containers in pickles: made without running what their classes do."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from sdtree.io.pickles.foreign import Foreign
from sdtree.tree.portable import FACTORIES

Make = Callable[..., Any]
_KNOWN: Final = {f"builtins.{name}": cls for name, cls in FACTORIES.items()}


def _ordered(cls: Any, pairs: Sequence[Any] = ()) -> Any:
    new: Any = OrderedDict.__new__(cls)
    for key, value in pairs:
        OrderedDict.__setitem__(new, key, value)
    return new


def _counter(cls: Any, counts: Any = None) -> Any:
    new = dict.__new__(cls)
    dict.update(new, counts or {})
    return new


def _default(cls: Any, factory: Any = None) -> Any:
    """Return a defaultdict, if what it calls for a key that it lacks is known."""
    name = factory.name if isinstance(factory, Foreign) else ""
    if factory is not None and name not in _KNOWN:
        return NotImplemented
    new: Any = defaultdict.__new__(cls)
    defaultdict.__init__(new, _KNOWN.get(name))
    return new


def _deque(cls: Any, elements: Sequence[Any] = (), maxlen: Any = None) -> Any:
    new: Any = deque.__new__(cls)
    deque.__init__(new, elements, maxlen)
    return new


BASES: Final[dict[type, Make]] = {
    OrderedDict: _ordered,
    Counter: _counter,
    defaultdict: _default,
    deque: _deque,
}
COLLECTIONS: Final[dict[str, Make]] = {
    f"collections.{cls.__name__}": partial(make, cls) for cls, make in BASES.items()
}


def called(cls: type, *args: Any) -> Any:
    """Return what a call makes, ``NotImplemented`` if only the class can tell."""
    for base, make in BASES.items():
        if issubclass(cls, base):
            return make(cls, *args)
    return NotImplemented


def new(cls: Any, args: tuple[Any, ...]) -> Any:
    """Return a new instance, to which a state may be given, or ``NotImplemented``."""
    if issubclass(cls, tuple):
        fields: Any = getattr(cls, "_fields", None)
        elements = args[0] if fields is None else args
        is_whole = fields is None or len(fields) == len(args)
        return tuple.__new__(cls, elements) if is_whole else NotImplemented
    if args:
        return NotImplemented
    bases: tuple[Any, ...] = (*BASES, dict, list, object)
    return next(base for base in bases if issubclass(cls, base)).__new__(cls)
