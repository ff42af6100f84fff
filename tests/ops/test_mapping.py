"""``map`` and functions that write into what they are given."""

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

import sdtree as sd
from sdtree.path import where
from sdtree.tensors.bits import same_bits
from sdtree.testing import trees

FORMS = {
    "map": lambda fn, tree: sd.map(fn, tree),
    "step": lambda fn, tree: sd.map(fn)(tree),
    "with_path": lambda fn, tree: sd.map_with_path(lambda _, x: fn(x), tree),
    "of_two": lambda fn, tree: sd.map(lambda x, _: fn(x), tree, sd.copy(tree)),
    "of_the_second": lambda fn, tree: sd.map(lambda _, x: fn(x), sd.copy(tree), tree),
    "behind_a_step": lambda fn, tree: (sd.cast(dtype=torch.float32) | sd.map(fn))(tree),
}


@given(
    st.data(),
    trees(leaves=st.builds(torch.ones, st.integers(0, 3))),
    st.sampled_from([*FORMS]),
)
def test_who_writes_into_a_leaf_is_stopped_there(data, tree, form):
    """It is told where, and of the rest at most what a second tree has is changed."""
    found = sd.items(tree)
    if not found:
        reject()
    path, chosen = data.draw(st.sampled_from(found))
    before = [x.clone() for _, x in found]

    def write(x):
        return x.add_(1) if x is chosen else x

    with pytest.raises(ValueError, match="wrote into a tensor") as caught:
        FORMS[form](write, tree)
    assert str(caught.value).startswith(f"{where(path)}: ")
    tied = next((tie for tie in sd.ties(tree) if path in tie), [path])
    for (at, x), old in zip(found, before, strict=True):
        assert at in tied or same_bits(x, old)


@pytest.mark.parametrize(
    "fn",
    [
        lambda t: t.mul_(2),
        lambda t: t.view(-1).zero_(),
        lambda t: t.detach().copy_(t + 1),
        lambda t: torch.add(t, 1, out=t),
        lambda t: t.__setitem__(0, 5.0),
    ],
    ids=["itself", "a view", "detached", "out", "an element"],
)
def test_it_is_seen_however_it_is_written(fn):
    with pytest.raises(ValueError, match=r"^w: .*sd\.copy\(sd\.map\(fn, tree\)"):
        sd.map(fn, {"w": torch.ones(2)})


def test_what_does_not_write_is_let_be():
    """Also what has no counter, as tensors of inference mode and arrays."""
    with torch.inference_mode():
        tree = {"t": torch.ones(2), "a": np.ones(2), "n": 1}
    assert sd.equal(sd.map(lambda x: x + 0, tree), tree)
    w = torch.ones(2)
    assert sd.map(lambda t: t.requires_grad_(False).view(2, 1), {"w": w})["w"].shape
    assert sd.map(lambda t: t.clone().mul_(2), {"w": w})["w"].tolist() == [2, 2]
