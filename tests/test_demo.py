"""The demo: it runs, it does what it says, and what it prints is true."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import sdtree as sd
from sdtree.__main__ import main
from sdtree.demo import IN_PYTHON, STEPS, Transformer, loss_of, train

PYTHON = re.compile(rf"^{IN_PYTHON}\n(.*?)\n$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ sdtree (.*)$", re.MULTILINE)


@pytest.fixture
def demo(tmp_path, capsys):
    """Return what a demo prints in a folder of its own."""
    assert main(["demo", "--dir", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out, tmp_path / "new"


def test_what_the_demo_prints_is_true(demo, tmp_path, monkeypatch, capsys):
    """The printed lines and commands, run anew, print and write the same."""
    out, folder = demo
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    names = {}
    sections = re.split(r"^-- \d+\. ", out, flags=re.MULTILINE)[1:]
    assert len(sections) == len(STEPS)
    for section in sections:
        [lines] = PYTHON.findall(section)
        commands = COMMAND.findall(section)
        printed = []
        for command in commands:
            main(shlex.split(command))
            printed.append(capsys.readouterr().out)
        exec(lines, names)
        printed.append(capsys.readouterr().out)
        assert all(text in section for text in printed)
        assert len(set(printed)) == 1 or not commands
        _assert_same_files(folder, again)
    assert len(list(folder.iterdir())) == 4


def _assert_same_files(folder: Path, again: Path):
    for path in again.iterdir():
        assert not sd.diff(sd.load(folder / path.name), sd.load(path)), path.name


def test_the_demo_shows_a_tie_and_an_equal_loss(demo):
    out, folder = demo
    assert "no differences" in out
    before, after = map(
        float, re.search(r"loss ([\d.]+) before, ([\d.]+) after", out).groups()
    )
    assert after < before / 2
    trained, reloaded = re.search(r"trained ([\d.]+), reloaded ([\d.]+)", out).groups()
    assert trained == reloaded
    assert len(sd.ties(sd.load(folder / "checkpoint.safetensors")["model"])) == 1


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
