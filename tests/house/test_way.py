"""The way of a leaf is short: few modules, few calls between them, in one direction.

Counted where two ranks exchange a leaf, on the first of them, when all that is worked
out but once is known.
"""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from ranks import pool
from shards import me, shard, whole

import sdtree as sd

ROOT = f"{Path(sd.__file__).parent}/"


def gathers():
    tree = {"w": shard(whole(4, 2))}
    transform = sd.gather(ranks=0) | sd.cast(dtype=torch.half) | sd.offload()
    return way_of(lambda: transform(tree))


def broadcasts():
    like = {"w": shard(whole(4, 2))}
    full = {"w": whole(4, 2)} if me() == 0 else None
    return way_of(lambda: sd.broadcast(full, like=like))


def way_of(work):
    """Return what a call enters that has been made before: module and function.

    Each time that it comes there from another module of ours.
    """
    entered = []

    def note(frame, event, _):
        here = module_of(frame)
        if event == "call" and here is not None and here != caller_of(frame):
            entered.append((here, frame.f_code.co_name))

    work()
    work()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered


def caller_of(frame):
    """Return the module of ours that called, whatever was called in between."""
    frame = frame.f_back
    while frame is not None and module_of(frame) is None:
        frame = frame.f_back
    return None if frame is None else module_of(frame)


def module_of(frame):
    """Return the module of ours that a frame is in, None if it is in no such one."""
    file = frame.f_code.co_filename
    is_ours = file.startswith(ROOT)
    return file.removeprefix(ROOT).removesuffix(".py") if is_ours else None


WAYS = {gathers: (20, 90), broadcasts: (20, 90)}
"""How many modules each enters at most, and how often it goes from one to another."""

every_way = pytest.mark.parametrize("work", WAYS)

RUNS = {"exchange/windows"}
"""What of the exchange is none of its plan; the rest of the run is in ``wire``."""


@cache
def way(work):
    return pool(2).run(work)[0]


@every_way
def test_the_way_of_a_leaf_is_short(work):
    modules, calls = WAYS[work]
    entered = way(work)
    assert len({module for module, _ in entered}) <= modules
    assert len(entered) <= calls


@every_way
def test_ranks_plan_then_agree_then_run(work):
    """What plans has been entered before they agree, and what moves data is after."""
    entered = way(work)
    agreed = entered.index(("wire/agreement", "agree"))
    before = {module for module, _ in entered[:agreed]}
    later = {module for module, _ in entered[agreed:]} - before
    assert {module for module in later if module.startswith("exchange/")} <= RUNS
    assert {*RUNS, "wire/transport", "wire/messages"} <= later


@every_way
def test_nothing_is_planned_while_data_moves(work):
    """From the first byte on, all that an exchange asks is its run, and no plan."""
    entered = way(work)
    moving = entered[entered.index(("wire/transport", "carry")) :]
    found = {module for module, _ in moving if module.startswith("exchange/")}
    assert found <= {"exchange/exchange"}
    assert ("wire/agreement", "agree") not in moving
