"""What README and docs show is true: each block runs and prints what it says."""

import re
from pathlib import Path

import pytest
from benchmarks.results import Results
from pages import (
    FENCE,
    ROOT,
    claims_of,
    name_of,
    pages,
    run,
    run_on_ranks,
    script_of,
    write_scripts,
)
from screenshot import FOLDER, pictures, words_of

PAGES = pages()
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder for each page."""
    return {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}


@pytest.fixture(scope="module")
def printed_by_ranks(folders):
    """Return what the scripts of all pages print, by folder and name."""
    scripts = [each for page in PAGES for each in write_scripts(page, folders[page])]
    return dict(zip(scripts, run_on_ranks(scripts), strict=True))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_tells_the_truth(page, folders, monkeypatch, request):
    """Each block prints what stands below it, one after the other in one namespace."""
    monkeypatch.chdir(folders[page])
    names = {"__name__": page.stem}
    for claim in claims_of(page):
        if claim.language == "py":
            continue  # it runs where a command names it
        if claim.language == "torchrun":
            scripts = request.getfixturevalue("printed_by_ranks")
            printed = scripts[script_of(claim), str(folders[page])]
        else:
            printed = run(claim, names)
        assert printed == claim.printed, claim.code


def test_pages_that_show_code_are_found():
    """Or the test above would say nothing."""
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/guide.md", "docs/howto/save_from_fsdp2.md"} <= names


def test_readme_has_the_two_commands():
    """One line does the main job on a fresh machine, and one passes the tests."""
    commands = [code for language, code in FENCE.findall(README) if language == "bash"]
    assert commands == [
        "pip install 'torch==2.13.*' -e '.[cli]' && sdtree demo\n",
        "pip install 'torch==2.13.*' -e '.[test]' && pytest -n 2 --dist loadfile\n",
    ]


# -- the first screen --------------------------------------------------------------


def test_what_the_readme_does_in_five_lines_is_a_job():
    """Those blocks end a script of ``tests/jobs``, which runs there."""
    blocks = [code for language, code in FENCE.findall(README) if language == "python3"]
    jobs = [path.read_text() for path in (ROOT / "tests" / "jobs").glob("*.py")]
    assert len(blocks) == 2
    for code in blocks:
        assert any(text.endswith(code) for text in jobs), code


@pytest.mark.parametrize(("name", "drawing"), [*pictures()], ids=lambda x: x[:16])
def test_a_picture_shows_what_a_terminal_does(name, drawing):
    """``python tests/common/screenshot.py`` draws it anew."""
    kept = (FOLDER / name).read_text()
    assert words_of(kept) == words_of(drawing)
    assert "http" not in kept.replace("http://www.w3.org/2000/svg", "").replace(
        "https://www.textualize.io", ""
    )


def test_the_readme_shows_the_picture_in_each_of_its_forms():
    shown = {Path(file).name for file in re.findall(r'(?:srcset|src)="(.*?)"', README)}
    assert shown == {name for name, _ in pictures()}
    assert all((ROOT / "docs" / "_static" / name).exists() for name in shown)


FACTS = {
    "gather to one rank": "gather small to rank 0, 4",
    "load from one rank into shards": "load small, 4",
    "memory at the peak, on a rank that only sends": "peak of gather off rank 0, 4",
}
"""What the README says is measured, and where."""


@pytest.mark.parametrize(("told", "work"), [*FACTS.items()])
def test_a_figure_of_the_readme_was_measured(told, work):
    """And the command below the figures measures it."""
    lines = Results.read(ROOT / "docs" / "benchmarks").lines
    [row] = [line.row for name, line in lines.items() if name.startswith(work)]
    theirs, ours = f"{row.torch} ", f"{row.ours} "
    [line] = [line for line in README.splitlines() if line.startswith(f"| {told} |")]
    assert f"| {theirs}| {ours}|" in line
    times = round(row.torch.median / row.ours.median)
    assert f"{times} times" in line or ("a twentieth" in line and 19 <= times <= 21)
    [command] = re.findall(r"^python tests/benchmarks (.*)$", README, re.MULTILINE)
    assert any(re.search(each, work) for each in re.findall("'(.*?)'", command))
