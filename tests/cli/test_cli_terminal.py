"""The command line as a process: in a terminal, in a pipe, and without its extras."""

import fcntl
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios

import pytest
import torch

import sdtree as sd
from sdtree.__main__ import main

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
ERASE_LINE = "\x1b[2K"
SDTREE = (sys.executable, "-m", "sdtree")
LONG = "model.encoder.layers.{}.attention.output.LayerNorm.weight"


@pytest.fixture
def folder(tmp_path):
    """Return a folder that holds ``a.pt``, with long names, a tie and plain values."""
    w = torch.ones(300, 2)
    state = {LONG.format(i): w[i] for i in range(300)} | {"note": "x" * 200, "step": 3}
    sd.save(state, tmp_path / "a.pt")
    return tmp_path


def in_terminal(folder, columns, *words, command=SDTREE, code=0):
    """Return what a command prints in a terminal, stdout and stderr together."""
    controller, terminal = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    env |= {"TERM": "xterm-256color"}
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen([*command, *words], cwd=folder, env=env, **streams)
    os.close(terminal)
    found = bytearray()
    try:
        while part := os.read(controller, 4096):
            found += part
    except OSError:
        pass  # the other end is closed
    assert process.wait() == code
    os.close(controller)
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [40, 80, 140])
def test_a_tree_fits_a_terminal(folder, width):
    """What repeats is in one line; names go on in the next, and values are there."""
    text = ANSI.sub("", in_terminal(folder, width, "show", "a.pt"))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 12
    assert "0…299" in text
    assert re.search(r"^step .* 3 *$", text, re.MULTILINE)


def test_all_gives_each_leaf_a_line(folder):
    text = ANSI.sub("", in_terminal(folder, 140, "show", "a.pt", "--all"))
    assert all(re.search(rf"─ {i}\.attention", text) for i in range(300))
    text = ANSI.sub("", in_terminal(folder, 140, "show", "a.pt", "--depth", "1"))
    assert re.search(r"^model\..*.300 .* 600 .* 2\.3 KiB", text, re.MULTILINE)


def test_a_terminal_tells_what_stands_beside_the_tensors(folder):
    sd.save({"w": torch.ones(2)}, folder / "b.safetensors", metadata={"by": "us"})
    text = ANSI.sub("", in_terminal(folder, 80, "show", "b.safetensors", "a.pt"))
    assert re.search(r"^b\.safetensors\b", text)
    assert re.search(r"^by +us", text, re.MULTILINE)
    assert re.search(r"^a\.pt\b", text, re.MULTILINE)


@pytest.mark.parametrize("width", [40, 100])
def test_differences_are_folded_in_a_terminal(folder, width):
    a = {f"layers.{i}.w": torch.ones(4) for i in range(30)}
    sd.save(a, folder / "a.pt")
    sd.save(sd.map(lambda t: t + 1, a), folder / "b.pt")
    words = ("diff", "a.pt", "b.pt", "--values")
    lines = ANSI.sub("", in_terminal(folder, width, *words, code=1)).splitlines()
    assert max(map(len, lines)) <= width
    assert any(re.search(r"layers\.0…29\.w .30 +value", line) for line in lines)
    assert lines[-1] == "30 differences"


def test_renames_are_folded_in_a_terminal(folder):
    """The old name is where the branch is, the new one told once for all layers."""
    a = {f"model.layers.{i}.mlp.up.w": torch.rand(4) for i in range(30)}
    sd.save(a, folder / "a.pt")
    rename = ("model.layers.*.mlp.**", "net.blocks.*.ffn.**")
    sd.save(sd.rename(a, rename), folder / "b.pt")
    words = ("diff", "a.pt", "b.pt", "--values")
    lines = ANSI.sub("", in_terminal(folder, 100, *words, code=1)).splitlines()
    told = r"model\.layers\.0…29\.mlp\.up\.w .30 +name → net\.blocks\.0…29\.ffn\.up\.w"
    assert any(re.match(told, line) for line in lines), lines
    assert lines[-1] == "30 differences"


@pytest.mark.parametrize("width", [24, 40])
def test_a_name_that_wraps_keeps_its_guide(folder, width):
    """Each line begins as the one above goes on, and the pieces make the names."""
    names = [f"rather_long_layer_norm_{k}" * 2 for k in "abc"]
    sd.save({"net": dict.fromkeys(names, 1)}, folder / "a.pt")
    text = ANSI.sub("", in_terminal(folder, width, "show", "a.pt"))
    assert max(map(len, text.splitlines())) <= width
    guided = re.findall(r"^([├└│ ] {2}|├─ |└─ )(\S*)", text, re.MULTILINE)
    assert {guide for guide, _ in guided} == {"├─ ", "│  ", "└─ ", "   "}
    assert "".join(piece for _, piece in guided) == "".join(names)


def test_short_work_draws_no_progress_bar(folder):
    """One line tells what was done."""
    words = ("convert", "a.pt", "b.safetensors", "--drop", "note")
    out = in_terminal(folder, 80, *words)
    told = (
        r"b\.safetensors: 301 leaves, 2\.3 KiB, [\d.]+ s; 1 leaf left out: note \(1\)\n"
    )
    assert re.fullmatch(told, out)


def test_long_work_draws_a_bar_and_wipes_it(folder):
    code = (
        "from sdtree.cli import console; console.LONG = -1;"
        "from sdtree.__main__ import main; main()"
    )
    command = (sys.executable, "-c", code, "convert", "a.pt", "b.safetensors")
    out = in_terminal(folder, 80, command=command)
    assert "writing b.safetensors" in out
    told = r"b\.safetensors: 302 leaves, 2\.3 KiB, [\d.]+ s\n"
    assert re.search(f"{re.escape(ERASE_LINE)}{told}$", out)


def piped(folder, *words, **options):
    options = {"cwd": folder, "capture_output": True, "text": True} | options
    return subprocess.run([*SDTREE, *words], **options, check=False)


def test_a_pipe_gets_whole_lines_of_plain_text(folder):
    done = piped(folder, "show", "a.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert not ANSI.search(done.stdout)
    names = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert names == sd.names(sd.load(folder / "a.pt"))


@pytest.mark.parametrize("command", ["show long.pt | head -n 1", "--version | true"])
def test_a_reader_that_stops_early_is_no_error(folder, command):
    """Be there more to write than a pipe holds, or nobody to read it at all."""
    sd.save({LONG.format(i): i for i in range(3000)}, folder / "long.pt")
    done = subprocess.run(
        f"{' '.join(SDTREE)} {command}",
        shell=True,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_a_shell_completes_options_and_their_values(folder):
    asked = {"_SDTREE_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    asked |= {"COMP_WORDS": "sdtree diff --sort "}
    done = piped(folder, env=os.environ | asked)
    assert done.returncode == 0
    assert done.stdout.split() == ["max_abs", "norm", "rel", "count", "share"]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_tells_how_to_get_it(folder, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['sdtree', 'show'];"
        "import runpy; runpy.run_module('sdtree', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'sdtree[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_tensor_data_is_read(tmp_path, monkeypatch, capsys):
    """show and diff of a file of 2 GiB leave the memory as it was."""
    monkeypatch.chdir(tmp_path)
    size = 2**31
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"w": entry}).encode()
    with open("huge.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    before = most_memory()
    assert main(["show", "huge.safetensors"]) == 0
    assert str(size) in capsys.readouterr().out
    assert main(["diff", "huge.safetensors", "huge.safetensors"]) == 0
    assert most_memory() - before < size // 4


def most_memory():
    """Return how many bytes this process has had in memory at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
