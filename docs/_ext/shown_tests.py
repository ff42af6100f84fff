"""The role ``test``: a test by its name, linked to its source, a page of the site.

``{test}`test_incumbent.py::test_structure_survives``` reads "structure survives". A
test that is not there is a warning.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

TESTS = Path(__file__).parents[2] / "tests"
log = logging.getLogger(__name__)


@cache
def text_of(file: str) -> str:
    """Return the text of a file of tests, in whichever folder it is."""
    return "".join(path.read_text() for path in TESTS.rglob(file))


@cache
def lines_of(file: str) -> dict[str, int]:
    """Return on which line each function of a file of tests begins."""
    tree = ast.parse(text_of(file))
    return {node.name: node.lineno for node in tree.body if hasattr(node, "name")}


class Test(SphinxRole):
    """Names a test and links it to its source."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        file, _, name = self.text.partition("::")
        if name not in lines_of(file):
            log.warning("there is no test %s", self.text, location=self.get_location())
        shown_files(self.env).add(file)
        up = "../" * self.env.docname.count("/")
        target = f"{up}{page_of(file)}.html#{anchor_of(file, name)}"
        text = name.removeprefix("test_").replace("_", " ")
        return [nodes.reference("", text, internal=True, refuri=target)], []


def shown_files(env: Any) -> set[str]:
    """Return the files of tests that pages point to; they are kept with the pages."""
    if not hasattr(env, "shown_tests"):
        env.shown_tests = set()
    return env.shown_tests


def page_of(file: str) -> str:
    return f"tests/{file.removesuffix('.py')}"


def anchor_of(file: str, name: str) -> str:
    return f"line-{lines_of(file).get(name, 1)}"


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file of tests that is pointed to, highlighted."""
    style = HtmlFormatter(cssclass="highlight", lineanchors="line")
    for file in sorted(shown_files(app.env)):
        source = highlight(text_of(file), PythonLexer(), style)
        body = f"<h1>tests/{file}</h1>\n{source}"
        yield page_of(file), {"title": f"tests/{file}", "body": body}, "page.html"


def merge(app: Sphinx, env: Any, docnames: Any, other: Any) -> None:
    shown_files(env).update(shown_files(other))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("test", Test())
    app.connect("html-collect-pages", pages)
    app.connect("env-merge-info", merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
