"""What cast means to kinds that hold their data in another dtype than they have."""

import io

import numpy as np
import pytest
import torch
from oracle import mark
from torch.testing._internal.two_tensor import TwoTensor

import sdtree as sd
from sdtree.testing import Both, check_one_leaf

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(scope="module")
def kinds():
    """Return a leaf of each kind of torchao that is to be had on a CPU."""
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.optim.subclass_4bit import OptimState4bit
    from torchao.optim.subclass_8bit import OptimState8bit
    from torchao.optim.subclass_fp8 import OptimStateFp8
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    def quantized(config):
        model = torch.nn.Sequential(torch.nn.Linear(128, 64)).bfloat16()
        quantization.quantize_(model, config)
        return model.state_dict()["0.weight"]

    return {
        "int8": quantized(quantization.Int8WeightOnlyConfig(version=2)),
        "float8": quantized(quantization.Float8WeightOnlyConfig()),
        "int4": quantized(quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
        "nf4": to_nf4(torch.ones(64, 256, dtype=torch.bfloat16)),
        "8-bit state": OptimState8bit.zeros((4, 256), dtype=torch.bfloat16),
        "4-bit state": OptimState4bit.zeros((4, 256)),
        "fp8 state": OptimStateFp8.zeros((4, 256), dtype=torch.bfloat16),
    }


REFUSED = {"int8", "float8", "nf4"}
"""Those whose own ``to`` does not change the dtype, or makes plain tensors."""


def inside(x):
    names, _ = x.__tensor_flatten__()
    return {name: getattr(x, name) for name in names}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrapper_is_cast_as_its_own_to_does(kinds, dtype):
    """It reports the dtype, and holds what its own conversion makes; or is refused."""
    for name, x in kinds.items():
        check_one_leaf(x)
        if x.dtype == dtype:
            assert sd.cast({"x": x}, dtype=dtype)["x"] is x
            continue
        if name in REFUSED:
            with pytest.raises(sd.errors.UnknownLeaf, match=f"a.x: {type(x).__name__}"):
                sd.cast({"a": {"x": x, "w": torch.ones(1)}}, dtype=dtype)
            continue
        made, wanted = sd.cast({"x": x}, dtype=dtype)["x"], x.to(dtype)
        assert type(made) is type(x)
        assert made.dtype == dtype
        assert mark(inside(made)) == mark(inside(wanted))
        assert sd.spec({"x": made})["x"].dtype == dtype
        assert sd.cast(sd.spec({"x": x}), dtype=dtype)["x"].dtype == dtype


def test_the_advice_on_a_wrapper_that_is_not_cast(kinds):
    """It is left out by its type, or dequantized before."""
    x = kinds["int8"]
    tree = {"x": x, "w": torch.ones(2)}
    half = sd.cast(dtype=torch.half)
    with pytest.raises(sd.errors.UnknownLeaf, match=r"sd\.where.*sd\.map"):
        half(tree)
    done = sd.where(~sd.selector(type(x)), half)(tree)
    assert done["x"] is x
    assert done["w"].dtype == torch.half
    plain = sd.where(type(x), sd.map(lambda x: x.dequantize())) | half
    assert torch.equal(plain(tree)["x"], x.dequantize().half())


def test_cast_like_a_wrapper(kinds):
    """A tensor takes the dtype that it has as a whole, and the other way round."""
    for name, x in kinds.items():
        w = torch.ones(x.shape, dtype=torch.float64)
        assert sd.cast({"x": w}, like={"x": x})["x"].dtype == x.dtype
        if name in (*REFUSED, "int4"):  # which asserts that it knows the dtype
            with pytest.raises(sd.errors.UnknownLeaf, match=r"x: .* own to "):
                sd.cast({"x": x}, like={"x": w})
        else:
            assert sd.cast({"x": x}, like={"x": w})["x"].dtype == torch.float64


def test_wrappers_move_as_a_whole(kinds):
    """Also one that names its device beside the tensors."""
    for x in kinds.values():
        moved = sd.to({"x": x}, "meta")["x"]
        assert type(moved) is type(x)
        assert moved.is_meta
        assert all(t.is_meta for t in inside(moved).values())
        assert sd.to({"x": x}, "cpu")["x"] is x


def test_ties_inside_wrappers_are_kept():
    """What is converted as any tensor is keeps its ties, its type and its marks."""
    w = torch.ones(4)
    weight = torch.nn.Parameter(w, requires_grad=False)
    both = TwoTensor(weight, w)
    nested = TwoTensor(both, TwoTensor(w.clone(), torch.zeros(4)))
    nested.note = "kept"
    tree = {"w": w, "nested": nested.requires_grad_()}
    half = sd.cast(tree, dtype=torch.half)
    assert sd.ties(half) == [[("w",), ("nested",)]]
    assert half["nested"].requires_grad
    assert half["nested"].note == "kept"
    assert type(half["nested"].a.a) is torch.nn.Parameter
    assert half["nested"].b.b.dtype == half["nested"].dtype == torch.half
    back = sd.cast(half, like=tree)
    assert sd.similar(back, tree)


def test_a_wrapper_without_a_to_of_its_own():
    """The inner tensors that have its dtype take on the new one, and so does it."""
    x = Both(torch.ones(2), torch.ones(2))
    half = sd.cast([x], dtype=torch.half)[0]
    assert half.dtype == half.first.dtype == half.second.dtype == torch.half
    mixed = Both(torch.ones(2).half(), torch.ones(2))
    double = sd.cast([mixed], dtype=torch.float64)[0]
    assert (double.dtype, double.second.dtype) == (torch.float64, torch.float32)


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_quantized_tensors_are_not_cast():
    """They stay, for they are not floating-point; no other becomes one, or plain."""
    q = torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8)
    assert sd.cast({"x": q}, dtype=torch.half)["x"] is q
    for here, there in ((torch.ones(3), q), (q, torch.ones(3))):
        with pytest.raises(
            sd.errors.SpecMismatch, match=r"a\.x: torch\.\w+ here.*sd\."
        ):
            sd.cast({"a": {"x": here}}, like={"a": {"x": there}})


class Coded:
    """Codes and their scale, which has to stay float32, and a dtype."""

    def __init__(self, codes, scale, dtype):
        self.codes, self.scale, self.dtype = codes, scale, dtype


def recode(x, dtype):
    return Coded(x.codes, x.scale, dtype)


def coded(dtype=torch.float32):
    return Coded(torch.zeros(4, dtype=torch.uint8), torch.ones(1), dtype)


@pytest.fixture
def register():
    """Return what registers the kind, with what cast means to it."""

    def run(cast=None):
        sd.register_leaf(
            Coded,
            flatten=lambda x: ((x.codes, x.scale), x.dtype),
            unflatten=lambda dtype, ts: Coded(*ts, dtype),
            cast=cast,
        )

    return run


def test_a_kind_says_what_cast_means_to_it(register):
    """Another leaf, itself, or None: every local tensor that is floating-point."""
    x = coded()
    register(recode)
    made = sd.cast({"x": x}, dtype=torch.half)["x"]
    assert made.dtype == torch.half
    assert made.scale.dtype == torch.float32
    assert made.codes is x.codes
    register(lambda x, _: x)
    assert sd.cast({"x": x}, dtype=torch.half)["x"] is x
    for cast in (None, lambda *_: None):
        register(cast)
        assert sd.cast({"x": x}, dtype=torch.half)["x"].scale.dtype == torch.half
    register(lambda x, dtype: Coded(x.codes.clone() + 1, x.scale.to(dtype) * 2, dtype))
    made = sd.cast({"x": x}, dtype=torch.half)["x"]
    assert made.codes.tolist() == [1] * 4
    assert made.scale.tolist() == [2]
    half = sd.cast({"x": x}, like={"x": made})["x"]
    assert half.scale.dtype == torch.half


def test_what_a_kind_says_of_cast_is_checked(register):
    """Another type is refused, and an error of its own tells at which path."""
    tree = {"a": [coded()]}
    register(lambda x, dtype: x.scale.to(dtype))
    with pytest.raises(
        sd.errors.UnknownLeaf, match=r"a\.0: .*makes a Tensor of a Coded"
    ):
        sd.cast(tree, dtype=torch.half)
    register(lambda x, dtype: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        sd.cast(tree, dtype=torch.half)
    assert "at a.0" in caught.value.__notes__
    register(None)
    with pytest.raises(sd.errors.SpecMismatch, match=r"a\.0: a Coded of 2 .*BytesIO"):
        sd.cast(tree, like={"a": [io.BytesIO(b"")]})
    with pytest.raises(TypeError, match="cast=3 cannot be called"):
        register(3)


def test_arrays_that_are_cast_and_that_are_not():
    """Numbers that lie as those of a tensor; others are refused by name."""
    np = pytest.importorskip("numpy")
    x = np.arange(4.0)
    tree = {
        "x": x,
        "view": x[::-2],
        "mask": np.ma.array(x, mask=x > 1),
        "n": np.ones(2),
    }
    made = sd.cast(tree, dtype=torch.float16)
    assert {v.dtype for v in made.values()} == {np.dtype("f2")}
    assert np.shares_memory(made["x"], made["view"])
    assert made["mask"].tolist() == [0, 1, None, None]
    assert sd.cast({"n": np.arange(3), "t": np.array(["a"])}, dtype=torch.half)
    packed = np.ones(3, "u1, <f4")["f1"]
    for odd in (x.astype(">f4"), x.astype("g"), packed):
        with pytest.raises(
            sd.errors.UnknownLeaf, match=r"a\.x: .*is not cast; .*sd\.map"
        ):
            sd.cast({"a": {"x": odd}}, dtype=torch.half)
        even = sd.map(lambda x: x.astype("f4")) | sd.cast(dtype=torch.half)
        assert even({"x": odd})["x"].dtype == np.float16
    with pytest.raises(TypeError, match=r"numpy has no array for torch.bfloat16.*sd\."):
        sd.cast({"x": x}, dtype=torch.bfloat16)
    tensors = sd.where(np.ndarray, sd.map(torch.from_numpy))
    low = (tensors | sd.cast(dtype=torch.bfloat16))({"x": x})
    assert low["x"].dtype == torch.bfloat16
    with pytest.raises(sd.errors.SpecMismatch, match=r"x: torch\.float64 here"):
        sd.cast({"x": x}, like={"x": np.zeros(4, "S3")})
    assert sd.cast({"x": x}, like={"x": torch.ones(4).half()})["x"].dtype == np.float16


LIKES = (
    *(lambda: torch.ones(4), lambda: torch.ones(4).double(), lambda: torch.arange(4)),
    *(
        lambda: torch.eye(4).to_sparse().half(),
        lambda: torch.nn.Parameter(torch.ones(4)),
    ),
    *(lambda: np.ones(4), lambda: np.ones(4, "f4"), lambda: np.arange(4), coded),
    *(lambda: np.ma.array([1.0, 2.0], mask=[0, 1]), lambda: 1.0, lambda: "text"),
    *(lambda: np.ones(2, ">f4"), lambda: np.ones(2, "i1,<f4")["f1"]),
    *(
        lambda: np.ones(2, ">i4"),
        lambda: np.array(["a", "b"]),
        lambda: np.zeros(2, "M8[s]"),
    ),
)


@pytest.mark.parametrize("there", LIKES)
@pytest.mark.parametrize("here", LIKES)
def test_what_a_cast_is_like_need_not_have_data(here, there):
    """Law: ``cast(t, like=spec(l))`` is ``cast(t, like=l)``, refused where that is."""
    try:
        wanted = sd.cast({"x": here()}, like={"x": there()})
    except (sd.errors.SpecMismatch, sd.errors.UnknownLeaf) as error:
        with pytest.raises(type(error), match="x: "):
            sd.cast({"x": here()}, like=sd.spec({"x": there()}))
        return
    made = sd.cast({"x": here()}, like=sd.spec({"x": there()}))
    assert sd.similar(made, wanted)
