"""``sdtree.compat`` on one rank: as torch's own functions, where these are right.

``theirs`` are torch's functions, called with the same arguments. Trees are drawn as
torch takes them; where ours differ, a test says so by name.
"""

import ast
import inspect
import re
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from beside_compat import same
from beside_torch import LOOKED_AT, mesh
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT
from torch import Tensor
from torch.distributed import _state_dict_utils as theirs
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from sdtree import compat
from sdtree.compat.patching import STAND_INS
from sdtree.errors import NameCollision, SpecMismatch
from sdtree.testing import tensors

CPU = torch.device("cpu")
__all__ = ["mesh"]

# -- trees -------------------------------------------------------------------------


class Stranger:
    """What no kind serves."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stranger) and self.value == other.value

    __hash__ = None


@dataclass
class Pair:
    first: Any
    second: Any


numbers = st.one_of(st.integers(-3, 3), st.floats(allow_nan=False), st.booleans())
texts = st.text("ab.", max_size=3)
values = st.one_of(numbers, st.none(), texts, st.binary(max_size=3))
words = st.one_of(texts, st.integers(0, 3))


def trees_of(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
    """Return nested dicts, lists and tuples, with a dict at the root."""

    def grown(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = st.lists(children, max_size=3)
        dicts = st.dictionaries(words, children, max_size=3)
        return st.one_of(dicts, lists, lists.map(tuple))

    inner = st.recursive(leaves, grown, max_leaves=6)
    return st.dictionaries(words, inner, max_size=4)


trees = trees_of(st.one_of(values, tensors(meta=False)))
strange_trees = trees_of(
    st.one_of(
        *(values, tensors(meta=False), st.builds(Stranger, numbers)),
        *(st.sets(st.integers(0, 3)), st.complex_numbers(allow_nan=False)),
    )
)


def came_to(call: Any) -> Any:
    """Return what a call returns, or the type that torch raises where it raises one."""
    try:
        return call()
    except theirs.CompanionMismatch:
        return theirs.CompanionMismatch
    except ValueError:
        return ValueError


def assert_same(ours: Any, torchs: Any) -> None:
    """Raise unless two calls came to the same."""
    if isinstance(torchs, type) or isinstance(ours, type):
        assert ours is torchs
    else:
        assert equal(ours, torchs)


def equal(a: Any, b: Any) -> bool:
    """Return whether two trees are the same, with strangers told by themselves."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same({"": a}, {"": b})
    if isinstance(a, dict):
        return [*a] == [*b] and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# -- signatures --------------------------------------------------------------------


@pytest.mark.skipif(not LOOKED_AT, reason="another torch")
@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_signatures_are_torchs(name):
    """Names, order, defaults and what is keyword-only."""
    ours = inspect.signature(getattr(compat, name[1:])).parameters.values()
    torchs = inspect.signature(getattr(theirs, name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in torchs
    ]


@pytest.mark.skipif(not LOOKED_AT, reason="another torch")
def test_no_function_of_torchs_is_left_out():
    """But the one that returns what it is given."""
    own = {
        name
        for name, x in vars(theirs).items()
        if inspect.isfunction(x) and x.__module__ == theirs.__name__
    }
    assert own == {*STAND_INS, "_identity_func"}
    assert compat.CompanionMismatch is theirs.CompanionMismatch


@pytest.mark.skipif(not LOOKED_AT, reason="another torch")
def test_the_page_tells_of_every_name_of_torchs_module():
    """Functions, classes and types, public or not."""
    page = (ROOT / "docs" / "howto" / "torch_names.md").read_text()
    told = {name for row in page.split("\n") for name in NAME.findall(first_cell(row))}
    tree = ast.parse(inspect.getsource(theirs))
    made = [x for x in tree.body if isinstance(x, (ast.FunctionDef, ast.ClassDef))]
    types = [x for x in tree.body if isinstance(x, ast.Assign)]
    assert told == {x.name for x in made} | {x.targets[0].id for x in types}


NAME = re.compile(r"`(\w+)`")


def first_cell(row: str) -> str:
    """Return what stands in the first column of a line, if it is one of a table."""
    return row.split(" | ")[0] if row.startswith("| `") else ""


# -- the same as torch's -----------------------------------------------------------


@given(trees)
def test_gather_and_offload(tree):
    for options in ({}, {"cpu_offload": True}):
        made = compat.gather_state_dict(tree, **options)
        assert_same(made, theirs._gather_state_dict(tree, **options))
    assert_same(
        compat.offload_state_dict_to_cpu(tree), theirs._offload_state_dict_to_cpu(tree)
    )


@given(strange_trees, st.booleans())
def test_values_of_other_types(tree, type_check):
    """They are a ValueError with the path, or copied as a whole."""
    for ours, torchs in (
        (compat.gather_state_dict, theirs._gather_state_dict),
        (compat.offload_state_dict_to_cpu, theirs._offload_state_dict_to_cpu),
    ):
        assert_same(
            came_to(lambda ours=ours: ours(tree, type_check=type_check)),
            came_to(lambda torchs=torchs: torchs(tree, type_check=type_check)),
        )


@given(strange_trees)
def test_buffers_and_copies(tree):
    """Buffers of the same shapes and dtypes, into which the tree is copied."""
    buffers = compat.create_cpu_state_dict(tree)
    torchs = theirs._create_cpu_state_dict(tree)
    assert compat.check_state_dict_similarity(buffers, tree)
    assert compat.check_state_dict_similarity(buffers, torchs)
    made = compat.copy_state_dict(tree, buffers, type_check=False)
    assert_same(made, theirs._copy_state_dict(tree, torchs, type_check=False))
    assert ids_in(made) == ids_in(buffers)


def ids_in(tree: Any) -> list[int]:
    """Return which tensors stand in a tree, in order."""
    found: list[int] = []

    def see(_: Any, x: Any) -> None:
        found.extend([id(x)] if isinstance(x, Tensor) else [])

    theirs._traverse_state_dict(tree, see)
    return found


MISFITS = {
    "shape": lambda tree: {**tree, "w": torch.zeros(1)},
    "dtype": lambda tree: {**tree, "w": torch.zeros(2).half()},
    "number": lambda tree: {**tree, "w": 0},
    "missing": lambda tree: {"v": tree["v"], "w": tree["w"]},
    "unexpected": lambda tree: {**tree, "more": torch.zeros(2)},
    "longer": lambda tree: {**tree, "x": [tree["x"], 1]},
}


@given(trees, st.sampled_from([*MISFITS]))
def test_buffers_that_do_not_fit(tree, misfit):
    """They are a ``CompanionMismatch`` that tells where, and none is written."""
    tree = {"v": torch.ones(2), "x": {"y": tree}, "w": torch.ones(2)}
    buffers = {**compat.create_cpu_state_dict(tree), "v": torch.zeros(2)}
    wrong = MISFITS[misfit](buffers)
    with pytest.raises(theirs.CompanionMismatch, match=r"w|x|more"):
        compat.copy_state_dict(tree, wrong)
    assert not buffers["v"].any()
    assert not compat.check_state_dict_similarity(tree, wrong)


@given(trees)
def test_flatten_and_unflatten(tree):
    ours = came_to(lambda: compat.flatten_state_dict(tree))
    torchs = came_to(lambda: theirs._flatten_state_dict(tree))
    assert_same(ours, torchs)
    if not isinstance(ours, type):
        again = came_to(lambda: compat.unflatten_state_dict(*ours))
        assert_same(again, came_to(lambda: theirs._unflatten_state_dict(*torchs)))


@given(trees)
def test_traverse(tree):
    ours: list[Any] = []
    torchs: list[Any] = []
    compat.traverse_state_dict(tree, lambda path, x: ours.append((path, x)))
    theirs._traverse_state_dict(tree, lambda path, x: torchs.append((path, x)))
    assert_same(ours, torchs)


@given(st.lists(st.tuples(st.lists(words, min_size=1, max_size=3), values), max_size=4))
def test_set_element(steps):
    """Also into what is there; a place of a list in a dict is a TypeError."""
    ours: dict[Any, Any] = {}
    torchs: dict[Any, Any] = {}
    for path, value in steps:
        path = (str(path[0]), *path[1:])
        errors = [
            raised(f, tree, path, value)
            for f, tree in ((compat.set_element, ours), (theirs._set_element, torchs))
        ]
        assert errors[0] in (errors[1], TypeError)
        if errors[0] is not None:
            return
        assert_same(ours, torchs)


def raised(function: Any, *args: Any) -> type[Exception] | None:
    try:
        function(*args)
    except Exception as error:
        return type(error)
    return None


def visits() -> tuple[list[Any], list[Any]]:
    """Return what each of three functions is called with, and the three."""
    seen: list[Any] = []

    def visit(kind: str) -> Any:
        def act(x: Any, pg: Any, device: Any, companion: Any) -> Any:
            seen.append((kind, x, pg, device, companion))
            return x.detach() + 1

        return act

    return seen, [visit(kind) for kind in ("sharded", "dtensor", "tensor")]


usual = tensors(dtypes=(torch.float32, torch.int64), meta=False)


@given(trees_of(st.one_of(values, usual)), st.booleans())
def test_iterate(tree, has_companion):
    """Each function sees the same, in the same order, and the results are the same."""
    results = []
    for f in (compat.iterate_state_dict, theirs._iterate_state_dict):
        seen, three = visits()
        companion = theirs._create_cpu_state_dict(tree) if has_companion else None
        made = f(tree, *three, device=CPU, cpu_offload=True, companion_obj=companion)
        results.append((seen, made, companion))
    (seen, made, into), (others, torchs, their_into) = results
    assert_same(seen, others)
    assert_same(made, torchs)
    if has_companion:
        assert equal(into, their_into)


@pytest.mark.parametrize("has_companion", [False, True])
def test_functions_may_write_in_place(has_companion):
    """Into a leaf, or its companion, and return that."""

    def put(t, _, __, companion):
        return t.mul_(2) if companion is None else companion.copy_(t)

    for f in (compat.iterate_state_dict, theirs._iterate_state_dict):
        tree = {"w": torch.ones(2), "more": [torch.ones(1)]}
        companion = theirs._create_cpu_state_dict(tree) if has_companion else None
        made = f(tree, put, put, put, companion_obj=companion)
        assert torch.equal(made["w"], torch.full((2,), 1.0 if has_companion else 2.0))
        assert made["more"][0] is (companion or tree)["more"][0]


def test_a_tensor_that_is_its_own_buffer_stays():
    """As torch makes one of a DTensor without dims; two that change places do not."""
    a, b = torch.ones(2), torch.zeros(2)
    for f in (compat.copy_state_dict, theirs._copy_state_dict):
        made = f({"a": a, "b": torch.ones(2)}, {"a": a, "b": b})
        assert made["a"] is a
        assert torch.equal(made["b"], torch.ones(2))
    with pytest.raises(theirs.CompanionMismatch, match="overlaps"):
        compat.copy_state_dict({"a": a, "b": b}, {"a": b, "b": a})


def test_iterate_off_the_chosen_ranks(mesh):
    """A dict is empty there, all else None."""
    for tree in ({"w": torch.ones(2)}, [torch.ones(2)], torch.ones(2), 3):
        ours, torchs = (
            f(tree, *visits()[1], ranks_only=(1,))
            for f in (compat.iterate_state_dict, theirs._iterate_state_dict)
        )
        assert_same(ours, torchs)


@pytest.mark.parametrize("companion", [{}, {"w": 0, "v": 1}, [1], {"w": [1]}], ids=str)
def test_a_companion_of_another_structure(companion):
    tree = {"w": torch.ones(2)}
    for f in (compat.iterate_state_dict, theirs._iterate_state_dict):
        with pytest.raises((theirs.CompanionMismatch, AttributeError)):
            f(tree, *visits()[1], companion_obj=companion)
    with pytest.raises(theirs.CompanionMismatch):
        compat.copy_state_dict(tree, companion)


def test_sharded_leaves(mesh):
    """Each kind goes to its function; buffers and copies keep mesh and placements."""
    local = torch.arange(6.0).view(2, 3)
    tree = {"d": DTensor.from_local(local, mesh, [Shard(0)]), "t": local}
    for f in (compat.iterate_state_dict, theirs._iterate_state_dict):
        seen, three = visits()
        f(tree, *three)
        assert [kind for kind, *_ in seen] == ["dtensor", "tensor"]
    buffers = compat.create_cpu_state_dict(tree)
    made = compat.copy_state_dict(tree, buffers)
    assert made["d"] is buffers["d"]
    assert same(made, tree)
    assert type(compat.offload_state_dict_to_cpu(tree)["d"]) is DTensor


# -- where ours differ -------------------------------------------------------------


def test_buffers_are_as_their_leaves_are():
    """Ties, strides and Parameters stay; torch makes plain tensors, each on its own."""
    w = torch.nn.Parameter(torch.ones(2, 3))
    made = compat.create_cpu_state_dict({"w": w, "t": w.t()})
    assert type(made["w"]) is torch.nn.Parameter
    assert sd.ties(made) == [[("w",), ("t",)]]


def test_plain_buffers_take_parameters():
    """They have the same data, and that is all that torch asks."""
    tree = {"w": torch.nn.Parameter(torch.ones(2))}
    buffers = theirs._create_cpu_state_dict(tree)
    assert compat.check_state_dict_similarity(tree, buffers)
    assert compat.copy_state_dict(tree, buffers)["w"] is buffers["w"]
    assert buffers["w"].tolist() == [1, 1]


def test_dicts_of_other_types_are_kept_and_alike():
    """An OrderedDict stays one, with what it has beside its keys."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    made = compat.offload_state_dict_to_cpu(state)
    assert type(made) is OrderedDict
    assert made._metadata == state._metadata
    assert compat.check_state_dict_similarity(state, dict(made))
    assert not compat.check_state_dict_similarity({"x": [1]}, {"x": (1,)})
    assert not compat.check_state_dict_similarity({"x": 1}, {"x": "1"})


@pytest.mark.parametrize(
    "container", [deque, lambda x: Pair(x, 1)], ids=["deque", "Pair"]
)
def test_containers_that_torch_does_not_expect(container):
    """They are a ValueError, or taken apart; torch copies them, shards and all."""
    tree = {"x": container([torch.ones(2)])}
    with pytest.raises(ValueError, match=r"^x: Unexpected value type"):
        compat.offload_state_dict_to_cpu(tree)
    made = compat.offload_state_dict_to_cpu(tree, type_check=False)
    assert type(made["x"]) is type(tree["x"])
    assert sd.equal(made, tree)


def test_two_values_of_one_name():
    tree = {"a.b": 1, "a": {"b": 2}}
    with pytest.raises(NameCollision, match=r"duplicated flatten key a\.b"):
        compat.flatten_state_dict(tree)


def test_without_ranks_broadcast_and_distribute_work():
    """Torch's need a process group."""
    full = {"w": torch.ones(2), "n": torch.tensor(3), "x": {"y": [1]}, "more": 1}
    for function in (compat.broadcast_state_dict, compat.distribute_state_dict):
        local = {"w": torch.zeros(2), "n": 0, "x": {}, "only here": 5}
        function(full, local, CPU)
        assert ("more" in local) is (function is compat.distribute_state_dict)
        meant = {**full, "only here": 5}
        assert all(equal(local[key], meant[key]) for key in local)
        assert {*meant} == {*local, "more"}


def test_a_target_of_another_form_is_refused():
    full = {"w": torch.ones(2), "v": torch.ones(2), "n": 1}
    for function in (compat.broadcast_state_dict, compat.distribute_state_dict):
        local = {"w": torch.zeros(3), "v": torch.zeros(1, 2), "n": 0}
        with pytest.raises(SpecMismatch, match=r"2 mismatched: w \(shape.*, v \(shape"):
            function(full, local, CPU)
        assert local["n"] == 0


# -- the patch ---------------------------------------------------------------------


def patched() -> bool:
    """Return whether torch's functions are ours, all that are looked at together."""
    found = {
        getattr(module, name) is STAND_INS[name]
        for module, name in (
            (theirs, "_gather_state_dict"),
            (theirs, "_set_element"),
            (dsd, "_broadcast_state_dict"),
            (sys.modules[BlockingAsyncStager.__module__], "_copy_state_dict"),
            (sys.modules["torch.distributed.fsdp._optim_utils"], "_gather_state_dict"),
        )
    }
    assert len(found) == 1
    return found.pop()


def test_a_patch_is_on_until_it_is_undone():
    before = dict(vars(theirs))
    with compat.patch() as on:
        assert patched()
        assert compat.gather_state_dict not in vars(dsd).values()
    assert not patched()
    on.undo()
    assert vars(theirs) == before
    on = compat.patch()
    assert patched()
    on.undo()
    assert not patched()
    with pytest.raises(RuntimeError, match="has ended"), on:
        pass


@given(st.permutations(range(3)))
def test_patches_nest_and_end_in_any_order(order):
    """Torch's functions are back with the last, however often one is undone."""
    patches = [compat.patch() for _ in order]
    for count, k in enumerate(order, start=1):
        patches[k].undo()
        patches[k].undo()
        assert patched() is (count < len(patches))


def test_an_error_in_the_block_ends_the_patch():
    with pytest.raises(KeyError), compat.patch():
        raise KeyError
    assert not patched()


def test_what_is_imported_meanwhile_is_torchs_again():
    """What a module has of ours by itself stays, and so does what others put there."""
    module = ModuleType("imported meanwhile")
    sys.modules[module.__name__] = module
    try:
        with compat.patch():
            module._gather = theirs._gather_state_dict
            module.ours = compat.gather_state_dict
        assert module._gather is theirs._gather_state_dict
        assert module.ours is compat.gather_state_dict
        with compat.patch():
            module._gather = len
        assert module._gather is len
    finally:
        del sys.modules[module.__name__]


def test_a_stager_copies_under_the_patch():
    """Torch's own stager, whose copies are ties as the model's weights are."""
    w = torch.ones(3)
    state = {"w": w, "tied": w, "step": 3, "odd": Stranger(1)}
    with compat.patch():
        staged = BlockingAsyncStager().stage(state)
    assert equal(staged, state)
    assert sd.ties({**staged, "odd": 0}) == [[("w",), ("tied",)]]
    w += 1
    assert staged["w"].tolist() == [1, 1, 1]


def test_a_model_alone_is_got_and_set_under_the_patch():
    """With no process group, as one would on a laptop."""
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    options = dsd.StateDictOptions(full_state_dict=True, cpu_offload=True)
    with compat.patch():
        state = dsd.get_model_state_dict(model, options=options)
        dsd.set_model_state_dict(other, state)
    assert same(other.state_dict(), model.state_dict())
