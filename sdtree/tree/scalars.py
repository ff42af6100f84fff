"""Scalars of numpy made of text and bytes that anyone may have written.

numpy takes whatever it is told: a dtype of objects makes pointers of the bytes. So the
dtypes that text may name are decided here, for all that reads text.
"""

from __future__ import annotations

import re
from typing import Any, Final

PLAIN: Final = re.compile(
    r"[<>=|]?[biufcmMSUV]\d{0,9}(\[\d{0,9}[A-Za-z]{1,7}\])?", re.A
)
"""Numbers, moments, texts and raw bytes of one size: nothing that points elsewhere."""

NOTHING: Final = {"S": 1, "U": 4}
"""How many bytes numpy has for an empty text."""


def plain_dtype(code: object) -> Any:
    """Return the dtype of numpy that a code names, ``ValueError`` if it is not plain.

    >>> plain_dtype("<f4")
    dtype('float32')
    """
    import numpy as np

    if not isinstance(code, str) or not PLAIN.fullmatch(code):
        raise ValueError(f"{code!r:.40} is no plain dtype of numpy")
    try:
        return np.dtype(code)
    except (TypeError, ValueError) as error:
        raise ValueError(f"numpy has no dtype {code!r:.40}") from error


def is_plain(dtype: Any) -> bool:
    """Return whether its code tells all of a dtype of numpy, and is a plain one."""
    return bool(PLAIN.fullmatch(dtype.str)) and plain_dtype(dtype.str) == dtype


def scalar_of(dtype: Any, data: bytes) -> Any:
    """Return the scalar of a plain dtype that has these bytes, and no others.

    >>> scalar_of(plain_dtype("<i4"), bytes([3, 0, 0, 0]))
    np.int32(3)
    """
    import numpy as np

    if len(data) != (dtype.itemsize or NOTHING.get(dtype.kind, 0)):
        raise ValueError(f"{len(data)} bytes for a {dtype}, which has {dtype.itemsize}")
    return np.ndarray((), dtype, data)[()]
