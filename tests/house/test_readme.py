"""What README and docs show is true: each block runs and prints what it says."""

import pytest
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

PAGES = pages()


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
    readme = (ROOT / "README.md").read_text()
    commands = [code for language, code in FENCE.findall(readme) if language == "bash"]
    assert commands == [
        "pip install 'torch==2.13.*' -e '.[cli]' && sdtree demo\n",
        "pip install 'torch==2.13.*' -e '.[test]' && pytest\n",
    ]
