"""Saves by torch.distributed.checkpoint, through a stager that is used for many."""

from concurrent.futures import wait

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import AsyncStager

import sdtree as sd
from sdtree.stage import DCPStager


@pytest.fixture
def stager():
    stager = DCPStager()
    yield stager
    stager.close()


def make(seed):
    """Return a state as a training has it."""
    torch.manual_seed(seed)
    w = torch.randn(8, 4)
    return {
        "model": {"w": w, "tied": w, "row": w[2], "b": torch.randn(4, 8).t()},
        "optimizer": {"step": torch.tensor(float(seed)), "lr": 0.1},
    }


def test_saves_hold_what_was_when_they_were_asked_for(stager, tmp_path):
    """Weights change underneath as it writes; each save loads bit-equal."""
    assert isinstance(stager, AsyncStager)
    state = make(0)
    expected, futures = [], []
    for i in range(6):
        expected.append(sd.copy(state))
        futures.append(
            dcp.async_save(state, checkpoint_id=tmp_path / str(i), async_stager=stager)
        )
        for t in (state["model"]["w"], state["model"]["b"], state["optimizer"]["step"]):
            t.mul_(1.5)
    wait(futures, timeout=60)
    for i, tree in enumerate(expected):
        assert futures[i].exception() is None
        loaded = sd.empty_like(tree)
        dcp.load(loaded, checkpoint_id=tmp_path / str(i))
        assert sd.equal(loaded, tree)


def test_saves_use_the_same_memory_again(stager, tmp_path):
    places = set()
    for i in range(4):
        state = make(i)
        future = dcp.async_save(
            state, checkpoint_id=tmp_path / str(i), async_stager=stager
        )
        future.result(60)
        del future
        snapshot = stager.stage(state)
        places.add(snapshot["model"]["w"].data_ptr())
        del snapshot
    assert len(places) <= 2


class Full(FileSystemWriter):
    """A writer to a disk that is full."""

    def write_data(self, *_):
        raise OSError("no space left")


@pytest.mark.parametrize("when_full", ["raise", "wait"])
def test_saves_that_fail_give_their_memory_back(when_full, tmp_path):
    """More of them than there are buffers; then one that does not fail."""
    stager = DCPStager(when_full=when_full)
    for i in range(5):
        writer = Full(tmp_path / str(i))
        future = dcp.async_save(make(i), storage_writer=writer, async_stager=stager)
        with pytest.raises(CheckpointException):
            future.result(60)
    future = dcp.async_save(make(5), checkpoint_id=tmp_path / "5", async_stager=stager)
    future.result(60)
    assert sd.equal(sd.load(tmp_path / "5"), make(5))
    stager.close()
