"""Goes on where the tests stop: ``python -m tests.fuzz --minutes 10 --seed 1``.

Draws what a target draws and checks it, in children that are watched: a crash, a hang,
memory that grows and modules that are imported are failures as well. The smallest
failing example is printed as a test, and the exit code is 1. With ``--log FILE`` each
run adds a line to the file, and ends with the sum of all lines there. ``--ranks 4``
draws programs on so many ranks instead.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "common"))

MOST_SECONDS = 180
"""How long one example may take, on a machine that is busy."""

MOST_BYTES = 2 * 2**30
"""How much memory a child may gain."""

NEVER = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen")
NEVER += ("pty.spawn", "socket.connect", "webbrowser.open", "ctypes.dlopen")
"""What Python is not to do on behalf of a file: events of ``sys.addaudithook``."""

CANARIES = ("this", "antigravity", "turtle", "idlelib", "tkinter", "__main__")
"""Modules that nothing imports unless a file has it imported."""


@dataclass(frozen=True)
class Target:
    """What is drawn, by the name of its strategy, and what checks it."""

    strategy: str
    check: str
    forged: bool = True
    isolated: bool = False

    def load(self) -> tuple[Any, Callable[[Any], None]]:
        """Return the strategy and the check."""
        found = [_named(name) for name in (self.strategy, self.check)]
        return found[0](), found[1]


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


TARGETS = {
    "programs": Target("programs:programs", "running:check", False),
    "odd": Target("programs:odd_programs", "running:check_odd", False),
    "contacts": Target("worlds:worlds", "running:check_contact", False, True),
    "specs": Target("grammar_json:forged_specs", "forged:check_spec"),
    "pickles": Target("grammar_json:foreign_pickles", "forged:check_file"),
    "safetensors": Target("grammar_files:forged_safetensors", "forged:check_file"),
    "zips": Target("grammar_files:forged_zips", "forged:check_file"),
}


# -- a child -----------------------------------------------------------------------


class Board:
    """Memory that a child shares: how many examples it ran, and which it runs."""

    SIZE = 2**20

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.SIZE)

    def write(self, count: int, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")[: self.SIZE - 16]
        self.memory[:16] = struct.pack("QQ", count, len(data))
        self.memory[16 : 16 + len(data)] = data

    def read(self) -> tuple[int, str]:
        count, size = struct.unpack("QQ", self.memory[:16])
        return count, self.memory[16 : 16 + size].decode("utf-8", "replace")


def run_batch(target: Target, seed: int, board: Board, isolated: bool) -> str:
    """Return the smallest failure of a batch as text, empty if there is none.

    ``isolated``: each example runs in a child of its own, so that what kills it can be
    made smaller.
    """
    from hypothesis import given
    from hypothesis import seed as seeded
    from searching import search

    strategy, check = target.load()
    failure, count = [""], [0]
    if target.forged:
        check = _listening(check)

    def example_of(example: Any) -> None:
        count[0] += 1
        board.write(count[0], repr(example))
        try:
            if isolated or target.isolated:
                found = _in_child(lambda: _checked(check, example))
                assert not found, found
            else:
                check(example)
        except Exception:
            failure[0] = _script(target, seed, example, traceback.format_exc())
            raise

    try:
        search()(seeded(seed)(given(strategy)(example_of)))()
    except Exception:
        return failure[0] or traceback.format_exc()
    return ""


def _listening(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the check that fails, too, if Python does what it must not."""
    heard: list[str] = []

    def hear(event: str, args: tuple[Any, ...]) -> None:
        is_canary = event == "import" and str(args[0]).partition(".")[0] in CANARIES
        is_itself = args == (None,)  # a library that is the process itself
        if (event in NEVER and not is_itself) or is_canary:
            heard.append(f"{event} {args}")

    sys.addaudithook(hear)

    def listening(example: Any) -> None:
        heard.clear()
        check(example)
        assert not heard, heard

    return listening


def _checked(check: Callable[[Any], None], example: Any) -> str:
    try:
        check(example)
    except Exception:
        return traceback.format_exc()
    return ""


def _script(target: Target, seed: int, example: Any, error: str) -> str:
    module, _, name = target.check.partition(":")
    told = "".join(f"# {line}\n" for line in error.strip().splitlines()[-12:])
    imports = f"from {module} import {name}\n"
    if module == "running":
        imports += "from programs import Program\nfrom worlds import World\n"
    call = f"def test_found():\n    {name}({example!r})\n"
    return f"# seed {seed}\n{told}{imports}\n\n{call}"


# -- watching ----------------------------------------------------------------------


def _in_child(
    work: Callable[[], str], board: Board | None = None, limit: float = MOST_SECONDS
) -> str:
    """Return what work returns in a child, or what ended it.

    With a board the time limit holds for each example.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        try:
            text = work()
        except BaseException:
            text = traceback.format_exc()
        with os.fdopen(write, "w", errors="backslashreplace") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(write)
    reason = _watch(child, read, board, limit)
    with os.fdopen(read, errors="replace") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if reason or status:
        return f"{reason or f'ended by {_signal(status)}'}\n{text}"
    return text


def _signal(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit code {os.WEXITSTATUS(status)}"


def _watch(child: int, pipe: int, board: Board | None, limit: float) -> str:
    """Wait until a child ends, and end it if it hangs or grows; return why."""
    import select

    first, since, seen = _bytes_of(child), time.monotonic(), -1
    while not select.select([pipe], [], [], 0.1)[0]:
        count = board.read()[0] if board else 0
        if count != seen:
            seen, since = count, time.monotonic()
        grown = _bytes_of(child) - first
        reason = f"grew by {grown >> 20} MiB" if grown > MOST_BYTES else ""
        if time.monotonic() - since > limit:
            reason = f"hung for {limit} s"
        if reason:
            os.kill(child, signal.SIGUSR1)
            time.sleep(0.5)
            os.kill(child, signal.SIGKILL)
            return reason
    return ""


def _bytes_of(child: int) -> int:
    """Return the memory that a process has resident."""
    try:
        pages = Path(f"/proc/{child}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE


# -- the run -----------------------------------------------------------------------


def run(target: Target, seconds: float, seed: int) -> tuple[int, str]:
    """Return how many examples were run in a time, and the first failure."""
    end, total = time.monotonic() + seconds, 0
    target.load()
    for batch in itertools.count(seed * 1_000_000):
        if time.monotonic() >= end:
            break
        board = Board()
        found = _batch(target, batch, board, False)
        total += board.read()[0]
        if found and not found.startswith("# seed"):
            text = board.read()[1]
            found += f"\nat {text}\n\n{_batch(target, batch, board, True)}"
        if found:
            return total, found
    return total, ""


def _batch(target: Target, seed: int, board: Board, isolated: bool) -> str:
    return _in_child(lambda: run_batch(target, seed, board, isolated), board)


def _run(name: str, seconds: float, seed: int) -> tuple[int, str]:
    """Return what a run of a target comes to, or of programs on ranks."""
    if name in TARGETS:
        return run(TARGETS[name], seconds, seed)
    import fuzz_ranks

    return fuzz_ranks.run(int(name.split()[0]), seconds, seed)


def main() -> int:
    """Run the targets that are asked for; return 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = False
    targets = given.target or ["programs"]
    if given.ranks:
        targets = [f"{given.ranks} ranks"]
    for name in targets:
        seconds = given.minutes * 60 / len(targets)
        count, failure = _run(name, seconds, given.seed)
        failed |= bool(failure)
        print(f"{name}: {count} examples, {'one fails' if failure else 'none fails'}")
        print(failure, end="")
        if given.log:
            line = {"target": name, "seed": given.seed, "seconds": round(seconds)}
            line |= {"examples": count, "failure": failure}
            with given.log.open("a") as log:
                log.write(json.dumps(line) + "\n")
    if given.log:
        print(summary(given.log))
    return int(failed)


def summary(log: Path) -> str:
    """Return the sums over all runs that a log tells of."""
    sums: dict[str, list[float]] = {}
    for line in map(json.loads, log.read_text().splitlines()):
        mine = sums.setdefault(line["target"], [0, 0, 0, 0])
        for i, more in enumerate((1, line["examples"], line["seconds"] / 60)):
            mine[i] += more
        mine[3] += bool(line["failure"])
    return "\n".join(
        f"{name}: {runs} runs, {examples} examples, {minutes:.1f} minutes, "
        f"{failures} failures"
        for name, (runs, examples, minutes, failures) in sums.items()
    )


if __name__ == "__main__":
    sys.exit(main())
