"""What comes from anyone's hands is right or is refused: texts of specs."""

import pytest
from grammar_json import forged_specs, plain
from hypothesis import given

import sdtree as sd
from sdtree.errors import UnknownContainer
from sdtree.tree.plain_json import dump, load


@given(forged_specs())
def test_a_forged_spec_is_refused_or_makes_its_tree(text):
    """from_json raises one ValueError, or returns the structure of a tree."""
    try:
        spec = sd.TreeSpec.from_json(text)
    except (ValueError, UnknownContainer):
        return
    assert len(repr(spec)) < 10_000
    if len(spec) < 10_000:
        assert sd.structure(spec.make(range(len(spec)))) == spec
        assert sd.TreeSpec.from_json(spec.to_json()) == spec


@given(plain())
def test_forged_plain_values_are_refused_or_come_back(data):
    """load raises one ValueError, or returns a value that dump can say."""
    try:
        value = load(data)
    except ValueError:
        return
    again = dump(value)
    assert dump(load(again)) == again


STRAY = (
    '{"type":"dict","keys":[],"state":{"attributes":'
    '{"spec":[{"type":"dict","keys":["x"]}],"leaves":[2]}}}'
)
"""A dict that has an attribute, as none can."""

DEFAULT = '{"type":"defaultdict","keys":[],"state":{"default_factory":'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type":"dict","keys":[{"numpy":["O","QUFBQUFBQUE="]}]}', "'O' is no plain"),
        ('{"type":"dict","keys":[{"float":"00"}]}', "1 bytes for a float"),
        ('{"type":"list","size":99999999999999999999}', "size 9999"),
        ('{"type":"dict","keys":["a","b",true,1]}', "has not the parts"),
        ('{"type":"dict","keys":[],"keys":["a"]}', "'keys' stands twice"),
        ('{"type":"dict","keys":["a"],"children":[{"type":"tuple"}]}', ": a: neither"),
        ('{"type":"dict","keys":[{"dtype":"_dynamo"}]}', "no dtype '_dynamo'"),
        ('{"type":"dict","keys":[{"BytesIO":["",0]}]}', "found by itself alone"),
        ('{"type":"dict","keys":[{"numpy":["|V1","AA=="]}]}', "found by itself alone"),
        (f'{DEFAULT}"eval"}}}}', "its 'default_factory': 'eval' is none of list, dict"),
        (STRAY, "a dict takes no attribute 'x'"),
    ],
)
def test_what_is_wrong_with_a_spec_is_told(text, words):
    with pytest.raises(ValueError, match="not the JSON of a TreeSpec") as caught:
        sd.TreeSpec.from_json(text)
    assert words in str(caught.value)


def test_a_claim_of_many_elements_costs_nothing():
    spec = sd.TreeSpec.from_json('{"type": "list", "size": 2147483647}')
    assert repr(spec) == "TreeSpec([0…2147483646: *])"
    assert len(spec) == 2147483647
