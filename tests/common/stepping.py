"""A program run step by step: each step compared with what it means."""

import math
import traceback
from contextlib import contextmanager

import meaning
import moving
import oracle
import remaking
import torch
from buffers import Buffers
from oracle import OURS
from programs import NAMES, OURS_BY_NAME

import sdtree as sd
from sdtree import errors

MEANT = {**vars(remaking), **vars(moving), **vars(meaning)}


def transform_of(steps, buffers):
    """Return the transform that the code of some steps makes."""
    found = []
    for text, own in zip(steps, buffers, strict=True):
        found.append(eval(text, {**NAMES, **OURS_BY_NAME, **own.names()}))
    return sd.chain(*found)


def meant_by(text, buffers):
    return eval(text, {**NAMES, **MEANT, **buffers.names()})


@contextmanager
def around(mode):
    """Hold what a mode says while a call runs."""
    if mode == "float64":
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
        return
    contexts = {
        "plain": torch.enable_grad,
        "meta": lambda: torch.device("meta"),
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "vmap": _level,
    }
    with contexts[mode]():
        yield


@contextmanager
def _level():
    """Hold a level of functorch, as inside of a function that is mapped."""
    torch._C._functorch._vmap_increment_nesting(2, "error")
    try:
        yield
    finally:
        torch._C._functorch._vmap_decrement_nesting()


def attempt(call, *args):
    """Return what a call returns, or the error that it raises."""
    try:
        return call(*args)
    except Exception as error:
        return error


def failed(x):
    return isinstance(x, Exception)


def told(error):
    return "".join(traceback.format_exception(error, limit=-6))


class Checked:
    """The run of a program step by step: what every other run is compared with."""

    def __init__(self, program):
        self.program = program
        self.tree = program.world.build()
        self.trees = [self.tree]
        self.error = None
        self.has_bits = True
        for text in program.steps:
            self.step(text)
            if self.error is not None:
                break

    def step(self, text):
        """Run one step and compare it with what it means."""
        before, buffers = self.trees[-1], Buffers(self.trees[-1])
        self.has_bits = self.has_bits and "empty_like" not in text
        with around(self.program.mode if "map" in text else "plain"):
            meant = attempt(lambda: meant_by(text, buffers)(before))
        was = oracle.snapshot(before) if "source" not in text else None
        values = [*values_of(before)] if "into(" in text else None
        with around(self.program.mode):
            run = lambda: transform_of([text], [buffers])(before)  # noqa: E731
            after = attempt(run)
        self.compare(text, before, meant, after)
        if was is not None:
            assert oracle.snapshot(before) == was, f"{text}: the input was changed"
        if failed(after):
            self.error = after
            return
        if values is not None and self.has_bits:
            assert [*values_of(after)] == values, f"{text}: other values were written"
        self.trees.append(after)

    def compare(self, text, before, meant, after):
        """Raise unless a step does what it means, errors and all."""
        if isinstance(meant, moving.Moved):
            if isinstance(after, errors.NameCollision):
                is_due = meant.may_collide() or "_metadata" in str(after)
                assert is_due, f"{text}: {after}, though no names collide"
            else:
                assert not failed(after), f"{text} raises {told(after)}"
                meant.judge(after)
            return
        if failed(meant):
            if not isinstance(meant, (*OURS, TypeError)):
                raise meant
            if isinstance(after, errors.UnknownContainer):
                return
            kind = type(after).__name__
            assert failed(after), f"{text} raises no {type(meant).__name__}: {after}"
            assert isinstance(after, type(meant)), f"{text}: {kind}: {told(after)}"
            return
        is_clash = failed(after) and "buffers that overlap" in str(after)
        if is_clash and _comes_apart(before):
            return  # it need not know where elements go that are one, or come apart
        assert not failed(after), f"{text} raises {told(after)}"
        bits = self.has_bits and "into(" not in text
        same(after, meant, text, bits)
        kept = [[*oracle.kept(x, before)] for x in (after, meant)]
        assert kept[0] == kept[1], f"{text}: kept {kept[0]}, not {kept[1]}"

    @property
    def result(self):
        return self.trees[-1] if self.error is None else self.error

    def transform(self):
        """Return the program as one transform, with buffers of its own."""
        steps = self.program.steps[: len(self.trees) - (self.error is None)]
        return transform_of(steps, [Buffers(tree) for tree in self.trees[: len(steps)]])

    def agrees(self, what, after):
        """Raise unless another run of the program came to the same."""
        if self.error is not None:
            *before, last = self.program.steps[: len(self.trees)]
            if before and "source" in last and not failed(after):
                return  # in another run its leaves lie elsewhere than the buffers
            # The step that fails is the last: no later one drops what it fails on.
            assert failed(after), f"{what} raises no {type(self.error).__name__}"
            assert type(after) is type(self.error), f"{what}: {told(after)}"
            return
        assert not failed(after), f"{what} raises {told(after)}"
        same(after, self.result, what, self.has_bits)
        kept = [[*oracle.kept(x, self.tree)] for x in (after, self.result)]
        assert kept[0] == kept[1], f"{what}: kept {kept[0]}, not {kept[1]}"


def same(a, b, what, bits=True):
    found = oracle.difference(a, b, bits)
    assert not found, f"{what}: {found}"
    ties = oracle.ties(a), oracle.ties(b)
    assert ties[0] == ties[1], f"{what}: ties {ties[0]}, not {ties[1]}"


def _comes_apart(tree):
    """Return whether a leaf lies in several stretches, or an element in two places."""
    data = [t for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    for t in data:
        dims = [(n, s) for n, s in zip(t.shape, oracle.steps(t), strict=True) if n > 1]
        reach = sum((n - 1) * s for n, s in dims)
        if reach + t.itemsize != t.itemsize * math.prod(n for n, _ in dims):
            return True
    return False


def values_of(tree):
    for _, x in oracle.items(tree):
        for t in oracle.data_of(x):
            yield oracle.mark(t)[2]
