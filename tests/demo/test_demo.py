"""The demo: it runs, it does what it says, and what it prints is true."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdtree as sd
from sdtree.__main__ import main
from sdtree.demo import Transformer, loss_of, train
from sdtree.demo.measuring import torchs
from sdtree.demo.play import IN_PYTHON
from sdtree.demo.story import ALONE, SCRIPT, TOGETHER

SECTION = re.compile(r"^-- \d+\. ", re.MULTILINE)
PYTHON = re.compile(rf"^{IN_PYTHON}\n(.*?)\n$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ sdtree (.*)$", re.MULTILINE)
TIMES = re.compile(r"^(\w+) +[\d.]+ ms +[\d.]+ ms$", re.MULTILINE)
ENOUGH = 120


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return what a demo on two ranks prints, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    command = [sys.executable, "-m", "sdtree", "demo", "--ranks", "2", "--dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH)
    assert (done.returncode, done.stderr) == (0, "")
    return SECTION.split(done.stdout)[1:], folder


def test_what_the_demo_prints_is_true(demo, tmp_path, monkeypatch, capsys):
    """The printed lines and commands, run anew, print and write the same."""
    sections, folder = demo
    monkeypatch.chdir(tmp_path)
    names = {}
    assert len(sections) == len(ALONE) + len(TOGETHER)
    for section in sections[: len(ALONE)]:
        [lines] = PYTHON.findall(section)
        commands = COMMAND.findall(section)
        printed = []
        for command in commands:
            main(shlex.split(command))
            printed.append(capsys.readouterr().out)
        exec(lines, names)
        printed.append(capsys.readouterr().out)
        if "show" in section.partition("$ sdtree ")[2].partition(" ")[0]:
            # In a pipe the command prints lines, Python a table, of the same leaves.
            by_command, by_python = printed
            leaves = [line.split("\t")[0] for line in by_command.splitlines()]
            rows = by_python.partition("\n\n")[0].splitlines()[1:]
            assert leaves == [row.split()[0] for row in rows]
            printed = [by_command]
        assert all(text in section for text in printed)
        assert len(set(printed)) == 1 or not commands
        _assert_same_files(folder, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def untimed(text: str) -> str:
    """Return lines without how long anything took, and without what is blank."""
    return re.sub(r" +", " ", re.sub(r"\n+", "\n", TIMES.sub(r"\1 ms", text)))


def _assert_same_files(folder: Path, again: Path):
    for path in again.iterdir():
        assert not sd.diff(sd.load(folder / path.name), sd.load(path)), path.name


def test_the_demo_shows_a_tie_and_an_equal_loss(demo):
    sections, folder = demo
    out = "".join(sections)
    assert "no differences" in out
    before, after = map(
        float, re.search(r"loss ([\d.]+) before, ([\d.]+) after", out).groups()
    )
    assert after < before / 2
    trained, reloaded = re.search(r"trained ([\d.]+), reloaded ([\d.]+)", out).groups()
    assert trained == reloaded
    assert len(sd.ties(sd.load(folder / "checkpoint.safetensors")["model"])) == 1


def test_ranks_go_on_from_the_file_with_the_same_losses(demo):
    """What moves is the shards of rank 1: once to rank 0, and whole to both."""
    gathered, taken_over, going_on, timed = demo[0][-4:]
    one, other = (rows(text) for text in (gathered, taken_over))
    assert [row[1:2] + row[4:5] for row in one] == [["0", "1"], ["1", "0"]]
    assert [row[1:2] + row[4:5] for row in other] == [["1", "0"], ["0", "1"]]
    losses = re.findall(
        r"^step \d+: loss (.*), by way of the file (.*)$", going_on, re.M
    )
    assert len(losses) == 4
    assert all(loss == by_file for loss, by_file in losses)
    assert TIMES.findall(timed) == ["gather", "broadcast"]
    assert re.search("^ +sdtree +torch$", timed, re.MULTILINE)


def rows(section: str) -> list[list[str]]:
    """Return the words of each row of the table of what moved."""
    _, _, table = section.partition("\nrank  sent ")
    return [line.split() for line in table.splitlines()[1:] if line]


def test_the_file_of_the_ranks_holds_a_training_without_shards(demo):
    loaded = sd.load(demo[1] / "sharded.safetensors")
    model, optimizer = train(1)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    assert not sd.diff(state, loaded, values=False)
    model.load_state_dict(loaded["model"])
    assert loss_of(model) < loss_of(Transformer())


def test_one_rank_is_enough_and_its_lines_are_a_script(tmp_path, monkeypatch, capsys):
    """The lines of the second part, run anew, print and write the same."""
    assert main(["demo", "--ranks", "1", "--dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    sections = SECTION.split(out)[-len(TOGETHER) :]
    script = (tmp_path / SCRIPT).read_text()
    assert script == "".join(f"{PYTHON.findall(text)[0]}\n" for text in sections)
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        exec(script, {})
    finally:
        torch.distributed.destroy_process_group()
    printed = "".join(PYTHON.split(text)[-1] for text in sections)
    assert untimed(capsys.readouterr().out) == untimed(printed).lstrip()
    _assert_same_files(tmp_path, again)
    assert [path.name for path in again.iterdir()] == ["sharded.safetensors"]


def test_without_a_rank_there_is_no_demo(capsys):
    assert main(["demo", "--ranks", "0"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--ranks" in err


def test_a_torch_that_has_no_such_function_has_no_time():
    assert torchs("_gather_state_dict", {}) is not None
    assert torchs("_gone") is None


def test_training_is_the_same_each_time_and_leaves_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = train(3)[0], train(3)[0]
    assert torch.equal(torch.rand(3), expected)
    assert sd.equal(first.state_dict(), second.state_dict())
    assert loss_of(first) == loss_of(second)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    """The optimizer's state, through a file, makes the very same next step."""
    model, optimizer = train(3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    sd.save(state, tmp_path / "state.safetensors")
    loaded = sd.load(tmp_path / "state.safetensors")
    again = Transformer()
    again.load_state_dict(loaded["model"])
    resumed = torch.optim.AdamW(again.parameters())
    resumed.load_state_dict(loaded["optimizer"])
    for each, steps in ((model, optimizer), (again, resumed)):
        steps.zero_grad()
        sum(p.square().sum() for p in each.parameters()).backward()
        steps.step()
    assert sd.equal(model.state_dict(), again.state_dict())
