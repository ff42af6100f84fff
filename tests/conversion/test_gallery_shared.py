"""Rules that ship for Qwen3, and for mixtures with experts that all tokens share."""

import pytest
import torch

import sdtree as sd
from sdtree.errors import ConvertError

CONFIG = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "intermediate_size": 10,
    "moe_intermediate_size": 6,
    "shared_expert_intermediate_size": 7,
    "num_experts": 3,
    "n_routed_experts": 3,
}
HIDDEN, EXPERTS = 8, range(3)
ENDS = {
    "titan": ("tok_embeddings", "output", "norm"),
    "megatron": (
        "embedding.word_embeddings",
        "output_layer",
        "decoder.final_layernorm",
    ),
}


def rows(names, *size):
    return {f"{name}.weight": torch.randn(size) for name in names}


def projections(head, n):
    """Return the three leaves of a feed-forward of so many rows."""
    return {
        **rows([f"{head}.gate_proj", f"{head}.up_proj"], n, HIDDEN),
        **rows([f"{head}.down_proj"], HIDDEN, n),
    }


def attention(model):
    """Return the leaves of attention as files of transformers name them."""
    if model == "deepseek_v3":
        names = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm"
        every = [*names.split(), "kv_b_proj", "o_proj"]
        return {
            f"self_attn.{name}.weight": torch.randn(5, 4 + k)
            for k, name in enumerate(every)
        }
    found = rows(["self_attn.q_proj"], 12, HIDDEN) | rows(
        ["self_attn.k_proj", "self_attn.v_proj"], 6, HIDDEN
    )
    found |= rows(["self_attn.o_proj"], HIDDEN, 12)
    if model == "qwen3":
        return found | rows(["self_attn.q_norm", "self_attn.k_norm"], 3)
    biases = {
        f"self_attn.{k}_proj.bias": torch.randn(n)
        for k, n in zip("qkv", (12, 6, 6), strict=True)
    }
    return found | biases


def layer(model, i):
    """Return the leaves of a layer; the first of a DeepSeek is dense."""
    found = attention(model)
    found |= rows(["input_layernorm", "post_attention_layernorm"], HIDDEN)
    if model == "qwen3" or (model == "deepseek_v3" and i == 0):
        return found | projections("mlp", 10)
    for e in EXPERTS:
        found |= projections(f"mlp.experts.{e}", 6)
    found |= rows(["mlp.gate"], 3, HIDDEN)
    if model == "qwen2_moe":
        found |= projections("mlp.shared_expert", 7)
        return found | rows(["mlp.shared_expert_gate"], 1, HIDDEN)
    found |= {"mlp.gate.e_score_correction_bias": torch.randn(3)}
    return found | projections("mlp.shared_experts", 7)


def weights(model):
    """Return random weights under the names of the files of transformers."""
    found = rows(["model.embed_tokens", "lm_head"], 11, HIDDEN)
    found |= rows(["model.norm"], HIDDEN)
    for i in range(2):
        own = layer(model, i).items()
        found |= {f"model.layers.{i}.{name}": t for name, t in own}
    return found


# -- told leaf by leaf -------------------------------------------------------------

W = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
MLA = {
    "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
    "wo": "o_proj",
}
GQA = {f"w{k}": f"{k}_proj" for k in "qkvo"} | {f"{k}_norm": f"{k}_norm" for k in "qk"}


def as_titan(model, x):
    names = MLA if model == "deepseek_v3" else GQA
    found = {
        f"attention.{there}.weight": x[f"self_attn.{here}.weight"]
        for there, here in names.items()
    }
    found["attention_norm.weight"] = x["input_layernorm.weight"]
    found["ffn_norm.weight"] = x["post_attention_layernorm.weight"]
    if "mlp.gate.weight" not in x:
        dense = {f"feed_forward.{w}.weight": x[f"mlp.{p}.weight"] for w, p in W.items()}
        return found | dense
    for w, p in W.items():
        each = [x[f"mlp.experts.{e}.{p}.weight"] for e in EXPERTS]
        found[f"moe.experts.{w}"] = torch.stack(each)
        shared = x[f"mlp.shared_experts.{p}.weight"]
        found[f"moe.shared_experts.{w}.weight"] = shared
    found["moe.router.gate.weight"] = x["mlp.gate.weight"]
    return found | {"moe.expert_bias": x["mlp.gate.e_score_correction_bias"]}


def fused(x, s):
    """Return queries, keys and values, group by group of two, one and one heads."""
    q, k, v = (x[f"self_attn.{name}_proj.{s}"] for name in "qkv")
    every = [
        (q[6 * g : 6 * g + 6], k[3 * g : 3 * g + 3], v[3 * g : 3 * g + 3])
        for g in (0, 1)
    ]
    return torch.cat([t for group in every for t in group])


def both(x, head):
    return torch.cat([x[f"{head}.{p}_proj.weight"] for p in ("gate", "up")])


def as_megatron(model, x):
    a = "self_attention"
    found = {f"{a}.linear_qkv.weight": fused(x, "weight")}
    found[f"{a}.linear_proj.weight"] = x["self_attn.o_proj.weight"]
    found[f"{a}.linear_qkv.layer_norm_weight"] = x["input_layernorm.weight"]
    after = x["post_attention_layernorm.weight"]
    if model == "qwen3":
        for k in "qk":
            found[f"{a}.{k}_layernorm.weight"] = x[f"self_attn.{k}_norm.weight"]
        found["mlp.linear_fc1.layer_norm_weight"] = after
        found["mlp.linear_fc1.weight"] = both(x, "mlp")
        return found | {"mlp.linear_fc2.weight": x["mlp.down_proj.weight"]}
    found[f"{a}.linear_qkv.bias"] = fused(x, "bias")
    found["pre_mlp_layernorm.weight"] = after
    found["mlp.router.weight"] = x["mlp.gate.weight"]
    for e in EXPERTS:
        here, there = f"mlp.experts.{e}", "mlp.experts.linear_fc"
        found[f"{there}1.weight{e}"] = both(x, here)
        found[f"{there}2.weight{e}"] = x[f"{here}.down_proj.weight"]
    shared = "mlp.shared_experts"
    found[f"{shared}.linear_fc1.weight"] = both(x, "mlp.shared_expert")
    found[f"{shared}.linear_fc2.weight"] = x["mlp.shared_expert.down_proj.weight"]
    return found | {f"{shared}.gate_weight": x["mlp.shared_expert_gate.weight"]}


def told(model, goal, tree):
    """Return the leaves of another world, told leaf by leaf."""
    each, head = (as_titan, "") if goal == "titan" else (as_megatron, "decoder.")
    names = zip(
        ENDS[goal], ("model.embed_tokens", "lm_head", "model.norm"), strict=True
    )
    found = {f"{there}.weight": tree[f"{here}.weight"] for there, here in names}
    for i in range(2):
        start = f"model.layers.{i}."
        own = {n.removeprefix(start): t for n, t in tree.items() if n.startswith(start)}
        found |= {f"{head}layers.{i}.{n}": t for n, t in each(model, own).items()}
    return found


WORLDS = [
    ("qwen3", "titan"),
    ("qwen3", "megatron"),
    ("qwen2_moe", "megatron"),
    ("deepseek_v3", "titan"),
]


@pytest.mark.parametrize(("model", "goal"), WORLDS)
def test_a_model_is_as_the_other_world_has_it(model, goal):
    """Leaf by leaf, and back; what the rules do not name would be refused."""
    tree = weights(model)
    made = sd.convert(tree, sd.rules(model, "hf", goal, CONFIG))
    assert sd.equal(
        dict(sorted(made.items())), dict(sorted(told(model, goal, tree).items()))
    )
    back = sd.convert(made, sd.rules(model, goal, "hf", CONFIG))
    assert sd.equal(dict(sorted(back.items())), dict(sorted(tree.items())))


WRONG = [
    ("qwen3", "megatron", {"num_key_value_heads": 4}, "k_proj"),
    ("qwen3", "megatron", {"head_dim": 6}, "q_proj"),
    ("qwen3", "megatron", {"intermediate_size": 9}, "gate_proj"),
    ("qwen2_moe", "megatron", {"shared_expert_intermediate_size": 6}, "shared_expert"),
    ("qwen2_moe", "megatron", {"num_experts": 4}, "e is|e 3|e=4"),
    ("qwen2_moe", "megatron", {"num_experts": 2}, "e is|e 2|e=2"),
    ("deepseek_v3", "titan", {"n_routed_experts": 4}, "experts"),
    ("deepseek_v3", "titan", {"n_routed_experts": 2}, "experts"),
]


@pytest.mark.parametrize(("model", "goal", "wrong", "what"), WRONG)
def test_the_config_of_another_model_is_refused_by_name(model, goal, wrong, what):
    """Also where what is missing is missing in all partners, as a last expert."""
    rules = sd.rules(model, "hf", goal, CONFIG | wrong)
    with pytest.raises(ConvertError, match=what):
        sd.convert(weights(model), rules)


@pytest.mark.parametrize("model", ["qwen3", "qwen2_moe", "deepseek_v3"])
def test_files_of_transformers_have_those_leaves(model):
    """Those that its own conversion writes of a small random model."""
    transformers = pytest.importorskip("transformers")
    name = {"qwen3": "Qwen3", "qwen2_moe": "Qwen2Moe", "deepseek_v3": "DeepseekV3"}
    config = getattr(transformers, f"{name[model]}Config")(
        **CONFIG,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        q_lora_rank=4,
        kv_lora_rank=4,
        qk_rope_head_dim=2,
        qk_nope_head_dim=2,
        v_head_dim=2,
        vocab_size=11,
    )
    found = getattr(transformers, f"{name[model]}ForCausalLM")(config)
    back = [rule.inverse() for rule in sd.from_transformers(found).rules]
    file = sd.convert(dict(found.state_dict()), back, rest="keep")
    assert {*file} == {*weights(model)}
