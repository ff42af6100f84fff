"""Trees as deep as they may be: every operation takes them; deeper ones are refused."""

from collections import OrderedDict, defaultdict, deque

import pytest
import torch

import sdtree as sd
from sdtree.testing.samples import Pair
from sdtree.nodes import MOST_DEEP

WRAPPINGS = {
    "dict": lambda x: {"x": x},
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "OrderedDict": lambda x: OrderedDict(x=x),
    "defaultdict": lambda x: defaultdict(list, x=x),
    "deque": lambda x: deque([x]),
    "namedtuple": lambda x: Pair(x, 1),
}


def nested(depth, wrap=WRAPPINGS["dict"], leaf=None):
    """Return containers nested in each other, with leaves below and above."""
    tree = wrap(torch.ones(2) if leaf is None else leaf)
    for _ in range(depth - 1):
        tree = wrap(tree)
    return tree


NAME = ".".join("x" * MOST_DEEP)
CALLS = {
    "broadcast": lambda t: sd.broadcast(t, like=t),
    "cast": lambda t: sd.cast(t, dtype=torch.half),
    "combine": lambda t: sd.combine(*sd.partition({"a": t, "b": 1}["a"], torch.Tensor)),
    "copy": lambda t: sd.copy(t, into=sd.empty_like(t)),
    "diff": lambda t: str(sd.diff(t, sd.copy(t))),
    "distribute": lambda t: sd.distribute(t, like=t),
    "drop": lambda t: sd.drop(t, int, missing_ok=True),
    "empty_like": sd.empty_like,
    "equal": lambda t: sd.equal(t, sd.copy(t)) or 1 / 0,
    "explain": lambda t: str(sd.explain(sd.copy() | sd.prefix("m"), t)),
    "flatten": sd.flatten,
    "gather": sd.gather,
    "identity": sd.identity,
    "items": sd.items,
    "leaves": sd.leaves,
    "map": lambda t: sd.map(lambda x, y: x, t, sd.copy(t)),
    "map_with_path": lambda t: sd.map_with_path(lambda path, x: x, t),
    "names": sd.names,
    "nbytes": sd.nbytes,
    "offload": sd.offload,
    "partition": lambda t: sd.partition(t, torch.Tensor),
    "paths": sd.paths,
    "prefix": lambda t: sd.prefix(sd.leaves(t)[0], "x"),
    "redistribute": lambda t: sd.redistribute(t, like=t),
    "rename": lambda t: sd.rename(t, (r"**.x", "**.y"), missing_ok=True),
    "select": lambda t: sd.select(t, torch.Tensor),
    "show": lambda t: (str(sd.show(t)), sd.show(t)._repr_html_()),
    "similar": lambda t: sd.similar(t, sd.copy(t)) or 1 / 0,
    "spec": sd.spec,
    "strip_prefix": lambda t: sd.strip_prefix(t, "x", missing_ok=True),
    "structure": lambda t: (str(sd.structure(t)), sd.structure(t)._repr_html_()),
    "ties": sd.ties,
    "to": lambda t: sd.to(t, "cpu"),
    "unflatten": lambda t: sd.unflatten(
        dict(zip(sd.names(t), sd.leaves(t), strict=True)), spec=sd.structure(t)
    ),
    "wait": sd.wait,
    "where": lambda t: sd.where(t, torch.Tensor, sd.gather()),
}
TAKE_NO_TREE = set(
    [
        "ABSENT",
        "Abstract",
        "Diff",
        "Plan",
        "Selector",
        "Transform",
        "TreeSpec",
        "chain",
        "errors",
        "load",
        "register_container",
        "register_leaf",
        "save",
        "selector",
        "testing",
    ]
)


def test_no_operation_is_left_out():
    assert {*CALLS} | TAKE_NO_TREE == {*dir(sd)}


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_takes_the_deepest_tree(name):
    for wrap in ("dict", "namedtuple"):
        CALLS[name](nested(MOST_DEEP, WRAPPINGS[wrap]))
