"""The options of the command line, as one transform."""

import pytest
import torch
from hypothesis import given

import sdtree as sd
from sdtree.cli.recipe import Recipe, dtype_named, rules_in
from sdtree.testing import assert_same, trees

STATE = {
    "model": {"enc": {"w": torch.ones(2)}, "head": {"w": torch.ones(3), "n": 1}},
    "optimizer": {"lr": 0.1},
}


@given(trees())
def test_an_empty_recipe_is_the_identity(tree):
    """No option, no change."""
    assert Recipe().transform() == sd.identity
    assert_same(Recipe().transform()(tree), tree, "identity")


def test_steps_act_in_the_order_that_help_tells():
    """select, drop, rename, strip-prefix, prefix, cast."""
    recipe = Recipe(
        cast="bfloat16",
        prefix="net",
        strip_prefix=["model"],
        rename=["model.enc.**=model.encoder.**"],
        drop=["**.n"],
        select=["model.**"],
    )
    made = recipe.transform()(STATE)
    assert sd.names(made) == ["net.encoder.w", "net.head.w"]
    assert {leaf.dtype for leaf in sd.leaves(made)} == {torch.bfloat16}


BAD_RULES = {
    '[{"source": "a", "target": "b"}, {"source": "b [(x]", "target": "c"}]': "rule 2 "
    "of 2: no ')' closes this\n    b [(x]\n       ^",
    '[{"source": "a", "target": "b"}, 1]': "rule 2 of 2: the JSON of a rule is an",
    '{"source": "a", "target": "b", "drop": "n"}': "drop= names 'n', which is no axis",
    "[]": 'an empty list, and convert takes a rule or more, such as [{"source": "old"',
    "{": "not JSON: ",
    "[" * 10**5: "not JSON: ",
}


@pytest.mark.parametrize(("text", "told"), BAD_RULES.items(), ids=range(len(BAD_RULES)))
def test_a_file_of_rules_names_the_one_that_is_wrong(tmp_path, text, told):
    """By its number in the list, and shows it with the part marked."""
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(sd.errors.RuleError) as error:
        rules_in(path)
    assert str(error.value).startswith(f"{path}: {told}")


@pytest.mark.parametrize("rest", ["keep", "drop", "kept"])
def test_what_becomes_of_the_rest_is_asked_with_rules(rest):
    """Alone it would do nothing, and be misspelt without a word."""
    with pytest.raises(ValueError, match="--rest is for leaves that no rule of"):
        Recipe(rest=rest).transform()


def test_repeated_options_add_up():
    kept = Recipe(select=["model.enc.**", "optimizer.**"]).transform()(STATE)
    assert sd.names(kept) == ["model.enc.w", "optimizer.lr"]
    left = Recipe(drop=["model.enc.**", "optimizer.**"]).transform()(STATE)
    assert sd.names(left) == ["model.head.w", "model.head.n"]
    bare = Recipe(strip_prefix=["model", "enc"]).transform()(STATE)
    assert "w" in sd.names(bare)


def test_the_first_rule_that_matches_counts():
    renamed = Recipe(rename=["model.enc.*=a.*", "model.**=b.**"]).transform()(STATE)
    assert sd.names(renamed) == ["a.w", "b.head.w", "b.head.n", "optimizer.lr"]


def test_notes_name_what_does_not_match_where_it_is_used():
    """``--drop`` is asked of what ``--select`` leaves."""
    recipe = Recipe(select=["model.**", "modl.**"], drop=["optimizer.**"])
    first, second = recipe.misses(sd.structure(STATE))
    assert first.text == (
        "--select 'modl.**' matches no leaf; "
        "no 'modl' in the names, where there is 'model'"
    )
    assert second.text == (
        "--drop 'optimizer.**' matches no leaf; "
        "no 'optimizer' in the names, where there is 'model'"
    )
    assert not list(Recipe(rename=["model.**=**"]).misses(sd.structure(STATE)))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("float8", "float8_e4m3fn"),
        ("int8", "float32"),
        ("nonsense", "bfloat16"),
    ],
)
def test_a_bad_dtype_tells_the_near_ones(name, near):
    with pytest.raises(ValueError, match=rf"'{name}' is no .* near it: .*{near}"):
        dtype_named(name)


@pytest.mark.parametrize("rule", ["model.**", "=b", "a="])
def test_a_rename_without_both_sides_is_refused(rule):
    with pytest.raises(ValueError, match="is not PATTERN=REPLACEMENT"):
        Recipe(rename=[rule]).transform()


def test_a_transform_of_a_recipe_reads_as_python():
    assert repr(Recipe(select=["a.**"], cast="half").transform()) == (
        "select('a.**') | cast(dtype=torch.float16)"
    )


def test_a_glob_with_two_new_names_is_refused():
    """Or one of them would be left out without a word."""
    with pytest.raises(ValueError, match=r"two names, 'x\.\*\*' and 'y\.\*\*'"):
        Recipe(rename=["model.**=x.**", "model.**=y.**"]).transform()
    twice = Recipe(rename=["model.**=x.**"] * 2).transform()
    assert sd.names(twice(STATE))[0].startswith("x.")
