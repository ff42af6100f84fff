"""What torch has set around a call has no effect on what the library does."""

from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import OPERATIONS
from oracle import assert_same, items, snapshot

import sdtree as sd
from sdtree.leaf import handler_of
from sdtree.testing import modes, trees


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
