"""Snapshots in shared memory, read by another process, whoever dies."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

import sdtree as sd

SECONDS = 120
TREE = {
    "w": torch.arange(6.0).view(2, 3).t(),
    "n": torch.tensor(3),
    "many": [torch.full((2,), float(i)) for i in range(50)],
    "step": 7,
}
TREE["tied"] = TREE["w"][1:]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as Linux shares")


def read(pipe):
    """Send back what a snapshot is like here, until nothing comes; then be killed."""
    while True:
        snapshot = pipe.recv()
        again = sd.copy(snapshot)
        pipe.send((again["w"].tolist(), sd.ties(snapshot), len(descriptors())))


def descriptors():
    """Return the descriptors of this process."""
    return os.listdir("/proc/self/fd")


def left_behind():
    """Return what has a name in shared memory that could be ours or torch's."""
    return {name for name in os.listdir("/dev/shm") if "torch" in name or "sd" in name}


@pytest.fixture
def reader():
    """Return a process that reads snapshots, and the pipe to it."""
    ours, theirs = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=read, args=(theirs,))
    process.start()
    yield process, ours
    process.kill()
    process.join(SECONDS)


def test_another_process_reads_a_snapshot(reader):
    """It sees what is tied there, too, and may die: the owner goes on."""
    process, pipe = reader
    before = left_behind()
    with sd.Stager(share=True) as stager:
        for k in range(3):
            tree = {**TREE, "w": TREE["w"] + k}
            tree["tied"] = tree["w"][1:]
            staged = stager.stage(tree)
            held = len(descriptors())
            pipe.send(staged.wait())
            assert pipe.poll(SECONDS)
            w, ties, _ = pipe.recv()
            assert w == tree["w"].tolist()
            assert ties == sd.ties(tree)
            assert len(descriptors()) <= held + 4
            staged.release()
        staged = stager.stage(TREE)
        pipe.send(staged.wait())
        process.kill()
        process.join(SECONDS)
        assert sd.equal(staged.wait(), TREE)
        staged.release()
        assert sd.equal(stager.stage(TREE).wait(), TREE)
    assert left_behind() <= before


def own(pipe):
    """Stage, tell of it, and wait to be killed."""
    stager = sd.Stager(share=True)
    snapshot = stager.stage(TREE).wait()
    pipe.send(snapshot)
    pipe.recv()


def test_an_owner_that_is_killed_leaves_nothing_behind():
    """What has been read from it stays readable."""
    before = left_behind()
    ours, theirs = mp.get_context("spawn").Pipe()
    owner = mp.get_context("spawn").Process(target=own, args=(theirs,))
    owner.start()
    assert ours.poll(SECONDS)
    snapshot = ours.recv()
    os.kill(owner.pid, signal.SIGKILL)
    owner.join(SECONDS)
    assert sd.equal(snapshot, TREE)
    assert left_behind() <= before


def test_what_is_closed_or_dropped_is_given_back():
    """Descriptors go with the stager and the last snapshot."""
    before = len(descriptors())
    with sd.Stager(share=True) as stager:
        snapshot = stager.stage(TREE).wait()
        assert len(descriptors()) == before + 1
    assert sd.equal(snapshot, TREE)
    del snapshot
    assert len(descriptors()) == before + 1 - 1
    other = sd.Stager(share=True)
    other.stage(TREE)
    del other
    assert len(descriptors()) == before


def test_ten_thousand_leaves_take_one_descriptor(tmp_path: Path):
    tree = {str(i): torch.full((2,), float(i)) for i in range(10_000)}
    before = len(descriptors())
    with sd.Stager(share=True) as stager:
        staged = stager.stage(tree)
        assert len(descriptors()) == before + 1
        assert torch.stack(list(staged.wait().values())).sum() == 2 * sum(range(10_000))
