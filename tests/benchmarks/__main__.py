"""Runs the benchmarks: ``python tests/benchmarks --help`` tells how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
