"""Playing the story: each step is told, and then done."""

from __future__ import annotations

import shlex
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from sdtree.demo.ranks import ranks
from sdtree.demo.story import ALONE, SCRIPT, TOGETHER, Step

IN_PYTHON = "# in Python"

Run = Callable[[Sequence[str]], int]
"""Runs the command line with these arguments and returns its exit code."""


def play(folder: Path | None, size: int, run: Run) -> None:
    """Run all steps in a folder, telling each, its command and its lines of Python.

    The first of the ranks does what needs one process, and it alone prints and writes.
    """
    with ranks(size, play_together) as (rank, meet):
        if rank:
            meet()
            play_together()
            return
        folder = folder or Path(tempfile.mkdtemp(prefix="sdtree-demo-"))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"cd {shlex.quote(str(folder.resolve()))}")
        with chdir(folder):
            play_alone(run)
            Path(SCRIPT).write_text("".join(step.python for step in TOGETHER))
            meet()
            play_together()


def play_alone(run: Run) -> None:
    """Do the steps that one process does."""
    names: dict[str, Any] = {}
    for number, step in enumerate(ALONE, 1):
        _tell(number, step)
        if step.command:
            _by_command(step, run)
        else:
            _by_python(step, names)


def play_together() -> None:
    """Do the steps that all ranks do, as each of them calls."""
    from sdtree.demo.sharding import join  # this takes a while, and the story can begin

    join()
    names: dict[str, Any] = {}
    for number, step in enumerate(TOGETHER, 1 + len(ALONE)):
        _tell(number, step)
        _by_python(step, names)


def _tell(number: int, step: Step) -> None:
    print(f"\n{textwrap.fill(f'-- {number}. {step.title}', 80)}\n", flush=True)


def _by_command(step: Step, run: Run) -> None:
    """Do a step by its command, and tell the lines of Python."""
    print(f"$ {step.command}", flush=True)
    run(shlex.split(step.command)[1:])
    print(f"\n{IN_PYTHON}\n{step.python}", end="")


def _by_python(step: Step, names: dict[str, Any]) -> None:
    """Do a step by its lines of Python."""
    print(f"{IN_PYTHON}\n{step.python}", flush=True)
    exec(step.python, names)
