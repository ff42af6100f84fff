"""What README and docs show is true: each block runs and prints what it says."""

import io
import re
import shlex
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
    """A block of Python or a command, and what it is said to print."""

    code: str
    printed: str
    is_command: bool


def claims(page):
    """Yield what a page claims: Python before ``text``, and ``$`` in ``console``."""
    blocks = FENCE.findall(page)
    for (language, code), (after, output) in pairwise([*blocks, ("", "")]):
        if language == "python":
            yield Claim(code, output if after == "text" else "", False)
        elif language == "console":
            for command, output in COMMAND.findall(code):
                yield Claim(command, output, True)


def printed(claim, names):
    """Return what a claim prints when it is put to the test."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        if claim.is_command:
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
