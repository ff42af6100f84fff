"""Conversions stream: they hold a window or two, and read only what they keep."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdtree as sd

MIB = 2**20
LEAVES, LEAF = 16, 8 * MIB
"""The source has 128 MiB beside ties; a window holds four leaves."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc"
)

MEASURE = """if True:
    import sys
    import torch
    import sdtree as sd
    from sdtree.io import convert_file, writing

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
    sd.save({"w": torch.ones(2)}, target)
    convert_file(target, target, sd.cast(dtype=torch.bfloat16))
    print(peak(sd.identity))
    print(peak(sd.cast(dtype=torch.bfloat16)))
    print(peak(sd.map(lambda t: t * 2)))
    writing.releaser = lambda ts: lambda: None
    print(peak(sd.select("w3")))
    print(peak(sd.identity))
"""


@pytest.mark.parametrize("to", ["pt", "safetensors"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_memory_stays_near_a_window(tmp_path, suffix, to):
    """However large a file is, a conversion takes two windows, and reads what it keeps.

    What is read shows where the pages that were read are not given back. Half of the
    leaves are views of others, which a safetensors file has beside them.
    """
    source = tmp_path / f"source.{suffix}"
    tree = {f"w{i}": torch.ones(1024, LEAF // 4096) for i in range(LEAVES)}
    tree |= {f"turned{i}": tree[f"w{i}"].t() for i in range(0, LEAVES, 2)}
    sd.save(tree, source)
    command = (sys.executable, "-c", MEASURE, source, tmp_path / f"target.{to}")
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    whole, halved, mapped, one, everything = map(int, run.stdout.split())
    assert whole < 32 * MIB
    assert halved < 2 * (32 + 16 + 16) * MIB  # turned leaves are written once more
    assert mapped < 240 * MIB  # where source and result together have 320
    assert one < 2 * LEAF + 16 * MIB
    assert everything > LEAVES * LEAF
