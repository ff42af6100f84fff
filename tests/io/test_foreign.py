"""Objects of classes that are not known: read as data, shown by name, never run."""

import argparse
import datetime
import enum
import importlib
import io
import json
import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import grammar_pickles
import numpy as np
import pytest
import torch
from forged import check_file
from grammar_pickles import (
    FOREIGN,
    Called,
    Listed,
    Mapped,
    Thing,
    claims,
    foreign_pickles,
    foreign_trees,
    laughs,
    old,
    zipped,
)
from hypothesis import given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.__main__ import main
from sdtree.errors import FileError
from sdtree.io import Foreign, convert_file, open_file
from sdtree.io.pickles.machine import Room
from sdtree.testing import Pair, Rows, State

W = torch.arange(4.0)
CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, tuple, deque)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True)
class Frozen:
    left: object
    right: object


class Made:
    """An object that is made with arguments, some of them by name."""

    def __new__(cls, *args, **options):
        new = super().__new__(cls)
        new.args, new.options = args, options
        return new

    def __getnewargs_ex__(self):
        return self.args, self.options

    def __getstate__(self):
        return None


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(data, **options):
    with open("a.pt", "wb") as file:
        file.write(data)
    return sd.load("a.pt", **options)


# -- what is read ------------------------------------------------------------------


def test_a_storage_that_stands_alone_is_its_bytes():
    """Whatever its dtype, and how many there are."""
    for count in (3, 8):
        data = torch.arange(count, dtype=torch.uint8)
        torch.save({"s": data.untyped_storage()}, "a.pt")
        for mmap in (False, True):
            (found,) = sd.load("a.pt", mmap=mmap)["s"].tensors()
            assert found.dtype == torch.uint8
            assert found.tolist() == data.tolist()


def agrees(x, y):
    """Return whether ``y`` is what a reader without our classes sees of ``x``."""
    if isinstance(x, FOREIGN):
        return (
            type(y) is Foreign
            and y.name == f"grammar_pickles.{type(x).__name__}"
            and all(map(agrees, seen(x), (list(y.args), y.items, y.state)))
        )
    if type(x) is not type(y):
        return False
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return list(x) == list(y) and all(agrees(x[key], y[key]) for key in x)
    if isinstance(x, CONTAINERS):
        return len(x) == len(y) and all(map(agrees, x, y))
    return x == y if isinstance(x, (set, frozenset)) else repr(x) == repr(y)


def seen(x):
    """Return with what an object is called, what is put into it, and its state."""
    args = [*x.args] if isinstance(x, Called) else []
    items = list(x) if isinstance(x, Listed) else []
    items = [*x.items()] if isinstance(x, Mapped) else items
    return args, items, vars(x) if isinstance(x, Thing) else None


@given(foreign_trees(), st.sampled_from([2, 3, 4, 5]), st.booleans(), st.booleans())
def test_what_a_file_holds_is_read_as_it_is(tree, protocol, is_zip, mmap):
    """Values and containers that are known as they were, others with all they hold."""
    how = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    torch.save(tree, "a.pt", **how)
    assert agrees(tree, sd.load("a.pt", mmap=mmap))


def test_pickles_of_the_first_protocol_are_read():
    """In it numbers are text, and dicts are made of what lies on the stack."""
    tree = {"a": {"b": [1, 2.5, -(2**70)], "c": {}}, "d": ("é", None, True, b"x")}
    torch.save(tree, "a.pt", pickle_protocol=0)
    assert agrees(tree, sd.load("a.pt"))


def test_an_archive_that_was_zipped_anew_is_read():
    """Its records are compressed, which torch does not do."""
    torch.save({"w": W, "n": [3]}, "a.pt")
    with ZipFile("a.pt") as old, ZipFile("b.pt", "w", ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert agrees({"w": W, "n": [3]}, sd.load("b.pt"))


@pytest.mark.parametrize(
    ("how", "place", "words"),
    [
        (ZIP_DEFLATED, 20, "'a/data.pkl' is not all there"),
        (ZIP_DEFLATED, 24, "compressed, and too large for the file"),
        (ZIP_STORED, 20, "its records lie over each other"),
        (ZIP_STORED, 24, "'a/data.pkl' is not all there"),
    ],
)
def test_a_record_that_says_another_size_is_refused(how, place, words):
    """In the directory of the archive: as it lies there, and as it is read."""
    with ZipFile("a.pt", "w", how) as archive:
        archive.writestr("a/data.pkl", b"\x80\2K\1.")
    assert sd.load("a.pt") == 1
    data = bytearray(Path("a.pt").read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + place : entry + place + 4] = b"\xff\xff\xff\x7f"
    Path("a.pt").write_bytes(data)
    with pytest.raises(FileError, match=words):
        sd.load("a.pt")


def test_the_pickle_of_an_archive_is_the_one_at_its_root():
    """A record below it may have the same name."""
    with ZipFile("a.pt", "w") as archive:
        for name, data in (("a/a", b"K\2."), ("a", b"K\1."), ("a/b", b"K\2.")):
            archive.writestr(f"{name}/data.pkl", b"\x80\2" + data)
    assert sd.load("a.pt") == 1


@given(foreign_pickles())
def test_whatever_a_file_says_is_refused_or_read_and_shown(data):
    """One error of ours, or a tree; no module is imported, and nothing is run."""
    check_file(data)
    assert not grammar_pickles.RUN
    assert not {"this", "antigravity"} & set(sys.modules)


@given(claims(), st.sampled_from([zipped, old]))
def test_what_claims_to_be_longer_than_its_file_is_refused(claim, make):
    """No memory is taken for what is not there."""
    with pytest.raises(FileError):
        loaded(make(b"\x80\2" + claim + b"."))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        *("os system", "posix system", "__builtin__ eval", "__builtin__ __import__"),
        *("torch load", "torch.hub load", "runpy run_path", "this s"),
        "grammar_pickles boom",
    ],
)
def test_what_would_be_run_is_a_name(call, is_zip):
    module, _, name = call.partition(" ")
    text = b"X\1\0\0\0x"
    data = b"\x80\2}" + text + f"c{module}\n{name}\n".encode() + text + b"\x85Rs."
    found = loaded((zipped if is_zip else old)(data))["x"]
    assert found.name.endswith(f".{name}")
    assert (found.args, grammar_pickles.RUN) == (("x",), [])
    assert "this" not in sys.modules


def test_what_the_user_allows_is_loaded():
    torch.save({"thing": Thing(w=W)}, "a.pt")
    with torch.serialization.safe_globals([Thing]):
        assert torch.equal(sd.load("a.pt")["thing"].w, W)
    assert type(sd.load("a.pt")["thing"]) is Foreign


def test_what_is_frozen_and_has_slots_gets_as_many_fields_as_it_has(monkeypatch):
    """Its state is a list of them, in their order, of a container that is known."""
    sd.register_container(Frozen)
    torch.save(Frozen(1, W), "a.pt")
    assert sd.equal(sd.load("a.pt"), Frozen(1, W))
    for state in ([1], [1, 2, 3]):
        monkeypatch.setattr(Frozen, "__getstate__", lambda self, state=state: state)
        torch.save(Frozen(1, W), "a.pt")
        with pytest.raises(FileError):
            sd.load("a.pt")


def test_what_is_made_with_options_is_read_with_them():
    """A class that the user allows gets them, of an unknown one they are the last."""
    torch.save([0, Made(1, x=[]), Made(2, y=3), 3], "a.pt", pickle_protocol=4)
    first, made, other, last = sd.load("a.pt")
    assert (first, last) == (0, 3)
    assert (made.name, made.args) == (f"{__name__}.Made", (1, {"x": []}))
    assert (other.name, other.args) == (f"{__name__}.Made", (2, {"y": 3}))
    with torch.serialization.safe_globals([Made]):
        first, made, other, last = sd.load("a.pt")
    assert (first, last) == (0, 3)
    assert (made.args, made.options) == ((1,), {"x": []})
    assert (other.args, other.options) == ((2,), {"y": 3})


def test_objects_as_keys_stay_apart():
    torch.save({Color.RED: 1, Color.BLUE: W}, "a.pt")
    back = sd.load("a.pt")
    assert [key.args for key in back] == [(1,), (2,)]
    assert sd.leaves(back) == [1, back[list(back)[1]]]


def test_what_numpy_has_of_other_dtypes_is_named():
    tree = {
        "objects": np.array([1, None], object),
        "records": np.zeros(2, "i4,f4"),
        "fields": np.dtype("i4,f4"),
        "dtype": np.dtype(">f4"),
        "again": np.dtype(">f4"),
        "unit": np.dtype("M8[25s]"),
    }
    torch.save(tree, "a.pt")
    back = sd.load("a.pt")
    told = [back[key].told() for key in ("objects", "records")]
    assert told == ["numpy.ndarray of Python objects", "numpy.ndarray of records"]
    assert back["fields"].name == "numpy.dtype"
    assert [back[key] for key in ("dtype", "again", "unit")] == [
        tree[key] for key in ("dtype", "again", "unit")
    ]


class Scaled(torch.Tensor):
    pass


def test_tensors_of_unknown_types_are_named_and_hold_their_tensor():
    w = W.as_subclass(Scaled)
    w.scale = 3
    torch.save({"w": w}, "a.pt")
    back = sd.load("a.pt")["w"]
    assert (back.name, back.state) == (f"{__name__}.Scaled", {"scale": 3})
    assert torch.equal(*back.tensors(), W)


def test_a_default_that_is_not_known_is_not_lost():
    torch.save({"d": defaultdict(Thing, a=W), "e": defaultdict(int, a=1)}, "a.pt")
    back = sd.load("a.pt")
    assert back["d"].name == "collections.defaultdict"
    assert back["d"].items == [("a", back["d"].tensors()[0])]
    assert back["e"]["b"] == 0


@pytest.mark.parametrize("place", ["xla", "hpu"])
def test_tensors_of_devices_that_are_not_here_are_read(place):
    torch.save({"w": W}, "a.pt")
    with open("a.pt", "rb") as file:
        data = file.read().replace(b"X\3\0\0\0cpu", b"X\3\0\0\0" + place.encode())
    assert torch.equal(loaded(data)["w"], W)


@pytest.mark.parametrize("make", [Rows, lambda xs: _state(enumerate(xs)), Pair._make])
def test_registered_containers_are_read_as_they_were(make):
    tree = {"x": make([W, 2])}
    for protocol in (2, 4):
        torch.save(tree, "a.pt", pickle_protocol=protocol)
        assert sd.structure(sd.load("a.pt")) == sd.structure(tree)
        assert sd.equal(sd.load("a.pt"), tree)


class Mute:
    """What nobody makes by a call."""

    def __init__(self, *args, **options):
        raise AssertionError("a container is rebuilt without its __init__")


@sd.register_container
class MuteOrdered(Mute, OrderedDict):
    pass


@sd.register_container
class MuteCounter(Mute, Counter):
    pass


@sd.register_container
class MuteDefault(Mute, defaultdict):
    pass


@sd.register_container
class MuteDeque(Mute, deque):
    pass


@pytest.mark.parametrize("cls", [MuteOrdered, MuteCounter, MuteDefault, MuteDeque])
def test_registered_containers_are_read_without_a_call_of_their_class(cls):
    """A file says what they hold, and not that they do what their class does."""
    x = cls.__new__(cls)
    if cls is MuteDeque:
        deque.extend(x, [W, 2])
    else:
        dict.update(x, a=W) if cls is not MuteOrdered else x.__setitem__("a", W)
    for protocol in (2, 4):
        torch.save({"x": x}, "a.pt", pickle_protocol=protocol)
        back = sd.load("a.pt")["x"]
        assert type(back) is cls
        assert sd.equal(back, x)


def _state(pairs):
    new = State(7)
    new.update(pairs)
    return new


def test_equal_looks_into_them():
    """The same if the file says the same, to the last bit of a tensor."""
    for name, w in (("a.pt", W), ("b.pt", W.clone()), ("c.pt", W + 1)):
        torch.save({"x": Thing(w=w, more=[Called(1, w)])}, name)
    a, b, c = map(sd.load, ("a.pt", "b.pt", "c.pt"))
    assert sd.equal(a, b)
    assert not sd.diff(a, b)
    assert not sd.equal(a, c)
    [found] = sd.diff(a, c)
    assert (found.path, found.what) == (("x",), "value")


def test_types_of_arrays_that_hold_objects_are_compared():
    """They are told by their state, which comes last."""
    types = [np.dtype([(name, object)]) for name in "aab"]
    for k, x in enumerate(types):
        torch.save({"x": x}, f"{k}.pt")
    a, same, other = (sd.load(f"{k}.pt") for k in range(3))
    assert sd.equal(a, same)
    assert not sd.equal(a, other)


# -- what is done with them --------------------------------------------------------


def training():
    """Return what a training script may save."""
    return {
        "model": {"w": W},
        "args": argparse.Namespace(lr=0.1, best=W),
        "optimizer": torch.optim.Adam,
    }


@pytest.fixture
def file():
    torch.save(training(), "a.pt")
    return "a.pt"


def test_show_names_the_class_and_what_it_holds(file, capsys):
    shown = str(sd.show(sd.load(file)))
    assert "argparse.Namespace, holds 1 tensor" in shown
    assert "<torch.optim.adam.Adam>" in shown
    assert main(["show", file]) == 0
    assert "note: read without their classes: argparse.Namespace (1), torch.opt" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "transform",
    [
        sd.identity,
        sd.copy(),
        sd.cast(dtype=torch.half),
        sd.rename(("model.**", "net.**")),
        sd.drop("model.**"),
        sd.empty_like(),
    ],
)
def test_they_are_passed_on_as_they_are(file, transform):
    tree = sd.load(file)
    assert transform(tree)["args"] is tree["args"]
    assert dict(transform.stream(tree))["args",] is tree["args"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_writing_refuses_them_by_name_unless_they_are_left_out(file, suffix):
    """The advised call works; what leaves them out never trips over them."""
    tree, target = sd.load(file), f"b.{suffix}"
    words = "^args: .*argparse.Namespace.* sd.drop\\(tree, sdtree.io.Foreign\\)"
    for write in (
        lambda: sd.save(tree, target),
        lambda: convert_file(file, target, sd.identity),
        lambda: convert_file(file, target, sd.map(lambda x: x)),
    ):
        with pytest.raises(TypeError, match=words):
            write()
    assert os.listdir() == ["a.pt"]
    known = sd.drop(tree, Foreign)
    sd.save(known, target)
    assert sd.equal(sd.load(target), known)
    convert_file(file, target, sd.select("model.**"))
    assert sd.equal(sd.load(target), known)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_command_line_refuses_them_unless_they_are_left_out(file, suffix, capsys):
    """The advice is an option of the command, and works."""
    line = ["convert", file, f"b.{suffix}", "--rename", "**=a.**"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a.args: ")
    assert "argparse.Namespace" in error
    assert error.endswith("by --drop-foreign\n")
    assert main([*line, "--drop-foreign"]) == 0
    assert sd.names(sd.load(f"b.{suffix}")) == ["a.model.w"]
    assert main([*line[:3], "--select", "model.**"]) == 0
    assert main([*line[:3], "--drop-foreign", "--drop", "model.**"]) == 2
    assert "nothing is left of a.pt" in capsys.readouterr().err


def test_leaving_out_what_is_not_there_is_noted(capsys):
    sd.save({"w": W}, "a.pt")
    assert main(["convert", "a.pt", "b.pt", "--drop-foreign"]) == 0
    assert capsys.readouterr().err == "note: --drop-foreign leaves out nothing\n"


def test_attributes_of_tensors_that_are_not_known_are_not_lost():
    w = torch.nn.Parameter(W)
    w.about = argparse.Namespace(x=1)
    torch.save({"w": w}, "a.pt")
    tree = sd.load("a.pt")
    assert tree["w"].about.name == "argparse.Namespace"
    with pytest.raises(TypeError, match=r"^w: .*read without its class"):
        sd.save(tree, "b.pt")


def test_show_prints_json_of_them(file, capsys):
    assert main(["show", file, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["leaves"]
    assert rows[1]["value"] == "argparse.Namespace, holds 1 tensor"


# -- files that lie ----------------------------------------------------------------


def pickled(*parts):
    return zipped(b"\x80\2" + b"".join(parts) + b".")


def called(name, *args):
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode() + b"(" + b"".join(args) + b"tR"


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
STORAGE += number(8) + b"tQ"


def tensor(offset, size, stride):
    place = (STORAGE, number(offset), numbers(*size), numbers(*stride))
    return called("torch._utils _rebuild_tensor_v2", *place, b"\x89", b"N")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (9,), (1,)),
        (8, (1,), (1,)),
        (0, (2, 2), (1, 7)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**31 - 1,), (2**31 - 1,)),
        (0, (2**31 - 1,) * 3, (0, 0, 0)),
        (0, (1, 1), (1,)),
    ],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_no_tensor_lies_outside_its_storage(offset, size, stride, mmap):
    with pytest.raises(FileError, match="a tensor"):
        loaded(pickled(tensor(offset, size, stride)), mmap=mmap)
    assert loaded(pickled(tensor(4, (2, 2), (2, 1)))).shape == (2, 2)


@pytest.mark.parametrize(
    "name",
    [
        *("torch FloatTensor", "torch UntypedStorage", "torch.storage UntypedStorage"),
        *("__builtin__ bytearray", "__builtin__ bytes"),
    ],
)
def test_no_memory_is_taken_for_a_claim(name):
    assert type(loaded(pickled(called(name, number(2**31 - 1))))) is Foreign


MOMENT = datetime.datetime(2020, 2, 29, 12, 30, 15, 7)
MOMENTS = ("date", "time", "datetime")
JUNK = (b"", b"x", b"\0" * 4, b"\xff" * 10, "text", "latin1", 3, -1.5, None, [], [b"y"])


@pytest.mark.parametrize(
    "name",
    [
        *(f"datetime {name}" for name in (*MOMENTS, "timedelta", "timezone")),
        *("builtins bytes", "builtins bytearray", "builtins set", "builtins complex"),
        *("_codecs encode", "_io BytesIO", "pathlib PurePosixPath"),
    ],
)
def test_what_is_made_under_a_plain_name_is_what_python_makes(name):
    """Or it is foreign, or the file is refused: nothing stands for what is none."""
    module, _, attribute = name.partition(" ")
    make = getattr(importlib.import_module(module), attribute)
    given = [getattr(MOMENT, each)() for each in ("date", "time", "replace")]
    given = [x.__reduce__()[1] for x in given]
    pairs = product((b"\xff" * 10, "text", 3), (b"x", "latin1", datetime.UTC))
    for args in [(), *given, *((x,) for x in JUNK), *pairs]:
        body = b"".join(pickle.dumps(x, 2)[2:-1] for x in args)
        try:
            found = loaded(pickled(called(name, body)))
        except FileError:
            continue
        if type(found) is not Foreign:
            assert repr(found) == repr(make(*args)) or isinstance(found, io.BytesIO)


def test_an_array_of_numpy_lies_as_its_axes_were_turned():
    shape, data = (2, 3, 4), np.arange(24.0)
    dtype = pickle.dumps(data.dtype, 2)[2:-1]
    raw = b"B" + data.nbytes.to_bytes(4, "little") + data.tobytes()
    for axes in ((1, 0, 2), (2, 0, 1)):
        parts = raw, dtype, numbers(*shape), text("K"), numbers(*axes)
        found = loaded(pickled(called("numpy._core.numeric _frombuffer", *parts)))
        assert (found == data.reshape(shape).transpose(axes)).all()


AROUND = ["%s", "]%sa", "}K\1%ss", "%s\x85", "}%sK\1s", "}%s\x85K\1s", "(%s\x91"]


@pytest.mark.parametrize("around", AROUND)
def test_what_numpy_makes_of_a_state_has_one(around):
    """Without it there is no array and no dtype, wherever in a tree that stands."""
    bare = called("numpy._core.multiarray _reconstruct", NDARRAY, numbers(0), b"N")
    dtype = called("numpy dtype", text("f4"), b"\x89", b"\x88")
    for part in (bare, dtype):
        with pytest.raises(FileError, match=r"without its state|unhashable"):
            loaded(pickled(around.encode("latin1") % part))


def test_a_name_is_put_together_of_a_thousand_letters():
    """Beyond that it is a call that is not made: no chain of them grows without end."""
    call = partial(called, "__builtin__ getattr", b"cab\nc\n")
    assert loaded(pickled(call(text("x" * 996)))).name == f"ab.c.{'x' * 996}"
    assert loaded(pickled(call(text("x" * 997)))).name == "builtins.getattr"


NDARRAY = b"cnumpy\nndarray\n"


@pytest.mark.parametrize(
    "data",
    [
        b"cab\nc\n](K\1eR",
        b"cab\nc\n](K\1e\x81",
        b"cab\nc\n)](K\1e\x92",
        b"cab\nc\n](K\1e}\x92",
        b"](K\1\x90",
        b"\x8f(](K\1K\2e\x90",
    ],
)
def test_what_is_called_with_no_tuple_is_refused(data):
    """And options are a dict, elements those of a set: nothing is taken for another."""
    with pytest.raises(FileError, match=r"a pickle has .* for a|unhashable"):
        loaded(pickled(data))


def test_records_that_lie_over_each_other_are_refused():
    """Many entries of one record would be as many storages."""
    import struct

    torch.save({f"{i}": torch.zeros(2**12 if i == 0 else 1) for i in range(9)}, "a.pt")
    with ZipFile("a.pt") as archive:
        start = archive.getinfo("a/data/0").header_offset
    with open("a.pt", "rb") as file:
        head, *entries = file.read().split(b"PK\1\2")
    size, place = struct.pack("<I", 2**14), struct.pack("<I", start)
    forged = [
        entry[:16] + 2 * size + entry[24:38] + place + entry[42:]
        if b"/data/" in entry
        else entry
        for entry in entries
    ]
    assert len(loaded(b"PK\1\2".join([head, *entries]))) == 9
    with pytest.raises(FileError, match="over each other"):
        loaded(b"PK\1\2".join([head, *forged]))


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_indices_of_sparse_tensors_lie_in_them(layout, is_zip):
    """torch would read and write beyond its memory."""
    x = getattr(torch.eye(3), layout)()
    indices = x._indices() if layout == "to_sparse" else x.col_indices()
    torch.save({"x": x}, "a.pt", _use_new_zipfile_serialization=is_zip)
    assert sd.equal(sd.load("a.pt"), {"x": x})
    indices[..., -1] = 1000
    torch.save({"x": x}, "a.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(FileError, match=r"1000|ind"):
        sd.load("a.pt")


def test_parts_of_nested_tensors_lie_in_their_buffer():
    x = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"x": x}, "a.pt")
    assert sd.load("a.pt")["x"].size(0) == 2
    x._nested_tensor_size()[1, 0] = 10**6
    torch.save({"x": x}, "a.pt")
    with pytest.raises(FileError, match="beyond the 5 elements"):
        sd.load("a.pt")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\2" + laughs(17) + b".",
        b"\x80\2}(K\1K\1tq\0" + b"0(h\0h\0tq\0" * 17 + b"K\1s.",
        b"\x80\2" + laughs(60) + b".",
        b"\x80\2" + laughs(2000) + b".",
        b"\x80\2}(K\1K\1tq\0" + b"0(h\0h\0tq\0" * 60 + b"K\1s.",
        b"\x80\2" + b"]" * 3000 + b"a" * 2999 + b".",
        b"\x80\2" + b")" + b"\x85" * 10**5 + b".",
        b"\x80\2}" + b")" + b"\x85" * 10**5 + b"K\1s.",
        b"\x80\2]q\0h\0a.",
        b"\x80\2}q\0K\1h\0s.",
    ],
    ids=[
        *("some", "key of some", "lists", "many", "keys", "deep", "tuples", "key"),
        *("itself", "dict in itself"),
    ],
)
@pytest.mark.parametrize("make", [zipped, old])
def test_what_is_shared_unfolds_to_no_more_than_a_file_is_worth(data, make):
    words = r"unfolds to more|in one another|nested 100 times|it has a container that"
    with pytest.raises(FileError, match=words):
        loaded(make(data))


MANY = b"(" + b"K\1" * 1000 + b"tq\x000"
"""Arguments that can be shared."""


@pytest.mark.parametrize("name", ["builtins set", "builtins frozenset", "torch Size"])
def test_elements_are_copied_no_more_often_than_they_are_worth(name):
    """What is called has them once more, though they are said once."""
    call = called(name, b"h\0")
    assert len(loaded(pickled(MANY, b"](", call * 50, b"e"))) == 50
    with pytest.raises(FileError, match="unfolds to more than it is worth"):
        loaded(pickled(MANY, b"](", call * 101, b"e"))


@pytest.mark.parametrize("name", ["a b", "sdtree.testing.samples Pair"])
@pytest.mark.parametrize("make", [b"R", b"\x81", b"}K\1K\1s\x92"])
def test_arguments_are_shared_no_more_often_than_they_are_worth(name, make):
    """Each object has them once more."""
    module, _, attribute = name.partition(" ")
    call = f"c{module}\n{attribute}\n".encode() + b"h\0" + make
    assert len(loaded(pickled(MANY, b"](", call * 50, b"e"))) == 50
    with pytest.raises(FileError, match="unfolds to more than it is worth"):
        loaded(pickled(MANY, b"](", call * 101, b"e"))


def test_data_is_looked_at_no_more_often_than_it_is_worth():
    """The indices of sparse tensors are checked, and may be shared by very many."""
    indices, values = torch.arange(50_000)[None], torch.ones(50_000)

    def sparse():
        return torch.sparse_coo_tensor(indices, values, (50_000,), is_coalesced=True)

    torch.save([sparse() for _ in range(3)], "a.pt")
    assert len(sd.load("a.pt")) == 3
    torch.save([sparse() for _ in range(30)], "a.pt")
    with pytest.raises(FileError, match="shared by more than it is worth"):
        sd.load("a.pt")


@pytest.mark.parametrize("spend", [Room.spend, Room.spend_on_data])
@pytest.mark.parametrize(("size", "worth"), [(0, 100_000), (10**6, 10**6)])
def test_what_a_file_is_worth_may_be_spent_to_the_last(spend, size, worth):
    """A small one is worth some, too; data may be looked at a few times."""
    room, times = Room(size, size), 1 if spend is Room.spend else 4
    for _ in range(times):
        spend(room, worth)
    with pytest.raises(FileError, match="than it is worth"):
        spend(room, 1)


def test_what_is_shared_a_few_times_is_read():
    config = {"lr": 0.1, "betas": (0.9, 0.99)}
    tree = {"a": config, "b": [config, config], "k" * 10_000: 1}
    torch.save(tree, "a.pt")
    assert sd.load("a.pt") == tree


def test_attributes_are_data():
    """A state cannot replace a method, a class, or what Python looks at."""
    for name in ("items", "__class__", "__dict__", "__deepcopy__"):
        state = b"}" + text(name) + b"Ns"
        with pytest.raises(FileError, match="takes no attribute"):
            loaded(pickled(called("collections OrderedDict"), state, b"b"))
    state = b"}" + text("_metadata") + b"Ns"
    assert loaded(pickled(called("collections OrderedDict"), state, b"b")) == {}


def test_a_class_is_not_changed():
    """A state for a class would set its attributes, for all of the process."""
    for name in ("torch Tensor", "sdtree.testing.samples Pair"):
        module, _, attribute = name.partition(" ")
        state = f"c{module}\n{attribute}\n".encode() + b"}" + text("x") + b"Nsb"
        with pytest.raises(FileError, match="changes"):
            loaded(pickled(state))


def test_a_tar_archive_is_named():
    import tarfile

    with tarfile.open("a.pt", "w") as archive:
        archive.add(__file__, "pickle")
    with pytest.raises(FileError, match="tar archive"):
        sd.load("a.pt")


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(monkeypatch, mmap):
    from sdtree.io.pt import file as torch_file

    sd.save({"w": W, "v": W + 1}, "a.pt")
    sd.save({"v": W + 2, "x": torch.ones(99), "w": W + 3}, "b.pt")
    archive = torch_file.Archive

    def replaced(file):
        os.replace("b.pt", "a.pt")
        return archive(file)

    monkeypatch.setattr(torch_file, "Archive", replaced)
    assert sd.equal(sd.load("a.pt", mmap=mmap), {"w": W, "v": W + 1})


def test_a_mapped_file_that_is_replaced_stays():
    sd.save({"w": W}, "a.pt")
    tree = open_file("a.pt").tree
    sd.save({"w": W + 1}, "a.pt")
    assert sd.equal(tree, {"w": W})


@pytest.mark.parametrize("held", [set, frozenset])
def test_a_set_that_holds_a_tensor_is_foreign(tmp_path, held):
    """Such a set can be in a file, and in no tree: nothing in it has a path."""
    torch.save({"s": held([torch.ones(2)]), "t": held([1]), "w": 1}, tmp_path / "s.pt")
    tree = sd.load(tmp_path / "s.pt")
    assert tree["s"].told() == f"builtins.{held.__name__}, holds 1 tensor"
    assert (tree["t"], tree["w"]) == (held([1]), 1)
    assert "holds 1 tensor" in str(sd.show(tree))


def test_a_foreign_object_may_hold_a_set_of_tensors(tmp_path):
    """They are counted with those that are elsewhere in it."""
    held = argparse.Namespace(each={torch.ones(2)}, w=torch.ones(3))
    torch.save({"a": held}, tmp_path / "a.pt")
    first, again = sd.load(tmp_path / "a.pt"), sd.load(tmp_path / "a.pt")
    assert first["a"].told() == "argparse.Namespace, holds 2 tensors"
    assert sd.equal(first, again)
