"""Whether ``convert_file`` is asked for what it does."""

from __future__ import annotations

import os

from sdtree.errors import one_of
from sdtree.io.reading import Opened
from sdtree.transform.transform import Transform, no_transform


def check_asked(source: object, target: object, transform: object) -> None:
    """Raise ``TypeError`` unless there are a file, another one and a transform.

    >>> try:
    ...     check_asked("a.pt", sd.copy(), "b.pt")
    ... except TypeError as error:
    ...     print(str(error).partition("; ")[2])
    write sd.convert_file('a.pt', 'b.pt', transform)
    """
    files = [x for x in (source, target, transform) if _is_file(x)]
    if _is_file(target) and (_is_file(source) or hasattr(source, "read")):
        if not isinstance(transform, Transform):
            raise no_transform("convert_file", transform)
        return
    names = ", ".join(map(repr, files if len(files) == 2 else ("a.pt", "b.pt")))
    wrong = source if not _is_file(source) else target
    advice = f"write sd.convert_file({names}, transform)"
    if not isinstance(wrong, Transform) and wrong is source:
        advice += ", and of a tree that is here sd.save(transform(tree), 'b.pt')"
    raise TypeError(
        "convert_file takes the file to read, the one to write, and then the "
        f"transform, not {one_of(type(wrong))}; {advice}"
    )


def _is_file(x: object) -> bool:
    return isinstance(x, (str, os.PathLike, Opened))
