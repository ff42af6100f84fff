"""Strategies for numpy arrays, records and scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from sdtree.typing import Leaf

DTYPES = (
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
    *("f2", "f4", "f8", "c8", "c16", "g", "G", ">f4", ">i2", ">c8"),
    *("S3", "U2", ">U1", "M8[s]", "m8[ns]", ">M8[D]", "V3", "V0"),
    "u1, <f4",  # packed, so that its second field is not aligned
    "(2,)<f8, <i2",
)
"""Dtypes of numpy: those of torch, and those that it has none for."""


def array_of(shape: Sequence[int], dtype: str, seed: int) -> Any:
    """Return a contiguous array of that dtype with random bits.

    >>> array_of((2, 3), ">f4", seed=0).dtype
    dtype('>f4')
    """
    import numpy as np

    kind, generator = np.dtype(dtype), np.random.default_rng(seed)
    if kind.kind in "bU":  # not all bits make sense in these
        return generator.choice(["", "a", "é"], tuple(shape)).astype(kind)
    return np.ndarray(shape, kind, generator.bytes(math.prod(shape) * kind.itemsize))


@st.composite
def arrays(draw: DrawFn) -> Leaf:
    """Return numpy arrays, of every dtype, shape, stride and alignment, and scalars.

    Backwards, broadcast, overlapping, by columns, read-only; fields of records; of
    subclasses: matrices, masked arrays, arrays of records.

    >>> import hypothesis, numpy
    >>> hypothesis.find(arrays(), lambda x: isinstance(x, numpy.ma.MaskedArray)).shape
    ()
    """
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    base = array_of(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 9)))
    view = draw(st.sampled_from(VIEWS))(base)
    return draw(st.sampled_from(MARKS))(view)


def _field(x: Any) -> Any:
    return x[x.dtype.names[-1]] if x.dtype.names else x


def _odd(x: Any) -> Any:
    """Return the array at an address that no element of several bytes should have."""
    import numpy as np

    memory = bytearray(b"?" + x.tobytes())
    return np.ndarray(x.shape, x.dtype, memory, 1) if x.nbytes else x


def _sliding(x: Any) -> Any:
    """Return windows that overlap: an element stands in several places."""
    import numpy as np

    if not x.ndim or x.shape[-1] < 2:
        return x
    return np.lib.stride_tricks.sliding_window_view(x, 2, axis=-1, writeable=True)


def _broadcast(x: Any) -> Any:
    import numpy as np

    return np.broadcast_to(x, (2, *x.shape))


VIEWS: tuple[Callable[[Any], Any], ...] = (
    *(lambda x: x, lambda x: x, lambda x: x.T, lambda x: x.copy("F")),
    *(lambda x: x[..., ::2] if x.ndim else x, lambda x: x[..., ::-1] if x.ndim else x),
    *(lambda x: x[::-1] if x.ndim else x, _broadcast, _sliding, _field, _odd),
)


def _read_only(x: Any) -> Any:
    x = x[...]
    x.flags.writeable = False
    return x


def _matrix(x: Any) -> Any:
    import numpy as np

    return x.view(np.matrix) if x.ndim == 2 else x


def _masked(x: Any) -> Any:
    import numpy as np

    return np.ma.MaskedArray(x, np.arange(x.size).reshape(x.shape) % 2 == 1)


def _records(x: Any) -> Any:
    import numpy as np

    return x.view(np.recarray) if x.dtype.names else x


def _scalar(x: Any) -> Any:
    return x[(0,) * x.ndim] if x.size else x


MARKS: tuple[Callable[[Any], Any], ...] = (
    *(lambda x: x, lambda x: x, lambda x: x, _read_only),
    *(_matrix, _masked, _records, _scalar),
)
