"""The metadata of a file: texts by name, which stand beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sdtree.errors import one_of
from sdtree.io.refusal import in_short
from sdtree.tensors.counting import UNHEARD, Count

KEY: Final = "sdtree"
"""Under which the metadata of a file has our document."""

FOLDER_KEY: Final = "sdtree.folder"
"""Under which that of one file has the document of all files of a folder."""

FORMAT: Final = "format"
"""Under which it says whose tensors they are, for other readers."""

OURS: Final = (KEY, FOLDER_KEY)
Metadata = Mapping[str, str]


class Options(NamedTuple):
    """How a tree is written: whether aliases are, too, what beside, how large shards.

    ``shard_bytes`` is for folders alone; ``done`` counts the bytes of tensors.
    """

    keep_names: bool
    metadata: Metadata
    shard_bytes: int
    done: Count = UNHEARD


def checked(metadata: object) -> Metadata:
    """Return metadata that is to be written; raise if a file has no room for it."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(
            "metadata= is a mapping of str to str, for a safetensors file has texts "
            f"alone; here it is {one_of(type(metadata))}"
        )
    for name, text in metadata.items():
        _check(name, text)
    return dict(metadata)


def _check(name: object, text: object) -> None:
    for each in (name, text):
        if type(each) is not str:
            raise TypeError(
                f"metadata= has {in_short(repr(name))}: {in_short(repr(text))}, and a "
                "safetensors file takes str alone; make text of it, by json.dumps say"
            )
        try:
            each.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"metadata= has {in_short(repr(each))}, which UTF-8 cannot say"
            ) from None
    if name in OURS:
        raise ValueError(
            f"metadata= has {name!r}, under which sdtree keeps the structure of a "
            "tree; give it another name"
        )


def written(metadata: Metadata, **ours: str) -> dict[str, str]:
    """Return what a file is to have: other readers ask it for the format."""
    return {FORMAT: "pt", **metadata, **ours}


def foreign(metadata: Metadata) -> dict[str, str]:
    """Return metadata without what is ours."""
    return {name: text for name, text in metadata.items() if name not in OURS}


def common(every: Mapping[str, Metadata]) -> tuple[dict[str, str], list[str]]:
    """Return the metadata of files that are one, and where two of them disagree.

    What only some have is that of all.
    """
    first: dict[str, tuple[str, str]] = {}
    apart: dict[str, str] = {}
    for file, metadata in every.items():
        for name, text in foreign(metadata).items():
            known, other = first.setdefault(name, (text, file))
            if known != text:
                apart[name] = f"{in_short(repr(name))} in {other} and {file}"
    agreed = {name: text for name, (text, _) in first.items() if name not in apart}
    return agreed, [*apart.values()]
