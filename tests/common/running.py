"""What must hold of a program: ``check`` runs it in many ways and compares all."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import oracle
import remaking
from buffers import Buffers
from oracle import is_ours
from stepping import Checked, attempt, failed, same, told, transform_of
from ways import WAYS

import sdtree as sd
from sdtree import errors


def check_odd(program):
    """A leaf that no kind serves is refused by an error of ours that tells where."""
    tree = program.world.build()
    places = [oracle.name_of(path) for path, _ in oracle.items(tree)]
    calls = [sd.identity, sd.copy, sd.spec, sd.nbytes, sd.ties, sd.flatten]
    calls += [lambda t: sd.equal(t, t), lambda t: str(sd.show(t))]
    made = [attempt(transform_of, [text], [Buffers(tree)]) for text in program.steps]
    calls += [f for f in made if not failed(f)]
    for call in calls:
        error = attempt(call, tree)
        if not failed(error):
            continue
        notes = "\n".join([str(error), *getattr(error, "__notes__", ())])
        is_known = is_ours(error) or oracle.is_of(error, "programs.py")
        assert is_known, f"{call} raises {told(error)}"
        is_named = any(place in notes for place in places) or "<root>" in notes
        is_named |= isinstance(error, errors.NoMatch | errors.NameCollision)
        assert is_named, f"{call} does not say where: {notes}"


def check_contact(world):
    """Threads may be the first that meet any type; run it in a process of its own."""
    tree = world.build()
    paths, start = [path for path, _ in oracle.items(tree)], threading.Barrier(4)

    def first(_):
        start.wait()
        return attempt(lambda: (sd.copy()(tree), sd.paths(tree)))

    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(first, range(4)):
            assert not failed(found), told(found)
            same(found[0], remaking.copy()(tree), "a copy at first contact")
            assert oracle.mark(found[1]) == oracle.mark(paths), "paths"


def check(program):
    """Raise unless a program does what it means, whichever way it is run."""
    run = Checked(program)
    is_written = "source" in str(program.steps)  # a tree between steps is a buffer
    read = run.trees[:1] if is_written else run.trees
    before = [oracle.snapshot(tree) for tree in read]
    for name in program.runs:
        WAYS[name](run)
    after = [oracle.snapshot(tree) for tree in read]
    assert after == before, "an input was changed"
