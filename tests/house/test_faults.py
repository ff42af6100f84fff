"""What plants faults finds those that a test finds, and tells of the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planting import faults_of

MODULE = """
def sign(x):
    return -1 if x < 0 else 1


def ordered(x):
    found = sorted(x)
    return found


def never(x):
    return x + 1
"""

TESTS = """
from sdtree.room import ordered, sign

def test_sign():
    assert [sign(x) for x in (-1, 0)] == [-1, 1]

def test_order_of_what_is_in_order():
    assert ordered([1, 2]) == [1, 2]
"""

RUN = "import faults; faults.IMPORTED = faults.IMPORTED[:2]; faults.main()"


@pytest.mark.parametrize(
    ("source", "faulty"),
    [
        ("a = b < 3", {"a = (b <= 3)", "a = b < (4)", "a = b < (2)"}),
        (
            "x = a and not b",
            {"x = (a or not b)", "x = (not b)", "x = (a)", "x = a and (b)"},
        ),
        ("a = f(b, c, d=e)", {"a = (f(c, b, d=e))", "a = (f(b, c))"}),
        ("a = b[1:]", {"a = (b[:])", "a = b[(2):]", "a = b[(0):]"}),
        ("a: int = 1", {"a: int = (2)", "a: int = (0)"}),
        ("raise A(1 + 2)", {"pass"}),
        ("assert a > 1", set()),
    ],
)
def test_a_fault_is_small(source, faulty):
    assert {fault.planted(source) for fault in faults_of("room", source)} == faulty


def test_a_fault_is_found_or_told(tmp_path: Path):
    """Found by its test, alive where none minds, unreached where none gets there."""
    for folder in ("sdtree", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sdtree/__init__.py").touch()
    (tmp_path / "sdtree/room.py").write_text(MODULE)
    (tmp_path / "tests/test_room.py").write_text(TESTS)
    profile = "from hypothesis import settings; settings.register_profile('ci')"
    (tmp_path / "conftest.py").write_text(profile)
    log = tmp_path / "log"
    words = ["--root", tmp_path, "--log", log, "--minutes", "0", "--modules", "room"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", RUN, *map(str, words)]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    fates = {x["line"]: x for x in map(json.loads, log.read_text().splitlines())}
    assert [fates[k]["verdict"] for k in (3, 7, 8, 12)] == [
        *("found", "alive", "found", "unreached")
    ]
    assert fates[3]["by"] == "tests/test_room.py::test_sign"
    assert (
        "room.py:7 alive\n-    found = sorted(x)\n+    found = list(x)" in told.stdout
    )
    written = log.read_text()
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert (again.stdout, log.read_text()) == (told.stdout, written)
