"""What torch has set around a call has no effect on what the library does."""

from inspect import isfunction, signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import OPERATIONS
from oracle import assert_same, items, snapshot
from shards import me, over, shard, together, whole
from torch.distributed.tensor import Shard

import sdtree as sd
from sdtree.io import convert_file
from sdtree.kinds.handler import handler_of
from sdtree.testing import MODES, modes, trees
from sdtree.transform.stream import Stream


def outcome(act, *trees):
    """Return what an operation returns, or the error that it raises."""
    try:
        return act(*trees), None
    except Exception as error:
        return None, (type(error), str(error))


def zeroed(tree):
    """Return a copy that has nothing but zeros in it."""
    made = sd.copy(tree)
    for x in sd.leaves(made):
        for t in handler_of(x).flatten(x)[0]:
            with torch.inference_mode():
                t.zero_()
    return made


def marks(tree):
    """Return what the modes might leave in tensors, and comparing might not see."""
    found = [x for _, x in items(tree) if isinstance(x, torch.Tensor)]
    return [(x.is_inference(), x.requires_grad, x.grad_fn) for x in found]


@settings(max_examples=150)
@given(trees(portable=False), st.sampled_from(sorted(OPERATIONS)), modes())
def test_nothing_depends_on_what_is_set(tree, name, mode):
    """Under every mode each operation returns what it returns under none."""
    act, tree = OPERATIONS[name], {"tree": tree}
    trees = [tree, zeroed(tree)][: len(signature(act).parameters)]
    check(act, trees, mode)


NO_TREES = {"record", "register_container", "register_leaf", "selector"}
"""What takes no tree."""


METHODS = (
    *(sd.Transform.__call__, sd.Transform.stream, Stream.__next__, Stream.close),
    *(sd.Stager.stage, sd.Abstract.of, convert_file),
)
"""What else takes trees, or makes leaves of them."""


def test_every_function_breaks_the_graph_of_a_compiled_one():
    """None is taken for a part of it, where dynamo would fail in what it cannot do."""
    functions = {n for n in sd.__all__ if isfunction(getattr(sd, n))} - NO_TREES
    assert all(getattr(sd, n)._torchdynamo_disable for n in functions)
    assert all(method._torchdynamo_disable for method in METHODS)
    assert len(functions) > 30


@pytest.mark.parametrize("name", ["chain", "copy in windows", "equal", "explain"])
def test_a_compiled_function_calls_what_is_not_compiled(name):
    """The graph breaks there, whoever made the function that it is applied to."""
    act = OPERATIONS[name]
    trees = [
        {"w": torch.ones(2), "each": [torch.zeros(3), 3]}
        for _ in signature(act).parameters
    ]
    torch.compiler.reset()
    found = torch.compile(act, backend="eager")(*trees)
    assert_same(found, act(*trees))


def gathers_in_a_graph():
    """Return what a compiled function gathers of what it has computed before."""

    @torch.compile(backend="eager")
    def step(x):
        return sd.gather({"w": x * 2})["w"] + 1

    return step(shard(whole(8, 3)))


def test_a_compiled_function_gathers():
    for found in together(gathers_in_a_graph):
        assert torch.equal(found, whole(8, 3) * 2 + 1)


def test_a_function_without_graph_breaks_says_what_to_do():
    """No tree is taken apart in a graph."""

    @torch.compile(backend="eager", fullgraph=True)
    def step(x):
        return sd.cast({"x": x}, dtype=torch.float16)

    with pytest.raises(Exception, match="what sdtree does to trees is no part"):
        step(torch.ones(2))


OF_FILES = modes().filter(lambda mode: mode.name != "deterministic")
"""In the one left out ``torch.load`` itself makes no tensors of raw bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@settings(max_examples=50)
@given(trees(), st.sampled_from(["pt", "safetensors"]), st.booleans(), OF_FILES)
def test_no_file_depends_on_what_is_set(folder, tree, suffix, mmap, mode):
    """Under every mode a file holds what it holds under none, and gives it back."""
    path = folder / f"tree.{suffix}"

    def back(tree):
        sd.save(tree, path)
        return sd.load(path, mmap=mmap)

    check(back, [tree], mode)


def check(act, trees, mode):
    before = snapshot(trees)
    expected, error = outcome(act, *trees)
    result, other = mode(lambda: outcome(act, *trees))
    assert other == error
    assert_same(result, expected)
    assert marks(result) == marks(expected)
    assert snapshot(trees) == before


def test_buffers_of_inference_mode():
    """They are written outside of it, too; others stay what they are inside."""
    tree = {"w": torch.arange(2.0), "v": torch.arange(4.0)[1::2]}
    with torch.inference_mode():
        buffers = {"w": torch.zeros(2), "v": torch.zeros(3, 2).t()[0, 1:]}
    assert sd.copy(tree, into=buffers)["v"] is buffers["v"]
    assert sd.equal(buffers, tree)
    others = sd.empty_like(tree)
    before = others["w"]._version
    with torch.inference_mode():
        result = sd.copy(sd.copy(tree), into=others)
    assert not any(x.is_inference() for x in result.values())
    assert others["w"]._version > before


def test_what_is_made_in_inference_mode_can_be_learned():
    """It is as if made outside: written in place, and used in a graph."""
    with torch.inference_mode():
        made = sd.copy({"w": torch.nn.Parameter(torch.ones(2))})
    (made["w"] * made["w"]).sum().backward()
    assert made["w"].grad.tolist() == [2, 2]


def act_in_every_mode():
    """Check on each rank that what ranks exchange does not depend on what is set."""
    rows, columns = (shard(whole(5, 4), over(0, 1), Shard(dim)) for dim in (0, 1))
    tree = {"w": rows, "v": columns, "b": torch.ones(3) * me(), "n": me()}
    full = {"w": whole(5, 4), "v": whole(5, 4), "b": torch.ones(3), "n": 0}
    turned = {**tree, "w": columns, "v": rows}
    acts = {
        "gather": lambda: sd.gather(tree),
        "gather into": lambda: sd.gather(tree, into=sd.copy(full)),
        "stream": lambda: dict(sd.gather(ranks=0).stream(tree)),
        "distribute": lambda: sd.distribute(full, like=tree),
        "redistribute": lambda: sd.redistribute(tree, like=turned),
        "broadcast": lambda: sd.broadcast({"b": tree["b"]}, like={"b": full["b"]}),
        "equal": lambda: sd.equal(tree, sd.copy(tree)),
        "diff": lambda: str(sd.diff(tree, sd.copy(tree))),
    }
    for name, act in acts.items():
        expected = act()
        for mode in MODES:
            result = mode(act)
            assert sd.equal(result, expected), (name, mode)
            assert marks(result) == marks(expected), (name, mode)


def test_what_ranks_exchange_does_not_depend_on_what_is_set():
    """Under every mode each operation of ranks returns what it returns under none."""
    together(act_in_every_mode, size=2)
