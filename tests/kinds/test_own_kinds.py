"""Kinds that a user adds, and that the checks find what is wrong with one."""

from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import timedelta, timezone
from functools import partial
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.errors import SpecMismatch
from sdtree.layout.layout import Box, Layout
from sdtree.testing import check_leaf, check_one_leaf, check_transform, trees


class Blocks:
    """Integers and a scale for each row: a quantized tensor in a few lines."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


sd.register_leaf(
    Blocks,
    flatten=lambda x: ((x.data, x.scale), None),
    unflatten=lambda _, ts: Blocks(*ts),
)

blocks = st.builds(
    lambda n: Blocks(torch.randint(-9, 9, (n, 4), dtype=torch.int8), torch.rand(n, 1)),
    st.integers(0, 3),
)


def test_every_operation_works_on_a_new_kind():
    """Copy, cast, buffers, compare, bytes, ties: with no other line of code."""
    check_leaf(Blocks, blocks)
    leaf = Blocks(torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1))
    tree = {"q": leaf, "tied": leaf.data}
    assert sd.cast(tree, dtype=torch.float16)["q"].scale.dtype is torch.float16
    assert sd.equal(sd.copy(tree, into=sd.empty_like(tree)), tree)
    assert sd.ties(sd.copy(tree)) == [[("q",), ("tied",)]]
    assert sd.nbytes(tree) == 8 + 8
    assert sd.names(sd.select(tree, Blocks)) == ["q"]
    assert sd.spec(tree)["q"].kind is Blocks
    changed = {"q": Blocks(leaf.data, leaf.scale * 2), "tied": leaf.data}
    assert [d.what for d in sd.diff(tree, changed)] == ["value"]
    assert sd.similar(tree, changed)
    assert not sd.equal(tree, changed)


def test_what_is_made_of_a_new_kind_is_in_no_graph():
    """Its local tensors may require a gradient, and new ones do not follow from it."""
    data = torch.ones(2, 4, dtype=torch.int8)
    tree = {"q": Blocks(data, torch.ones(2, 1, requires_grad=True))}
    buffers = sd.copy({"q": Blocks(data, torch.zeros(2, 1))})
    for made in (
        sd.copy(tree),
        sd.cast(tree, dtype=torch.float16),
        sd.copy(tree, into=buffers),
    ):
        assert made["q"].scale.grad_fn is None
        assert made["q"].scale.sum() == 2


class Told:
    """A tensor, and anything beside it."""

    def __init__(self, data, beside):
        self.data, self.beside = data, beside


sd.register_leaf(
    Told,
    flatten=lambda x: ((x.data,), x.beside),
    unflatten=lambda beside, ts: Told(*ts, beside),
)


@dataclass
class Note:
    x: Any


def cased(x):
    return PureWindowsPath("A" if x else "a")


def anew():
    """Return two values that are the same, and another, of sorts that ``==`` fails."""
    makers = st.sampled_from(
        [
            *(lambda x: float("nan") if x else 0.0, lambda x: 0.0 if x else -0.0),
            *(lambda x: np.full(2, x), lambda x: np.array([float("nan"), x])),
            *(lambda x: torch.full((2,), x), lambda x: torch.tensor(float(x))),
            *(lambda x: timezone(timedelta(0), f"{x}"), cased),
            *(lambda x: deque(maxlen=x), lambda x: defaultdict(list if x else dict)),
        ]
    )
    around = st.lists(
        st.sampled_from(
            [
                *(Note, lambda x: [x, x], lambda x: (x,), lambda x: {"k": x, 1: 2}),
                *(lambda x: deque([x], 2), lambda x: defaultdict(list, k=x)),
            ]
        ),
        max_size=2,
    )

    def made(make, around):
        found = [make(1), make(1), make(0)]
        for wrap in around:
            found = [*map(wrap, found)]
        return found

    return st.builds(made, makers, around)


@given(anew())
def test_what_leaves_are_beside_their_tensors_is_compared_by_its_bits(values):
    """Whatever ``==`` makes of it: nan, arrays, tensors; in buffers, too."""
    here, same, other = ({"a": Told(torch.ones(2), x)} for x in values)
    if not isinstance(values[0], torch.Tensor):  # which is to be a local tensor
        check_one_leaf(here["a"])
    assert sd.equal(here, same)
    assert sd.similar(here, same)
    assert not sd.diff(here, same)
    assert sd.copy(here, into=same) is not here
    assert not sd.equal(here, other)
    assert sd.diff(here, other)
    with pytest.raises(SpecMismatch, match=r"a: .* in the buffer"):
        sd.copy(here, into=other)


class Gauge:
    """A tensor and a number, that becomes a tensor when the leaf is taken apart."""

    def __init__(self, data, unit):
        self.data, self.unit = data, unit


sd.register_leaf(
    Gauge,
    flatten=lambda x: ((x.data,), torch.tensor(x.unit)),
    unflatten=lambda unit, ts: Gauge(*ts, unit.item()),
)


@pytest.mark.parametrize("before", [sd.identity, sd.copy()])
def test_what_is_made_on_the_way_is_made_where_no_mode_reaches(before):
    """A number that were lost on meta could not be told from another."""
    tree = {"x": Gauge(torch.ones(2), 0.5)}
    buffers = {unit: {"x": Gauge(torch.zeros(2), unit)} for unit in (0.5, 1.0)}
    with torch.device("meta"):
        made = (before | sd.copy(into=buffers[0.5]))(tree)
        with pytest.raises(SpecMismatch, match=r"x: 0\.5 here, 1\.0 in the"):
            (before | sd.copy(into=buffers[1.0]))(tree)
    assert made["x"].data.tolist() == [1, 1]
    assert buffers[1.0]["x"].data.tolist() == [0, 0]


def test_check_leaf_finds_a_handler_that_lies():
    """One that copies, some that lose a part, one that gives back another type."""

    class Copied(Blocks):
        pass

    class Lossy(Blocks):
        pass

    class Refilled(Blocks):
        pass

    class Kept(Blocks):
        pass

    class Based(Blocks):
        pass

    sd.register_leaf(
        Refilled,
        flatten=lambda x: ((x.data,), None),
        unflatten=lambda _, ts: Refilled(ts[0], torch.ones(2, 1)),
    )
    sd.register_leaf(
        Kept,
        flatten=lambda x: ((x.data,), x.scale),
        unflatten=lambda scale, ts: Kept(ts[0], scale),
    )
    sd.register_leaf(
        Copied,
        flatten=lambda x: ((x.data.clone(),), x.scale.tolist()),
        unflatten=lambda scale, ts: Copied(ts[0], torch.tensor(scale)),
    )
    sd.register_leaf(
        Lossy,
        flatten=lambda x: ((x.data,), None),
        unflatten=lambda _, ts: Lossy(ts[0] * 0, None),
    )
    ones = torch.ones(2, 4, dtype=torch.int8)
    for kind, text in {
        Copied: "copies data",
        Lossy: "copies data",
        Refilled: "not give it back",
        Kept: "a copy shares it",
    }.items():
        with pytest.raises(AssertionError, match=text):
            check_leaf(
                kind, st.builds(lambda kind=kind: kind(ones.clone(), torch.rand(2, 1)))
            )
    with pytest.raises(sd.errors.UnknownLeaf, match="back as a Blocks"):
        sd.copy({"x": Based(ones, torch.rand(2, 1))})


def test_check_transform_finds_one_that_is_impure():
    """A function that writes into its input is found out."""
    sizes = st.integers(0, 3)

    def grow(tree, as_array):
        for x in sd.leaves(tree):
            y = x.numpy() if as_array else x
            y += 1
        return tree

    for as_array in (False, True):  # torch counts no write by an array
        impure = sd.whole(partial(grow, as_array=as_array))
        with pytest.raises(AssertionError, match="changed"):
            check_transform(impure, trees(leaves=st.builds(torch.zeros, sizes)))
    counter = iter(range(10**6))
    with pytest.raises(AssertionError):
        check_transform(sd.map(lambda x: next(counter)), trees())


def test_quantized_weights_of_torchao():
    """A wrapper subclass of another library, by the __tensor_flatten__ protocol."""
    quantization = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 32)).bfloat16()
    try:
        config = quantization.Int8WeightOnlyConfig(version=2)
    except TypeError:
        config = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(model, config)
    state = model.state_dict()
    kind = type(state["0.weight"])
    assert kind is not torch.Tensor
    copied = sd.copy(state, into=sd.empty_like(state))
    assert type(copied["0.weight"]) is kind
    assert sd.equal(copied, state)
    assert sd.nbytes(state) < 32 * 64 * 2
    assert sd.similar(sd.spec(state), state)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    expected = model(x)
    model.load_state_dict(copied, assign=True)
    assert torch.equal(model(x), expected)


def test_a_layout_speaks_of_every_local_tensor():
    """Else what it does not name, or what is of another dtype, would be lost."""

    class Halves(Blocks):
        pass

    def kind(boxes, rank=0):
        layout = Layout((2, 5), {0: (), rank: boxes})
        return sd.register_leaf(
            Halves,
            flatten=lambda x: ((x.data, x.scale), None),
            unflatten=lambda _, ts: Halves(*ts),
            layout=lambda x: layout,
        )

    data = Box(0, (0, 0), (0, 0), (2, 4))
    scale = Box(1, (0, 0), (0, 4), (2, 1))
    kind((data, scale))
    leaf = Halves(torch.ones(2, 4, dtype=torch.int8), torch.full((2, 1), 0.5))
    with pytest.raises(sd.errors.LayoutError, match=r"w: .*float32.*one dtype"):
        sd.gather({"w": leaf})
    alike = Halves(torch.ones(2, 4), torch.full((2, 1), 0.5))
    assert sd.gather({"w": alike})["w"].sum() == 9
    kind((data, scale._replace(tensor=0, local=(0, 0))))
    with pytest.raises(sd.errors.LayoutError, match="no box in local tensor 1"):
        sd.gather({"w": alike})
    kind((data, scale), rank=1)
    for data, scale, told in (
        (torch.ones(2, 4), torch.empty(0), "by its layout it holds nothing"),
        (torch.empty(0), torch.ones(2, 1), "no box in local tensor 1"),
    ):
        with pytest.raises(sd.errors.LayoutError, match=told):
            sd.gather({"w": Halves(data, scale)})


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (torch.ones(2), "a Tensor of other things"),
        (None, "a NoneType of"),
        ((torch.ones(2), None), "a tuple of"),
        (([3], None), "a tuple of"),
        (({"w": torch.ones(2)}, None), "a tuple of"),
        (([torch.ones(2)],), "a tuple of"),
        (([torch.ones(2)], None, None), "a tuple of"),
    ],
)
def test_what_comes_apart_into_other_things_is_refused(parts, told):
    """Once, where the first leaf of a kind is met, and by the path of that."""

    class Odd:
        pass

    sd.register_leaf(Odd, flatten=lambda x: parts, unflatten=lambda aux, ts: Odd())
    words = rf"a\.0: the flatten of Odd returned {told}"
    with pytest.raises(sd.errors.UnknownLeaf, match=words):
        sd.copy({"a": [Odd()]})


def test_what_a_kind_raises_of_one_leaf_is_told_with_its_path():
    good, bad = Blocks(torch.ones(1, 4), torch.ones(1, 1)), object.__new__(Blocks)
    for verb in sd.spec, sd.copy, sd.nbytes, sd.show:
        with pytest.raises(AttributeError) as error:
            verb({"good": good, "x": {"bad": bad}})
        assert error.value.__notes__ == ["at x.bad"]


class Shaped:
    """A leaf of which nobody knows what it calls its shape."""

    def __init__(self, data, shape):
        self.data, self.shape = data, shape


sd.register_leaf(
    Shaped,
    flatten=lambda x: ((x.data,), x.shape),
    unflatten=lambda shape, ts: Shaped(*ts, shape),
)


@pytest.mark.parametrize("shape", [None, 5, "ab", [[2]], len, [4, 2], np.array([4, 2])])
def test_what_a_kind_calls_its_shape_may_be_anything(shape):
    """Where it is none, the shape is that of the local tensor; nothing is refused."""
    tree = {"w": Shaped(torch.ones(3), shape)}
    is_one = isinstance(shape, (list, np.ndarray)) and len(shape) == 2
    assert sd.spec(tree)["w"].shape == ((4, 2) if is_one else (3,))
    assert sd.show(tree).rows[0].form.shape == sd.spec(tree)["w"].shape
    assert sd.similar(sd.gather(tree), tree)


def test_a_layout_that_is_none_is_refused():
    """When the kind is registered, or where a leaf tells it."""

    class Cut:
        def __init__(self, data):
            self.data = data

    def register(layout):
        parts = {"flatten": lambda x: ((x.data,), None)}
        sd.register_leaf(Cut, **parts, unflatten=lambda _, ts: Cut(*ts), layout=layout)

    with pytest.raises(TypeError, match="layout=3 cannot be called"):
        register(3)
    register(lambda x: None)
    with pytest.raises(TypeError, match="layout= of Cut returns a NoneType") as caught:
        sd.spec({"a": [Cut(torch.ones(2))]})
    assert "at a.0" in caught.value.__notes__
