"""The benchmarks run; how fast is for them to say, and no test depends on it."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_every_row_is_printed_on_tiny_trees():
    command = [sys.executable, str(BENCHMARKS), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["work", "torch", "ours", "ratio"]
    assert len(rows) >= 12
    assert all(" yes " in row or " NO " in row for row in rows)
