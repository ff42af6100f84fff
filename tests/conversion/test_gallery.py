"""Rules that ship: what they make of a model computes the same in the other's way.

The others' code is not here. What they do with their weights is written down below, as
short as can be, and its outcome held against that of transformers, bit by bit but for
the order in which sums are taken.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import embedding, linear, rms_norm, silu

import sdtree as sd

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
HIDDEN, HEAD, LAYERS, WORDS = 32, 8, 2, 11
GOALS = ["titan", "megatron"]


def state():
    """Return weights of a small Llama under the names of transformers."""
    rows = {"q": 32, "k": 16, "v": 16, "o": 32}
    tree = {"model.embed_tokens.weight": torch.randn(WORDS, HIDDEN)}
    for i in range(LAYERS):
        head = f"model.layers.{i}"
        for name, n in rows.items():
            tree[f"{head}.self_attn.{name}_proj.weight"] = torch.randn(n, HIDDEN) / 4
        for name in ("gate", "up"):
            tree[f"{head}.mlp.{name}_proj.weight"] = torch.randn(24, HIDDEN) / 4
        tree[f"{head}.mlp.down_proj.weight"] = torch.randn(HIDDEN, 24) / 4
        for name in ("input", "post_attention"):
            tree[f"{head}.{name}_layernorm.weight"] = torch.rand(HIDDEN) + 0.5
    tree["model.norm.weight"] = torch.rand(HIDDEN) + 0.5
    return tree | {"lm_head.weight": torch.randn(WORDS, HIDDEN)}


# -- what they compute -------------------------------------------------------------


def attend(q, k, v, turn):
    """Return attention of (length, heads, head) tensors, turned by their places."""
    q, k = turn(q), turn(k)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return found.transpose(0, 1).flatten(1)


def angles(length):
    steps = 10000 ** (-torch.arange(0, HEAD, 2) / HEAD)
    return torch.outer(torch.arange(length), steps)[:, None]


def by_pairs(t):
    """Turn neighbours, as numbers in the complex plane."""
    pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones(()), angles(len(t)))
    return torch.view_as_real(turned).flatten(-2)


def by_halves(t):
    """Turn the first half of each head with the second."""
    a, b = t.chunk(2, -1)
    cos, sin = angles(len(t)).cos(), angles(len(t)).sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def norm(x, w):
    return rms_norm(x, (HIDDEN,), w, 1e-6)


def heads(x, w):
    return linear(x, w).unflatten(-1, (-1, HEAD))


def hf(w, words):
    x = embedding(words, w["model.embed_tokens.weight"])
    for i in range(LAYERS):
        own = {
            name.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): t
            for name, t in w.items()
        }
        y = norm(x, own["input_layernorm"])
        qkv = (heads(y, own[f"self_attn.{name}_proj"]) for name in "qkv")
        x = x + linear(attend(*qkv, by_halves), own["self_attn.o_proj"])
        y = norm(x, own["post_attention_layernorm"])
        gate, up = (linear(y, own[f"mlp.{name}_proj"]) for name in ("gate", "up"))
        x = x + linear(silu(gate) * up, own["mlp.down_proj"])
    return linear(norm(x, w["model.norm.weight"]), w["lm_head.weight"])


def titan(w, words):
    x = embedding(words, w["tok_embeddings.weight"])
    for i in range(LAYERS):
        a, f = (f"layers.{i}.{name}" for name in ("attention", "feed_forward"))
        y = norm(x, w[f"{a}_norm.weight"])
        qkv = (heads(y, w[f"{a}.w{name}.weight"]) for name in "qkv")
        x = x + linear(attend(*qkv, by_pairs), w[f"{a}.wo.weight"])
        y = norm(x, w[f"layers.{i}.ffn_norm.weight"])
        gate, up = (linear(y, w[f"{f}.{name}.weight"]) for name in ("w1", "w3"))
        x = x + linear(silu(gate) * up, w[f"{f}.w2.weight"])
    return linear(norm(x, w["norm.weight"]), w["output.weight"])


def megatron(w, words):
    x = embedding(words, w["embedding.word_embeddings.weight"])
    for i in range(LAYERS):
        a, f = (f"decoder.layers.{i}.{name}" for name in ("self_attention", "mlp"))
        y = norm(x, w[f"{a}.linear_qkv.layer_norm_weight"])
        groups = linear(y, w[f"{a}.linear_qkv.weight"]).unflatten(-1, (2, -1, HEAD))
        q, k, v = groups.split([2, 1, 1], -2)
        found = attend(q.flatten(1, 2), k.squeeze(-2), v.squeeze(-2), by_halves)
        x = x + linear(found, w[f"{a}.linear_proj.weight"])
        y = norm(x, w[f"{f}.linear_fc1.layer_norm_weight"])
        gate, up = linear(y, w[f"{f}.linear_fc1.weight"]).chunk(2, -1)
        x = x + linear(silu(gate) * up, w[f"{f}.linear_fc2.weight"])
    return linear(
        norm(x, w["decoder.final_layernorm.weight"]), w["output_layer.weight"]
    )


# -- laws --------------------------------------------------------------------------

COMPUTE = {"titan": titan, "megatron": megatron}


@pytest.mark.parametrize("goal", GOALS)
def test_a_llama_computes_the_same_in_the_other_world(goal):
    ours, words = state(), torch.arange(WORDS)
    theirs = sd.convert(ours, sd.rules("llama", "hf", goal, SIZES))
    wanted = hf(ours, words)
    torch.testing.assert_close(
        COMPUTE[goal](theirs, words), wanted, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("goal", GOALS)
def test_the_rules_back_are_the_inverses(goal):
    ours, config = state(), SimpleNamespace(**SIZES)
    there = sd.rules("llama", "hf", goal, config)
    back = sd.rules("llama", goal, "hf", config)
    assert back == [rule.inverse() for rule in there]
    found = sd.convert(sd.convert(ours, there), back)
    assert sd.equal(dict(sorted(found.items())), dict(sorted(ours.items())))


def test_a_file_without_a_tied_head_is_converted():
    ours = state()
    del ours["lm_head.weight"]
    made = sd.convert(ours, sd.rules("llama", "hf", "titan", SIZES))
    assert "tok_embeddings.weight" in made
    assert "output.weight" not in made


def test_what_there_is_not_is_told():
    with pytest.raises(
        ValueError, match=r"no rules for 'bert'; there are for \['llama'\]"
    ):
        sd.rules("bert", "hf", "titan", SIZES)
    with pytest.raises(ValueError, match="hf and titan; hf and megatron"):
        sd.rules("llama", "titan", "megatron", SIZES)
    with pytest.raises(ValueError, match="the config tells no num_attention_heads"):
        sd.rules("llama", "hf", "titan", {})
    odd = {**SIZES, "num_attention_heads": 3}
    with pytest.raises(ValueError, match="num_attention_heads=3 is no multiple of"):
        sd.rules("llama", "hf", "megatron", odd)


def test_it_is_the_llama_of_transformers():
    """What is written down above computes as theirs, from the weights of theirs."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **SIZES,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        vocab_size=WORDS,
        attn_implementation="eager",
    )
    model, words = transformers.LlamaForCausalLM(config).eval(), torch.arange(WORDS)
    ours = model.state_dict()
    with torch.no_grad():
        wanted = model(words[None]).logits[0]
    for goal in GOALS:
        theirs = sd.convert(ours, sd.rules("llama", "hf", goal, model.config))
        found = COMPUTE[goal](theirs, words)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
