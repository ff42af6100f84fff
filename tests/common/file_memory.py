"""How memory grows in a process of its own that converts files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20

reads_the_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc"
)

PEAK = """if True:
    import sys
    import torch
    import sdtree as sd
    from sdtree.io import convert_file
    from sdtree.io.converting import by_window

    def status(key):
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(key))
        return int(line.split()[1]) * 1024

    def peak(transform):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = status("VmRSS")
        convert_file(source, target, transform)
        return status("VmHWM") - before

    source, target = sys.argv[1:]
"""


def measured(lines, source, target):
    """Return the numbers that a program prints, which may ask for the ``peak``.

    The holes that an allocator leaves between what it has given back are not ours.
    """
    command = (sys.executable, "-c", PEAK + lines, source, target)
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return [*map(int, run.stdout.split())]
