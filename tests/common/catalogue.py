"""Programs of which none is met by chance: each sort of leaf, step and container."""

import random
from itertools import product

from programs import INTO, MODES, RUNS, Program
from worlds import (
    AROUND,
    FIXED,
    MAPPINGS,
    OTHERS,
    PLAIN,
    SEQUENCES,
    World,
    cuts_of,
    views_of,
)

# -- each sort of leaf passes each sort of step --------------------------------------

ACTING = (
    *("copy()", "empty_like()", "to('cpu')", "to('meta')", "map(first)", "flatten()"),
    *("cast(dtype=torch.float16)", "cast(dtype=torch.float64)", "identity()"),
    "cast(like=like(torch.float16))",
    *dict.fromkeys(f"copy(into=into({sort!r}))" for sort in INTO),
)


def leaves():
    """Yield for each sort of leaf a world of one, and of the whole that it is part of.

    Where the dtype matters little to a sort, there is one of each sort.
    """
    for dtype in ("float32", "complex64"):
        line = f"b = dense((24,), torch.{dtype}, 1)"
        for view in views_of(dtype):
            yield World((line,), f"[{view.format('b')}, b]")
    for dtype in ("<f4", "i1,<f4", ">f8", "V0", "M8[s]"):
        for cut in dict.fromkeys(cuts_of(dtype)):
            yield World((f"n = counted({dtype!r})",), f"[{cut.format('n')}, n]")
    for leaf in OTHERS:
        yield World((), f"[{leaf}, {leaf}]")
    yield World((), f"[{', '.join(PLAIN)}]")


def leaves_and_steps():
    """Yield a program for each sort of leaf and each step, in every mode in turn."""
    turn = random.Random(0)
    for world, step in product(leaves(), ACTING):
        ways = (turn.choice(RUNS),) if turn.random() < 0.3 else ()
        yield Program(world, (step,), turn.choice(MODES), "torch.Tensor", ways)


# -- each step comes behind each other, in some container -----------------------------

STEPS = (
    *("identity()", "copy()", "cast(dtype=torch.float16)", "map(double)", "to('meta')"),
    *("map_with_path(shout)", "copy(into=into('alike'))", "whole(under)", "flatten()"),
    *("select('**.w', missing_ok=True)", "drop('model.**', missing_ok=True)"),
    *("select('nothing')", "drop(int)", "select(torch.Tensor, missing_ok=True)"),
    *("drop(is_even, missing_ok=True)", "select(is_large)", "select(dict)"),
    "select(selector('**.w') | selector(int), missing_ok=True)",
    "where(torch.Tensor, cast(dtype=torch.float16), missing_ok=True)",
    "where('**.w', drop(is_large, missing_ok=True), missing_ok=True)",
    *("rename(('**', 'x.y.**'))", "rename(('model.**', '**'), missing_ok=True)"),
    *("rename(('**.w', '**.v'), missing_ok=True)", "rename(longer)", "prefix('a.b')"),
    *("rename(('*.w', 'w.*'), missing_ok=True)", "flatten(sep='::')"),
    *("rename((re.compile('^([^.]*)'), r'\\1.mid'))", "prefix('module')"),
    *("strip_prefix('model', missing_ok=True)", "strip_prefix('module')"),
)
LINE = "b = dense((24,), torch.float32, 1)"
PAIRS = "('model', {'w': b[2:5], 'a.b': [b, 2.5], 0: 1}), ('step', 3), ('', 'x')"
ITEMS = "{'w': b[2:5], 'model': {}}, 3, ABSENT, [b, 'x']"
TREES = (
    *(make.format(PAIRS) for make in dict.fromkeys(MAPPINGS)),
    *(make.format(ITEMS) for make in dict.fromkeys(SEQUENCES)),
    *(make.format("{'w': b, 'model': 1}", "[b[1:], 3]") for make in FIXED),
    *(make.format("{'model': {'w': b}, 'step': 3}") for make in AROUND),
    *("{'model.w': b, 'model.b': b[2:5], 'step': 3}", "{0: b, 'w': 1, 'model': 2}"),
    *("[{'w': b, 'b': 1}, {'b': b, 'w': 2}]", "{'model': {'module': {'w': b}}}"),
    *("b", "3", "{}", "[ABSENT]", "[{'w': 1, 1: b}, {'w': 2, True: b}]"),
)


def steps_and_steps():
    """Yield a program for every two steps, on one tree or another."""
    turn = random.Random(0)
    for steps in product(STEPS, STEPS):
        world = World((LINE,), turn.choice(TREES))
        ways = ("call", turn.choice(("stream", "windows")), turn.choice(RUNS))
        yield Program(world, steps, "plain", "'**.w'", tuple(dict.fromkeys(ways)))
