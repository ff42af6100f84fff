"""What README and docs show is true: each block runs and prints what it says."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from sdtree.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


class Claim(NamedTuple):
    """A block of Python, a script or a command, and what it is said to print."""

    code: str
    printed: str
    language: str


def claims(page):
    """Yield what a page claims: Python before ``text``, and ``$`` in ``console``."""
    blocks = FENCE.findall(page)
    for (language, code), (after, output) in pairwise([*blocks, ("", "")]):
        if language in ("python", "py"):
            yield Claim(code, output if after == "text" else "", language)
        elif language == "console":
            for command, output in COMMAND.findall(code):
                yield Claim(command, output, command.partition(" ")[0])


def printed(claim, names):
    """Return what a claim prints when it is put to the test.

    A script whose first line tells its name is written for a command to run; other
    code that is not run here must at least be Python.
    """
    if claim.language == "py":
        compile(claim.code, "<page>", "exec")
        name = claim.code.partition("\n")[0].removeprefix("# ")
        if name.endswith(".py"):
            Path(name).write_text(claim.code)
        return ""
    if claim.language == "torchrun":
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        run += shlex.split(claim.code)[1:]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(run, capture_output=True, timeout=120, env=env, text=True)
        assert not done.returncode, done.stderr
        return done.stdout
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        if claim.language == "sdtree":
            main(shlex.split(claim.code)[1:])
        else:
            exec(compile(claim.code, "<page>", "exec"), names)
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_tells_the_truth(page, tmp_path, monkeypatch):
    """Each block prints what stands below it, one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    found = list(claims(page.read_text()))
    assert found
    for claim in found:
        assert printed(claim, names) == claim.printed, claim.code


def test_readme_has_the_two_commands():
    """One line does the main job on a fresh machine, and one passes the tests."""
    readme = (ROOT / "README.md").read_text()
    commands = [code for language, code in FENCE.findall(readme) if language == "bash"]
    assert commands == [
        "pip install 'torch==2.13.*' -e '.[cli]' && sdtree demo\n",
        "pip install 'torch==2.13.*' -e '.[test]' && pytest\n",
    ]
