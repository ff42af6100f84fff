"""The layers of the package: an import only goes down, and each concern stays put."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import sdtree as sd

ROOT = Path(sd.__file__).parent
FLOORS = [
    floor.split()
    for floor in """
typing errors path
text
tensors
layout
kinds
tree
naming
wire
transform
conversion
exchange
ops
stage
look
plan
io
testing
demo
compat
cli
__init__ __main__ listing
""".strip().split("\n")
]
"""What stands in the package, from the ground up: a line for each folder.

The first and the last have the modules that stand in none.
"""

FILES = [
    floor.split()
    for floor in """
refusal texts
disk
leaves
pickles
safetensors
pt
content
hf
dcp
suffixes
formats
reading writing
converting
saving
__init__
""".strip().split("\n")
]
"""What stands in ``io``, from the ground up: a line for each folder."""

STRICT = {"ops"}
"""Folders whose modules do not import each other."""

DISTRIBUTED = (
    *("kinds.*", "layout.layout", "wire.*", "ops.collective", "io.*"),
    *("stage.checkpoint", "testing.layouts", "demo.*", "compat.*", "cli.launched"),
)
LEAF_KINDS = {"Tensor", "Parameter", "DTensor", "ShardedTensor", "ndarray", "generic"}
LEAF_KINDS |= {
    "Shards",
    "AsyncCollectiveTensor",
    "MemoryMappedTensor",
    "Abstract",
    "BytesIO",
}
ASKS_FOR_KIND = {
    "tensors.storage": "below kinds are tensors alone: torch's own, or of a subclass",
    "tree.builtin": "attributes of containers are no leaves and have no handler",
    "kinds.values": "aux may have a tensor in it, which is no leaf and has no handler",
    "tree.plain_json": "how a numpy scalar is written is this module's own concern",
    "io.*": "what torch and safetensors write as they are is theirs to say",
    "compat.local": "torch's own signature has a function for each of its kinds",
    "testing.*": "strategies make leaves of chosen kinds",
}
"""Who may test for a leaf kind outside ``kinds``, and why."""


def name_of(file: Path) -> str:
    """Return the name of a module below ``sdtree``; a package goes by its own."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[1:] and parts[-1] == "__init__" else parts)


MODULES = {name_of(file): ast.parse(file.read_text()) for file in ROOT.rglob("*.py")}


def floor_of(module: str, floors: list[list[str]] = FLOORS) -> int:
    """Return the number of a module's floor: that of its folder."""
    folder = module.partition(".")[0]
    found = [k for k, names in enumerate(floors) if folder in names]
    assert len(found) == 1, f"{module} is to stand on one floor, it is on {found}"
    return found[0]


def is_among(module: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the patterns matches a module."""
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def imported(node: ast.AST) -> Iterator[str]:
    """Yield what an import names, the names taken from a module included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(name: str) -> Iterator[str]:
    """Yield the module of ours that an imported name is, if it is one."""
    own = name.removeprefix("sdtree.") if name != "sdtree" else "__init__"
    if (name == "sdtree" or own != name) and own in MODULES:
        yield own


def edges(module: str, *, lazy: bool) -> set[str]:
    """Return our modules that a module imports, those inside functions if ``lazy``.

    A package that is named only for a module of it is not meant itself.
    """
    tree = MODULES[module]
    nodes = ast.walk(tree) if lazy else _at_import(tree)
    found: set[str] = set()
    for node in nodes:
        names = list(imported(node))
        inner = {own for name in names[1:] for own in below(name)}
        whole = {own for name in names[:1] for own in below(name)}
        is_from = isinstance(node, ast.ImportFrom)
        found |= inner if is_from and len(inner) == len(names) - 1 else inner | whole
    return found


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _at_import(node)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_an_import_only_goes_down(module: str):
    """Also inside functions; beside it on its floor, where that is allowed."""
    floor = floor_of(module)
    for other in edges(module, lazy=True) - {module}:
        assert floor_of(other) <= floor, f"{module} imports {other}, which is above"
        beside = floor_of(other) == floor and STRICT.issuperset(FLOORS[floor])
        assert not beside, f"{module} imports {other}, which is beside it"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m[:3] == "io."))
def test_an_import_only_goes_down_among_files(module: str):
    floor = floor_of(module[3:], FILES)
    for other in edges(module, lazy=True):
        below = other[:3] != "io." or floor_of(other[3:], FILES) <= floor
        assert below, f"{module} imports {other}, which is above"


def test_modules_that_import_each_other_form_no_cycle():
    graph = {module: edges(module, lazy=True) - {module} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_optree_is_imported_in_one_place():
    assert users_of("optree") == {"tree.containers"}


def test_torch_distributed_stays_where_leaves_meet_ranks():
    stray = {m for m in users_of("torch.distributed") if not is_among(m, DISTRIBUTED)}
    assert not stray


def users_of(package: str) -> set[str]:
    """Return the modules that import a package, or name it as an attribute."""
    found: set[str] = set()
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            names = list(imported(node))
            if isinstance(node, ast.Attribute):
                names.append(ast.unparse(node))
            if any(f"{name}.".startswith(f"{package}.") for name in names):
                found.add(module)
    return found


def test_importing_sdtree_loads_nothing_beyond_torch_optree_and_the_standard_library():
    """No numpy, no torch.distributed that torch has not loaded itself."""
    code = (
        "import sys, torch, optree; before = set(sys.modules); import sdtree; "
        "print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.decode().split()}
    assert loaded <= {"sdtree", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_outside_kinds_tests_for_a_leaf_kind(module: str):
    if is_among(module, ("kinds.*", *ASKS_FOR_KIND)):
        return
    asked = {name for node in ast.walk(MODULES[module]) for name in kinds_asked(node)}
    assert not asked, f"{module} tests for {asked}: ask the handler of the leaf"


def kinds_asked(node: ast.AST) -> Iterator[str]:
    """Yield the leaf kinds that an ``isinstance`` or a ``type(x) is`` tests for."""
    asked: list[ast.expr] = []
    if isinstance(node, ast.Call) and len(node.args) == 2:
        if ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1:]
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        calls = [side for side in sides if isinstance(side, ast.Call)]
        if any(ast.unparse(call.func) == "type" for call in calls):
            asked = sides
    for inner in (inner for side in asked for inner in ast.walk(side)):
        name = getattr(inner, "attr", getattr(inner, "id", ""))
        if name in LEAF_KINDS:
            yield name


def test_no_module_is_longer_than_one_can_keep_in_mind():
    lines = {file: len(file.read_text().splitlines()) for file in ROOT.rglob("*.py")}
    assert max(lines.values()) <= 400, max(lines, key=lines.__getitem__)


def test_no_module_shares_its_name_with_a_public_function():
    """Whatever is imported later, and it then stands in the package under its name."""
    public = {name: getattr(sd, name) for name in exports()}
    for found in pkgutil.walk_packages(sd.__path__, "sdtree."):
        if not found.name.endswith("__main__"):
            import_module(found.name)
    assert {name: getattr(sd, name) for name in public} == public
    modules = {name for name, value in public.items() if type(value) is ModuleType}
    assert modules <= {"errors", "testing", "compat", "stage"}


def exports() -> set[str]:
    """Return the names that ``sdtree`` says ``X as X`` of."""
    nodes = ast.walk(MODULES["__init__"])
    aliases = [alias for node in nodes for alias in getattr(node, "names", ())]
    return {alias.asname for alias in aliases if alias.asname == alias.name}


def test_no_test_module_defines_a_function_twice():
    """The first would be silently replaced; the type checker sees to the package."""
    for file in Path(__file__).parents[1].rglob("*.py"):
        body = ast.parse(file.read_text()).body
        names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len({*names}), file
