"""The benchmarks run; how fast is for them to say, and no test depends on it."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import cli
from benchmarks.page import SECTIONS, SUMMARY, page_of
from benchmarks.race import Figure, Row
from benchmarks.results import Line, Results

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder that a run of everything, in tiny, has written."""
    folder = tmp_path_factory.mktemp("benchmarks") / "new"
    assert cli.main(["--tiny", "--write", str(folder)]) == 0
    return folder


def test_every_row_is_measured_on_tiny_trees_and_kept(folder):
    results = Results.read(folder)
    assert [*results.lines] == [*cli.WORKS]
    assert {line.group for line in results.lines.values()} == {*SECTIONS}
    for name, line in results.lines.items():
        assert next(iter(line.row.raw.values())), f"{name} has no limit"
    [run] = results.runs.values()
    assert run["size"] == "tiny"


def test_every_group_has_a_picture_in_the_ink_of_its_page(folder):
    for group in (*SECTIONS, SUMMARY):
        text = (folder / f"{group}.svg").read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "currentColor" in text
        assert "black" not in text
        assert "#000" not in text


def test_the_page_has_every_work_and_every_picture(folder):
    page = (folder / "index.md").read_text()
    assert all(f"| {work} |" in page for work in cli.WORKS)
    assert all(f":file: {group}.svg\n" in page for group in SECTIONS)


def test_the_page_begins_with_what_it_comes_to():
    """One sentence and one picture; targets are folded up at the end."""
    figures = [Figure.of([second]) for second in (6.0, 2.0, 1.0)]
    rows = [
        Row(ours, {"flat": figures[2]}, figures[0], figures[0].median / ours.median, 9)
        for ours in figures[1:]
    ]
    works = ("gather small to all", "load small")
    lines = {x: Line(row, "", "exchange") for x, row in zip(works, rows, strict=True)}
    head, *_, tail = page_of(Results(lines, {"": {}})).split("\n## ")
    assert "**3 to 6 times as fast**" in head
    assert "1 to 2 times what the bare exchange takes" in head
    assert ":file: summary.svg" in head
    assert "wanted" not in head
    assert "| load small | 6.00 | ≥ 9 | **no** |" in tail


def test_a_page_is_drawn_anew_from_what_is_kept(folder, tmp_path):
    kept = Results.read(folder)
    part = Results(kept.of_group("ranks"), kept.runs)
    part.write(tmp_path)
    assert cli.main(["--draw", str(tmp_path)]) == 0
    assert (tmp_path / "index.md").read_text() == page_of(part)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {"results.json", "index.md", "ranks.svg"}
    assert (tmp_path / "ranks.svg").read_text() == (folder / "ranks.svg").read_text()


@pytest.mark.skipif(not PAGE.exists(), reason="nothing is kept there yet")
def test_the_page_in_the_documentation_shows_what_is_kept():
    """After a run, or by hand: ``python tests/benchmarks --draw docs/benchmarks``."""
    results = Results.read(PAGE)
    assert [*results.lines] == [name for name in cli.WORKS if name in results.lines]
    assert (PAGE / "index.md").read_text() == page_of(results)


# -- results -----------------------------------------------------------------------


def line(seconds: float, run: str) -> Line:
    figure = Figure.of([seconds])
    return Line(Row(figure, {"bare": figure}), run, "speed")


OLD = Results(
    {"a": line(1, "Monday"), "b": line(2, "Monday"), "gone": line(3, "Monday")},
    {"Monday": {"cores": "2"}},
)
NEW = Results({"b": line(4, "Friday")}, {"Friday": {"cores": "8"}})


def test_a_run_of_a_part_replaces_its_own_lines_alone():
    both = OLD.merged(NEW, ["b", "a"])
    assert [*both.lines.items()] == [("b", NEW.lines["b"]), ("a", OLD.lines["a"])]
    assert both.runs == {**OLD.runs, **NEW.runs}
    assert both.merged(OLD, ["b"]).runs == OLD.runs


def test_results_come_back_as_they_were_written(tmp_path):
    OLD.write(tmp_path)
    assert Results.read(tmp_path) == OLD
    assert Results.read(tmp_path / "nowhere") == Results()


# -- rows --------------------------------------------------------------------------


def test_a_figure_is_the_median_between_its_quartiles():
    figure = Figure.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (figure.low, figure.median, figure.high, figure.rounds) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure.of([2.5]), "2.5 s"),
        (Figure.of([0.0125]), "12.5 ms"),
        (Figure.of([3.21e-6]), "3.2 µs"),
        (Figure.of([0.0]), "0 ns"),
        (Figure.of([-0.0125]), "-12.5 ms"),
        (Figure.of([2**25], "B"), "32 MiB"),
        (Figure.of([0], "B"), "0 B"),
    ],
)
def test_a_figure_reads_in_a_unit_that_suits_it(figure, text):
    assert str(figure) == text


@pytest.mark.parametrize(
    ("ratio", "target", "at_least", "is_met"),
    [
        (3.0, 2.5, True, True),
        (2.0, 2.5, True, False),
        (3.0, 2.5, False, False),
        (2.0, 2.5, False, True),
        (2.5, 2.5, True, True),
        (2.5, 2.5, False, True),
        (3.0, None, True, None),
    ],
)
def test_a_ratio_is_held_to_its_target(ratio, target, at_least, is_met):
    bare = Figure.of([0.5])
    row = Row(Figure.of([1.5]), {"bare": bare}, None, ratio, target, at_least)
    assert row.is_met is is_met
    assert row.to_limit == 3
