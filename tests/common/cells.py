"""The notebooks, run from top to bottom in a kernel, and what is said in them.

``python tests/common/cells.py`` runs all, or those named behind, and stores what comes
out of their cells in them, as the site and the forge show it.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
ENOUGH = 120
"""Seconds after which a cell that still runs hangs."""


def read(path: Path) -> NotebookNode:
    """Return a notebook with the outputs that are stored in it."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> NotebookNode:
    """Return a notebook as it is when every cell has run, in order, in a folder.

    Raise the error of the first cell that fails.
    """
    import_module("matplotlib.font_manager")  # the first time it says that it is slow
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=ENOUGH,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Yield what the cells have put out."""
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def said(notebook: NotebookNode) -> list[str]:
    """Return the text that each cell puts out."""
    return [
        "".join(map(text_of, cell.outputs))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text_of(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text
    return output.get("data", {}).get("text/plain", "")


def store(path: Path) -> None:
    """Run a notebook, and store what comes out of it."""
    with TemporaryDirectory() as folder:
        notebook = executed(path, Path(folder))
    notebook.metadata.language_info.pop("version", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    chosen = [path for path in NOTEBOOKS if path.stem in sys.argv] or NOTEBOOKS
    for found in chosen:
        print(found.relative_to(ROOT))
        store(found)
