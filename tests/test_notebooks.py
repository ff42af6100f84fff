"""The notebooks run from top to bottom, and what they claim is asserted in them."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def code_of(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert len(cells) < 40
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_there_are_notebooks():
    """The folder is not empty, or the test below would say nothing."""
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook):
    """Every code cell runs, in order, in one namespace."""
    names = {"__name__": "__main__"}
    for i, source in enumerate(code_of(notebook)):
        exec(compile(source, f"{notebook.name}, code cell {i + 1}", "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_shown_are_clean(notebook):
    """No cell shows a warning or a traceback."""
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
