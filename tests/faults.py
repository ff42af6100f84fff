"""Plants faults drawn at random into the package, and says which of them tests find.

    python -m tests.faults --count 300 --seed 0 --log faults.jsonl --modules tensors,io
    python -m tests.faults --count 100 --seed 0 --log ranks.jsonl --ranks 4

A fault is met in a checkout of links with one file changed, so that each process that a
test starts meets it too. The tests that run the function it is in, as a map says that
is made once, run in a fork of a process that has imported what takes long: quick ones
first, until one fails; then a minute of drawn programs. With ``--ranks`` it is planted
in what ranks exchange, and the programs run on so many. Each fault is a line of the
log, and is not planted again. Those that live are for a person to judge;
``equivalent.toml`` has those that change nothing that anyone could see.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import runpy
import select
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "common"))
from planting import Fault, faults_of

PACKAGE = "sdtree"
CORE = "tree,naming,kinds/registry,kinds/handler,kinds/calls,tensors,transform,io"
RANKS = "layout,exchange,wire,plan,kinds/dtensor,kinds/inside,kinds/shards"
TESTS = "tests/exchange,tests/wire,tests/layout,tests/plan,tests/kinds"
TESTS += ",tests/conversion/test_convert_shards.py,tests/conversion/test_laws_shards.py"
TESTS += ",tests/conversion/test_laws_blocks.py,tests/ops/test_differing.py"
TESTS += ",tests/tensors/test_modes.py,tests/transform/test_prepared.py"
TESTS += ",tests/stage/test_sharded_leaves.py,sdtree/exchange,sdtree/kinds"
TESTS += ",sdtree/layout,sdtree/plan,sdtree/wire"
"""What is planted, and which tests run, where programs are drawn on ranks."""

LEFT_OUT = "benchmarks|demo|docs|faults|layers|notebooks|public|readme|torchrun"
"""Tests that are slow, or that read the text of modules."""

IMPORTED = (
    *("pytest", "hypothesis", "numpy", "optree", "rich", "typer", "safetensors.torch"),
    *("torch._dynamo", "torch.distributed.fsdp", "torchao.quantization"),
    "torch.distributed.checkpoint.state_dict",
)
"""What takes long and does not import the package."""

TRACER = """
import mmap, os, sys, threading

number = mmap.mmap(os.open({number!r}, os.O_RDONLY), 4, prot=mmap.PROT_READ)
number = memoryview(number).cast("i")
runs = os.open({runs!r}, os.O_WRONLY | os.O_APPEND)
seen = set()

def trace(frame, event, arg):
    code = frame.f_code
    if code.co_filename.startswith({package!r}):
        key = number[0], id(code)
        if key not in seen:
            seen.add(key)
            place = code.co_filename[{cut}:-3] + ":" + code.co_qualname
            os.write(runs, f"{{number[0]}} {{place}}\\n".encode())

sys.settrace(trace)
threading.settrace(trace)
"""
"""The ``sitecustomize`` of processes that note which functions each test runs."""

Map = dict[str, dict[str, float]]
"""By module and function the tests that run it, and how many seconds they take."""


# -- checkouts ---------------------------------------------------------------------


def lay_out(root: Path, folder: Path, changed: dict[str, str]) -> None:
    """Make a checkout of links, but for the modules that are changed."""
    for entry in root.iterdir():
        if entry.name not in (PACKAGE, ".git"):
            (folder / entry.name).symlink_to(entry)
    for entry in [root / PACKAGE, *(root / PACKAGE).rglob("*")]:
        place = folder / entry.relative_to(root)
        if entry.is_dir() and entry.name != "__pycache__":
            place.mkdir()
        elif entry.parent.name != "__pycache__":
            place.symlink_to(entry)
    for module, text in changed.items():
        place = folder / PACKAGE / f"{module}.py"
        place.unlink()
        place.write_text(text)


def in_fork(folder: Path, work: Callable[[], int], limit: float) -> int | None:
    """Return the status of what is done in a fork inside a folder, None if too late.

    All processes that it has started end with it.
    """
    pid = os.fork()
    if not pid:
        status = 1
        with suppress(BaseException):
            _settle(folder)
            status = work()
        os._exit(status)
    try:
        waiting = os.pidfd_open(pid)
        in_time, _, _ = select.select([waiting], [], [], limit)
        os.close(waiting)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _settle(folder: Path) -> None:
    os.setsid()
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30, 6 * 2**30))
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    sys.modules["__main__"] = ModuleType("__main__")  # ranks would import this one
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"CI": "true", "OMP_NUM_THREADS": "1"}
    if "torch.distributed.fsdp" in sys.modules:  # ranks need not import it anew
        import_module("ranks").FORKS = multiprocessing.get_context("fork")


def pytest_of(folder: Path, words: Iterable[str], plugin: object) -> int:
    """Return the exit status of pytest."""
    import pytest

    usual = ["-q", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={folder}"]
    return pytest.main([*usual, "--basetemp=tmp", *words], plugins=[plugin])


# -- which tests run a function ----------------------------------------------------


class Mapping:
    """Notes how long each test takes, and counts them where the tracers see it."""

    def __init__(self, number: Path, trace: Any) -> None:
        self.number, self.trace = number, trace
        self.tests: list[tuple[str, float | None]] = []

    def pytest_runtest_logstart(self) -> None:
        sys.settrace(self.trace)  # a test may have taken it away

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call":
            took = report.duration if report.passed else None
            self.tests.append((report.nodeid, took))
            self.number.write_bytes(len(self.tests).to_bytes(4, "little"))

    def pytest_sessionfinish(self) -> None:
        Path("tests_run").write_text(json.dumps(self.tests))


def make_map(root: Path, asked: list[str]) -> Map:
    """Return which tests run each function, by running all that are asked for once."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        lay_out(root, folder, {})
        number, runs, package = folder / "number", folder / "runs", folder / PACKAGE
        number.write_bytes(bytes(4))
        runs.touch()
        files = {"number": str(number), "runs": str(runs), "package": f"{package}/"}
        tracer = TRACER.format(**files, cut=len(f"{package}/"))
        (folder / "sitecustomize.py").write_text(tracer)
        left = [f"--ignore-glob=*/test_{name}.py" for name in LEFT_OUT.split("|")]

        def work() -> int:
            names: dict[str, Any] = {}
            exec(tracer, names)
            plugin = Mapping(number, names["trace"])
            return pytest_of(folder, [*asked, *left], plugin)

        if in_fork(folder, work, 2 * 3600) not in (0, 1):
            raise SystemExit((folder / "said").read_text())
        tests = json.loads((folder / "tests_run").read_text())
        found: Map = defaultdict(dict)
        for line in runs.read_text().splitlines():
            k, place = line.split(" ", 1)
            test, took = tests[min(int(k), len(tests) - 1)]
            if took is not None:
                found[place.partition(".<locals>")[0]][test] = took
    return found


def tests_of(runs: Map, fault: Fault, budget: float) -> list[str]:
    """Return the tests of a function, then others of its module, quick ones first.

    Laws find most, and come before others that take a tenth of their time.
    """
    near = runs.get(f"{fault.module}:{fault.function}", {})
    inside = [x for place, x in runs.items() if place.startswith(f"{fault.module}:")]
    far = {test: took for tests in inside for test, took in tests.items()}
    found: dict[str, float] = {}
    for tests in (near, far):
        for test in sorted(tests, key=lambda x: tests[x] / (10 if "laws" in x else 1)):
            if sum(found.values()) + tests[test] <= budget:
                found[test] = tests[test]
    return list(found)


# -- faults ------------------------------------------------------------------------


class Drawn(NamedTuple):
    """How long programs are drawn after the tests, and on how many ranks, if on any."""

    minutes: float
    ranks: int | None = None

    def words(self) -> list[str]:
        """Return what the command line of ``fuzz`` asks for them."""
        words = ["--minutes", str(self.minutes)]
        return words if self.ranks is None else [*words, "--ranks", str(self.ranks)]


NOTHING = Drawn(0)


class Chosen:
    """Has only some tests run, in their order, and notes before each which it is."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: k for k, test in enumerate(tests)}

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        found, phases = settings.get_profile("ci"), (Phase.explicit, Phase.generate)
        settings.register_profile("faults", found, phases=phases)
        settings.load_profile("faults")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        kept = [x for x in items if x.nodeid in self.order]
        items[:] = sorted(kept, key=lambda x: self.order[x.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        Path("at").write_text(nodeid)


def fate(
    root: Path, changed: dict[str, str], tests: list[str], drawn: Drawn
) -> tuple[str, str]:
    """Return whether a change is found by tests or by drawn programs, and by which."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        lay_out(root, folder, changed)

        def work() -> int:
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            return pytest_of(folder, ["-x", *files], Chosen(tests))

        def draw() -> int:
            sys.argv = ["fuzz", "--seed", "0", *drawn.words()]
            if drawn.ranks:  # how small a failure can be made is not asked
                import_module("fuzz_ranks").SMALLER = 0
            try:
                runpy.run_module("tests.fuzz", run_name="__main__")
            except SystemExit as left:
                return int(bool(left.code))
            return 0

        (folder / "at").write_text("the imports")
        status = in_fork(folder, work, 400) if tests else 0
        if status == 0 and drawn.minutes and (folder / "tests/fuzz.py").exists():
            (folder / "at").write_text("drawn programs")
            status = in_fork(folder, draw, 60 * drawn.minutes + 60)
        by = (folder / "at").read_text()
        return ("alive", "") if status == 0 else ("found" if status else "hangs", by)


SOUND: set[str] = set()
"""Tests that were seen to pass without a fault."""


def judged(root: Path, fault: Fault, tests: list[str], drawn: Drawn) -> tuple[str, str]:
    """Return the fate of a fault. Tests that fail without it do not count."""
    source = (root / PACKAGE / f"{fault.module}.py").read_text()
    verdict, by = fate(root, {fault.module: fault.planted(source)}, tests, drawn)
    if verdict == "alive":
        loud = {fault.module: fault.planted(source, fault.alarm)}
        return ("alive", "") if fate(root, loud, tests, drawn)[1] else ("unreached", "")
    if by in tests and by not in SOUND:
        if fate(root, {}, [by], NOTHING)[0] != "alive":
            return judged(root, fault, [x for x in tests if x != by], drawn)
        SOUND.add(by)
    return verdict, by


def drawn(root: Path, modules: list[str], seed: int) -> list[Fault]:
    """Return a fault of each line that can have one, in a random order."""
    lines: dict[tuple[str, int], dict[str, list[Fault]]] = defaultdict(dict)
    for file in sorted((root / PACKAGE).rglob("*.py")):
        module = str(file.relative_to(root / PACKAGE).with_suffix(""))
        if any(f"{module}/".startswith(f"{x}/") for x in modules):
            for fault in faults_of(module, file.read_text()):
                kinds = lines[module, fault.line]
                kinds.setdefault(fault.operator, []).append(fault)
    choice = random.Random(seed)
    each = [choice.choice(choice.choice([*x.values()])) for x in lines.values()]
    return choice.sample(each, len(each))


def told(entries: list[dict[str, Any]], root: Path) -> str:
    """Return those faults that live, and how many there are of each fate."""
    file = root / "tests/equivalent.toml"
    known = tomllib.loads(file.read_text())["fault"] if file.exists() else []
    reasons = {(x["module"], x["diff"].strip()): x["reason"] for x in known}
    counts, lines = Counter(), []
    for x in entries:
        reason = reasons.get((x["module"], x["diff"]))
        verdict = f"equivalent: {reason}" if reason else x["verdict"]
        counts[verdict.partition(":")[0]] += 1
        if x["verdict"] in ("alive", "unreached"):
            lines.append(f"{x['module']}.py:{x['line']} {verdict}\n{x['diff']}\n")
    return "\n".join([*lines, str(dict(counts))])


def read_line() -> argparse.Namespace:
    """Return what the command line asks for; what it leaves out goes by the ranks."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--count", type=int, default=300)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--log", type=Path, required=True)
    asked.add_argument("--map", type=Path, help="which tests run what; made if missing")
    asked.add_argument("--modules", help=f"{CORE}, or with --ranks {RANKS}")
    asked.add_argument("--tests", help="folders of tests to run, comma between")
    asked.add_argument("--ranks", type=int, help="draw programs on so many ranks")
    asked.add_argument("--budget", type=float, default=60, help="seconds of tests")
    asked.add_argument("--minutes", type=float, default=1, help="of drawn programs")
    asked.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    args = asked.parse_args()
    usual = (RANKS, TESTS) if args.ranks else (CORE, f"tests,{PACKAGE}")
    args.modules = (args.modules or usual[0]).split(",")
    args.tests = (args.tests or usual[1]).split(",")
    args.drawn = Drawn(args.minutes, args.ranks)
    return args


def main() -> None:
    """Plant the faults that the command line asks for."""
    args = read_line()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its forks end with it
    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name)
    runs_file = args.map or args.log.with_suffix(".map")
    if not runs_file.exists():
        runs_file.write_text(json.dumps(make_map(args.root, args.tests)))
    runs = json.loads(runs_file.read_text())
    if args.minutes and fate(args.root, {}, [], args.drawn)[0] != "alive":
        raise SystemExit("programs fail without a fault: see python -m tests.fuzz")
    args.log.touch()
    entries = [json.loads(line) for line in args.log.read_text().splitlines()]
    done = {(x["module"], x["line"], x["diff"]) for x in entries}
    for fault in drawn(args.root, args.modules, args.seed)[: args.count]:
        diff = fault.diff((args.root / PACKAGE / f"{fault.module}.py").read_text())
        if (fault.module, fault.line, diff) in done:
            continue
        start, tests = time.monotonic(), tests_of(runs, fault, args.budget)
        verdict, by = judged(args.root, fault, tests, args.drawn)
        entry = {"module": fault.module, "line": fault.line, "diff": diff}
        entry |= {"operator": fault.operator, "verdict": verdict, "by": by}
        entry["seconds"] = round(time.monotonic() - start, 1)
        entries.append(entry)
        with args.log.open("a") as file:
            print(json.dumps(entry), file=file)
    print(told(entries, args.root))


if __name__ == "__main__":
    main()
