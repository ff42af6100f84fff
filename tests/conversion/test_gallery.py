"""Rules that ship: what they make of a model computes the same in the other's way.

The others' code is not here. What they do with their weights is written down below, as
short as can be, and its outcome held against that of transformers, bit by bit but for
the order in which sums are taken.
"""

import re
from types import SimpleNamespace

import numpy as np
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


def rotated(config):
    """Return the rules of a Llama whose queries and keys are permuted head by head."""
    return sd.rules("llama", "hf", "titan", config)[1:3]


def test_a_config_of_another_model_is_found_out():
    """By the size of a head, where it tells that; half as many heads would fit."""
    ours = sd.select(state(), re.compile("[qk]_proj.weight$"))
    for name in ("num_attention_heads", "num_key_value_heads"):
        odd = {**SIZES, name: SIZES[name] // 2, "head_dim": HEAD}
        with pytest.raises(sd.errors.ConvertError, match=r"dim 0 is .* with d=4, h="):
            sd.convert(ours, rotated(odd))
        with pytest.raises(sd.errors.ConvertError, match="d=8"):
            sd.convert(
                state(), sd.rules("llama", "hf", "megatron", odd)[1], rest="keep"
            )
    sd.convert(ours, rotated({**SIZES, "head_dim": HEAD}))


def test_a_config_that_tells_no_keys_has_as_many_as_queries():
    alike = {"num_attention_heads": 4, "num_key_value_heads": 4}
    for config in ({"num_attention_heads": 4}, {**alike, "num_key_value_heads": None}):
        assert rotated(config) == rotated(alike)
    as_numpy = {name: np.int64(size) for name, size in alike.items()}
    assert rotated(as_numpy) == rotated(alike)


def test_what_there_is_not_is_told():
    with pytest.raises(
        ValueError, match=r"no rules for 'bert'; there are for .*'gpt_oss', 'llama', "
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


# -- mixtures of experts -----------------------------------------------------------

EXPERTS, FFN, KEYS = 3, 6, {"q": 32, "k": 16, "v": 16}
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG |= {"intermediate_size": FFN, "moe_intermediate_size": FFN}
WORLDS = [
    ("mixtral", "megatron"),
    *((model, goal) for model in ("qwen3_moe", "gpt_oss") for goal in GOALS),
]


def layer(model):
    """Return the leaves of a layer as files of transformers name them, with sizes."""
    found = {f"self_attn.{x}_proj.weight": (n, HIDDEN) for x, n in KEYS.items()}
    found |= {"self_attn.o_proj.weight": (HIDDEN, 32)}
    found |= {f"{x}_layernorm.weight": (HIDDEN,) for x in ("input", "post_attention")}
    if model == "gpt_oss":
        found |= {f"self_attn.{x}_proj.bias": (n,) for x, n in KEYS.items()}
        found |= {"self_attn.o_proj.bias": (HIDDEN,), "self_attn.sinks": (4,)}
        head = "mlp.experts"
        found |= {f"{head}.gate_up_proj": (EXPERTS, HIDDEN, 2 * FFN)}
        found |= {f"{head}.gate_up_proj_bias": (EXPERTS, 2 * FFN)}
        found |= {f"{head}.down_proj": (EXPERTS, FFN, HIDDEN)}
        found |= {f"{head}.down_proj_bias": (EXPERTS, HIDDEN)}
        return found | {
            "mlp.router.weight": (EXPERTS, HIDDEN),
            "mlp.router.bias": (EXPERTS,),
        }
    names = ("gate_proj", "up_proj", "down_proj")
    head = "mlp"
    if model == "mixtral":
        names, head = ("w1", "w3", "w2"), "block_sparse_moe"
    else:
        found |= {f"self_attn.{x}_norm.weight": (HEAD,) for x in "qk"}
    for e in range(EXPERTS):
        sizes = (FFN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN)
        for name, size in zip(names, sizes, strict=True):
            found[f"{head}.experts.{e}.{name}.weight"] = size
    return found | {f"{head}.gate.weight": (EXPERTS, HIDDEN)}


def mixture(model):
    """Return random weights of a small model under the names of its files."""
    sizes = {
        f"model.layers.{i}.{x}": n for i in range(2) for x, n in layer(model).items()
    }
    ends = {"model.embed_tokens": (WORDS, HIDDEN), "lm_head": (WORDS, HIDDEN)}
    ends |= {"model.norm": (HIDDEN,)}
    sizes |= {f"{name}.weight": size for name, size in ends.items()}
    return {name: torch.randn(size) for name, size in sizes.items()}


def of_experts(model, x):
    """Return gate, up and down of each expert of a layer, as (out, in) weights."""
    if model == "gpt_oss":
        both, down = x["mlp.experts.gate_up_proj"], x["mlp.experts.down_proj"]
        return [
            (both[e, :, ::2].T, both[e, :, 1::2].T, down[e].T) for e in range(EXPERTS)
        ]
    head, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    if model == "mixtral":
        head, names = "block_sparse_moe", ("w1", "w3", "w2")
    return [
        [x[f"{head}.experts.{e}.{name}.weight"] for name in names]
        for e in range(EXPERTS)
    ]


def as_titan(model, x):
    """Return a layer as torchtitan has it, told leaf by leaf."""
    found = {
        f"attention.w{k}.{s}": x[f"self_attn.{k}_proj.{s}"]
        for k in "qkvo"
        for s in ("weight", "bias")
        if f"self_attn.{k}_proj.{s}" in x
    }
    found |= {"attention_norm.weight": x["input_layernorm.weight"]}
    found |= {"ffn_norm.weight": x["post_attention_layernorm.weight"]}
    if model == "gpt_oss":
        head = "mlp.experts"
        return found | {
            "attention.sinks": x["self_attn.sinks"],
            "moe.router.gate.weight": x["mlp.router.weight"],
            "moe.router.gate.bias": x["mlp.router.bias"],
            "moe.experts.mlp1_weight": x[f"{head}.gate_up_proj"].transpose(1, 2),
            "moe.experts.mlp1_bias": x[f"{head}.gate_up_proj_bias"],
            "moe.experts.mlp2_weight": x[f"{head}.down_proj"].transpose(1, 2),
            "moe.experts.mlp2_bias": x[f"{head}.down_proj_bias"],
        }
    found |= {
        f"attention.{k}_norm.weight": x[f"self_attn.{k}_norm.weight"] for k in "qk"
    }
    stacked = zip(
        ("w1", "w3", "w2"), zip(*of_experts(model, x), strict=True), strict=True
    )
    found |= {f"moe.experts.{name}": torch.stack(ts) for name, ts in stacked}
    return found | {"moe.router.gate.weight": x["mlp.gate.weight"]}


def as_megatron(model, x):
    """Return a layer as Megatron has it, told leaf by leaf."""
    head, found = "self_attention", {}
    for s in ("weight", "bias"):
        if f"self_attn.q_proj.{s}" in x:
            q, k, v = (x[f"self_attn.{name}_proj.{s}"] for name in "qkv")
            groups = [
                torch.cat([q[16 * g : 16 * g + 16], k[8 * g :][:8], v[8 * g :][:8]])
                for g in range(2)
            ]
            found[f"{head}.linear_qkv.{s}"] = torch.cat(groups)
            found[f"{head}.linear_proj.{s}"] = x[f"self_attn.o_proj.{s}"]
    found[f"{head}.linear_qkv.layer_norm_weight"] = x["input_layernorm.weight"]
    found["pre_mlp_layernorm.weight"] = x["post_attention_layernorm.weight"]
    for e, (gate, up, down) in enumerate(of_experts(model, x)):
        found[f"mlp.experts.linear_fc1.weight{e}"] = torch.cat([gate, up])
        found[f"mlp.experts.linear_fc2.weight{e}"] = down
    if model == "gpt_oss":
        found[f"{head}.core_attention.softmax_offset"] = x["self_attn.sinks"]
        for e in range(EXPERTS):
            both = x["mlp.experts.gate_up_proj_bias"][e]
            found[f"mlp.experts.linear_fc1.bias{e}"] = torch.cat(
                [both[::2], both[1::2]]
            )
            found[f"mlp.experts.linear_fc2.bias{e}"] = x["mlp.experts.down_proj_bias"][
                e
            ]
        return found | {
            f"mlp.router.{s}": x[f"mlp.router.{s}"] for s in ("weight", "bias")
        }
    if model == "qwen3_moe":
        for k in "qk":
            found[f"{head}.{k}_layernorm.weight"] = x[f"self_attn.{k}_norm.weight"]
    router = "mlp" if model == "qwen3_moe" else "block_sparse_moe"
    return found | {"mlp.router.weight": x[f"{router}.gate.weight"]}


def told(model, goal, tree):
    """Return the leaves of another world, told leaf by leaf."""
    each, head, ends = {
        "titan": (as_titan, "", ("tok_embeddings", "output", "norm")),
        "megatron": (
            as_megatron,
            "decoder.",
            ("embedding.word_embeddings", "output_layer", "decoder.final_layernorm"),
        ),
    }[goal]
    names = zip(ends, ("model.embed_tokens", "lm_head", "model.norm"), strict=True)
    found = {f"{there}.weight": tree[f"{here}.weight"] for there, here in names}
    for i in range(2):
        start = f"model.layers.{i}."
        own = {n.removeprefix(start): t for n, t in tree.items() if n.startswith(start)}
        found |= {f"{head}layers.{i}.{n}": t for n, t in each(model, own).items()}
    return found


@pytest.mark.parametrize(("model", "goal"), WORLDS)
def test_a_mixture_is_as_the_other_world_has_it(model, goal):
    """Leaf by leaf, and back; what the rules do not name would be refused."""
    tree = mixture(model)
    there = sd.rules(model, "hf", goal, CONFIG)
    made, wanted = sd.convert(tree, there), told(model, goal, tree)
    assert sd.equal(dict(sorted(made.items())), dict(sorted(wanted.items())))
    back = sd.convert(made, sd.rules(model, goal, "hf", CONFIG))
    assert sd.equal(dict(sorted(back.items())), dict(sorted(tree.items())))


@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_files_of_transformers_have_those_leaves(model):
    """Those that its own conversion writes of a small random model."""
    transformers = pytest.importorskip("transformers")
    names = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "gpt_oss": "GptOss"}
    config = getattr(transformers, f"{names[model]}Config")(
        **CONFIG,
        hidden_size=HIDDEN,
        head_dim=HEAD,
        num_hidden_layers=2,
        num_experts=EXPERTS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        vocab_size=WORDS,
    )
    found = getattr(transformers, f"{names[model]}ForCausalLM")(config)
    back = [rule.inverse() for rule in sd.from_transformers(found).rules]
    file = sd.convert(dict(found.state_dict()), back)
    assert {n: t.shape for n, t in file.items()} == {
        n: t.shape for n, t in mixture(model).items()
    }


@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("model", ["llama", "qwen3_moe", "gpt_oss"])
def test_biases_go_as_the_rows_of_their_weights(model, goal, keys):
    """However many heads share keys: a bias that is the first column stays it."""
    config = {**CONFIG, **SIZES, "num_key_value_heads": keys, "head_dim": HEAD}
    tree = state() if model == "llama" else mixture(model)
    for name in [n for n in tree if n[-13:-7] in ("k_proj", "v_proj")]:
        tree[name] = torch.randn(keys * HEAD, HIDDEN)
    parts = ("self_attn", "mlp") if model == "llama" else ("self_attn",)
    for name in [n for n in tree if n.endswith("_proj.weight")]:
        if name.split(".")[3] in parts and "experts" not in name:
            tree[name.replace("weight", "bias")] = tree[name][:, 0].clone()
    made = sd.convert(tree, sd.rules(model, "hf", goal, config))
    biases = [name for name in made if name.endswith(".bias") and "router" not in name]
    assert len(biases) >= 4
    for name in biases:
        assert torch.equal(made[name], made[name.replace("bias", "weight")][:, 0])
    back = sd.convert(made, sd.rules(model, goal, "hf", config))
    assert sd.equal(dict(sorted(back.items())), dict(sorted(tree.items())))


def test_a_layer_without_experts_is_a_feed_forward():
    """As in a Qwen3-MoE of which some layers are dense."""
    tree = {
        name: t
        for name, t in mixture("qwen3_moe").items()
        if not name.startswith("model.layers.1.mlp")
    }
    for name in ("gate", "up", "down"):
        tree[f"model.layers.1.mlp.{name}_proj.weight"] = torch.randn(3, 2)
    made = sd.convert(tree, sd.rules("qwen3_moe", "hf", "titan", CONFIG))
    for there, name in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        whole = made[f"layers.1.feed_forward.{there}.weight"]
        assert whole is tree[f"model.layers.1.mlp.{name}_proj.weight"]
