"""Arrays and scalars of numpy in files of torch, made here and not by numpy's pickling.

What numpy names in a pickle takes whatever a file says: a dtype with other flags makes
pointers of the bytes in it. So these stand in for it, and take plain dtypes and the
right number of bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sdtree.container import ABSENT, container_of
from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.typing import Tree


class PickledType:
    """A dtype in a pickle: its code, and then its byte order and unit of time."""

    def __init__(self, code: str, *_: bool) -> None:
        self.dtype = _plain(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subtype, names, fields, *more = state
        if subtype or names or fields:
            raise ValueError("an array of records in a pickle of numpy")
        if self.dtype.kind in "mM":
            unit, count, *_ = more[3][1]
            self.dtype = _plain(f"{self.dtype.char}8[{int(count)}{unit.decode()}]")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """An array in a pickle. ``array`` is it when its state is known."""

    made = 0

    def __init__(self, *_: object) -> None:
        self.array: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        made = _over(data, shape, kind, "F" if by_columns else "C")
        self.array = made.copy(order="K")
        PickledArray.made += 1


def pickled_scalar(kind: PickledType, data: bytes) -> Any:
    """Return a scalar in a pickle."""
    return _over(data, (), kind, "C")[()]


def _plain(code: str) -> Any:
    import numpy as np

    if type(code) is str and "," not in code:
        dtype = np.dtype(code)
        if not (dtype.hasobject or dtype.names or dtype.subdtype):
            return dtype
    raise ValueError(f"an array of {code!r} in a pickle of numpy")


def _over(data: bytes, shape: tuple[int, ...], kind: PickledType, order: Any) -> Any:
    import numpy as np

    if type(data) is not bytes:
        raise ValueError("an array of Python objects in a pickle of numpy")
    return np.ndarray(shape, kind.dtype, data, order=order)


@cache
def stand_ins() -> tuple[Any, ...]:
    """Return what stands in for what numpy names in pickles, under both its names."""
    found: list[Any] = [(PickledType, "numpy.dtype"), (PickledArray, "numpy.ndarray")]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found.append((PickledArray, f"{module}._reconstruct"))
        found.append((pickled_scalar, f"{module}.scalar"))
    return tuple(found)


def settled(x: Tree) -> Tree:
    """Return a tree with the arrays themselves where something stands in for them."""
    if isinstance(x, PickledArray):
        return x.array
    try:
        container = None if x is ABSENT else container_of(type(x))
    except (UnknownLeaf, UnknownContainer):
        return x
    if container is None:
        return x
    keys, children, aux = container.apart(x)
    return container.together(keys, [settled(child) for child in children], aux)
