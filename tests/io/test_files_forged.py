"""Forged files: each is read, or refused in one line, and never does anything else."""

import importlib
import io
import os
import signal
import zipfile

import pytest
from forged import check_file
from grammar_files import (
    call,
    forged_safetensors,
    forged_zips,
    name,
    plain,
    shared_lists,
)
from hypothesis import given

import sdtree as sd

watched = pytest.importorskip("watched", exc_type=ImportError)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return what tells how a look at a file of these bytes ended."""
    path = tmp_path_factory.mktemp("forged") / "forged.pt"
    watch = watched.Watched(lambda path: check_file(path.read_bytes()))

    def outcome(content):
        path.write_bytes(content)
        return watch(path)

    yield outcome
    watch.stop()


@given(forged_safetensors())
def test_a_forged_safetensors_file_is_read_or_refused(outcome, content):
    """It is what its header says, or one line tells what is wrong with it."""
    assert outcome(content) == "done"


@given(forged_zips())
def test_a_forged_zip_is_read_or_refused(outcome, content):
    """It is a tree of what may be loaded, or one line tells what is wrong with it."""
    assert outcome(content) == "done"


def archive(pickled, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        target.writestr("a/data.pkl", b"\x80\2" + pickled + b".")
    return buffer.getvalue()


def test_a_device_of_lists_that_share_their_elements(outcome):
    """A text of what it is told would be as long as there are paths through them."""
    device = call(name("torch", "device"), shared_lists(plain(1)))
    assert outcome(archive(device)) == "done"


@pytest.mark.parametrize(
    "content",
    [
        archive(plain(1), zipfile.ZIP_BZIP2).replace(b"BZh9", b"BZh0"),
        *(
            archive(plain(1), compression)[:-22]
            + b"PK\5\6"
            + bytes(4)
            + b"\1\0\1\0"
            + b"8\0\0\0P"
            + bytes(5)
            for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ),
    ],
)
def test_a_directory_that_lies_is_told(outcome, content):
    """How a record is compressed, and where it begins."""
    assert outcome(content) == "done"


def test_what_a_pickle_names_twice_comes_twice(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(b"(K\1K\x022t"))
    assert sd.load(path) == (1, 2, 2)


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
    told = [watch(tmp_path / name) for name in ("crash", "memory", "fine", "import")]
    watch.stop()
    assert told == ["ended by SIGSEGV", "MemoryError: ", "done", "imported {'this'}"]
