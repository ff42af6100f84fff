"""Rules that ship: between the names and layouts in which others have a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from sdtree.conversion.rule import Rule, as_index
from sdtree.tensors.modes import uncompiled

MODELS: Final = Path(__file__).parent / "models"
"""A JSON file for each model: by source and target, the rules between them."""

DEFAULTS: Final = {"num_key_value_heads": "num_attention_heads"}
"""As what a config of transformers has a size that it does not tell."""


class Untold(ValueError):
    """A config does not tell a size."""


@uncompiled
def rules(model: str, source: str, target: str, config: object, /) -> list[Rule]:
    """Return the rules from the leaves of a model in one code base to those in another.

    ``config`` is a mapping or an object with the sizes of the model, as transformers
    has them: ``num_attention_heads`` and others, as far as the rules ask for them.
    There are ``"llama"``, ``"qwen3"``, ``"qwen3_moe"`` and ``"gpt_oss"`` models of
    ``"hf"``, ``"titan"`` and ``"megatron"``, ``"mixtral"`` and ``"qwen2_moe"`` ones of
    the first and the last, and ``"deepseek_v3"`` ones of the first two.
    Of ``"hf"`` the leaves are those of its files, in no packed dtype. Law: the rules
    back are the inverses of those. A model or a way that is not among these, and a size
    that the config does not tell, raise ``ValueError``.

    >>> config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    >>> sd.rules("llama", "hf", "titan", config)[2].target
    ('layers.{l}.attention.wk.{s:weight|bias} [(h d two) ...]',)
    """
    known = [path.stem for path in sorted(MODELS.glob("*.json"))]
    if model not in known:
        raise ValueError(f"there are no rules for {model!r}; there are for {known}")
    pairs = {(a, b): x for a, ends in _read(model).items() for b, x in ends.items()}
    if (source, target) in pairs:
        return [_rule(data, config) for data in pairs[source, target]]
    if (target, source) in pairs:
        return [_rule(data, config).inverse() for data in pairs[target, source]]
    told = "; ".join(f"{a} and {b}" for a, b in pairs)
    raise ValueError(
        f"there are no rules for {model} from {source!r} to {target!r}; there are "
        f"between {told}, and one convert can follow another"
    )


@cache
def _read(model: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads((MODELS / f"{model}.json").read_text())


def _rule(data: Mapping[str, Any], config: object) -> Rule:
    """Return a rule whose sizes a config tells, those that ``checks`` name if it does.

    These follow from the leaves: a config of another model is found out by them.
    """
    sides = {side: data[side] for side in ("source", "target")}
    sizes = {axis: _size(told, config) for axis, told in data.get("sizes", {}).items()}
    for axis, told in data.get("checks", {}).items():
        with suppress(Untold):
            sizes[axis] = _size(told, config)
    return Rule.from_data({**sides, "sizes": sizes})


def _size(told: object, config: object) -> int:
    """Return a size: a number, what a config has under a name, or one over another."""
    if isinstance(told, list):
        over, under = (_size(name, config) for name in cast("list[str]", told))
        if not under or over % under:
            raise ValueError(f"{told[0]}={over} is no multiple of {told[1]}={under}")
        return over // under
    found = told
    if isinstance(told, str):
        is_mapping = isinstance(config, Mapping)
        found = config.get(told) if is_mapping else getattr(config, told, None)
        if found is None and told in DEFAULTS:
            return _size(DEFAULTS[told], config)
    size = as_index(found)
    if type(size) is not int:
        raise Untold(f"the config tells no {told}; the rules need it, an int")
    return size
