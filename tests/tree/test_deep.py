"""Trees as deep as they may be: everything takes them; deeper ones are refused."""

import copy
import io
import json
import pickle
from collections import OrderedDict, defaultdict, deque

import pytest
import torch

import sdtree as sd
from sdtree.io.converting.by_window import convert_file
from sdtree.io.pt import pickling
from sdtree.io.pt.pickling import STEP
from sdtree.testing.samples import Boxed, Layer, Pair, layer
from sdtree.tree.shape import MOST_DEEP

WRAPPINGS = (
    *(lambda x: {"x": x}, lambda x: [x], lambda x: (x,), lambda x: Pair(x, sd.ABSENT)),
    *(lambda x: OrderedDict(x=x), lambda x: defaultdict(list, x=x)),
    *(lambda x: deque([x], 2), lambda x: Boxed(x=x), lambda x: layer([x, sd.ABSENT])),
)


def nested(depth, wrappings=WRAPPINGS[:1]):
    """Return containers nested in each other, of each sort in turn."""
    tree = torch.ones(2)
    for i in range(depth):
        tree = wrappings[i % len(wrappings)](tree)
    return tree


def told(tree):
    """Return the types of nested containers, and the leaf."""
    kinds = []
    while not isinstance(tree, torch.Tensor):
        kinds.append(type(tree))
        if isinstance(tree, Layer):
            tree = tree.weight
        else:
            tree = next(iter(tree.values() if hasattr(tree, "values") else tree))
    return kinds, tree.tolist()


CALLS = {
    "broadcast": lambda t: sd.broadcast(t, like=t),
    "cast": lambda t: sd.cast(t, dtype=torch.half),
    "combine": lambda t: sd.combine(*sd.partition(t, torch.Tensor)),
    "convert": lambda t: sd.convert(t, RULE, rest="keep"),
    "copy": lambda t: sd.copy(t, into=sd.empty_like(t)),
    "diff": lambda t: str(sd.diff(t, sd.copy(t))),
    "distribute": lambda t: sd.distribute(t, like=t),
    "drop": lambda t: sd.drop(t, int, missing_ok=True),
    "empty_like": sd.empty_like,
    "equal": lambda t: sd.equal(t, sd.copy(t)) or 1 / 0,
    "explain": lambda t: str(sd.explain(sd.copy() | sd.prefix("m"), t)),
    "flatten": sd.flatten,
    "gather": sd.gather,
    "identity": lambda t: sd.identity.prepare(t, reuse=True)(sd.identity(t)),
    "items": sd.items,
    "leaves": sd.leaves,
    "map": lambda t: sd.map(lambda x, y: x, t, sd.copy(t)),
    "map_with_path": lambda t: sd.map_with_path(lambda path, x: x, t),
    "names": sd.names,
    "nbytes": sd.nbytes,
    "offload": sd.offload,
    "partition": lambda t: sd.partition(t, torch.Tensor),
    "paths": sd.paths,
    "prefix": lambda t: sd.prefix(t, "m"),
    "redistribute": lambda t: sd.redistribute(t, like=t),
    "rename": lambda t: sd.rename(t, lambda name: f"{name}.y"),
    "select": lambda t: sd.select(t, torch.Tensor),
    "show": lambda t: (str(sd.show(t)), sd.show(t)._repr_html_()),
    "shards": lambda t: sd.shards(t, {}),
    "similar": lambda t: sd.similar(t, sd.copy(t)) or 1 / 0,
    "spec": sd.spec,
    "strip_prefix": lambda t: sd.strip_prefix(t, "x", missing_ok=True),
    "structure": lambda t: (str(sd.structure(t)), sd.structure(t)._repr_html_()),
    "ties": sd.ties,
    "to": lambda t: sd.to(t, "cpu"),
    "unflatten": lambda t: sd.unflatten(sd.flatten(t), spec=sd.structure(t)),
    "wait": sd.wait,
    "where": lambda t: sd.where(t, torch.Tensor, sd.gather()),
    "whole": lambda t: sd.whole(sd.copy())(t),
}
RULE = sd.rule("{x:**}.x", "{x:**}.y")
NO_TREE = {"ABSENT", "Abstract", "Diff", "Plan", "Selector", "Transform", "TreeSpec"}
NO_TREE |= {"register_container", "register_leaf", "chain", "selector"}
NO_TREE |= {
    "errors",
    "testing",
    "load",
    "save",
    "metadata",
    "convert_file",
    "record",
    "Mismatch",
    "compat",
    "rule",
    "rules",
    "from_transformers",
    "Rule",
    "BoundRule",
    "Shards",
    "Stager",
    "stage",
}


def test_no_operation_is_left_out():
    """Files are looked at below."""
    assert {*CALLS} | NO_TREE == {*dir(sd)}


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_takes_the_deepest_tree(name):
    CALLS[name](nested(MOST_DEEP, WRAPPINGS))


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_refuses_a_deeper_tree(name):
    """In one line that is the same everywhere, and tells where it begins."""
    with pytest.raises(ValueError, match=r"^x\.x.*\.\.\.: more than 1000 ") as caught:
        CALLS[name](nested(MOST_DEEP + 1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_values_that_tell_of_the_deepest_tree():
    """Specs compare, hash, pickle and go through JSON; transforms that have it, too."""
    tree = nested(MOST_DEEP, WRAPPINGS)
    spec, other = sd.structure(tree), sd.structure(sd.copy(tree))
    text = spec.to_json()
    for same in (other, pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert same == spec
        assert hash(same) == hash(spec)
    assert sd.TreeSpec.from_json(text) == spec
    assert spec != sd.structure(nested(MOST_DEEP, WRAPPINGS[:5]))
    assert told(sd.TreeSpec.from_json(text).make(sd.leaves(tree))) == told(tree)
    assert sd.cast(like=tree) == sd.cast(like=sd.copy(tree))
    row = {"type": "list", "size": 1}
    rows = [{**row, "children": 1}] * (MOST_DEEP - 1)
    assert len(sd.TreeSpec.from_json(json.dumps([*rows, row]))) == 1
    with pytest.raises(ValueError, match=r"0\.0.*: it is nested deeper than 1000 "):
        sd.TreeSpec.from_json(json.dumps([*rows, {**row, "children": 1}, row]))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_hold_the_deepest_tree(suffix, tmp_path):
    """Written whole, and window by window."""
    tree = nested(MOST_DEEP, WRAPPINGS[:5] if suffix == ".pt" else WRAPPINGS)
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    sd.save(tree, first)
    convert_file(first, second, sd.copy())
    for path in (first, second):
        assert told(sd.load(path)) == told(tree)
    if suffix == ".pt":
        assert told(torch.load(first, weights_only=False)) == told(tree)


def test_a_deep_pickle_is_as_torch_writes_it(tmp_path):
    """What is tied stays tied, a container at two places too; others read it."""
    shared = {"w": torch.ones(2)}
    tree = {"a": nested(120), "b": [nested(70, WRAPPINGS[:5]), shared], "c": shared}
    sd.save(tree, tmp_path / "a.pt")
    back = torch.load(tmp_path / "a.pt", weights_only=False)
    assert told(back["a"]) == told(tree["a"])
    assert back["b"][1]["w"].data_ptr() == back["c"]["w"].data_ptr()


def test_what_is_no_deeper_than_a_step_is_pickled_as_by_torch():
    """Only what lies below it is brought first, once for each step."""
    for depth in (1, STEP, STEP + 1, 2 * STEP, 2 * STEP + 1):
        tree, said = nested(depth), io.BytesIO()
        assert len(pickling._from_below(tree)) == (depth - 1) // STEP
        pickling.save(tree, said)
        said.seek(0)
        assert sd.equal(torch.load(said), tree)
