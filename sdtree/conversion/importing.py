"""The rules of transformers' own conversions: from files of a model to the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import torch

from sdtree.conversion.rule import Rule
from sdtree.conversion.symbols import Book, Inexact, Symbol
from sdtree.conversion.telling import NUMBER, Raw, generalized, rule_of
from sdtree.conversion.text import Expr
from sdtree.errors import RuleError
from sdtree.tensors.modes import uncompiled


class Imported(NamedTuple):
    """Rules of other software: those that are, and which leaves go by none, and why.

    ``refused`` has for each the names of leaves in a file, as far as they are told, or
    in the model, and the reason.
    """

    rules: list[Rule]
    refused: list[tuple[str, str]]


@uncompiled
def from_transformers(model: Any, /) -> Imported:
    """Return the rules from the files of a transformers model to its leaves.

    ``model`` is a model, on any device, or a config; of that a model without data is
    made. Each conversion that transformers does to its leaves when it saves them is
    asked once, with tensors that only tell what is done to them. What is no exact map
    of elements is in ``refused``, with the reason. Law: ``sd.convert`` by the inverses
    of the rules makes the leaves of the file that ``save_pretrained`` writes.

    >>> sd.from_transformers("llama")
    Traceback (most recent call last):
    TypeError: from_transformers takes a transformers model or config, not a str
    """
    model = _built(model)
    tied = _tied(model)
    leaves = {name: t for name, t in model.state_dict().items() if name not in tied}
    found: list[tuple[Raw, Rule]] = []
    refused: list[tuple[str, str]] = []
    for saving in _savings(model, leaves):
        try:
            raw = _with_ties(saving.raw(model), tied)
            found.append((raw, rule_of(raw)))
        except Exception as error:  # whatever their code raises is a reason
            is_ours = isinstance(error, (Inexact, RuleError))
            reason = str(error) if is_ours else repr(error)
            refused.append((", ".join(saving.names), reason))
    return Imported([*generalized(found)], refused)


def _built(model: Any) -> Any:
    """Return a model; of a config one without data."""
    if hasattr(model, "state_dict"):
        return model
    if not hasattr(model, "model_type"):
        raise TypeError(
            "from_transformers takes a transformers model or config, not a "
            f"{type(model).__name__}"
        )
    transformers = import_module("transformers")
    names = model.architectures or []
    cls = getattr(transformers, names[0], None) if names else None
    with torch.device("meta"):
        if cls is not None:
            return cls._from_config(model)
        return transformers.AutoModel.from_config(model)


# -- what transformers does ---------------------------------------------------------


@dataclass(slots=True)
class Saving:
    """Leaves of a model that are saved by one conversion of transformers."""

    key: str
    conversion: Any
    renamings: Sequence[Any]
    names: list[str] = field(default_factory=list[str])
    patterns: list[str] = field(default_factory=list[str])
    tensors: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    def raw(self, model: Any) -> Raw:
        """Return the rule for these leaves."""
        if self.conversion is None:
            if self.names[1:]:
                raise Inexact(f"they would all be saved as {self.key}")
            return Raw.renaming(self.key, self.names[0])
        book = Book()
        given = [
            Symbol.of(book, [book.axis(n) for n in t.shape], t.dtype)
            for t in self.tensors
        ]
        starts = [[*x.dims] for x in given]
        for name, pattern, x in zip(self.names, self.patterns, given, strict=True):
            self.conversion.add_tensor(self.key, name, pattern, x)
        made = self.conversion.convert(self.key, model=model, config=model.config)
        rename = _core().apply_renamings
        ends = [
            (rename(name, self.renamings), x[0] if isinstance(x, list) else x)
            for name, x in made.items()
        ]
        targets = [
            (name, [book.told(dim) for dim in dims])
            for name, dims in zip(self.names, starts, strict=True)
        ]
        return Raw([*_families(book, ends)], targets, book.sizes)


def _tied(model: Any) -> dict[str, str]:
    """Return the leaves that are written under the name of another, by their names."""
    known: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    own = model.state_dict(keep_vars=True)
    return {a: b for a, b in known.items() if a in own and own[a] is own.get(b)}


def _with_ties(raw: Raw, tied: Mapping[str, str]) -> Raw:
    """Return the rule that makes the leaves, too, that are tied to the one it makes."""
    names = [name for name, _ in raw.target]
    others = tuple(name for name, other in tied.items() if other in names)
    if others and names[1:]:
        raise Inexact(f"{', '.join(others)} would be tied to one of several leaves")
    return raw._replace(alias=(*names, *others)) if others else raw


def _core() -> Any:
    return import_module("transformers.core_model_loading")


def _savings(model: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[Saving]:
    """Yield the leaves of a model that transformers saves together."""
    core = _core()
    mapping = import_module("transformers.conversion_mapping")
    every = getattr(model, "_weight_conversions", None)
    if every is None:
        every = mapping.get_model_conversion_mapping(model, add_legacy=False)
        every = [x for x in every if not isinstance(x, core.PrefixChange)]
    back = [conversion.reverse_transform() for conversion in every[::-1]]
    renamings = [x for x in back if isinstance(x, core.WeightRenaming)]
    converters = [x for x in back if isinstance(x, core.WeightConverter)]
    by_pattern = {k: x for x in converters for k in x.source_patterns}
    found: dict[str, Saving] = {}
    for name in sorted(tensors, key=core.dot_natural_key):
        key, pattern = core.apply_converters(name, converters)
        if pattern is None:
            key = core.apply_renamings(name, renamings)
            conversion = None
        else:
            conversion = deepcopy(by_pattern[pattern])
        group = found.setdefault(key, Saving(key, conversion, renamings))
        group.names.append(name)
        group.patterns.append(pattern or name)
        group.tensors.append(tensors[name])
    return iter(found.values())


def _families(
    book: Book, made: Sequence[tuple[str, Symbol]]
) -> Iterator[tuple[str, Sequence[Expr]]]:
    """Yield the leaves of a file; those that are indices of one axis are a family."""
    families: dict[tuple[object, ...], list[tuple[str, Symbol]]] = {}
    for name, x in made:
        if not isinstance(x, Symbol):
            raise Inexact(f"{name} is made of other tensors")
        dims = tuple(book.told(dim) for dim in x.dims)
        key = (dims, *(axis.name for axis, _ in x.picked)) if x.picked else (name, dims)
        families.setdefault(key, []).append((name, x))
    for members in families.values():
        name, first = members[0]
        dims = [book.told(dim) for dim in first.dims]
        yield _indexed(book, members) if first.picked else name, dims


def _indexed(book: Book, members: Sequence[tuple[str, Symbol]]) -> str:
    """Return the name of a family, whose members are the indices of an axis.

    It has a slot where they have their index, or for all of their names.
    """
    name, [(axis, _), *more] = members[0][0], members[0][1].picked
    indices = [x.picked[0][1] for _, x in members]
    if more or indices != [*range(book.size(axis))]:
        raise Inexact(f"{name} and others are not all indices of one axis, in order")
    for found in NUMBER.finditer(name):
        head, tail = name[: found.start()], name[found.end() :]
        if all(own == f"{head}{x.picked[0][1]}{tail}" for own, x in members):
            return f"{head}{{{axis.name}}}{tail}"
    return f"{{{axis.name}:{'|'.join(own for own, _ in members)}}}"
