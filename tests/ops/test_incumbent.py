"""What torch's own functions get wrong on one rank, and sdtree right.

Each line of the README's table beside torch is shown here, but for those of exchange.
``theirs`` is ``torch/distributed/_state_dict_utils.py``. Each test says what it does
with the case, and shows it as long as torch is of the version that was looked at.
"""

from collections import Counter, OrderedDict, defaultdict
from typing import NamedTuple

import pytest
import torch
from beside_torch import LOOKED_AT, mesh, shows
from torch.distributed import _state_dict_utils as theirs
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd

__all__ = ["mesh"]


class Point(NamedTuple):
    x: int
    y: int


def dtensor(mesh, local, *size):
    """Return a DTensor of rows, of which rank 0 holds ``local``."""
    shape = torch.Size(size)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )


# -- similarity --------------------------------------------------------------------


def test_comparing_writes_nothing():
    """The incumbent's check overwrites its second argument with the first."""
    a, b, c = ({"w": torch.full((2,), float(k))} for k in range(3))
    theirs._check_state_dict_similarity(a, b)
    shows(torch.equal(b["w"], a["w"]))
    version = c["w"]._version
    assert sd.similar(a, c)
    assert not sd.equal(a, c)
    assert sd.diff(a, c)
    assert c["w"]._version == version
    assert c["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"x": [1]}, {"x": (1,)}),
        ({"x": 1}, {"x": "1"}),
        ({"x": 1}, {"x": 1.0}),
        ({"x": {}}, {"x": OrderedDict()}),
    ],
    ids=str,
)
def test_containers_and_plain_values_have_types(a, b):
    """The incumbent takes these for similar."""
    shows(theirs._check_state_dict_similarity(a, b))
    assert not sd.similar(a, b)
    assert not sd.equal(a, b)
    assert sd.diff(a, b)


@pytest.mark.parametrize("other", [1, None, "x", [torch.ones(2)]], ids=str)
def test_a_tensor_is_not_like_what_is_none(other):
    """The incumbent crashes on some: an int has no dtype."""
    tree = {"w": torch.ones(2)}
    assert not sd.similar(tree, {"w": other})
    assert not sd.similar({"w": other}, tree)
    if other == 1 and LOOKED_AT:
        with pytest.raises(AttributeError):
            theirs._check_state_dict_similarity(tree, {"w": other})


def test_global_shapes_count(mesh):
    """The incumbent takes 4 rows for 3, since this rank holds 2 either way."""
    a, b = (dtensor(mesh, torch.ones(2, 3), rows, 3) for rows in (4, 3))
    assert a.to_local().shape == b.to_local().shape
    shows(theirs._check_state_dict_similarity({"w": a}, {"w": b}))
    assert not sd.similar({"w": a}, {"w": b})
    assert sd.similar({"w": a}, {"w": dtensor(mesh, torch.zeros(2, 3), 4, 3)})


# -- copies into buffers -----------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 2), torch.zeros(2).half(), torch.zeros(2, dtype=torch.int64)],
    ids=("shape", "float16", "int64"),
)
def test_a_buffer_of_another_form_is_refused(wrong):
    """The incumbent broadcasts shapes and casts dtypes, without a word."""
    source = {"a": {"v": torch.ones(2), "w": torch.full((2,), 1.5)}}
    buffers = {"a": {"v": torch.zeros(2), "w": wrong}}
    taken = theirs._copy_state_dict(source, sd.copy(buffers))["a"]["w"]
    shows(taken.any() and (taken.shape, taken.dtype) == (wrong.shape, wrong.dtype))
    with pytest.raises(sd.errors.SpecMismatch, match=r"a\.w"):
        sd.copy(source, into=buffers)
    assert not any(t.any() for t in sd.leaves(buffers))


def test_plain_values_are_in_the_result():
    """The incumbent leaves the step of the buffers' tree as it was."""
    source = {"w": torch.ones(2), "step": 7}
    buffers = {"w": torch.zeros(2), "step": 0}
    result = sd.copy(source, into=buffers)
    assert result["step"] == 7
    assert result["w"] is buffers["w"]
    assert sd.equal(result, source)


def test_a_mismatch_names_the_path():
    """The incumbent raises a bare ``CompanionMismatch``."""
    source, buffers = {"a": [{"w": torch.ones(1)}]}, {"a": [{"v": torch.ones(1)}]}
    with pytest.raises(theirs.CompanionMismatch) as bare:
        theirs._copy_state_dict(source, buffers)
    shows("a.0" not in str(bare.value))
    with pytest.raises(sd.errors.SpecMismatch, match=r"a\.0\.w"):
        sd.copy(source, into=buffers)


# -- offload -----------------------------------------------------------------------


def test_what_is_saved_later_is_what_was_offloaded(tmp_path):
    """The incumbent hands CPU tensors on: training then changes what is saved."""
    model = torch.nn.Linear(2, 2)
    state = model.state_dict()
    before = {name: t.clone() for name, t in state.items()}
    alias, staged = theirs._offload_state_dict_to_cpu(state), sd.offload(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    sd.save(staged, tmp_path / "state.pt")
    assert sd.equal(dict(sd.load(tmp_path / "state.pt")), before)
    shows(alias["weight"].data_ptr() == model.weight.data_ptr())


# -- structure ---------------------------------------------------------------------

MIXED = {"t": (1, 2), "od": OrderedDict(x=1), 0: torch.ones(1), "empty": {}}
TREES = {
    "tuple": ({"betas": (0.9, 0.999)}, {"betas": [0.9, 0.999]}),
    "namedtuple": ({"p": Point(1, 2)}, {"p": [1, 2]}),
    "OrderedDict": ({"o": OrderedDict(b=1, a=2)}, {"o": {"b": 1, "a": 2}}),
    "defaultdict": ({"d": defaultdict(list, a=[1])}, {"d": {"a": [1]}}),
    "Counter": ({"c": Counter("aab")}, {"c": {"a": 2, "b": 1}}),
    "int keys": ({"s": {0: {"n": 1}, 10: {}}}, {"s": {"0": {"n": 1}}}),
    "empty containers": ({"a": {}, "b": [], "c": (), "d": {"e": {}}}, {}),
    "all of these": (MIXED, {"t": [1, 2], "od": {"x": 1}, "0": torch.ones(1)}),
}


@pytest.mark.parametrize(("tree", "becomes"), TREES.values(), ids=TREES)
def test_structure_survives(tree, becomes):
    """The incumbent's flatten and unflatten give another tree."""
    back = theirs._unflatten_state_dict(*theirs._flatten_state_dict(tree))
    shows(sd.structure(back) == sd.structure(becomes) and sd.equal(back, becomes))
    assert sd.structure(becomes) != sd.structure(tree)
    flat, spec = sd.flatten(tree), sd.structure(tree)
    for ours in (sd.unflatten(flat, spec=spec), sd.copy(tree), sd.offload(tree)):
        assert sd.structure(ours) == spec
        assert sd.equal(ours, tree)


@pytest.mark.parametrize("tree", [{"a.b": 1, "a": {"b": 2}}, {"0": 1, 0: 2}], ids=str)
def test_names_that_clash_are_no_matter_but_by_name(tree):
    """The incumbent raises and names one key; ours names both paths, in ``flatten``."""
    with pytest.raises(ValueError, match="duplicated flatten key"):
        theirs._flatten_state_dict(tree)
    assert sd.equal(sd.copy(tree), tree)
    assert sd.structure(sd.copy(tree)) == sd.structure(tree)
    with pytest.raises(sd.errors.NameCollision) as error:
        sd.flatten(tree)
    assert all(str(path) in str(error.value) for path in sd.paths(tree))


def test_metadata_stays_and_a_batch_norm_loads_as_it_should():
    """Without ``_metadata`` a load takes the file for an old one and fills keys in."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    del state["num_batches_tracked"]
    stripped = theirs._offload_state_dict_to_cpu(state)
    shows(type(stripped) is dict)
    assert sd.offload(state)._metadata == state._metadata
    torch.nn.BatchNorm1d(2).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        torch.nn.BatchNorm1d(2).load_state_dict(sd.offload(state))


# -- buffers -----------------------------------------------------------------------


def test_strides_and_ties_stay():
    """The incumbent makes every buffer contiguous and on its own."""
    w = torch.ones(3, 4)
    tree = {"w": w, "t": w.t(), "row": w[1], "apart": torch.ones(3, 4)}
    made = theirs._create_cpu_state_dict(tree)
    shows(made["t"].is_contiguous())
    shows(not sd.ties(made))
    ours = sd.empty_like(tree)
    assert sd.ties(ours) == sd.ties(tree) == [[("w",), ("t",), ("row",)]]
    for name, t in tree.items():
        assert ours[name].stride() == t.stride()
    assert sd.nbytes(ours) == sd.nbytes(tree)


def test_kinds_stay():
    """The incumbent makes plain tensors of Parameters and memory for meta tensors."""
    tree = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "m": torch.empty(2, device="meta"),
    }
    made, ours = theirs._create_cpu_state_dict(tree), sd.empty_like(tree)
    shows(type(made["p"]) is torch.Tensor)
    shows(not made["m"].is_meta)
    assert type(ours["p"]) is torch.nn.Parameter
    assert ours["p"].requires_grad
    assert ours["m"].is_meta


def test_an_expanded_tensor_takes_what_it_covers():
    """The incumbent makes 4 MB of 4 bytes."""
    tree = {"w": torch.ones(1).expand(1000, 1000)}
    made, ours = theirs._create_cpu_state_dict(tree), sd.empty_like(tree)
    shows(made["w"].untyped_storage().nbytes() == 4_000_000)
    assert ours["w"].untyped_storage().nbytes() == 4
    assert sd.equal(sd.copy(tree, into=ours), tree)


def test_scalars_are_shared_too():
    """The incumbent leaves 0-dim tensors where other processes cannot see them."""
    tree = {"step": torch.tensor(3.0)}
    shows(
        not theirs._create_cpu_state_dict(tree, share_memory=True)["step"].is_shared()
    )
    assert sd.empty_like(tree, share=True)["step"].is_shared()


def test_a_scalar_dtensor_gets_a_buffer_of_its_own(mesh):
    """The incumbent returns the very leaf, and a copy then writes it onto itself."""
    x = DTensor.from_local(torch.tensor(3.0), mesh)
    shows(theirs._create_cpu_state_dict({"x": x})["x"] is x)
    ours = sd.empty_like({"x": x})["x"]
    assert type(ours) is DTensor
    assert ours.to_local().data_ptr() != x.to_local().data_ptr()


def test_an_unknown_leaf_is_named_with_its_path():
    """The incumbent names the type alone."""
    tree = {"model": {"w": torch.ones(1), "odd": object()}}
    with pytest.raises(ValueError, match="Unexpected value type") as bare:
        theirs._offload_state_dict_to_cpu(tree)
    shows("odd" not in str(bare.value))
    with pytest.raises(sd.errors.UnknownLeaf, match=r"model\.odd.*register_leaf"):
        sd.offload(tree)
