"""Files that are not what they should be, and trees that a file cannot hold."""

import enum
import io
import os
import random
import signal
import subprocess
import sys
import typing
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch

import sdtree as sd
from sdtree.errors import FileError, NameCollision, UnknownContainer, UnknownLeaf
from sdtree.io import convert_file, open_file

W = torch.ones(2)
BYTES = torch.zeros(30_000, dtype=torch.uint8)
F4 = torch.float4_e2m1fn_x2
FORMATS = ("pt", "safetensors")


class Color(enum.Enum):
    RED = 1


class Point(typing.NamedTuple):
    x: object


class Scaled(torch.Tensor):
    pass


class Evil:
    """What would run if it were loaded as pickles are."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(error, words, call, *args):
    """Raise unless a call is refused with these words, and leaves no file behind."""
    before = {name: os.path.getmtime(name) for name in os.listdir()}
    with pytest.raises(error) as caught:
        call(*args)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert {name: os.path.getmtime(name) for name in os.listdir()} == before


# -- trees that a file cannot hold -------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("tree", "error", "words"),
    [
        ({"a": [W.to("meta")]}, TypeError, ("a.0:", "meta", "no data")),
        ({"a": sd.Abstract.of(W)}, TypeError, ("a:", "Abstract", "no data")),
        ({"a": sd.Abstract(int)}, TypeError, ("a:", "Abstract", "no data")),
        ({"a": object()}, UnknownLeaf, ("a:", "sd.register_leaf(object")),
        ({"a": Color.RED}, TypeError, ("a:", "Color")),
        ({Color.RED: W}, TypeError, ("Color",)),
        ({"p": Point(W)}, TypeError, ("p:", "sd.register_container(Point)")),
        ({"s": W.as_subclass(Scaled)}, TypeError, ("s:", "Scaled")),
    ],
)
def test_no_file_holds_it(tree, error, words, suffix):
    refused(error, words, sd.save, tree, f"a.{suffix}")
    sd.save({"w": W}, "source.pt")
    made = sd.whole(lambda _: tree)
    refused(error, words, convert_file, "source.pt", f"a.{suffix}", made)


@pytest.mark.parametrize(
    ("tree", "error", "words"),
    [
        ({"a": {"b": W.to_sparse()}}, TypeError, ("a.b:", "sparse_coo", "to_dense")),
        ({"a": W.to(torch.complex128)}, TypeError, ("a:", "complex128", ".pt")),
        (
            {"q": torch.quantize_per_tensor(W, 1, 0, torch.qint8)},
            TypeError,
            ("q:", "qint8", "dequantize"),
        ),
        ({"a": np.zeros(2, "i4,f4")}, TypeError, ("a:", "numpy array", "<i4")),
        ({"a": np.zeros(2, complex)}, TypeError, ("a:", "complex128", ".pt")),
        ({"a": BYTES.view(torch.int4)}, TypeError, ("a:", "int4", ".view(")),
        ({"a": BYTES.view(torch.bits8)}, TypeError, ("a:", "bits8", ".pt")),
        ({"a": BYTES[0].view(F4)}, TypeError, ("a:", "float4", ".reshape(1)")),
        (
            {"n": torch.nested.nested_tensor([W, torch.ones(3)])},
            TypeError,
            ("n:", "nested tensor", "unbind"),
        ),
        (
            {"a": BYTES[:1], "b": BYTES.as_strided((2,), (20_000,))},
            ValueError,
            ("a:", "so little of so large a storage", ".pt"),
        ),
        ({"a": {"b": W}, "a.b": W}, NameCollision, ("'a.b'", "two paths")),
        ({"__metadata__": W}, ValueError, ("__metadata__", "rename")),
        ({"\ud800": W}, ValueError, ("'\\ud800'", "surrogates")),
        ({frozenset(): W}, TypeError, ("frozenset", "JSON")),
        (defaultdict(Color, a=W), TypeError, ("default_factory", "Color")),
    ],
)
def test_safetensors_does_not_hold_it(tree, error, words):
    """The error advises the other format if that holds it."""
    refused(error, words, sd.save, tree, "a.safetensors")
    with pytest.raises(error) as caught:
        sd.save(tree, "a.safetensors")
    if ".pt" in str(caught.value):
        sd.save(tree, "a.pt")


def test_leaves_have_at_least_one_byte_in_4096_of_what_they_lie_in():
    """A file may claim no more, so none that claims more is written."""

    def tree(size):
        return {"a": BYTES[:1], "b": BYTES.as_strided((2,), (size - 1,))}

    sd.save(tree(3 * 4096), "a.safetensors")
    assert sd.ties(sd.load("a.safetensors")) == [[("a",), ("b",)]]
    words = ("so little of so large a storage",)
    refused(ValueError, words, sd.save, tree(3 * 4096 + 1), "a.safetensors")


def test_a_header_has_room_for_so_much(monkeypatch):
    """The library reads none that is longer than that; here it is made shorter."""
    monkeypatch.setattr("sdtree.io.safetensors.header.MOST_BYTES", 1_000)
    sd.save({"a": b"x" * 500}, "a.safetensors")
    tree, words = {"a": b"x" * 1_000}, ("bytes", "room for 1,000")
    refused(ValueError, words, sd.save, tree, "b.safetensors")
    monkeypatch.setattr("sdtree.io.safetensors.header.MOST_BYTES", 100)
    refused(FileError, ("of which 100 is the most",), sd.load, "a.safetensors")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": [{"b": defaultdict(int, x=1)}]}, ("a.0.b:", "defaultdict")),
        ({"a": Color.RED}, ("a:", "Color", "unsafe loading", "drop it")),
        ({"a": W.numpy(), "w": W}, ("a:", "tied to w", ".safetensors")),
        ({"a": W, "b": W.view(torch.int32)}, ("b:", "int32", "float32 at a", "clone")),
        ({"a": 10**5000}, ("a:", "int")),
    ],
)
def test_pt_does_not_hold_it(tree, words):
    """The error advises the other format if that holds it."""
    refused(TypeError, words, sd.save, tree, "a.pt")
    with pytest.raises(TypeError) as caught:
        sd.save(tree, "a.pt")
    if ".safetensors" in str(caught.value):
        sd.save(tree, "a.safetensors")
    else:
        refused(TypeError, (), sd.save, tree, "a.safetensors")


def test_pt_holds_no_attribute_that_needs_unsafe_loading():
    w = torch.nn.Parameter(W)
    w.color = Color.RED
    refused(TypeError, ("w:", "Color"), sd.save, {"w": w}, "a.pt")


def test_converting_refuses_what_saving_does():
    sd.save({"a": W.to(torch.complex128), "w": W}, "a.pt")
    args = ("a.pt", "b.safetensors", sd.cast(dtype=torch.half))
    refused(TypeError, ("a:", "complex128"), convert_file, *args)
    args = ("a.pt", "b.pt", sd.to("meta"))
    refused(TypeError, ("a:", "meta"), convert_file, *args)
    args = ("a.pt", "b.pt", sd.select("x.**"))
    refused(sd.errors.NoMatch, ("x",), convert_file, *args)


# -- where it goes -----------------------------------------------------------------


def test_targets_that_cannot_be_written():
    os.mkdir("folder.pt")
    os.mkdir("closed")
    os.chmod("closed", 0o555)
    open("locked.pt", "w").close()
    os.chmod("locked.pt", 0o444)
    for target, error, words in (
        ("a.onnx", FileError, ("a.onnx", ".pt", ".safetensors")),
        ("missing/a.pt", FileNotFoundError, ("missing/a.pt", "no directory")),
        ("folder.pt", IsADirectoryError, ("folder.pt", "directory")),
        ("locked.pt", PermissionError, ("locked.pt", "read-only")),
        ("closed/a.pt", PermissionError, ("closed", "read-only")),
    ):
        refused(error, words, sd.save, {"w": W}, target)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failure_leaves_what_was_there(suffix, monkeypatch):
    sd.save({"w": W}, f"a.{suffix}")

    save = torch.save

    def fail(x, target, **_):
        if isinstance(target, io.BytesIO):
            return save(x, target)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("torch.save", fail)
        patched.setattr("sdtree.io.safetensors.file.bytes_of", lambda t: fail(t, None))
        refused(OSError, ("No space",), sd.save, {"x": W}, f"a.{suffix}")
    assert sd.equal(sd.load(f"a.{suffix}"), {"w": W})


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupt_leaves_what_was_there(suffix):
    sd.save({"w": W}, f"a.{suffix}")

    def stop(done, total):
        raise KeyboardInterrupt

    sd.save({"w": W, "x": W}, "new.pt")
    convert = partial(convert_file, on_progress=stop)
    refused(KeyboardInterrupt, (), convert, "new.pt", f"a.{suffix}", sd.identity)
    assert sd.equal(sd.load(f"a.{suffix}"), {"w": W})


@pytest.mark.parametrize("target", ["b.pt", "b.safetensors", "b"])
def test_a_full_disk_leaves_what_was_there(target):
    pytest.importorskip("resource")
    sd.save({"old": W}, target)
    sd.save({"w": torch.ones(2**19)}, "a.pt")
    code = f"""if True:
        import resource, sdtree as sd
        from sdtree.io import convert_file
        state = sd.load("a.pt")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        for write in (
            lambda: sd.save(state, "{target}"),
            lambda: convert_file("a.pt", "{target}", sd.identity),
        ):
            try:
                write()
            except OSError as error:
                print(error)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert len(run.stdout.splitlines()) == 2, run
    assert sorted(os.listdir()) == sorted(["a.pt", target])
    assert sd.equal(sd.load(target), {"old": W})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_killed_process_leaves_what_was_there(suffix):
    sd.save({"old": W}, f"b.{suffix}")
    sd.save({f"w{i}": torch.ones(2**18) for i in range(4)}, "a.pt")
    code = f"""if True:
        import os, signal, sdtree as sd
        from sdtree.io import convert_file
        kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
        convert_file("a.pt", "b.{suffix}", sd.identity, on_progress=kill)
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert sd.equal(sd.load(f"b.{suffix}"), {"old": W})


def test_modes_and_links_stay():
    open("real.pt", "w").close()
    os.chmod("real.pt", 0o640)
    os.symlink("real.pt", "link.pt")
    sd.save({"w": W}, "link.pt")
    assert os.path.islink("link.pt")
    assert os.stat("real.pt").st_mode & 0o777 == 0o640
    assert sd.equal(sd.load("real.pt"), {"w": W})


# -- files that are something else -------------------------------------------------


def write(name, content):
    with open(name, "wb") as file:
        file.write(content)
    return name


def zipped(name):
    import zipfile

    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: os.mkdir("a") or "a", ("a: a directory without a checkpoint", "no")),
        (lambda: write("a.pt", b""), ("a.pt is empty",)),
        (lambda: write("a.pt", b"hello world"), ("a.pt:", "hello")),
        (lambda: write("a.pt", b"PK\3\4 no zip at all"), ("a.pt:", "zip")),
        (lambda: write("a.pt", b"\x80\x02}q\0."), ("a.pt:", "magic number")),
        (lambda: zipped("a.pt"), ("a.pt:", "readme.txt")),
        (lambda: write("a.safetensors", b"\xff\xff\0\0\0\0\0\0{}"), ("header",)),
        (lambda: write("a.safetensors", b"\4\0\0\0\0\0\0\0{nul"), ("JSON",)),
    ],
)
@pytest.mark.parametrize("read", [sd.load, open_file])
def test_it_is_no_checkpoint(make, words, read):
    refused(FileError, words, read, make())


def test_no_other_library_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    sd.save({"w": W}, "a.safetensors")
    assert sd.equal(sd.load("a.safetensors"), {"w": W})


def test_there_is_no_such_file():
    refused(FileNotFoundError, ("a.pt",), sd.load, "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run(zipped):
    torch.save({"a": Evil()}, "a.pt", _use_new_zipfile_serialization=zipped)
    found = sd.load("a.pt")["a"]
    assert (found.name.partition(".")[2], found.args) == ("mkdir", ("pwned",))
    assert not os.path.exists("pwned")


def numpy_pickle(code, state):
    """Return the pickle of a scalar of eight bytes, of a dtype with that state."""

    def name(module, attribute):
        return f"c{module}\n{attribute}\n".encode()

    def text(said):
        return b"X" + len(said).to_bytes(4, "little") + said.encode()

    dtype = name("numpy", "dtype") + text(code) + b"\x89\x88\x87R(" + state + b"tb"
    data = name("_codecs", "encode") + text("AAAAAAAA") + text("latin1") + b"\x86R"
    scalar = name("numpy._core.multiarray", "scalar")
    return b"\x80\x02" + scalar + dtype + data + b"\x86R."


NO_FIELDS = b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\0"
"""The state of a dtype after its version and order: no fields, no flags."""

FAR_FIELD = (
    b"NX\1\0\0\0a\x85}X\1\0\0\0acnumpy\ndtype\nX\2\0\0\0f8\x89\x88\x87RJ\0\0\0\x40"
    b"\x86sK\x08K\1K\0"
)
"""The state of a record with a field a gigabyte away."""


@pytest.mark.parametrize(
    ("code", "state"),
    [("O", b"K\3X\1\0\0\0|" + NO_FIELDS), ("V8", b"K\3X\1\0\0\0|" + FAR_FIELD)],
)
def test_bytes_are_never_taken_for_pointers(code, state):
    """numpy's own unpickling would follow what these files hold, and crash."""
    from grammar_pickles import zipped

    write("b.pt", zipped(numpy_pickle(code, state)))
    assert sd.load("b.pt").name == "numpy._core.multiarray.scalar"


def test_a_torchscript_archive_is_named():
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "a.pt")
    refused(FileError, ("a.pt:", "TorchScript", "state_dict"), sd.load, "a.pt")


def test_containers_come_back_only_if_registered(monkeypatch):
    class Own(typing.NamedTuple):
        x: object

    sd.register_container(Own)
    sd.save(Own(W), "a.safetensors")
    assert type(sd.load("a.safetensors")) is Own
    monkeypatch.setattr("sdtree.tree.containers._REGISTERED", {})
    words = ("a.safetensors:", "Own", "sd.register_container(")
    refused(UnknownContainer, words, sd.load, "a.safetensors")


def test_a_sound_file_of_what_is_no_tree_is_not_called_damaged(monkeypatch):
    """A class that the user allows may have an attribute to which no path leads."""
    state = Stateful(a=1)
    state.beside = torch.ones(2)
    torch.save({"s": state}, "a.pt")
    with torch.serialization.safe_globals([Stateful]):
        words = ("a.pt:", "beside", "Stateful", "register_container")
        refused(UnknownContainer, words, sd.load, "a.pt")


class Stateful(dict):
    """A dict with attributes."""


@pytest.mark.parametrize("name", ["", "a\0.pt"])
def test_what_names_no_file_is_told(name):
    refused(FileError, (repr(name),), sd.load, name)
    refused(FileError, (repr(name),), sd.save, {"w": W}, name)


# -- files that are damaged --------------------------------------------------------

STATE = {
    "a": {0: W, "v": W[1:], "e": W[0].expand(2, 2)},
    "o": [torch.nn.Parameter(torch.ones(2)), 3, float("nan"), b"x", None],
    "t": (1, W.t()),
}


def files():
    """Return files of every format."""
    sd.save(STATE, "a.pt")
    sd.save({**STATE, "n": np.ones(3, ">i4")}, "a.safetensors")
    torch.save(STATE, "old.pt", _use_new_zipfile_serialization=False)
    return "a.pt", "a.safetensors", "old.pt"


def test_files_cut_short_are_refused():
    for name in files():
        with open(name, "rb") as file:
            whole = file.read()
        for size in range(0, len(whole) - 1, 7):
            write("cut.pt", whole[:size])
            refused(FileError, ("cut.pt",), sd.load, "cut.pt")


def test_damaged_files_are_refused_or_read():
    """Whatever bytes a file has, it is read or raises FileError or UnknownContainer."""
    chance = random.Random(0)
    for name in files():
        with open(name, "rb") as file:
            whole = file.read()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.choice([1, 2, 5])):
                place = chance.randrange(min(len(whole), 1500))
                damaged[place] = chance.choice([*b'0129"{}[],:', chance.randrange(256)])
            write("damaged.pt", damaged)
            assert "damaged.pt" in outcome("damaged.pt", chance.random() < 0.5)


def outcome(name, mmap):
    """Return why a file is refused, its name if it is not."""
    try:
        sd.load(name, mmap=mmap)
    except (FileError, UnknownContainer) as error:
        return str(error)
    return name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"K\7", b"K\xff", "less data than its tensors"),
        (b"K\7Nt", b"K\6Nt", "two storages under the key"),
        (b"\7" + bytes(7), b"\6" + bytes(7), "6 elements for 28 bytes"),
        (b"]q\0", b"]q\0X\1\0\0\0aa", "not the data of the tensors that it names"),
    ],
)
def test_a_file_of_the_old_format_that_lies_is_refused(old, new, words):
    """The sizes of its storages stand in it once for each tensor, and by the data."""
    w = torch.arange(7.0)
    tree = {"v": w[:5], "w": w}
    torch.save(tree, "old.pt", _use_new_zipfile_serialization=False)
    with open("old.pt", "rb") as file:
        write("lies.pt", file.read().replace(old, new, 1))
    refused(FileError, ("lies.pt", words), sd.load, "lies.pt")


def test_files_of_the_old_format_have_views_of_storages():
    """The first versions wrote where in a storage that of a tensor lies."""
    w = torch.arange(7.0)
    tree = {"v": w[:3], "w": w[:3]}
    torch.save(tree, "new.pt", _use_new_zipfile_serialization=False)
    with open("new.pt", "rb") as file:
        whole = file.read()
    write("old.pt", whole.replace(b"K\7Nt", b"K\7X\1\0\0\0aK\2K\3\x87t"))
    back = sd.load("old.pt")
    assert back["v"].tolist() == torch.load("old.pt")["v"].tolist() == [2, 3, 4]
    assert sd.ties(back) == [[("v",), ("w",)]]
    for lie, words in (
        (b"X\1\0\0\0aK\5K\3", "a view of 3 elements at 5"),
        (b"X\1\0\0\0aK\2J" + b"\xff" * 4, "a view of -1 elements at 2"),
        (b")K\2K\3", "a view of a storage under a tuple"),
        (b"X\1\0\0\0aK\2K\2", "beyond the 2 elements of its storage"),
    ):
        write("lies.pt", whole.replace(b"K\7Nt", b"K\7" + lie + b"\x87t"))
        refused(FileError, ("lies.pt", words), sd.load, "lies.pt")


DEEP_IN = [
    ("a.pt", "sdtree.io.pickles.rebuilding.Rebuilder.sparse"),
    ("old.pt", "sdtree.io.pickles.rebuilding.Rebuilder.sparse"),
    ("a.pt", "sdtree.io.pt.file.Archive"),
    ("old.pt", "sdtree.io.pt.file.OldStorages"),
    ("a.safetensors", "sdtree.io.safetensors.file.unpack"),
    ("a", "sdtree.io.dcp.document.unpack"),
    ("a", "sdtree.io.dcp.document.load_shape"),
    ("a", "sdtree.io.dcp.saved._checked"),
]
"""What is called for files of a name, however deep in what looks for damage."""


@pytest.mark.parametrize(("name", "place"), DEEP_IN)
@pytest.mark.parametrize("mmap", [True, False])
def test_no_memory_and_a_broken_disk_are_no_damage(name, place, mmap, monkeypatch):
    """Such an error is raised as it is; it is not swallowed, and no file is blamed."""
    is_of_torch = name.endswith("pt")
    tree = {"w": W} | ({"s": W.to_sparse()} if is_of_torch else {})
    if name == "old.pt":
        torch.save(tree, name, _use_new_zipfile_serialization=False)
    else:
        sd.save(tree, name)
    assert sd.equal(sd.load(name, mmap=mmap), tree)
    errors = [MemoryError("none is left")]
    errors += [OSError(5, "Input/output error")] * (".pt.file" in place)

    def fail(*_, **__):
        raise error

    for error in errors:
        monkeypatch.setattr(place, fail)
        with pytest.raises(type(error)) as caught:
            sd.load(name, mmap=mmap)
        assert caught.value is error


THIRD = {"spec": {"type": "dict", "keys": ["a", "b", "c"]}}
"""A spec with a leaf more than the file has tensors."""


def tampered(version=2, **changes):
    """Return a file whose metadata says something else; version 1 is of earlier."""
    import json

    from safetensors.torch import save_file

    first = {"places": {}, "strides": {}}
    document = {
        "version": version,
        "spec": {"type": "dict", "keys": ["a", "b"]},
        "plain": {},
        "kinds": {},
        **(first if version == 1 else {"aliases": {}, "storages": []}),
    }
    metadata = {"sdtree": json.dumps(document | changes)}
    save_file({"a": W, "b": torch.ones(3)}, "a.safetensors", metadata=metadata)
    return "a.safetensors"


@pytest.mark.parametrize("version", [1, 2])
def test_untampered_metadata_is_fine(version):
    assert sd.equal(sd.load(tampered(version)), {"a": W, "b": torch.ones(3)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, ("version 3", "upgrade")),
        ({"version": [3]}, ("version [3]", "upgrade")),
        ({"spec": {"type": "list", "size": 10**9}}, ("more leaves",)),
        ({"spec": {"type": "dict", "keys": ["a", "c"]}}, ("missing: 'c'", "'b'")),
        ({"spec": {"type": "dict", "keys": ["a", "a"]}}, ("damaged",)),
        ({"spec": {"type": "dict", "keys": [["a"], "b"]}}, ("damaged",)),
        ({"spec": []}, ("damaged",)),
        ({"plain": {"x": 1}}, ("damaged",)),
        ({"plain": {"7": 1}}, ("damaged",)),
        ({**THIRD, "plain": {"2": {"module": "os"}}}, ("damaged",)),
        ({**THIRD, "plain": {"2": {"tuple": 3}}}, ("damaged",)),
        ({**THIRD, "plain": {"2": {"numpy": ["O", ""]}}}, ("damaged",)),
        ({"kinds": {"0": {"ndarray": ["O", [], True]}}}, ("damaged",)),
        ({"kinds": {"0": {"Evil": None}}}, ("damaged",)),
        ({**THIRD, "aliases": {"2": 2}}, ("places leaves",)),
        ({**THIRD, "aliases": {"2": 9}}, ("places leaves",)),
        ({**THIRD, "aliases": {"2": "0"}}, ("places leaves",)),
        ({"storages": [[[0, 0, [1]], [0, 0, [1]]]]}, ("places leaves",)),
        ({"storages": [[[0, -4, [1]]]]}, ("nowhere",)),
        ({"storages": [[[0, 0, [-1]]]]}, ("nowhere",)),
        ({"storages": [[[0, 0, [1.5]]]]}, ("nowhere",)),
        ({"storages": [[[0, 10**15, [1]], [1, 0, [1]]]]}, ("spreads few bytes",)),
        ({"storages": [[[0, 0, [10**30]]]]}, ("spreads few bytes",)),
        ({"storages": [[]]}, ("damaged",)),
        ({"version": 1, "places": {"0": ["c"]}}, ("does not fit",)),
        (
            {"version": 1, "places": {"0": ["a", 0, [9], [1], {"dtype": "int8"}]}},
            ("beyond the end",),
        ),
        (
            {"version": 1, "places": {"0": ["a", 4, [2], [1], {"dtype": "float32"}]}},
            ("beyond",),
        ),
        (
            {"version": 1, "places": {"0": ["a", 0, [2**50], [1], {"dtype": "int8"}]}},
            ("beyond",),
        ),
        (
            {"version": 1, "places": {"0": ["a", 2, [1], [1], {"dtype": "float32"}]}},
            ("askew",),
        ),
        (
            {"version": 1, "places": {"0": ["a", -4, [1], [1], {"dtype": "int8"}]}},
            ("nowhere",),
        ),
        (
            {"version": 1, "places": {"0": ["a", 0, [1], [1], {"dtype": "load"}]}},
            ("no dtype",),
        ),
        ({"version": 1, "strides": {"a": [-1]}}, ("nowhere",)),
        ({"version": 1, "strides": {"a": [1, 1]}}, ("do not fit",)),
        ({"version": 1, "strides": {"a": [10**9]}}, ("spreads few bytes",)),
    ],
)
def test_tampered_metadata_is_refused(changes, words):
    path, told = tampered(**changes), ("a.safetensors", *words)
    refused(FileError, told, sd.load, path)
    refused(FileError, told, convert_file, path, "b.safetensors", sd.copy())
