"""What ``on_progress=`` is told of some work, and what it may be told."""

from sdtree.tensors.counting import STEPS


def heard(work, *args, **options):
    """Return what some work comes to, and what was told of it, seen to make sense."""
    made, told = listened(work, *args, **options)
    assert_grows(told)
    return made, told


def listened(work, *args, **options):
    """Return what some work comes to, and what was told of it."""
    told = []
    made = work(*args, on_progress=lambda *at: told.append(at), **options)
    return made, told


def assert_grows(told):
    """Assert that it grows, is not told too often, is of one total and comes to it."""
    [total] = {total for _, total in told}
    amounts = [done for done, _ in told]
    assert amounts == sorted({*amounts}), told
    assert amounts[0] >= 0, told
    assert amounts[-1] == total, told
    assert len(told) <= STEPS + 1
