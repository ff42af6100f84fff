"""The pages that people read, what they claim, and what comes of it when it is run.

A page claims that a block of Python prints the ``text`` below it, and that a ``$`` of a
``console`` prints the lines behind it. Scripts for ranks are ``py`` blocks whose first
line is their name, and run where a ``$ torchrun`` names them.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from sdtree.__main__ import main

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
ENOUGH = 200
"""Seconds after which ranks that are still at it hang."""


class Claim(NamedTuple):
    """A block of Python, a script or a command, and what it is said to print."""

    code: str
    printed: str
    language: str


def pages() -> list[Path]:
    """Return the pages that claim something."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += sorted((ROOT / "docs").rglob("*.md"))
    built = ROOT / "docs" / "_build"
    found = [page for page in found if built not in page.parents and claims_of(page)]
    return [page for page in found if HAS_HUB or not writes_shards(page)]


HAS_HUB = find_spec("huggingface_hub") is not None


def writes_shards(page: Path) -> bool:
    """Return whether a page shows what takes the extra ``hf``."""
    shown = "\n".join(claim.code for claim in claims_of(page))
    return "shard_bytes=" in shown or "--shard-size" in shown


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def claims_of(page: Path) -> list[Claim]:
    return list(claims(page.read_text()))


def claims(page: str) -> Iterator[Claim]:
    """Yield what a page claims: Python before ``text``, and ``$`` in ``console``."""
    blocks = FENCE.findall(page)
    for (language, code), (after, output) in pairwise([*blocks, ("", "")]):
        if language in ("python", "py"):
            yield Claim(code, output if after == "text" else "", language)
        elif language == "console":
            for command, output in COMMAND.findall(code):
                program = command.partition(" ")[0]
                assert program in ("sdtree", "torchrun"), f"{command} is for a sh block"
                yield Claim(command, output, program)


def run(claim: Claim, names: dict[str, object]) -> str:
    """Return what a claim of one process prints when it is put to the test."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        if claim.language == "sdtree":
            main(shlex.split(claim.code)[1:])
        else:
            exec(compile(claim.code, "<page>", "exec"), names)
    return out.getvalue()


# -- ranks -------------------------------------------------------------------------

RANKS = 2


class Script(NamedTuple):
    """A script of a page, and the folder that it runs in."""

    name: str
    folder: str


def script_of(claim: Claim) -> str:
    """Return the name of the script that a claim of ranks runs.

    That is all that the command says, so that all pages can share one start of ranks.
    """
    command, name = claim.code.rsplit(" ", 1)
    assert command == f"torchrun --nproc-per-node {RANKS}", claim.code
    return name


def write_scripts(page: Path, folder: Path) -> list[Script]:
    """Write the scripts of a page to a folder, and return them as they are to run."""
    written: set[str] = set()
    found: list[Script] = []
    for claim in claims_of(page):
        if claim.language == "py":
            name = claim.code.partition("\n")[0].removeprefix("# ")
            (folder / name).write_text(claim.code)
            written.add(name)
        elif claim.language == "torchrun":
            found.append(Script(script_of(claim), str(folder)))
    assert written == {script.name for script in found}, f"{name_of(page)}: not all run"
    return found


def run_on_ranks(scripts: list[Script]) -> list[str]:
    """Return what each script prints, one after the other in one start of ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        str(RANKS),
        str(Path(__file__).with_name("play.py")),
    ]
    done = subprocess.run(
        [*command, json.dumps(scripts)],
        capture_output=True,
        timeout=ENOUGH,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
