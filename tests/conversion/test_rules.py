"""Rules as text: what is read, what is refused and how it is told, inverses."""

import enum
import math
import pickle

import numpy as np
import pytest
import torch
from conversions import literal
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.layout import whole

WRONG = {
    ("w [(h d]", "w"): "no ')' closes this\n    w [(h d]\n       ^",
    ("w [a b]", "w [a c]"): "the part (a b) goes nowhere; if it is to, name an axis in "
    "drop=\n    w [a b]\n       ^ ^",
    ("w [a]", "w [a b]"): "the part (a) goes nowhere; if it is to, name an axis in "
    "drop=\n    w [a]\n       ^",
    ("w [2 a]", "w"): "a number is no axis; name it and give its size: rule(..., two=2)"
    "\n    w [2 a]\n       ^",
    ("w [a + b]", "w"): "a sum stands in ( )\n    w [a + b]\n         ^",
    ("w [a)]", "w"): "no '(' before this\n    w [a)]\n        ^",
    ("w [(a +)]", "w"): "nothing stands here; an axis of one is 1\n    w [(a +)]\n"
    "       ^^^^^",
    ("w [a, b]", "w"): "this is no axis\n    w [a, b]\n        ^",
    ("w [... a ...]", "w"): "'...' stands for the rest of the dims, once\n"
    "    w [... a ...]\n       ^^^   ^^^",
    ("w [(... a)]", "w"): "'...' is whole dims, and stands in no ( )\n    w [(... a)]\n"
    "        ^^^",
    ("w.{a b}", "w"): "a slot has one axis, or a product or sum in ( ), as {(i p)}\n"
    "    w.{a b}\n      ^^^^^",
    ("{p:a|a}", "w"): "behind ':' stand names, each once, as {p:gate|up}; or ** or 02\n"
    "    {p:a|a}\n       ^^^",
    ("{(a b):x|y}", "w"): "names are for an axis alone, as {p:gate|up}\n"
    "    {(a b):x|y}\n           ^^^",
    ("a{x:**}", "b{x:**}"): "** is whole segments; write it between dots\n    a{x:**}\n"
    "      ^",
    (
        "a.{x:**}",
        "b",
    ): "{x:**} is to stand in every name, and in no dims\n    a.{x:**}\n       ^",
    ("a.{x:**}.{y:**}", "b"): "two ** side by side: nothing tells which segments are "
    "whose; write text between, or {x} for one segment\n    a.{x:**}.{y:**}\n"
    "       ^      ^",
    ("w [a a]", "w [a a]"): "the axis 'a' stands twice in one part\n    w [a a]\n"
    "       ^ ^",
    ("w [(a + a)]", "w [a]"): "the part (a) stands in 'w [(a + a)]', too\n"
    "    w [(a + a)]\n        ^   ^",
}


@pytest.mark.parametrize(("sides", "message"), WRONG.items())
def test_a_wrong_text_is_shown_with_the_part_that_is_wrong(sides, message):
    with pytest.raises(sd.errors.RuleError) as error:
        sd.rule(*sides)
    assert str(error.value) == message


def test_names_have_what_means_something_here_behind_a_backslash():
    """Spaces, brackets, the backslash itself; inverse, JSON and a pickle keep it."""
    names = ["a[0]", "a b", " x.y ", "{i}", "C:\\w", "[", "tab\t"]
    for name in names:
        text = literal(name)
        rule = sd.rule(f"{text} [r c]", f"net.{text} [c r]")
        tree = {name: torch.ones(2, 3)}
        made = sd.convert(tree, sd.Rule.from_json(rule.to_json()))
        assert {n: t.shape for n, t in made.items()} == {f"net.{name}": (3, 2)}
        assert [*sd.convert(made, rule.inverse())] == [name]


@pytest.mark.parametrize("text", ["a[0]", "a b", "a[0].w", "{i", "a\\"])
def test_what_a_name_cannot_have_is_told_with_how_it_is_written(text):
    with pytest.raises(sd.errors.RuleError, match=r"stands behind \\, as in a\\\[0"):
        sd.rule(text, "w")


OPTIONS = [
    ({"b": 3}, "b= is no axis of the rule"),
    ({"a": -1}, "a=-1 is no size"),
    ({"a": True}, "a=True is no size"),
    ({"a": 2**63}, "a=9223372036854775808 is no size"),
    ({"drop": "a"}, "drop= is for axes of the source alone, and 'a' is none"),
    ({"fill": {"a": 0}}, "fill= is for axes of the target alone, and 'a' is none"),
    ({"agree": "a"}, "agree= is for axes of one side alone, and 'a' is none"),
    ({"alias": "q"}, "alias= names 'q', which is no axis of the rule"),
    ({"fill": {"a": "x"}}, "fill= of 'a' is 'x', and no number"),
    ({"fill": {"a": 0, 1: 0}}, "fill= names 1, and an axis is a text"),
    ({"fill": 0}, "fill: values by axis, and not 0"),
    ({"fill": 1.5}, "fill: values by axis, and not 1.5"),
    ({"drop": 3}, "drop: a text or several, and not 3"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_a_wrong_option_is_told(options, message):
    with pytest.raises(sd.errors.RuleError) as error:
        sd.rule("w [a]", "w [a]", **options)
    assert message in str(error.value)


def test_what_is_tied_stands_in_names():
    with pytest.raises(sd.errors.RuleError, match="'p' is to stand alone in a slot"):
        sd.rule("w [a]", "w [(a p)]", alias="p")


def test_parts_beyond_counting_are_refused():
    """Each sum doubles the parts: nobody waits for two to the fiftieth."""
    dims = " ".join(f"(a{i} + b{i})" for i in range(50))
    with pytest.raises(sd.errors.RuleError, match="more than 4096 parts"):
        sd.rule(f"w [{dims}]", f"w [{dims}]")
    deep = "(" * 500 + "a" + ")" * 500
    with pytest.raises(sd.errors.RuleError, match=r"too many \( \)"):
        sd.rule(f"w [{deep}]", "w [a]")


def test_rules_are_equal_by_what_they_say():
    a = sd.rule("w [(x + p)]", "v [(x + p)]", x=2, p=3)
    assert a == sd.rule(["w [(x + p)]"], ("v [(x + p)]",), p=3, x=2)
    assert a != sd.rule("w [(x + p)]", "v [(x + p)]", x=2)
    nan = sd.rule("w [x]", "w [(x + p)]", fill={"p": math.nan}, p=1)
    assert sd.Rule.from_json(nan.to_json()) == pickle.loads(pickle.dumps(nan)) == nan
    assert "NaN" not in nan.to_json()


BAD_JSON = {
    "{": "not the JSON of a rule",
    "[]": "an object with source and target",
    '{"source": "a"}': "an object with source and target",
    '{"source": "a", "target": "b", "size": {}}': "a rule has no size",
    '{"source": "a", "target": "b", "sizes": []}': "sizes: values by axis",
    '{"source": "a", "target": [1]}': "target: a text or several",
    '{"source": "a", "target": "b", "sizes": {"x": 1}}': "x= is no axis of the rule",
    '{"source": [], "target": "b"}': "at least one text",
}


@pytest.mark.parametrize(("text", "message"), BAD_JSON.items())
def test_what_is_no_json_of_a_rule_is_refused(text, message):
    with pytest.raises(sd.errors.RuleError) as error:
        sd.Rule.from_json(text)
    assert message in str(error.value)


# -- inverses ----------------------------------------------------------------------


def test_an_inverse_needs_what_was_dropped_and_all_sizes():
    """It says what is missing, and what to do; that works."""
    cut = sd.rule("w [(v + n) c]", "w [v c]", drop="n", n=2)
    with pytest.raises(sd.errors.RuleError, match=r"inverse\(fill={'n': 0}\)"):
        cut.inverse()
    assert cut.inverse(fill={"n": 0}).inverse() == cut
    with pytest.raises(sd.errors.RuleError, match="does not drop m"):
        cut.inverse(fill={"n": 0, "m": 1})
    fuse = sd.rule(["q [a]", "k [b]"], "qk [(a + b)]")
    with pytest.raises(sd.errors.RuleError, match="give a=, b= to the rule, or invert"):
        fuse.inverse()
    told = sd.rule(["q [a]", "k [b]"], "qk [(a + b)]", a=2)
    assert told.inverse().inverse() == told
    tree = {"q": torch.ones(2), "k": torch.zeros(3)}
    bound = fuse.bind(tree).inverse()
    assert sd.equal(sd.convert(sd.convert(tree, fuse), bound), tree)


def test_a_bound_rule_stays_with_its_tree():
    """Another with other sizes or other names is refused."""
    rule = sd.rule("{i}.w [(a b)]", "{i}.w [a b]", a=2)
    bound = rule.bind({"0.w": torch.ones(4), "1.w": torch.ones(6)})
    assert repr(bound) == f"{rule} bound to 2 groups"
    for tree, message in (
        ({"0.w": torch.ones(4)}, r"1\.w: no such leaf"),
        ({f"{i}.w": torch.ones(4) for i in range(2)}, r"1\.w: dim 0 is 4"),
        ({f"{i}.w": torch.ones(2 * i + 4) for i in range(3)}, r"2\.w: the rule was"),
    ):
        with pytest.raises(sd.errors.ConvertError, match=message):
            sd.convert(tree, bound)
    with pytest.raises(sd.errors.ConvertError, match="no leaf is named"):
        rule.bind({"w": torch.ones(2)})


def test_a_rule_that_is_bound_to_a_leaf_without_dims_takes_no_other():
    bound = sd.rule("a", "b").bind({"a": torch.tensor(1.0)})
    assert list(sd.convert({"a": torch.tensor(2.0)}, bound)) == ["b"]
    with pytest.raises(sd.errors.ConvertError, match="0 dims in 'the bound rule'"):
        sd.convert({"a": torch.ones(3)}, bound)


# -- how they show themselves ------------------------------------------------------


def test_a_notebook_shows_both_sides_with_axes_in_colours():
    """One axis has one colour wherever it stands; a name stays text."""
    rule = sd.rule(["<q> [a c]", "k [b c]"], "qk [(a + b) c]", b=2)
    html = rule._repr_html_()
    assert html.count('<span class="tag blue">a</span>') == 2
    assert html.count('<span class="tag orange">c</span>') == 3
    assert "&lt;q&gt; [" in html
    assert "b=2" in html
    tree = {"<q>": torch.ones(1, 2), "k": torch.ones(2, 2)}
    assert "a=1, b=2, c=2" in rule.bind(tree)._repr_html_()
    many = sd.rule("{i}.w", "{i}.v").bind({f"{i}.w": torch.ones(1) for i in range(30)})
    assert "10 more groups" in many._repr_html_()
    long = sd.rule(f"{'layers.' * 6}q [a c]", "q [c a]")._repr_html_()
    assert long.count("layers.q<br>[<") == 1
    assert long.count("q [<") == 1


def test_a_transform_shows_its_rule():
    one, two = sd.rule("a", "b"), sd.rule("c", "d")
    assert repr(sd.convert(one) | sd.copy()) == "convert(rule('a', 'b')) | copy()"
    shown = repr(sd.convert([one, two], like={"b": 1}, rest="drop"))
    assert shown == "convert(2 rules, like=..., rest='drop')"
    assert sd.convert(one) == sd.convert([one])
    assert sd.convert(one)._repr_html_().count("<tr>") == 2


def padded(value):
    return sd.rule("e [v c]", "e [(v + p) c]", fill={"p": value}, p=1)


def test_rules_of_numbers_that_are_equal_and_not_the_same_differ():
    """Each is read for itself, whichever was read before; so are its sizes."""
    for one, other in ((0.0, -0.0), (-0.0, 0.0), (1, 1.0), (1.0, True)):
        assert padded(one) != padded(other)
        assert padded(one) == padded(one)
    tree = {"e": torch.ones(1, 1)}
    shared = {"e": sd.Shards(tree["e"], whole((1, 1), (0,)))}
    for value in (0.0, -0.0, 0.0):
        made = sd.convert(tree, padded(value))["e"]
        assert math.copysign(1, made[1].item()) == math.copysign(1, value)
        parts = sd.convert(shared, padded(value))["e"].tensors
        [fill] = [t for t in parts if t.item() != 1]
        assert math.copysign(1, fill.item()) == math.copysign(1, value)
    sd.rule("w [(a p)]", "w [(p a)]", p=1)
    for size in (1.0, True):
        with pytest.raises(sd.errors.RuleError, match="is no size of an axis"):
            sd.rule("w [(a p)]", "w [(p a)]", p=size)


class Code(enum.IntEnum):
    PAD = 3


@given(
    st.one_of(
        st.floats(),
        st.booleans(),
        st.integers(-(10**400), 10**400),
        st.floats().map(np.float64),
        st.floats(width=32).map(np.float32),
        st.integers(-(2**63), 2**63 - 1).map(np.int64),
        st.just(Code.PAD),
    )
)
def test_rules_of_any_number_come_back_from_json(value):
    """As what it is to Python: text has no numbers of numpy, and no enums."""
    rule = padded(value)
    assert sd.Rule.from_json(rule.to_json()) == rule
    turned = rule.inverse().inverse(fill={"p": value})
    assert turned == rule


def test_the_rest_of_the_dims_is_no_axis():
    with pytest.raises(sd.errors.RuleError, match=r"^\.\.\.= is no axis of the rule"):
        sd.rule("w", "v", **{"...": 2})
    with pytest.raises(sd.errors.RuleError, match=r"^agree= names '\.\.\.', which is"):
        sd.rule("w", "v []", agree="...")


@pytest.mark.parametrize("axis", ["fill", "drop", "agree", "alias"])
def test_no_axis_with_a_size_is_called_as_an_option_is(axis):
    """As text the size was taken for the option: rules of other fills were equal."""
    for value in (0.0, 1.0):
        with pytest.raises(sd.errors.RuleError, match=f"^{axis}= is an option"):
            sd.Rule.from_data(
                {
                    "source": [f"w [a {axis}]"],
                    "target": [f"w [(a + p) {axis}]"],
                    "fill": {"p": value},
                    "sizes": {axis: 2, "p": 1},
                }
            )
    turned = sd.rule(f"w [{axis} c]", f"w [c {axis}]")
    assert sd.convert({"w": torch.ones(2, 3)}, turned)["w"].shape == (3, 2)


@pytest.mark.parametrize("size", [np.int64(2), Code.PAD])
def test_sizes_may_be_whole_numbers_of_others(size):
    split = sd.rule("w [(a b)]", "w [a b]", a=size)
    assert split == sd.rule("w [(a b)]", "w [a b]", a=int(size))
    assert sd.Rule.from_json(split.to_json()) == split


@pytest.mark.parametrize("fill", [1.5, 0, {"n": None}, {"n": "x"}, {"n": 0, 1: 0}])
def test_what_is_put_back_is_a_number_by_axis(fill):
    cut = sd.rule("w [(a + n)]", "w [a]", drop="n", n=2)
    with pytest.raises(sd.errors.RuleError, match=r"^fill"):
        cut.inverse(fill=fill)
    with pytest.raises(sd.errors.RuleError, match=r"^fill"):
        cut.bind({"w": torch.ones(3)}).inverse(fill=fill)


def test_keys_that_are_no_text_are_told():
    with pytest.raises(sd.errors.RuleError, match="a rule has no 1, x"):
        sd.Rule.from_data({"source": "a", "target": "b", "x": 0, 1: 0})


@pytest.mark.parametrize("value", [10**400, -(10**400), 0.5, math.nan, 2**63])
def test_an_integer_dtype_refuses_what_it_has_not(value):
    with pytest.raises(sd.errors.ConvertError, match=r"^e: fill= has .* no such"):
        sd.convert({"e": torch.ones(1, 1, dtype=torch.int64)}, padded(value))


BEYOND = {
    torch.float16: [1e6, -1e6],
    torch.float32: [1e39],
    torch.complex64: [1e39],
    torch.float8_e4m3fn: [1e6, math.inf],
    torch.float8_e5m2: [1e6],
    torch.float8_e4m3fnuz: [math.inf, 300.0],
    torch.float8_e8m0fnu: [0.0, -1.0, math.inf],
    torch.float4_e2m1fn_x2: [0.0],
}


@pytest.mark.parametrize("dtype", BEYOND, ids=str)
def test_a_value_that_a_dtype_has_not_is_refused_before_a_byte_is_made(dtype):
    """It would saturate, change its sign, or fail midway; what is rounded goes in."""
    tree = {"e": torch.zeros(1, 1, dtype=torch.int64).view(torch.uint8).view(dtype)}
    for value in BEYOND[dtype]:
        with pytest.raises(sd.errors.ConvertError, match=r"^e: fill= has .* no such"):
            sd.convert(tree, padded(value))
    if dtype == torch.float4_e2m1fn_x2:
        return  # torch fills none
    for value in (1.0, 0.7, math.nan):
        made = sd.convert(tree, padded(value))["e"][-1].to(torch.complex128)
        wanted = torch.full((1,), value, dtype=dtype).to(torch.complex128)
        assert repr(made[0]) == repr(wanted[0])
