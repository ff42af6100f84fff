"""The page of the results, in MyST Markdown."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.race import Figure, Row
from benchmarks.results import Line, Results


class Section(NamedTuple):
    """What is said of a group of lines, and what their ratio is."""

    title: str
    words: str
    ratio: str = "torch / ours"


SECTIONS: Mapping[str, Section] = {
    "speed": Section(
        "In one process",
        "The same work by torch's own functions and by sdtree, on trees of tens of "
        "thousands of leaves. The raw limit is the bare walk of optree, or the bare "
        "kernel on lists of tensors. Of the copy of 96 large tensors the ratio is that "
        "of one flat copy of as many bytes, over ours.",
    ),
    "exchange": Section(
        "On ranks",
        "A tree sharded by rows is gathered, and a whole one loaded into shards. Small "
        "is 1000 tensors of 64x64, large 64 of 1024x1024, mixed both, where the ratio "
        "is the time of its two parts apart, over ours. The raw limit is a flat "
        "message of as many bytes for each pair of ranks, or one scatter. A call takes "
        "as long as on the slowest rank. Torch's callers, `get_model_state_dict` to "
        "rank 0 and `set_model_state_dict` from it, have an FSDP2 model of 400 "
        "parameters of side 64, and find torch's own functions or those of `compat`.",
    ),
    "memory": Section(
        "Memory at the peak",
        "How much more is held at the peak than before. A chain of five maps goes over "
        "400 MB; the raw limit is a plain loop in torch, leaf by leaf, or the size of "
        "the result, and the ratio counts windows of 32 MiB beside that. Ranks gather "
        "to one, and load, 318 MiB of small and large leaves; the ratio counts buckets "
        "of 32 MiB.",
        "windows",
    ),
    "start": Section(
        "Before the first byte",
        "What it takes to import, to agree, and to plan. The ratio of the import is "
        "ours over that of torch and optree alone. Agreeing is what a gather of 1000 "
        "small leaves takes longer than without; its ratio is to a tenth of the "
        "gather, or to 2 ms on two ranks and 6 ms on four if that is more. A plan is "
        "for 10,000 leaves that 1024 ranks hold; its ratio is in seconds.",
        "ratio",
    ),
    "leaves": Section(
        "As leaves grow in number",
        "What a leaf takes, in trees of tiny tensors, ten to a dict. Where a curve is "
        "flat the time grows as the tree does; at its left end stands what a call "
        "costs however small the tree. The gather is on two ranks; torch's, which "
        "takes a collective for each leaf, is tried on up to 1000.",
    ),
    "ranks": Section(
        "As ranks grow in number",
        "256 tensors of 64x64, sharded over all ranks. There are more ranks than cores "
        "where the machine has fewer; then they wait for each other.",
    ),
    "depth": Section(
        "As trees grow deeper",
        "What a leaf takes in a tree of 10,000, as many in each of the dicts that "
        "stand one within the other. At depth 100 a leaf stands 50 deep on average.",
    ),
}
CURVES = ("leaves", "ranks", "depth")
MET = {True: "yes", False: "**no**", None: ""}
SUMMARY = "summary"
COMMAND = "python tests/benchmarks --write docs/benchmarks"


def draw(results: Results, folder: Path) -> None:
    """Write the page and its pictures."""
    from benchmarks.plots import pictures_of, summary_of

    drawn = pictures_of(results) | summary_of(compared(results))
    for name, text in drawn.items():
        (folder / f"{name}.svg").write_text(text)
    (folder / "index.md").write_text(page_of(results))


def page_of(results: Results) -> str:
    """Return the page."""
    parts = [*_head(results)]
    for group, section in SECTIONS.items():
        if lines := results.of_group(group):
            parts += [f"## {section.title}", section.words, _picture(group)]
            parts.append(_table_of(group, section.ratio, lines))
    parts += [*_targets(results)]
    return "\n\n".join(parts) + "\n"


def _picture(name: str) -> str:
    """Return the block that shows a picture, which may be wider than the page."""
    raw = f"```{{raw}} html\n:file: {name}.svg\n```"
    return f"````{{container}} scroll\n{raw}\n````"


def _targets(results: Results) -> Iterator[str]:
    """Yield the section of what the ratios are held to, if any is."""
    lines = {name: line.row for name, line in results.lines.items()}
    wanted = {name: row for name, row in lines.items() if row.target is not None}
    if not wanted:
        return
    head = ("work", "ratio", "wanted", "met")
    rows = [(name, _number(row.ratio), *_target(row)) for name, row in wanted.items()]
    yield "## For developers: targets"
    yield "What the ratio of a work is held to by those who change it."
    yield _folded("Targets", _table([head, *rows]))


def _target(row: Row) -> tuple[str, str]:
    sign = "≥" if row.at_least else "≤"
    return f"{sign} {row.target:g}", MET[row.is_met]


def _folded(summary: str, table: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{table}\n\n</details>"


# -- the head ----------------------------------------------------------------------


def _head(results: Results) -> Iterator[str]:
    yield "# Benchmarks"
    if small := small_on_ranks(results):
        yield _in_a_sentence(small)
    if compared(results):
        yield _picture(SUMMARY)
    yield "One command measures it and makes this page:"
    yield f"```sh\npip install -e '.[test]'\n{COMMAND}\n```"
    yield (
        "A figure is the median of several rounds, in which torch, ours and the raw "
        "limit take turns after a warm-up; behind it stands half the distance of its "
        "quartiles. The **raw limit** is what the machine takes for as much work done "
        "bare, so *ours / limit* tells what is left to gain."
    )
    yield _folded("The machine", _runs(results))


def compared(results: Results) -> dict[str, Line]:
    """Return the works that torch does, too, and that are no points of curves."""
    return {
        name: line
        for name, line in results.lines.items()
        if line.row.torch and line.group in ("speed", "exchange")
    }


def small_on_ranks(results: Results) -> list[Row]:
    """Return the rows of small tensors that torch exchanges, too."""
    lines = compared(results).items()
    return [line.row for name, line in lines if re.match("(gather|load) small", name)]


def _in_a_sentence(rows: Sequence[Row]) -> str:
    faster = [row.ratio for row in rows if row.ratio]
    bare = [row.to_limit for row in rows if row.to_limit]
    return (
        f"sdtree gathers and loads small tensors **{_between(faster)} times as fast** "
        "as torch's private functions, in "
        f"{_between(bare)} times what the bare exchange takes."
    )


def _between(found: Sequence[float]) -> str:
    low, high = f"{min(found):.0f}", f"{max(found):.0f}"
    return low if low == high else f"{low} to {high}"


def _runs(results: Results) -> str:
    """Return the table of the machines, and how many lines were found on each."""
    found = Counter(line.run for line in results.lines.values())
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run, machine in results.runs.items():
        alike.setdefault((*machine.items(),), []).append(run)
    machines = [*map(dict, alike)]
    keys = dict.fromkeys(key for machine in machines for key in machine)
    rows = [
        ("measured", *map(", ".join, alike.values())),
        *((key, *(machine.get(key, "") for machine in machines)) for key in keys),
        ("lines", *(str(sum(map(found.get, runs))) for runs in alike.values())),
    ]
    return _table(rows)


# -- tables ------------------------------------------------------------------------


def _table_of(group: str, ratio: str, lines: Mapping[str, Line]) -> str:
    head = ("work", "torch", "ours", ratio, "raw limit", "ours / limit", "beside")
    rows = [head, *(_cells(name, line.row) for name, line in lines.items())]
    table = _table(_without_empty(rows))
    if group not in CURVES:
        return table
    return _folded("The figures", table)


def _cells(name: str, row: Row) -> tuple[str, ...]:
    (limit, figure), *beside = row.raw.items()
    return (
        name,
        _spread(row.torch) if row.torch else "",
        _spread(row.ours),
        _number(row.ratio),
        f"{_solid(figure)} ({limit})",
        _number(row.to_limit),
        ", ".join(f"{name} {_solid(x)}" for name, x in beside),
    )


def _spread(figure: Figure) -> str:
    if figure.rounds == 1 or not figure.median:
        return _solid(figure)
    half = 50 * abs((figure.high - figure.low) / figure.median)
    return f"{_solid(figure)} ±{half:.0f}%"


def _solid(figure: Figure) -> str:
    """Return its text, not to be broken over lines."""
    return str(figure).replace(" ", "\N{NO-BREAK SPACE}")


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}" if abs(x) < 100 else f"{x:,.0f}"


def _without_empty(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the rows without the columns that say nothing."""
    columns = [x for x in zip(*rows, strict=True) if any(x[1:])]
    return [*zip(*columns, strict=True)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
