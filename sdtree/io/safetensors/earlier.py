"""The metadata of safetensors files from before every leaf was an entry.

Leaves that shared bytes shared an entry: the one that was the whole, or all that they
covered in one dimension, under the name of the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdtree.errors import FileError
from sdtree.io.leaves.places import Place, placed
from sdtree.tree.plain_json import Json, load

VERSION = 1


def owners(data: Json, names: Mapping[int, str]) -> dict[int, str]:
    """Return the entry that has each leaf, where the leaves have these names."""
    return {i: data["places"].get(str(i), [name])[0] for i, name in names.items()}


def tensors_of(
    data: Json, entries: Mapping[str, Tensor], owners: Mapping[int, str]
) -> dict[int, Tensor]:
    """Return the tensors of the leaves."""
    whole = dict(entries)
    for name, stride in data["strides"].items():
        whole[name] = _restrided(name, entries[name], stride)
    views = data["places"]
    return {
        i: _at(name, whole[name], *views.get(str(i), [name])[1:])
        for i, name in owners.items()
    }


def _restrided(name: str, t: Tensor, stride: list[int]) -> Tensor:
    found = placed([Place.told(0, 0, stride)], [t])
    if found is None:
        raise FileError(f"its metadata has strides that do not fit {name!r}")
    return found[0]


def _at(name: str, entry: Tensor, *view: Json) -> Tensor:
    """Return the tensor that lies at a place of an entry, at all of it if none."""
    if not view:
        return entry.detach()
    offset, shape, stride, dtype = view
    place = Place.told(0, offset, stride)
    form = torch.empty(shape, dtype=load(dtype), device="meta")
    if place.stop(form) > entry.nbytes:
        raise FileError(f"its metadata has a view beyond the end of {name!r}")
    if place.offset % form.itemsize:
        raise FileError(f"its metadata has a view askew in {name!r}")
    return place.over(entry.untyped_storage(), form)
