"""Conversions of transformers as rules, against what its own code does."""

import re

import pytest
import torch
from conversions import same
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.conversion.importing import _families
from sdtree.conversion.symbols import Book, Inexact, Symbol
from sdtree.conversion.telling import Raw, rule_of

# -- tensors that tell what is done to them ----------------------------------------


@st.composite
def programs(draw):
    """Draw shapes of leaves, and what is done to them, as functions of a list."""
    width = draw(st.sampled_from([2, 4, 6]))
    heights = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=3))
    acts = ["chunk", "split", "turn", "heads", "join", "merge"]
    return [(h, width) for h in heights], draw(
        st.lists(st.sampled_from(acts), max_size=5)
    )


def run(act, ts):
    """Return what an act makes of some tensors; those it cannot cut stay."""
    first, *rest = ts
    if act == "join":
        return [torch.cat(ts, dim=0)] if len({t.shape[1:] for t in ts}) == 1 else ts
    if act == "turn" and first.dim() == 2:
        return [torch.transpose(first, 0, 1).contiguous(), *rest]
    if act == "chunk" and first.shape[0] % 2 == 0:
        return [*torch.chunk(first, 2, dim=0), *rest]
    if act == "split" and first.shape[0] == 6:
        return [*torch.split(first, [2, 4], dim=0), *rest]
    if act == "heads" and first.dim() == 2 and first.shape[0] % 4 == 0:
        apart = first.view(2, 2, -1, first.shape[1]).transpose(1, 2)
        return [apart.reshape(first.shape), *rest]
    if act == "merge" and first.dim() == 2:
        return [first.reshape(-1), *rest]
    return ts


@settings(max_examples=60)
@given(programs())
def test_symbols_tell_what_torch_does(program):
    """The rule that they tell makes of real tensors what torch makes, and back."""
    shapes, acts = program
    book = Book()
    symbols = [
        Symbol.of(book, [book.axis(n) for n in shape], torch.float32)
        for shape in shapes
    ]
    starts, made = [list(x.dims) for x in symbols], list(symbols)
    tensors, count = [], 0
    for shape in shapes:
        n = torch.Size(shape).numel()
        tensors.append(torch.arange(count, count + n).view(shape).float())
        count += n
    tree = {f"s{i}": t for i, t in enumerate(tensors)}
    has_one = False
    try:
        for act in acts:
            made, tensors = run(act, made), run(act, tensors)
            has_one |= any(1 in t.shape for t in tensors)
    except Inexact:
        return
    assert [x.shape for x in made] == [t.shape for t in tensors]
    targets = [(f"t{i}", x) for i, x in enumerate(made)]
    sources = [
        (f"s{i}", [book.told(dim) for dim in dims]) for i, dims in enumerate(starts)
    ]
    try:
        rule = rule_of(Raw(sources, list(_families(book, targets)), book.sizes))
    except (Inexact, sd.errors.RuleError):  # indices that go different ways
        assert has_one
        return
    found = sd.convert(tree, rule)
    same(found, {f"t{i}": t for i, t in enumerate(tensors)})
    same(sd.convert(found, rule.inverse()), tree)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x + 1,
        lambda x: x[0],
        lambda x: torch.stack([x, x]),
        lambda x: torch.cat([x, x.transpose(0, 1)]),
        lambda x: x.view(4, 6).chunk(3, 0),
    ],
)
def test_what_is_no_map_that_is_known_says_so(act):
    book = Book()
    x = Symbol.of(book, [book.axis(4), book.axis(6)], torch.float32)
    with pytest.raises((Inexact, RuntimeError)):
        act(torch.cat([x, x]).view(6, 8))


# -- models --------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
MODELS = {
    "Llama": {},
    "Mixtral": {"num_local_experts": 3},
    "Qwen2Moe": {"num_experts": 3, "moe_intermediate_size": 8},
    "Qwen3Moe": {"num_experts": 3, "moe_intermediate_size": 8},
    "Olmoe": {"num_experts": 3},
    "Phimoe": {"num_local_experts": 3},
    "Jamba": {"num_experts": 2},
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def model_of(transformers, name, **more):
    config = getattr(transformers, f"{name}Config", None)
    if config is None:
        pytest.skip(f"there is no {name} in this transformers")
    return getattr(transformers, f"{name}ForCausalLM")(
        config(**SMALL, **MODELS[name], **more)
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_rules_make_of_files_what_transformers_makes(transformers, name, tmp_path):
    """Of what ``save_pretrained`` writes the leaves of the model, and back the file."""
    model = model_of(transformers, name)
    model.save_pretrained(tmp_path)
    file, state = sd.load(tmp_path), dict(model.state_dict())
    found = sd.from_transformers(model)
    assert not found.refused
    made = sd.convert(file, found.rules)
    same(made, state)
    same(sd.convert(state, [rule.inverse() for rule in found.rules]), file)
    assert len(found.rules) < len(state)


def test_tied_leaves_come_from_one(transformers, tmp_path):
    model = model_of(transformers, "Llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    file = sd.load(tmp_path)
    assert "lm_head.weight" not in file
    made = sd.convert(file, sd.from_transformers(model).rules)
    assert sd.ties(made) == [[("model.embed_tokens.weight",), ("lm_head.weight",)]]
    same(made, dict(model.state_dict()))


def test_a_config_will_do_and_no_data_is_made(transformers):
    config = transformers.MixtralConfig(
        **SMALL, num_local_experts=3, architectures=["MixtralForCausalLM"]
    )
    found = sd.from_transformers(config)
    texts = [rule.target[0] for rule in found.rules]
    assert any(re.search(r"gate_up_proj \[a \(b \+ d\) c\]", text) for text in texts)
    assert found == sd.from_transformers(transformers.MixtralForCausalLM(config))


def test_what_is_no_exact_map_is_listed_with_its_reason(transformers, monkeypatch):
    """Whatever an operation of theirs does that computes: here, it doubles."""
    from transformers import core_model_loading as core

    def doubled(self, input_dict, source_patterns, target_patterns, **_):
        [tensors] = input_dict.values()
        return {target_patterns[0]: tensors[0] * 2}

    monkeypatch.setattr(core.SplitModulelist, "convert", doubled)
    found = sd.from_transformers(model_of(transformers, "Mixtral"))
    names = [names for names, _ in found.refused]
    assert names[0] == "model.layers.0.mlp.experts.down_proj"
    assert "mul is no map of elements that is known" in found.refused[0][1]
    assert all("experts" not in rule.target[0] for rule in found.rules)
