"""Kinds and containers are registered, and met, by many threads at a time."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch

import sdtree as sd
from sdtree.kinds import handler as registry
from sdtree.kinds.handler import find_handler, handler_of
from sdtree.tree.containers import container_of

FIRST_CONTACT = """
import sys
import threading
import numpy as np
import sdtree as sd

sys.setswitchinterval(1e-6)
barrier, failed = threading.Barrier(16), []

def meet(k):
    tree = {"a": np.ones(3)} if k % 2 else {"n": np.float32(2)}
    barrier.wait()
    try:
        assert sd.equal(sd.copy(tree), tree)
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=meet, args=(k,)) for k in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit("; ".join(failed) or 0)
"""


def test_many_threads_meet_their_first_array():
    """Each waits for the kind to be there, whoever of them loads it."""
    command = [sys.executable, "-c", FIRST_CONTACT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lazily(tmp_path, monkeypatch):
    """Return how to have a module run when a class is first met, which is ``kind``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_LAZY", dict(registry._LAZY))
    known = ModuleType("known_to_the_modules_of_this_test")
    monkeypatch.setitem(sys.modules, known.__name__, known)

    def add(kind, source):
        name = f"registers_{kind.__name__.lower()}"
        setattr(known, kind.__name__, kind)
        head = f"import sdtree as sd\nfrom {known.__name__} import *\n"
        (tmp_path / f"{name}.py").write_text(head + source)
        registry.add_lazy(f"{kind.__module__}.{kind.__qualname__}", name)

    return add


REGISTERED = """
sd.register_leaf({}, flatten=lambda x: ((), x), unflatten=lambda x, _: x)
"""


def test_threads_meet_kinds_that_load_when_met(lazily, monkeypatch):
    """No thread finds a kind off the list that another is about to register."""
    count = 4
    barrier = threading.Barrier(count)

    def meet(cls):
        barrier.wait()
        return find_handler(cls)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(count) as threads:
            for k in range(30):
                kind = type(f"Lazy{k}", (), {})
                lazily(kind, REGISTERED.format(kind.__name__))
                found = list(threads.map(meet, [kind] * count))
                assert {handler and handler.kind for handler in found} == {kind}
    finally:
        sys.setswitchinterval(before)


def test_a_kind_that_is_registered_while_it_is_met():
    """What was found out about a type before it was registered is not kept."""

    class Box:
        def __init__(self, data):
            self.data = data

    class Crate(Box):
        pass

    def flatten(x):
        if find_handler(Crate).kind is Box:  # as another thread might, at this moment
            sd.register_leaf(Crate, flatten=flatten, unflatten=lambda _, ts: Crate(*ts))
        return (x.data,), None

    sd.register_leaf(Box, flatten=flatten, unflatten=lambda _, ts: Crate(*ts))
    crate = Crate(torch.ones(1))
    assert handler_of(crate).kind is Box
    assert handler_of(crate).kind is Crate


def test_a_container_that_is_registered_while_it_is_met(lazily):
    """A type that was taken for a leaf meanwhile is a container the next time."""

    class Base:
        pass

    class Sack(Base):
        children = ()

    lazily(Sack, "")
    source = "sd.register_container(Sack, flatten=lambda x: ((), None), unflatten=Sack)"
    lazily(Base, f"{REGISTERED.format('Base')}\n{source}\n")
    assert container_of(Sack) is None
    assert container_of(Sack) is not None


def test_what_users_register_wins(lazily):
    """Over what loads later, too."""

    class Own:
        pass

    class Other:
        pass

    lazily(Own, REGISTERED.format("Own") + REGISTERED.format("Other"))
    lazily(Other, "import registers_own\n")

    def flatten(x):
        return (torch.ones(1),), None

    sd.register_leaf(Own, flatten=flatten, unflatten=lambda _, ts: Own())
    assert find_handler(Other).kind is Other
    assert find_handler(Own).flatten is flatten


def test_what_was_taken_for_a_leaf_may_be_registered_as_a_container():
    """What was found out about a class before does not count any more."""

    class Cell:
        def __init__(self, w):
            self.w = w

    tree = [Cell(torch.ones(2))]
    assert Cell is sd.register_leaf(
        Cell, flatten=lambda x: ((x.w,), None), unflatten=lambda _, ts: Cell(*ts)
    )
    assert sd.paths(tree) == [(0,)]
    assert Cell is sd.register_container(
        Cell, flatten=lambda x: ((x.w,), None), unflatten=lambda _, parts: Cell(*parts)
    )
    assert sd.paths(tree) == [(0, 0)]
    assert type(sd.copy(tree)[0]) is Cell
