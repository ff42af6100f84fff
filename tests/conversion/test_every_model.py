"""Conversions of all model types of transformers that have one, on small models."""

import importlib
import inspect
from contextlib import suppress

import pytest
import torch
from conversions import same

import sdtree as sd

LEAST = {
    "depth": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 48,
    "kv_lora_rank": 16,
    "moe_intermediate_size": 16,
    "moe_num_experts": 4,
    "n_routed_experts": 4,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_local_experts": 4,
    "pad_token_id": 0,
    "q_lora_rank": 16,
    "shared_expert_intermediate_size": 16,
    "vocab_size": 50,
}
"""Of what a config has more, this will do."""

MOST = 10**7
"""Of how many numbers a model is made; of more it is told alone what becomes of it."""


def shrink(config):
    """Make a config and those in it small, as far as they let that be done."""
    for name, least in LEAST.items():
        with suppress(Exception):
            if getattr(config, name) > least:
                setattr(config, name, least)
    for name in ("layer_types", "mlp_layer_types"):
        with suppress(Exception):
            setattr(config, name, getattr(config, name)[:2])
    for inner in [*vars(config).values()]:
        if hasattr(inner, "model_type"):
            shrink(inner)
    return config


def class_of(transformers, key):
    """Return the class of models that a key of their table of conversions means."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    if hasattr(transformers, key):
        return getattr(transformers, key)
    names = auto.MODEL_MAPPING_NAMES.get(key)
    if names:
        return getattr(transformers, names if isinstance(names, str) else names[0])
    config = transformers.CONFIG_MAPPING[key]
    module = config.__module__.replace("configuration_", "modeling_")
    return next(
        x
        for x in vars(importlib.import_module(module)).values()
        if inspect.isclass(x)
        and issubclass(x, transformers.PreTrainedModel)
        and x.__module__ == module
        and x.config_class is config
        and not x.__name__.endswith("PreTrainedModel")
    )


def built(transformers, key):
    """Return a small model of random numbers, a large one without."""
    cls = class_of(transformers, key)
    config = shrink(cls.config_class())
    with torch.device("meta"):
        model = cls(config)
    size = sum(t.numel() for t in model.state_dict().values())
    return cls(config) if size < MOST else model


def test_nearly_all_of_their_conversions_are_rules_and_give_their_bits():
    """Of nine in ten all leaves; these are those of the file, and of the model again.

    What goes by no rule has a reason. Models that their own code does not make of a
    small config, or whose conversions it does not run, are left out, and are few.
    """
    transformers = pytest.importorskip("transformers")
    core = importlib.import_module("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping")
    table = mapping._build_checkpoint_conversion_mapping()
    converter = core.WeightConverter
    keys = [k for k, own in table.items() if any(isinstance(x, converter) for x in own)]
    left_out, refused = {}, {}
    for key in keys:
        try:
            model = built(transformers, key)
            state = dict(model.state_dict())
            tied = getattr(model, "all_tied_weights_keys", None) or {}
            bare = {name: t for name, t in state.items() if name not in tied}
            file = core.revert_weight_conversion(model, bare)
        except Exception as error:
            left_out[key] = repr(error)
            continue
        found = sd.from_transformers(model)
        if found.refused:
            refused[key] = found.refused
        elif state and not any(t.is_meta for t in state.values()):
            same(sd.convert(state, [rule.inverse() for rule in found.rules]), file)
            same(sd.convert(file, found.rules), state)
    count = len(keys) - len(left_out)
    assert len(left_out) <= len(keys) / 6, left_out
    assert len(refused) <= count / 10, refused
    assert all(names and why for own in refused.values() for names, why in own)
