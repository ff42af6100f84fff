"""Drawn programs on drawn worlds do what they mean, and the oracle is not blind."""

import json
import os
import time

import fuzz
import numpy as np
import oracle
import pytest
import torch
from catalogue import leaves_and_steps, steps_and_steps
from hypothesis import given, settings
from programs import RUNS, Program, odd_programs, programs
from running import check, check_odd
from ways import WAYS
from worlds import World

from sdtree.testing import Pair


@settings(max_examples=200, derandomize=True)
@given(programs())
def test_programs_do_what_they_mean(program):
    """Step by step, as one call, as a stream, in threads, by file: all the same."""
    check(program)


@settings(max_examples=100, derandomize=True)
@given(odd_programs())
def test_odd_leaves_are_refused_where_they_stand(program):
    """What no kind serves is an error of ours that names the path, or works."""
    check_odd(program)


@pytest.mark.parametrize("programs", [leaves_and_steps, steps_and_steps])
def test_no_program_has_to_be_met_by_chance(programs):
    """Every sort of leaf passes every sort of step; every step follows every other."""
    for program in programs():
        try:
            check(program)
        except Exception as error:
            error.add_note(repr(program))
            raise


def test_every_way_of_running_is_drawn():
    """What is drawn are the ways there are."""
    assert set(RUNS) == set(WAYS)


def test_a_program_that_a_person_can_read():
    """The text of a program runs, and its repr is that program."""
    world = World(
        ("b = dense((24,), torch.float32, 1)",),
        "{'model': {'w': b.view(4, 6), 'tied': b[:6]}, 'step': 3}",
    )
    program = Program(world, ("drop('step')", "cast(dtype=torch.bfloat16)", "copy()"))
    check(program)
    assert eval(repr(program), {"Program": Program, "World": World}) == program


W = torch.arange(4.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({1: 0}, {True: 0}),
        ({0.0: 0}, {-0.0: 0}),
        ({"a": 0, "b": 0}, {"b": 0, "a": 0}),
        ([1], (1,)),
        ([1], [True]),
        ([0.0], [-0.0]),
        ([float("nan")], [0.0]),
        (Pair(1, 2), (1, 2)),
        ([W], [torch.nn.Parameter(W)]),
        ([W], [W.double()]),
        ([W], [W + 1]),
        ([np.ones(2)], [np.ones(2, dtype=np.float32)]),
    ],
)
def test_what_is_not_the_same(a, b):
    """Types, the identity of keys, their order and every bit are seen."""
    assert not oracle.difference(a, a)
    assert oracle.difference(a, b)


def test_ties_are_seen_by_memory():
    """By where data lies in it and how, whatever the objects are."""
    assert oracle.ties([W, W[1:], W.clone()]) == [[(0, 0, (4,)), (1, 4, (4,))]]
    array = np.arange(4)
    assert oracle.ties([array[1:], array[::-1]]) == [[(0, 0, (8,)), (1, 16, (-8,))]]
    assert oracle.ties([array, array.copy()]) == []


def test_what_ends_a_child_is_told():
    """A crash and a hang are failures, with what was run."""
    assert "SIGABRT" in fuzz._in_child(os.abort)
    assert "hung" in fuzz._in_child(lambda: time.sleep(60), limit=0.2)
    assert fuzz._in_child(lambda: "done") == "done"


def test_runs_are_summed(tmp_path):
    """Each run adds a line to a log, and all of them count."""
    log = tmp_path / "log"
    line = {"target": "specs", "seed": 1, "seconds": 30, "examples": 7, "failure": ""}
    log.write_text("\n".join([json.dumps(line)] * 2))
    assert fuzz.summary(log) == "specs: 2 runs, 14 examples, 1.0 minutes, 0 failures"
