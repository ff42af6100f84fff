"""A tree as the entries of a safetensors file and its document, and back.

Every leaf is an entry of its own, dense, so that any reader finds it under its name. An
exact alias is written once. The document says where leaves that share bytes lie, and
they are tied again if their bytes still agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sdtree.errors import FileError
from sdtree.io.leaves.places import Place, is_too_sparse, placed, places_of
from sdtree.io.leaves.restriding import Read
from sdtree.io.leaves.sharing import overlapping
from sdtree.io.safetensors import earlier
from sdtree.io.safetensors.document import VERSION, Document
from sdtree.io.safetensors.header import METADATA
from sdtree.io.safetensors.kinds import Held, Lie, held, lie_of, make
from sdtree.path import where
from sdtree.tensors.storage import as_one, extent
from sdtree.tree.pairing import difference
from sdtree.tree.plain_json import Json, dump, expect, load, parse, shortly
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

Hold = Callable[[Leaf, Path], Held | None]
"""Returns a leaf as a format holds it, None if it is a plain value."""


@dataclass(slots=True)
class Pack:
    """A tree as a file holds it. Not all entries are contiguous yet.

    ``ties`` are the names of entries that share bytes in the tree.
    """

    document: Document
    entries: dict[str, Tensor]
    ties: list[list[str]]

    @classmethod
    def of(cls, tree: Tree, *, keep_names: bool = False, hold: Hold = held) -> Pack:
        """Return a tree as a file holds it; raise if the format has no room for it.

        With ``keep_names`` aliases are entries, too. ``hold`` is that of another format
        whose files have the same document.
        """
        leaves, spec = take(tree)
        document = Document(spec)
        tensors = _tensors_of(leaves, document, hold)
        lies, names, ties = _lies(document), spec.names(), list[list[str]]()
        for group in overlapping(tensors):
            aliases = {} if keep_names else _aliases(group, lies)
            document.aliases.update(aliases)
            owners = {i: t for i, t in group.items() if i not in aliases}
            if len(owners) > 1 or _is_strided(group):
                document.storages.append(_places(owners, spec.every_path))
            if len(owners) > 1:
                ties.append([names[i] for i in owners])
        entries = {
            names[i]: lies[i].in_file(t) if i in lies else t
            for i, t in tensors.items()
            if i not in document.aliases
        }
        return cls(document, entries, ties)


def _tensors_of(
    leaves: Sequence[Leaf], document: Document, hold: Hold
) -> dict[int, Tensor]:
    """Return the tensors of leaves; the document takes what they are beside them."""
    names, paths = document.spec.unique_names(), document.spec.every_path
    tensors: dict[int, Tensor] = {}
    for i, leaf in enumerate(leaves):
        found = hold(leaf, paths[i])
        if found is None:
            document.plain[i] = dump(leaf, paths[i])
            continue
        if hold is held:
            _check_name(names[i])
        tensors[i] = found.tensor
        if found.kind is not None:
            document.kinds[i] = found.kind
    return dict(zip(tensors, as_one([*tensors.values()]), strict=True))


def _aliases(group: Mapping[int, Tensor], lies: Mapping[int, Lie]) -> dict[int, int]:
    """Return which leaves are the same as one before them, and which that is."""
    first: dict[object, int] = {}
    forms = {i: (*_form(t), lies.get(i)) for i, t in group.items()}
    same = {i: first.setdefault(form, i) for i, form in forms.items()}
    return {i: owner for i, owner in same.items() if i != owner}


def _form(t: Tensor) -> tuple[object, ...]:
    return t.dtype, t.data_ptr(), t.size(), t.stride()


def _is_strided(group: Mapping[int, Tensor]) -> bool:
    """Return whether the strides of a tensor are kept, which has aliases or none.

    Those of a tensor that is alone and fills less than half of its span are not.
    """
    t = next(iter(group.values()))
    kept = len(group) > 1 or 2 * t.numel() >= extent(t)
    return kept and not t.is_contiguous()


def _places(ts: Mapping[int, Tensor], paths: Sequence[Path]) -> list[Place]:
    places = places_of(ts)
    if is_too_sparse(places, list(ts.values())):
        raise ValueError(
            f"{where(paths[places[0].leaf])}: a safetensors file has no room for "
            "leaves that share so little of so large a storage; clone it, or save a "
            ".pt file"
        )
    return places


def _lies(document: Document) -> dict[int, Lie]:
    """Return how those arrays lie that do not lie as in the file."""
    found = {i: lie_of(kind) for i, kind in document.kinds.items()}
    return {i: lie for i, lie in found.items() if lie is not None}


def _check_name(name: str) -> None:
    if name == METADATA:
        raise ValueError(
            f"{name}: a safetensors file keeps this name for itself; rename the leaf"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name!r}: the name of a tensor must be text that UTF-8 can say, with no "
            "lone surrogates; rename the leaf"
        ) from None


# -- and back ----------------------------------------------------------------------


def unpack(
    text: str,
    entries: Mapping[str, Tensor],
    *,
    lazy: bool,
    release: Callable[[], None],
) -> Read:
    """Return the tree of a document and entries, and what is to be noted about it.

    With ``lazy`` leaves that share bytes with no other stay contiguous, and the strides
    that they had are told. ``release`` is called when leaves that share some have been
    looked at.
    """
    data = expect(parse(text), dict)
    if data["version"] == earlier.VERSION:
        return Read(_unpack_earlier(data, entries))
    if data["version"] != VERSION:
        raise FileError(
            f"its metadata is of version {shortly(data['version'])} and this sdtree "
            f"reads versions up to {VERSION}; upgrade sdtree"
        )
    document = Document.from_data(data)
    names = document.names(len(entries))
    _check_names(entries, names)
    tensors = {i: entries[name] for i, name in names.items()}
    for i, lie in _lies(document).items():
        if i in tensors:
            tensors[i] = lie.in_memory(tensors[i])
    notes, strides = _tied_again(document, names, tensors, lazy, release)
    paths, aliases = document.spec.every_path, document.aliases
    strides |= {i: strides[j] for i, j in aliases.items() if j in strides}
    by_path = {paths[i]: stride for i, stride in strides.items()}
    entries_of = {**names, **{i: names[j] for i, j in aliases.items()}}
    tree = assembled(document, tensors)
    return Read(tree, notes, by_path, entries=entries_of)


def _tied_again(
    document: Document,
    names: Mapping[int, str],
    tensors: dict[int, Tensor],
    lazy: bool,
    release: Callable[[], None],
) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """Have leaves share what they shared, in place, as ``unpack`` says.

    Returned are notes on those that no longer can, and the strides that are told.
    """
    notes: list[str] = []
    strides: dict[int, tuple[int, ...]] = {}
    for places in document.storages:
        ts = [tensors[place.leaf] for place in places]
        if lazy and len(places) == 1 and places[0].is_loose(ts[0]):
            strides[places[0].leaf] = places[0].stride
            continue
        tied = placed(places, ts)
        if tied is None:
            told = ", ".join(names[place.leaf] for place in places)
            notes.append(f"no longer the same where they shared memory: {told}")
        else:
            tensors.update(zip([place.leaf for place in places], tied, strict=True))
        release()
    return notes, strides


def assembled(document: Document, tensors: Mapping[int, Tensor]) -> Tree:
    """Return the tree of a document over the tensors of its leaves."""
    ts = dict(tensors)
    ts |= {i: tensors[owner].detach() for i, owner in document.aliases.items()}
    return document.spec.make(
        load(document.plain[i])
        if i in document.plain
        else make(document.kinds.get(i), ts[i])
        for i in range(len(document.spec))
    )


def _check_names(entries: Mapping[str, Tensor], names: Mapping[int, str]) -> None:
    wanted = dict.fromkeys(names.values())
    if wanted.keys() != entries.keys():
        holder, other = "the file", "its metadata"
        raise FileError(difference(entries, wanted, holder, other))


def _unpack_earlier(data: Json, entries: Mapping[str, Tensor]) -> Tree:
    document = Document.from_data({**data, "aliases": {}, "storages": []})
    names = document.names(len(entries) + len(data["places"]))
    owners = earlier.owners(data, names)
    _check_names(entries, owners)
    return assembled(document, earlier.tensors_of(data, entries, owners))
