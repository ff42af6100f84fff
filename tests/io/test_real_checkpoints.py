"""Checkpoints of other people: opened, looked at, written anew and converted."""

import pytest
import torch
from real import CHGNET, MINILM, RESEMBLYZER, checkpoint

import sdtree as sd
from sdtree.io import convert_file, open_file

FORMATS = ("pt", "safetensors")


@pytest.fixture(
    scope="module",
    params=[RESEMBLYZER, CHGNET, MINILM],
    ids=["resemblyzer", "chgnet", "minilm"],
)
def path(request):
    return checkpoint(request.param)


def assert_same(back, tree, suffix):
    """Raise unless a tree came back, ties and all.

    Views of one storage that share no byte come back apart from a .safetensors file:
    these are all the ties that there are here.
    """
    assert sd.structure(back) == sd.structure(tree)
    assert not sd.diff(back, tree)
    assert sd.ties(back) == (sd.ties(tree) if suffix == "pt" else [])


def test_it_is_shown_without_its_data(path):
    opened = open_file(path)
    assert opened.nbytes == path.stat().st_size
    abstract = sd.spec(opened.tree)
    assert sd.similar(abstract, sd.load(path))
    assert sd.TreeSpec.from_json(sd.structure(abstract).to_json()) == sd.structure(
        opened.tree
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_it_is_written_anew(path, tmp_path, suffix):
    tree = sd.load(path)
    sd.save(tree, tmp_path / f"a.{suffix}")
    assert_same(sd.load(tmp_path / f"a.{suffix}"), tree, suffix)
    assert_same(sd.load(tmp_path / f"a.{suffix}", mmap=True), tree, suffix)


@pytest.mark.parametrize("suffix", FORMATS)
def test_it_is_converted(path, tmp_path, suffix):
    target = tmp_path / f"a.{suffix}"
    convert_file(path, target, sd.identity)
    assert_same(sd.load(target), sd.load(path), suffix)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_part_of_it_is_converted(path, tmp_path, suffix):
    target = tmp_path / f"a.{suffix}"
    transform = sd.select("**.*weight") | sd.cast(dtype=torch.bfloat16)
    convert_file(path, target, transform)
    back = sd.load(target)
    assert not sd.diff(back, transform(sd.load(path)))
    assert {x.dtype for x in sd.leaves(back)} == {torch.bfloat16}


def test_resemblyzer_is_a_training_state_of_the_old_format():
    opened = open_file(checkpoint(RESEMBLYZER))
    assert opened.format == "pt"
    assert "old format" in opened.notes[0]
    state = opened.tree
    assert set(state) == {"step", "model_state", "optimizer_state"}
    [lstm] = sd.ties(state)
    assert len(lstm) == 12


def test_chgnet_has_its_history_beside_its_model():
    opened = open_file(checkpoint(CHGNET))
    assert (opened.format, opened.notes) == ("pt", ())
    assert len(sd.leaves(opened.tree)) == 942


def test_minilm_is_a_foreign_safetensors_file():
    opened = open_file(checkpoint(MINILM))
    assert (opened.format, opened.notes) == ("safetensors", ())
    assert type(opened.tree) is dict
    assert opened.tree["embeddings.word_embeddings.weight"].shape == (30522, 384)
