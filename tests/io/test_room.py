"""Rooms beside a target: nothing is left of them, not of those of the dead either."""

import os
import signal
import warnings
from contextlib import ExitStack

import pytest
import torch

import sdtree as sd
from sdtree.io.disk.room import EARLIER, room_for

TREE = {"w": torch.ones(3)}
TARGETS = {"m.pt": {}, "m.safetensors": {}, "m": {}, "shards": {"shard_bytes": "1GB"}}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes to fork")


def killed_in_a_room(path, folder, *parts):
    """Have a process be killed while it has a room, with these parts in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork that has threads
        child = os.fork()
    if not child:
        with ExitStack() as stack:
            stack.callback(os.kill, os.getpid(), signal.SIGKILL)
            with room_for(path, folder) as room:
                for part in parts:
                    (room / part).mkdir()
                stack.close()
    os.waitpid(child, 0)


@pytest.mark.parametrize("name", TARGETS)
def test_the_next_save_takes_away_what_a_killed_one_left(tmp_path, name):
    """Beside the target, and in it, where a folder is written anew."""
    path, options = tmp_path / name, TARGETS[name]
    killed_in_a_room(path, tmp_path)
    sd.save(TREE, path, **options)
    if path.is_dir():
        killed_in_a_room(path, path, EARLIER)
        killed_in_a_room(path, path)
        assert len([each for each in path.iterdir() if each.is_dir()]) == 2
        sd.save(TREE, path, **options)
        assert all(each.is_file() for each in path.iterdir())
    assert os.listdir(tmp_path) == [name]
    assert sd.equal(sd.load(path), TREE)


def test_what_was_there_before_goes_when_all_is_there_again(tmp_path):
    """A process that was killed while it moved files has the only ones."""
    killed_in_a_room(tmp_path / "m", tmp_path, EARLIER)
    with pytest.raises(TypeError):
        sd.save({"w": torch.ones(2, device="meta")}, tmp_path / "m")
    [room] = tmp_path.iterdir()
    assert (room / EARLIER).is_dir()
    sd.save(TREE, tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


def test_rooms_of_the_living_and_of_others_stay(tmp_path):
    killed_in_a_room(tmp_path / "m.pt", tmp_path)
    (tmp_path / ".m.of_users").mkdir()
    before = {*os.listdir(tmp_path)}
    with room_for(tmp_path / "m", tmp_path) as room:
        sd.save(TREE, tmp_path / "m")
        assert {*os.listdir(tmp_path)} == before | {"m", room.name}


def in_order(folder):
    yield from sorted(map(folder.joinpath, os.listdir(folder)))


def test_what_is_no_room_hides_none_of_the_dead(tmp_path, monkeypatch):
    """As it has no mark, whichever a disk has first."""
    killed_in_a_room(tmp_path / "m", tmp_path)
    [dead] = tmp_path.iterdir()
    (tmp_path / ".m.0").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", in_order)
    sd.save(TREE, tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == [".m.0", "m"]
    assert not dead.exists()


@pytest.mark.parametrize("options", [{}, {"shard_bytes": "1GB"}])
def test_a_directory_in_the_place_of_a_file_is_not_replaced(tmp_path, options):
    """Whatever is in there."""
    sd.save(TREE, tmp_path / "m", **options)
    [file] = (tmp_path / "m").glob("[m_]*")
    file.unlink()
    file.mkdir()
    (file / "precious").touch()
    with pytest.raises(IsADirectoryError, match="nothing was written: move it"):
        sd.save(TREE, tmp_path / "m", **options)
    assert (file / "precious").exists()
