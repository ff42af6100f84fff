"""Forged files: each is read, or refused in one line, and never does anything else."""

import importlib
import os
import signal

import pytest
from grammar_files import forged_safetensors, forged_zips
from hypothesis import given

import sdtree as sd
from sdtree.io import open_file

watched = pytest.importorskip("watched", exc_type=ImportError)
OURS = {"FileError", "UnknownContainer"}


def look(path):
    """Look at a file as people do."""
    for read in (lambda: open_file(path).tree, lambda: sd.load(path)):
        tree = read()
        str(sd.show(tree))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return what tells how a look at a file of these bytes ended."""
    path = tmp_path_factory.mktemp("forged") / "forged.pt"
    watch = watched.Watched(look)

    def outcome(content):
        path.write_bytes(content)
        return watch(path)

    yield outcome
    watch.stop()


@given(forged_safetensors())
def test_a_forged_safetensors_file_is_read_or_refused(outcome, content):
    """It is what its header says, or one line tells what is wrong with it."""
    told = outcome(content)
    assert told == "done" or is_refusal(told), told


@given(forged_zips())
def test_a_forged_zip_is_read_or_refused(outcome, content):
    """It is a tree of what may be loaded, or one line tells what is wrong with it."""
    told = outcome(content)
    assert told == "done" or is_refusal(told), told


def is_refusal(told):
    return told.partition(":")[0] in OURS and "\n" not in told


def test_what_is_watched_is_seen(tmp_path):
    """A crash, memory beyond the bound, an import and an error are told apart."""

    def look(path):
        {
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "memory": lambda: bytearray(2**31),
            "import": lambda: importlib.import_module("this"),
            "fine": lambda: None,
        }[path.name]()

    watch = watched.Watched(look)
    told = [watch(tmp_path / name) for name in ("crash", "memory", "import", "fine")]
    watch.stop()
    assert told == ["ended by SIGSEGV", "MemoryError: ", "imported {'this'}", "done"]
