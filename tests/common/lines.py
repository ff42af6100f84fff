"""How much some work is, counted in lines of Python that run: no clock is asked."""

import sys


def lines_of(work, *args):
    """Return how many lines run, in all the functions that some work calls."""
    count, before = 0, sys.gettrace()

    def see(frame, event, arg):
        nonlocal count
        count += event == "line"
        return see

    sys.settrace(see)
    try:
        work(*args)
    finally:
        sys.settrace(before)
    return count
