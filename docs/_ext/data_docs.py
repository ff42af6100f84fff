"""The docs of data: the string below it, in the module that it comes from."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer


def docs(
    app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Put what is written of some data in the place of what its type says."""
    if what == "data":
        package, _, own = name.rpartition(".")
        written = ModuleAnalyzer.for_module(origin(package, own)).find_attr_docs()
        lines[:] = written.get(("", own), [""])


def origin(package: str, name: str) -> str:
    """Return the module that a package has a name from, or else the package itself."""
    tree = ast.parse(Path(import_module(package).__file__ or "").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in map(_given, node.names):
            return node.module or package
    return package


def _given(alias: ast.alias) -> str:
    return alias.asname or alias.name


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", docs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
