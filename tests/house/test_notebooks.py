"""The notebooks run from top to bottom, and what they claim is asserted in them."""

import nbformat
import pytest
from cells import NOTEBOOKS, executed, outputs, read, said
from real import RESEMBLYZER, checkpoint

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def assert_clean(notebook):
    """Raise if a cell has failed, or has said something on stderr."""
    for output in outputs(notebook):
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output.text


def test_there_are_notebooks():
    """One for each step of the way, or the tests below would say nothing."""
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i}_" for i in range(1, 7)]


@every_notebook
def test_a_notebook_shows_what_it_does(path, tmp_path):
    """Every cell runs, without a warning, and says what is stored below it."""
    if "resemblyzer" in path.read_text():
        checkpoint(RESEMBLYZER)  # where the notebook finds it, too
    notebook = executed(path, tmp_path)
    assert_clean(notebook)
    assert said(notebook) == said(read(path)), "python tests/common/cells.py stores it"


@every_notebook
def test_a_notebook_is_fit_to_be_read(path):
    """It is short, has one title and headings below it, and no cell that failed."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 40
    assert_clean(notebook)
    assert any(output.output_type != "stream" for output in outputs(notebook))
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    heads = [line for part in text for line in part.split("\n") if line[:1] == "#"]
    assert heads[0].startswith("# ")
    assert text[0].startswith(heads[0])
    assert len(heads) > 2
    assert all(head.startswith("## ") for head in heads[1:])
