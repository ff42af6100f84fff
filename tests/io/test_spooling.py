"""Conversions by functions of which nobody knows what they will return."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same

import sdtree as sd
from sdtree.testing import trees

SHARED = torch.arange(12.0)


def doubled(x):
    return x * 2 if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def cut(x):
    """Return every other row of a tensor, which is a view."""
    return x[::2] if isinstance(x, torch.Tensor) and x.dim() and not x.is_sparse else x


FUNCTIONS = {
    "as it is": lambda x: x,
    "another": doubled,
    "a view": cut,
    "a part of one": lambda x: SHARED[4:8] if isinstance(x, torch.Tensor) else x,
    "turned": lambda x: x.t() if isinstance(x, torch.Tensor) and x.dim() == 2 else x,
}
suffixes = pytest.mark.parametrize("suffix", ["pt", "safetensors"])


@suffixes
@given(
    tree=st.dictionaries(
        st.sampled_from("abcdef"),
        st.sampled_from([torch.ones(3, 4), torch.zeros(5), 1, "x", SHARED[2:6]]),
        min_size=1,
    ),
    names=st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=2),
    limit=st.sampled_from([1, 2**25]),
)
def test_a_function_in_a_conversion(tree, names, limit, suffix, tmp_path_factory):
    """As ``save(transform(load(source)), target)``: also the ties, window by window."""
    folder = tmp_path_factory.mktemp("spool")
    source, target, want = (folder / f"{n}.{suffix}" for n in ("a", "b", "c"))
    sd.save(tree, source)
    transform = sd.chain(*(sd.map(FUNCTIONS[name]) for name in names))
    sd.save(transform(sd.load(source)), want)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdtree.transform.run.SLICE_BYTES", limit)
        sd.convert_file(source, target, transform)
    assert_same(sd.load(target), sd.load(want), "converted")
    assert sd.ties(sd.load(target)) == sd.ties(sd.load(want))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (source, target, want)
    )


@given(trees(portable=True))
def test_any_tree_passes_a_function(tree):
    """Whatever leaves it has, or the same error as without a file."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "a.pt", Path(name) / "b.pt"
        try:
            sd.save(tree, source)
        except (TypeError, ValueError, RuntimeError):
            return
        sd.convert_file(source, target, sd.map(lambda x: x))
        assert_same(sd.load(target), sd.load(source), "converted")


def test_what_has_no_data_is_refused_by_its_path(tmp_path):
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    sd.save({"x": {"w": torch.ones(2)}}, source)
    for other in (lambda x: sd.Abstract.of(x), lambda x: x.to("meta")):
        with pytest.raises(TypeError, match=r"^x\.w: "):
            sd.convert_file(source, target, sd.map(other))
    with pytest.raises(FileNotFoundError, match="no directory"):
        sd.convert_file(source, tmp_path / "nix" / "b.pt", sd.map(doubled))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
