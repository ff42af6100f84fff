"""What becomes of a file, found out in a process of its own that is watched.

A crash, a hang, memory beyond what small files may take, an import: each is a failure.
"""

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

SECONDS = 20
"""How long a file may take that has a few kilobytes."""

MORE_BYTES = 2**30
"""How much memory the process may claim beside what it begins with."""

CANARIES = {"this", "antigravity", "turtle", "idlelib", "tkinter"}
"""Modules that nothing imports unless a file has it imported."""


class Watched:
    """A process that looks at one file after the other; another takes over if it dies.

    It begins as a copy of this one, so it knows what this one has imported.
    """

    def __init__(self, look: Callable[[Path], object]) -> None:
        self.look = look
        self.start()

    def start(self) -> None:
        asked, self.ask = os.pipe()
        self.told, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.ask)
            os.close(self.told)
            try:
                self.serve(asked, tell)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(tell)

    def __call__(self, path: Path) -> str:
        """Return how it ended: 'done', 'Error: message', or what was wrong with it."""
        os.write(self.ask, os.fsencode(path))
        told = os.read(self.told, 4000).decode()
        if told:
            return told
        code = self.stop()
        self.start()
        return f"ended by {signal.Signals(-code).name}" if code else "ended"

    def stop(self) -> int:
        """Return the exit code of the process, negative if a signal ended it."""
        os.close(self.ask)
        os.close(self.told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def serve(self, asked: int, tell: int) -> None:
        faulthandler.disable()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        while path := os.fsdecode(os.read(asked, 4000)):
            signal.alarm(SECONDS)
            told = self.outcome(Path(path))
            signal.alarm(0)
            os.write(tell, told.encode(errors="replace")[:4000])

    def outcome(self, path: Path) -> str:
        try:
            self.look(path)
            told = "done"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        imported = CANARIES.intersection(sys.modules)
        return f"imported {imported}" if imported else told
