"""Conversion by example: what users have, and what they get, or are told."""

import pickle
import weakref
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conversions import same

import sdtree as sd
from sdtree.conversion.assembly import Assembly
from sdtree.layout import whole
from sdtree.testing import check_transform, trees


def ones(*shape):
    return torch.ones(shape)


def count(*shape):
    """Return a tensor no element of which is like another."""
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


# -- what people convert -----------------------------------------------------------


def test_rope_is_permuted_for_weights_and_biases_alike():
    """As torch's own view and transpose do it."""
    rule = sd.rule("{i}.q.{s} [(h two d) ...]", "{i}.q.{s} [(h d two) ...]", h=2, two=2)
    tree = {"0.q.weight": count(12, 5), "0.q.bias": count(12)}
    made = sd.convert(tree, rule)
    for name, t in tree.items():
        halves = t.view(2, 2, 3, *t.shape[1:]).transpose(1, 2).reshape(t.shape)
        assert torch.equal(made[name], halves)
    assert sd.equal(sd.convert(made, rule.inverse()), tree)


def test_experts_are_stacked_and_fused():
    """As torch.stack and cat do it, and apart again to the very leaves."""
    rule = sd.rule(
        ["{x:**}.experts.{e}.w1 [f c]", "{x:**}.experts.{e}.w3 [g c]"],
        "{x:**}.experts.gate_up [e (f + g) c]",
    )
    tree = {
        f"L.{i}.experts.{e}.{w}": torch.randn(3 + k, 2)
        for i in range(2)
        for e in range(11)
        for k, w in enumerate(["w1", "w3"])
    }
    made = sd.convert(tree, rule)
    assert list(made) == ["L.0.experts.gate_up", "L.1.experts.gate_up"]
    each = ([tree[f"L.1.experts.{e}.{w}"] for e in range(11)] for w in ("w1", "w3"))
    stacked = torch.cat([*map(torch.stack, each)], 1)
    assert torch.equal(made["L.1.experts.gate_up"], stacked)
    assert sd.equal(sd.convert(made, rule.bind(tree).inverse()), tree)


def test_groups_of_queries_keys_and_values_are_interleaved():
    rule = sd.rule(
        ["q [(g h d) ...]", "k [(g k d) ...]", "v [(g v d) ...]"],
        "qkv [(g (h + k + v) d) ...]",
        g=2,
        k=1,
        v=1,
        d=3,
    )
    tree = {"q": count(12, 2), "k": -count(6, 2), "v": count(6, 2) + 100}
    parts = [t.view(2, -1, 3, 2) for t in tree.values()]
    made = sd.convert(tree, rule)
    assert torch.equal(made["qkv"], torch.cat(parts, 1).reshape(24, 2))
    assert sd.equal(sd.convert(made, rule.inverse()), tree)


def test_names_are_reckoned_with():
    """An index of one is a product of two of the other; leaves are handed on."""
    rule = sd.rule("layers.{(i p)}.w", "blocks.{i}.{p:attn|mlp}.w")
    tree = {f"layers.{k}.w": count(2) + k for k in range(6)}
    made = sd.convert(tree, rule)
    assert made["blocks.2.mlp.w"] is tree["layers.5.w"]
    assert list(made) == [
        f"blocks.{i}.{p}.w" for i in range(3) for p in ("attn", "mlp")
    ]


def test_digits_come_back_as_they_were():
    """Those that batch are text; those of a width are numbers written in it."""
    text = sd.rule("l.{i}.w", "m.{i}.w")
    assert [*sd.convert({"l.007.w": 1, "l.x.w": 2}, text)] == ["m.007.w", "m.x.w"]
    wide = sd.rule("l.{i:02}.w", "m.{i}.w")
    tree = {f"l.{i:02}.w": i for i in (3, 42, 100)}
    made = sd.convert(tree, wide)
    assert [*made] == ["m.3.w", "m.42.w", "m.100.w"]
    assert sd.convert(made, wide.inverse()) == tree
    with pytest.raises(sd.errors.ConvertError, match=r"l\.3\.w: no rule names it"):
        sd.convert({**tree, "l.3.w": 1}, wide)


def test_an_axis_has_one_value_wherever_it_stands_in_a_name():
    """Else a leaf would be written under another name than it was read by."""
    rule = sd.rule("l{i}.l{i}.w", "m.{i}.w")
    tree = {"l0.l0.w": 1, "l12.l12.w": 2}
    made = sd.convert(tree, rule)
    assert made == {"m.0.w": 1, "m.12.w": 2}
    assert sd.convert(made, rule.inverse()) == tree
    with pytest.raises(sd.errors.ConvertError, match=r"l0\.l1\.w: no rule names it"):
        sd.convert({**tree, "l0.l1.w": 3}, rule)
    for text in ("{x:**}.w.{x:**}", "{i}.{i:02}"):
        with pytest.raises(sd.errors.RuleError, match="twice, written in two ways"):
            sd.rule(text, text)


def test_a_prefix_may_be_nothing():
    rule = sd.rule("{x:**}.w", "net.{x:**}.weight")
    tree = {"w": 1, "a.w": 2, "a.b.w": 3, ".w": 4}
    made = sd.convert(tree, rule)
    names = ["net.weight", "net.a.weight", "net.a.b.weight", "net..weight"]
    assert made == dict(zip(names, (1, 2, 3, 4), strict=True))
    assert sd.convert(made, rule.inverse()) == tree


def test_behind_a_prefix_may_stand_what_is_one_of_several():
    rule = sd.rule("{x:**}.{p:up|down}.w", "net.{x:**}.{p:a|b}.v")
    tree = {"up.w": 1, "m.down.w": 2, "m.0.up.w": 3}
    made = sd.convert(tree, rule)
    assert made == {"net.a.v": 1, "net.m.b.v": 2, "net.m.0.a.v": 3}
    assert sd.convert(made, rule.inverse()) == tree


def test_optimizer_states_go_with_their_weights():
    """By one more slot; the steps of parameters that are fused are to agree."""
    state = "{s:.w|.exp_avg|.exp_avg_sq}"
    fuse = sd.rule([f"q{state} [a c]", f"k{state} [b c]"], f"qk{state} [(a + b) c]")
    step = sd.rule("{p:q|k}.step", "qk.step", agree="p")
    tree = {f"{p}{s}": count(2, 1) for p in "qk" for s in (".w", ".exp_avg")}
    tree |= {"q.step": torch.tensor(5.0), "k.step": torch.tensor(5.0)}
    made = sd.convert(tree, [fuse, step])
    assert sorted(made) == ["qk.exp_avg", "qk.step", "qk.w"]
    back = sd.convert(made, [rule.bind(tree).inverse() for rule in (fuse, step)])
    assert sd.equal(dict(sorted(back.items())), dict(sorted(tree.items())))
    assert not sd.ties(back)
    with pytest.raises(sd.errors.ConvertError, match=r"k\.step: it is to agree with q"):
        sd.convert({**tree, "k.step": torch.tensor(6.0)}, [fuse, step])


def test_steps_may_be_plain_numbers():
    rule = sd.rule("{p:q|k}.step", "qk.step", agree="p")
    assert sd.convert({"q.step": 5, "k.step": 5}, rule) == {"qk.step": 5}
    assert sd.convert({"qk.step": 5}, rule.inverse()) == {"q.step": 5, "k.step": 5}
    with pytest.raises(sd.errors.ConvertError, match="agree"):
        sd.convert({"q.step": 5, "k.step": 5.0}, rule)


def shards_full(size, value):
    return sd.Shards(torch.full(size, value), whole(size, (0,)))


@pytest.mark.parametrize("name", ["w.{(i t)}", "w.{(t i)}"])
@pytest.mark.parametrize("make", [torch.full, shards_full], ids=["plain", "sharded"])
def test_each_gets_its_copy_of_what_is_to_agree(name, make):
    """Also where the axis is a part of a slot; a tied step would be counted twice."""
    apart = sd.rule(name, "q.{i}", agree="t", t=2).inverse()
    tree = {f"q.{i}": make((4,), float(i)) for i in range(2)}
    made = sd.convert(tree, apart)
    assert not sd.ties({**tree, **made})
    assert sd.equal(sd.convert(made, apart.inverse()), tree)


def test_repeats_are_compared_before_one_is_kept():
    rule = sd.rule("k [(h r d) c]", "k [(h d) c]", agree="r", r=2, d=1)
    once = count(3, 2)
    twice = once.repeat_interleave(2, 0)
    assert torch.equal(sd.convert({"k": twice}, rule)["k"], once)
    assert torch.equal(sd.convert({"k": once}, rule.inverse())["k"], twice)
    twice[1, 0] = -0.0
    with pytest.raises(sd.errors.ConvertError, match="k: it is to agree with k"):
        sd.convert({"k": twice}, rule)


@pytest.mark.parametrize("lacks", [0, 1])
def test_what_is_to_agree_has_data_on_both_sides_or_on_none(lacks):
    """Else one would be kept that was compared with nothing."""
    rule = sd.rule("{p:q|k}.w [c]", "w [c]", agree="p")
    for empty, told in (
        (sd.Abstract.of(ones(2)), "Abstract, and its partners have data"),
        (torch.ones(2, device="meta"), "it is on (cpu|meta) and"),
    ):
        tree = {"q.w": ones(2), "k.w": ones(2)}
        tree["qk"[lacks] + ".w"] = empty
        with pytest.raises(sd.errors.ConvertError, match=told):
            sd.convert(tree, rule)
        both = dict.fromkeys(tree, empty)
        assert sd.similar(sd.convert(both, rule), {"w": empty})


def test_a_vocabulary_is_padded_and_cut():
    rule = sd.rule("emb [v c]", "emb [(v + pad) c]", fill={"pad": 0.5}, pad=2)
    made = sd.convert({"emb": count(3, 2)}, rule)["emb"]
    assert torch.equal(made, torch.cat([count(3, 2), torch.full((2, 2), 0.5)]))
    assert torch.equal(sd.convert({"emb": made}, rule.inverse())["emb"], count(3, 2))
    with pytest.raises(sd.errors.ConvertError, match="int64 has no such value"):
        sd.convert({"emb": torch.ones(3, 2, dtype=torch.int64)}, rule)


# -- ties --------------------------------------------------------------------------


def test_an_alias_is_a_tie_and_its_inverse_compares():
    for dims in ("[(a b) c]", "[(b a) c]"):
        rule = sd.rule("w [(a b) c]", f"{{p:embed|head}}.w {dims}", alias="p", a=3)
        made = sd.convert({"w": count(6, 2)}, rule)
        assert sd.ties(made) == [[("embed.w",), ("head.w",)]]
        half = (sd.convert(rule) | sd.cast(dtype=torch.half))({"w": count(6, 2)})
        assert sd.ties(half)
        assert torch.equal(sd.convert(made, rule.inverse())["w"], count(6, 2))
        untied = sd.map(torch.clone, made)
        assert torch.equal(sd.convert(untied, rule.inverse())["w"], count(6, 2))
        untied["head.w"][0, 0] += 1
        with pytest.raises(sd.errors.ConvertError, match=r"head\.w: it is to agree"):
            sd.convert(untied, rule.inverse())


def test_ties_that_go_one_way_stay_and_others_are_refused():
    w = count(2, 3)
    tree = {"a.w": w, "b.w": w}
    turn = sd.rule("{x}.w [r c]", "{x}.w [c r]")
    assert sd.ties(sd.convert(tree, turn)) == [[("a.w",), ("b.w",)]]
    assert sd.ties(sd.convert(tree, sd.rule("{x}.w", "{x}.v")))
    one = sd.rule("a.w [r c]", "a.w [c r]")
    for rules in ([one, sd.rule("b.w", "b.w")], one):
        with pytest.raises(sd.errors.ConvertError, match="share memory") as error:
            sd.convert(tree, rules, rest="keep")
    assert "sd.where('b.w', sd.map(torch.clone))" in str(error.value)
    parted = sd.where(tree, "b.w", sd.map(torch.clone))
    same(sd.convert(parted, one, rest="keep"), {"a.w": w.T, "b.w": w})
    same(sd.convert(tree, one, rest="drop"), {"a.w": w.T})


def test_views_that_share_no_element_are_no_ties():
    """As those of one flat parameter; but groups may not share some of their leaves."""
    flat = count(8)
    tree = {"a": flat[:4], "b": flat[4:]}
    made = sd.convert(tree, sd.rule("a [(x y)]", "a [(y x)]", x=2), rest="keep")
    assert made["a"].tolist() == [0, 2, 1, 3]
    fuse = sd.rule(["{i}.q [a]", "{i}.k [b]"], "{i}.qk [(a + b)]")
    tree = {"0.q": flat, "0.k": ones(1), "1.q": flat, "1.k": ones(1)}
    with pytest.raises(sd.errors.ConvertError, match="share memory"):
        sd.convert(tree, fuse)


# -- where leaves stand ------------------------------------------------------------


def test_nested_trees_keep_their_containers_and_the_types_of_keys():
    tree = {
        "layers": {0: {"q": ones(2), "k": ones(1)}, 1: {"q": ones(2), "k": ones(1)}}
    }
    fuse = sd.rule(["layers.{i}.q [a]", "layers.{i}.k [b]"], "layers.{i}.qk [(a + b)]")
    assert sd.paths(sd.convert(tree, fuse)) == [("layers", i, "qk") for i in range(2)]
    listed = {"e": [ones(1, 2), ones(1, 2)], "x": [], "y": None}
    turned = sd.convert(listed, sd.rule("e.{i} [a b]", "e.{i} [b a]"), rest="keep")
    assert repr(sd.structure(turned)) == "TreeSpec({'e': [*, *], 'x': [], 'y': *})"
    stacked = sd.convert(listed, sd.rule("e.{i} [a b]", "e [i b a]"), rest="drop")
    assert repr(sd.structure(stacked)) == "TreeSpec({'e': *})"


def test_one_part_of_a_leaf_may_join_another_and_one_stand_alone():
    rule = sd.rule(["a [x]", "b [(y + z)]"], ["one [(x + y)]", "two [z]"], y=2)
    tree = {"a": torch.arange(2), "b": torch.arange(2, 7)}
    expected = {"one": torch.arange(4), "two": torch.arange(4, 7)}
    assert sd.equal(sd.convert(tree, rule), expected)
    made = sd.convert({**tree, "c": 1}, rule, rest="keep")
    assert sd.equal(made, {**expected, "c": 1})


def test_the_metadata_of_modules_goes_with_their_leaves():
    module = torch.nn.Module()
    module.q, module.k = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    state = module.state_dict()
    slot = "{s:weight|bias}"
    fuse = sd.rule(
        [f"q.{slot} [a ...]", f"k.{slot} [b ...]"], f"m.qk.{slot} [(a + b) ...]"
    )
    made = sd.convert(state, fuse)
    assert type(made) is OrderedDict
    assert dict(made._metadata) == {"": {"version": 1}, "m.qk": {"version": 1}}
    back = sd.convert(made, fuse.bind(state).inverse())
    assert sd.equal(back, sd.convert(back, sd.rule("{n:**}", "{n:**}")))
    assert "q" in back._metadata


def test_the_rest_is_refused_kept_or_dropped():
    tree, rule = {"a": 1, "b": 2, "c": 3}, sd.rule("a", "x")
    with pytest.raises(sd.errors.ConvertError, match="b, c: no rule names them"):
        sd.convert(tree, rule)
    assert sd.convert(tree, rule, rest="keep") == {"x": 1, "b": 2, "c": 3}
    assert sd.convert(tree, rule, rest="drop") == {"x": 1}
    with pytest.raises(ValueError, match="rest='leave' is none of refuse, keep, drop"):
        sd.convert(tree, rule, rest="leave")


def test_like_tells_sizes_and_where_leaves_stand():
    part = sd.rule("qk [(a + b) c]", ["q [a c]", "k [b c]"])
    tree = {"qk": count(5, 2)}
    with pytest.raises(sd.errors.ConvertError, match="the size of a, b follows from"):
        sd.convert(tree, part)
    like = OrderedDict(k=torch.empty(3, 2), q=torch.empty(2, 2))
    made = sd.convert(tree, part, like=like)
    assert type(made) is OrderedDict
    same(made, {"k": count(5, 2)[2:], "q": count(5, 2)[:2]})
    for other, message in (
        ({"q": ones(2, 2)}, "1 unexpected: 'k'"),
        ({**like, "v": 1}, "1 missing: 'v'"),
        ({"q": ones(2, 2), "k": ones(2, 2)}, "qk, q, k: dim 0 is 5"),
        (
            {"q": ones(2, 2).half(), "k": ones(3, 2)},
            "float32 is made, its target is torch.float16",
        ),
    ):
        with pytest.raises(sd.errors.ConvertError, match=message):
            sd.convert(tree, part, like=other)
        with pytest.raises(sd.errors.ConvertError, match=message) as caught:
            sd.convert(tree, part, into=other)
        assert "like=" not in str(caught.value)


def test_a_plain_value_is_no_tensor():
    for leaf, target, told in (
        (3, torch.tensor(3), "a plain value is made, its target is a tensor"),
        (torch.tensor(3), 3, "a tensor is made, its target is a plain value"),
    ):
        with pytest.raises(sd.errors.ConvertError, match=f"^v: {told}"):
            sd.convert({"w": leaf}, sd.rule("w", "v"), like={"v": target})


def test_into_is_not_to_overlap_the_source():
    t = count(2, 2)
    turn = sd.rule("w [a b]", "w [b a]")
    with pytest.raises(sd.errors.SpecMismatch, match="overlaps the source"):
        sd.convert({"w": t}, turn, into={"w": t})
    assert torch.equal(t, count(2, 2))
    with pytest.raises(TypeError, match="like= or into=, one of the two"):
        sd.convert(turn, like={}, into={})


# -- what is refused ---------------------------------------------------------------

TURN = sd.rule("w [a b]", "w [b a]")
REFUSED = {
    "an int": ({"w": 3}, TURN, r"w: a leaf of shape \(\) is no 'w \[a b\]', of 2 dims"),
    "an array": ({"w": np.ones((2, 2))}, TURN, "w: it is a ndarray that is no dense"),
    "sparse": (
        {"w": ones(2, 2).to_sparse()},
        TURN,
        "w: it is a Tensor that is no dense",
    ),
    "one twice": (
        {"a": 1, "b": 2},
        [sd.rule("a", "x"), sd.rule("{n}", "y.{n}")],
        r"a: it is used by rule\('a', 'x'\) as well",
    ),
    "two at once": (
        {"a.a": ones(1)},
        sd.rule(["{n}.a [x]", "a.{n} [y]"], "{n} [(x + y)]"),
        "a.a: two texts of the rule mean it",
    ),
    "made twice": (
        {"a": 1, "b": 2},
        [sd.rule("a", "x"), sd.rule("b", "x")],
        "x: it would be made twice, of a and of b",
    ),
    "made twice of one": (
        {"w": ones(4)},
        sd.rule("w [(a + b)]", ["x [a]", "x [b]"], a=2),
        "x: it would be made twice, of w and of w",
    ),
    "a leaf alone": (ones(1), TURN, "the tree is one leaf, which has no name"),
    "there already": ({"a": 1, "b": 2}, sd.rule("a", "b"), "b: it would be made twice"),
    "a hole": (
        {"e.0": ones(1), "e.2": ones(1)},
        sd.rule("e.{i} [x]", "e [i x]"),
        "e.0: no leaf e.1 is there to go with it",
    ),
    "a tail": (
        {"e.0": ones(1), "e.1": ones(1)},
        sd.rule("e.{i} [x]", "e [i x]", i=3),
        "by the rule it is 3 with i=3",
    ),
    "a tail that batches": (
        {"e.0": 1, "e.1": 1},
        sd.rule("e.{i}", "f.{i}", i=3),
        "no leaf with i 2, and i=3",
    ),
    "a head too many": (
        {"e.0": 1, "e.1": 1},
        sd.rule("e.{i}", "f.{i}", i=1),
        "i is 1 in names, and i=1",
    ),
    "no partner": (
        {"0.q": ones(1)},
        sd.rule(["{i}.q [a]", "{i}.k [b]"], "{i}.qk [(a + b)]"),
        "0.q: no leaf 0.k is there to go with it",
    ),
    "what does not divide": (
        {"w": ones(3)},
        sd.rule("w [(h d)]", "w [(d h)]", h=2),
        "w: dim 0 is 3, and no whole d makes it with h=2",
    ),
    "nothing to solve": (
        {"w": ones(3)},
        sd.rule("w [(h d)]", "w [(d h)]"),
        "the size of d, h follows from nothing; give d=, h=",
    ),
    "dtypes": (
        {"q": ones(1), "k": ones(1).half()},
        sd.rule(["q [a]", "k [b]"], "qk [(a + b)]"),
        r"k: its dtype is torch.float16, that of .*; sd.cast\(dtype=...\) before",
    ),
    "devices": (
        {"q": ones(1), "k": torch.ones(1, device="meta")},
        sd.rule(["q [a]", "k [b]"], "qk [(a + b)]"),
        "q: it is on cpu and k on meta; sd.to before moves them to one",
    ),
    "ranks of the rest": (
        {"q": ones(1, 2), "k": ones(1)},
        sd.rule(["q [a ...]", "k [b ...]"], "qk [(a + b) ...]"),
        r"'...' would be 1 dims in 'q \[a ...\]' and 0 dims in",
    ),
    "of none": (
        {"w": ones(0, 2)},
        sd.rule("w [r c]", "w [c]", agree="r"),
        "r is 0, and of none there is none to keep",
    ),
    "a hole that no range would hold": (
        {"e.0": ones(1), "e.999999999999999": ones(1)},
        sd.rule("e.{(i j)} [x]", "e [i j x]", j=2),
        r"e\.0: no leaf e\.1 is there to go with it",
    ),
    "no index": (
        {"e.x": ones(1), "e.01": ones(1)},
        sd.rule("e.{i} [x]", "e [i x]"),
        r"as the rule says, nor is e\.x; an index in a name is 0, 1, 2",
    ),
    "leaves that are none": (
        {"w": ones(0, 2)},
        sd.rule("w [(e + f) c]", ["e.{e} [c]", "f.{f} [c]"], e=0, f=0),
        r"w: there would be no leaf 'e\.{e} \[c\]', for e is 0, and nothing led back",
    ),
    "several readings": (
        {"a.v.c": 1},
        sd.rule("{x:**}.v.{y:**}", "{x:**}.c.{y:**}"),
        "a.v.c: it would be named a.c.c, which the rule reads in another way",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_converted_is_named(what):
    tree, rules, message = REFUSED[what]
    with pytest.raises(sd.errors.ConvertError, match=message):
        sd.convert(tree, rules, rest="keep")


def test_what_is_advised_where_nothing_leads_back_works():
    """A word that stands in no name, and then another name."""
    tree = {"a.v.c": 1}
    marked = sd.rule("{x:**}.v.{y:**}", "{x:**}.of.{y:**}")
    made = sd.rename(sd.convert(tree, marked), ("**.of.**", "**.c.**"))
    assert made == {"a.c.c": 1}
    assert sd.convert(sd.convert(tree, marked), marked.inverse()) == tree


def test_kinds_that_are_only_named_anew_are_handed_on():
    leaves = [3, None, np.ones(2), ones(2).to_sparse(), torch.nn.Parameter(ones(2))]
    tree = {f"a.{i}": leaf for i, leaf in enumerate(leaves)}
    made = sd.convert(tree, sd.rule("a.{i}", "b.{i}"))
    assert all(made[f"b.{i}"] is leaf for i, leaf in enumerate(leaves))


def test_parameters_become_plain_tensors_where_they_are_put_together():
    made = sd.convert({"w": torch.nn.Parameter(count(2, 3))}, TURN)["w"]
    assert type(made) is torch.Tensor
    assert not made.requires_grad


def test_meta_and_abstract_leaves_stay_without_data():
    meta = torch.ones(2, 3, device="meta", dtype=torch.half)
    assert sd.convert({"w": meta}, TURN)["w"].is_meta
    assert sd.convert({"w": sd.Abstract.of(meta)}, TURN)["w"] == sd.Abstract.dense(
        (3, 2), torch.half
    )


def test_conj_and_neg_are_resolved():
    t = torch.tensor([[1 + 2j, 3 - 1j]])
    made = sd.convert({"w": t.conj(), "v": t.imag.neg()}, TURN, rest="keep")["w"]
    assert torch.equal(made, t.conj().resolve_conj().T)
    assert not made.is_conj()


@pytest.mark.parametrize("lazily", [torch.conj, torch._neg_view])
def test_what_reads_one_memory_in_another_way_is_other_data(lazily):
    """A leaf and its conjugate are no twins: made of both is not one leaf twice."""
    t = torch.tensor([[1 + 2j, 3 - 1j]])
    rule = sd.rule("{p} [a b]", "{p} [b a]")
    tree = {"w": t, "v": lazily(t)}
    with pytest.raises(sd.errors.ConvertError, match=r"'w', sd\.map\(torch\.clone\)"):
        sd.convert(tree, rule)
    same(
        sd.convert(sd.where(tree, "v", sd.map(torch.clone)), rule),
        {"w": t.T, "v": lazily(t).clone().resolve_conj().T},
    )


def test_it_obeys_the_laws_of_transforms():
    """On trees as users bring them, whose leaves all have names of their own."""
    convert = sd.convert(sd.rule("{x:**}", "net.{x:**}"))
    named = trees().filter(lambda t: sd.paths(t) not in ([], [()]) and _are_unique(t))
    check_transform(convert, named, examples=25)
    assert pickle.loads(pickle.dumps(convert)) == convert


def _are_unique(tree):
    names = sd.structure(tree).names()
    return len({*names}) == len(names)


def test_it_stands_in_chains_with_stages_that_communicate():
    fuse = sd.rule(["q [a]", "k [b]"], "qk [(a + b)]")
    tree, like = {"q": ones(2), "k": -ones(1)}, {"qk": torch.zeros(3)}
    chain = sd.gather() | sd.convert(fuse) | sd.distribute(like=like)
    same(chain(tree), {"qk": torch.tensor([1.0, 1, -1])})
    assert sd.explain(sd.gather() | sd.convert(fuse), tree).peak() == {"cpu": 12}


def test_names_that_are_not_there_are_told_with_those_that_are():
    tree = {"model.0.w": 1, "model.1.w": 2}
    for source, told in {
        "modl.{l}.w": "no 'modl' in the names, where there is 'model'",
        "model.{l}.v": "no 'v' under 'model.*', where there is 'w'",
        "{l}.w": "no 'w' under '*', where there is '0', '1'; '**.*.w' takes 2 leaves",
    }.items():
        with pytest.raises(sd.errors.ConvertError) as error:
            sd.convert(tree, sd.rule(source, source))
        assert str(error.value).startswith(f"no leaf is named as the rule says; {told}")


def test_what_is_no_rule_is_told():
    with pytest.raises(TypeError, match=r"a str is none; write sd\.convert"):
        sd.convert({"w": 1}, "w")
    with pytest.raises(TypeError, match="a rule or more"):
        sd.convert({"w": 1}, [])


# -- what is held ------------------------------------------------------------------


def test_what_a_later_stage_drops_is_not_made(monkeypatch):
    made = []
    put = Assembly.put_together
    monkeypatch.setattr(Assembly, "put_together", lambda x: made.append(x) or put(x))
    rule = sd.rule("{x}.w [a b]", "{x}.w [b a]")
    tree = {"a.w": count(2, 3), "b.w": count(2, 3)}
    assert list((sd.convert(rule) | sd.select("a.**"))(tree)) == ["a.w"]
    assert len(made) == 1


def test_a_stream_holds_one_leaf(monkeypatch):
    """Each is put together when its turn comes, and let go when it was yielded."""
    alive = weakref.WeakSet()
    put = Assembly.put_together

    def watched(assembly):
        assert not alive
        t = put(assembly)
        alive.add(t)
        return t

    monkeypatch.setattr(Assembly, "put_together", watched)
    big = {f"{i}.w": torch.empty(1024, 512) for i in range(3)}
    rule = sd.rule("{x}.w [a b]", "{x}.w [b a]")
    names = []
    for path, leaf in sd.convert(rule).stream(big):
        names.append(path[0])
        assert leaf.shape == (512, 1024)
        del leaf
    assert names == ["0.w", "1.w", "2.w"]


@pytest.mark.parametrize("slot", ["{i}", "{i:02}"])
def test_the_size_of_an_axis_in_names_takes_no_memory(slot):
    """What is missing is told by its first indices, however many there are."""
    rule = sd.rule("L.{i}.w", f"M.{slot}.w", i=2**62)
    tree = {"L": [{"w": torch.ones(1)}, {"w": torch.ones(1)}]}
    told = f"no leaf with i 2, 3, 4, 5, 6, 7, 8, 9 and {2**62 - 10} more, and i="
    with pytest.raises(sd.errors.ConvertError, match=f"^{told}"):
        sd.convert(tree, rule)
