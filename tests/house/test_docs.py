"""The site: it is built without a warning, has every public name, and no dead link."""

import ast
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import FENCE, ROOT, claims_of
from test_layers import FLOORS, floor_of

import sdtree as sd
import sdtree.compat
import sdtree.stage
import sdtree.testing

DOCS = ROOT / "docs"
MODULES = {"errors", "testing", "compat", "stage"}
"""Public names that are modules, whose names are public in their turn."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built by the README's command."""
    built = tmp_path_factory.mktemp("docs") / "html"
    program, *words, target = shlex.split(command_of_readme())
    assert (program, target) == ("sphinx-build", "docs/_build/html")
    run = [sys.executable, "-m", "sphinx", *words, str(built)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert not done.returncode, done.stderr
    return built


def command_of_readme() -> str:
    """Return the line of the README that builds the site."""
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    lines = [line for name, code in blocks if name == "sh" for line in code.split("\n")]
    [found] = [line for line in lines if line.startswith("sphinx-build")]
    return found


# -- names -------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference(site):
    missing = {*public_names()} - objects(site / "objects.inv")
    assert not missing, f"name them in a page of docs/reference: {sorted(missing)}"


def test_the_table_of_the_reference_has_every_name():
    table = (DOCS / "reference" / "index.md").read_text()
    assert not [name for name in sd.__all__ if f"`{name}`" not in table]


def public_names() -> Iterator[str]:
    """Yield the names that modules export as ``X as X``, and the errors."""
    for module in (sd, sdtree.testing, sdtree.compat, sdtree.stage):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            for alias in getattr(node, "names", ()):
                again = module is sdtree.stage and alias.name in sd.__all__
                if alias.asname == alias.name not in MODULES and not again:
                    yield f"{module.__name__}.{alias.name}"
    errors = (name for name, found in vars(sd.errors).items() if is_error(found))
    yield from (f"sdtree.errors.{name}" for name in errors if name[0] != "_")


def is_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Exception)


def objects(inventory: Path) -> set[str]:
    """Return the names of Python objects that the site describes."""
    packed = inventory.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split()[0] for line in lines if " py:" in line}


# -- links -------------------------------------------------------------------------


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def test_no_link_within_the_site_is_dead(site):
    """Neither to a page or a file, nor to a place in a page."""
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html")}
    assert len(pages) > 30
    dead = {f"{file.relative_to(site)}: {link}" for file, link in dead_links(pages)}
    assert not dead


def dead_links(pages: dict[Path, Page]) -> Iterator[tuple[Path, str]]:
    for file, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            anchors = pages[target].anchors if target in pages else {url.fragment}
            if not target.exists() or (url.fragment and url.fragment not in anchors):
                yield file, link


# -- what is shown -----------------------------------------------------------------


def test_every_recipe_runs_something():
    recipes = {*DOCS.glob("howto/*.md")} - {DOCS / "howto/index.md"}
    assert len(recipes) >= 7
    assert all(claims_of(page) or shows_jobs(page) for page in recipes)


def shows_jobs(page: Path) -> bool:
    """Return whether a page has scripts that ``tests/jobs`` runs."""
    return "{literalinclude} ../../tests/jobs/" in page.read_text()


FOREIGN = re.compile(r'<(script|link|img)\b[^>]*\b(src|href)="(\w+:)?//')


def test_nothing_is_fetched_from_elsewhere(site):
    """Whoever reads the site without a network sees all of it."""
    for file in site.rglob("*.html"):
        assert not FOREIGN.search(file.read_text()), file


def test_the_picture_of_the_floors_is_true():
    """Its floors are those of ``FLOORS``, and each module stands where it says."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    [picture] = [code for _, code in FENCE.findall(text) if "│" in code]
    floors: list[int] = []
    for line in picture.splitlines():
        number, modules, _ = line.split("│")
        floors += [int(number)] if number.strip() else []
        assert {floor_of(module) for module in modules.split()} == {floors[-1]}, line
    assert floors == [*reversed(range(len(FLOORS)))]
