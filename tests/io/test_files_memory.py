"""Conversions stream: they hold a window or two, and read only what they keep."""

import pytest
import torch
from file_memory import MIB, measured, reads_the_peak

import sdtree as sd

LEAVES, LEAF = 16, 8 * MIB
"""The source has 128 MiB beside ties; a window holds four leaves."""

pytestmark = reads_the_peak

CONVERSIONS = """
    sd.save({"w": torch.ones(2)}, target)
    convert_file(target, target, sd.cast(dtype=torch.bfloat16))
    print(peak(sd.identity))
    print(peak(sd.cast(dtype=torch.bfloat16)))
    print(peak(sd.map(lambda t: t * 2)))
    by_window.releaser = lambda ts: lambda: None
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
    target = tmp_path / f"target.{to}"
    whole, halved, mapped, one, everything = measured(CONVERSIONS, source, target)
    assert whole < 32 * MIB
    assert halved < 2 * (32 + 16 + 16) * MIB  # turned leaves are written once more
    assert mapped < 240 * MIB  # where source and result together have 320
    assert one < 2 * LEAF + 16 * MIB
    assert everything > LEAVES * LEAF
