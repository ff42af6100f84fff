"""The pictures of the results: SVG in the ink of the page, on light ground or dark."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MultipleLocator,
    NullFormatter,
    NullLocator,
)

from benchmarks.race import Figure
from benchmarks.results import Line, Results
from benchmarks.scaling import DEEP

INK, OURS, TORCH = "#7d8590", "#2a8c95", "#d9822b"
"""The ink becomes the colour of the text around; it is a grey where there is none."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sdtree",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}
WIDTH, ROW = 7.2, 0.2
LETTER = 0.062
"""How many inches a letter of a name takes at most."""
LEAST = 12
"""How far a logarithmic axis goes at least: what is nearly flat is to look so."""

SERIES: Mapping[str, Mapping[str, object]] = {
    "torch": {"color": TORCH, "marker": "o"},
    "ours": {"color": OURS, "marker": "o"},
    "raw limit": {"color": INK, "marker": "|", "markersize": 9, "linestyle": ":"},
}


def figures_of(line: Line) -> dict[str, Figure]:
    """Return what is drawn of a line, by series."""
    found = {"torch": line.row.torch, "ours": line.row.ours}
    found["raw limit"] = next(iter(line.row.raw.values()))
    return {name: figure for name, figure in found.items() if figure is not None}


# -- lines one below the other -----------------------------------------------------


def beside(lines: Mapping[str, Line], label: str) -> Picture:
    """Return the picture of works, each with its figures on one scale."""
    height = ROW * len(lines) + 0.8
    picture = Picture(figsize=(WIDTH, height))
    left = room_for(lines, WIDTH)
    axes = picture.add_axes((left, 0.5 / height, 0.98 - left, 1 - 0.8 / height))
    for y, line in enumerate(lines.values()):
        _draw_figures(axes, y, figures_of(line))
    axes.set_yticks(range(len(lines)), [*lines], color=INK)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(label)
    _legend(picture, [*map(figures_of, lines.values())], linestyle="none")
    return picture


def room_for(names: Iterable[str], width: float) -> float:
    """Return which part of a picture the longest name takes, in whatever font."""
    return (LETTER * max(map(len, names)) + 0.1) / width


def _draw_figures(axes: Axes, y: int, figures: Mapping[str, Figure]) -> None:
    places = [figure.median for figure in figures.values()]
    axes.plot([min(places), max(places)], [y, y], color=INK, alpha=0.35, linewidth=0.8)
    for name, figure in figures.items():
        style = {**SERIES[name], "linestyle": "none"}
        between = {"color": style["color"], "alpha": 0.4, "linewidth": 4}
        axes.plot([figure.low, figure.high], [y, y], solid_capstyle="butt", **between)
        axes.plot([figure.median], [y], **style)


def times(lines: Mapping[str, Line]) -> Picture:
    picture = beside(lines, "time")
    [axes] = picture.axes
    axes.set_xscale("log", nonpositive="clip")
    _name_ticks(axes, "x")
    return picture


def peaks(lines: Mapping[str, Line]) -> Picture:
    picture = beside(lines, "MiB more than before, at the peak")
    [axes] = picture.axes
    axes.set_xlim(left=0)
    apart = next(2.0**k for k in range(25, 99) if axes.get_xlim()[1] < 9 * 2**k)
    axes.xaxis.set_major_locator(MultipleLocator(apart))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 2**20:.0f}"))
    return picture


# -- curves ------------------------------------------------------------------------


def curves(
    label: str, share: Callable[[Line], float], unit: str, lines: Mapping[str, Line]
) -> Picture:
    """Return the picture of curves side by side, drawn over what grows."""
    every = {name: [*x] for name, x in groupby(lines.values(), lambda x: x.curve)}
    columns = 4 if len(every) > 6 else 3
    rows = -(-len(every) // columns)
    height = 1.7 * rows + 0.5
    picture = Picture(figsize=(WIDTH, height))
    grid = {"wspace": 0.5, "hspace": 0.42, "left": 0.075, "right": 0.975}
    picture.subplots_adjust(bottom=0.42 / height, top=1 - 0.5 / height, **grid)
    for k, (name, points) in enumerate(every.items(), 1):
        axes = picture.add_subplot(rows, columns, k)
        axes.set_title(name)
        _draw_curves(axes, points, share)
        if k > len(every) - columns:
            axes.set_xlabel(label)
    picture.text(0.975, 1 - 0.11 / height, unit, ha="right", va="top")
    _legend(picture, [figures_of(x) for x in lines.values()])
    return picture


def _draw_curves(
    axes: Axes, points: Sequence[Line], share: Callable[[Line], float]
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for name, style in SERIES.items():
        drawn = [p for p in points if name in figures_of(p)]
        at = [p.at for p in drawn]
        found = [(figures_of(p)[name], share(p)) for p in drawn]
        axes.plot(at, [x.median / by for x, by in found], **style)
        bounds = [[x.low / by for x, by in found], [x.high / by for x, by in found]]
        axes.fill_between(at, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    _name_ticks(axes, "y")
    axes.set_xticks([p.at for p in points], [_short(p.at) for p in points])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    axes.grid()


def _short(count: int) -> str:
    return f"{count // 1000}k" if count >= 1000 else str(count)


def _name_ticks(axes: Axes, side: str) -> None:
    """Name the ticks of a logarithmic axis of times, of which there are some."""
    low, high = getattr(axes, f"get_{side}lim")()
    wider = max(1.0, (LEAST * low / high) ** 0.5)
    getattr(axes, f"set_{side}lim")(low / wider, high * wider)
    axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 60 * low else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: _time(x)))
    axis.set_minor_formatter(NullFormatter())


def _time(x: float) -> str:
    return str(Figure.of([x * (1 + 1e-9)])).replace(".0 ", " ")


def _legend(
    picture: Picture, drawn: Sequence[Mapping[str, Figure]], **style: str
) -> None:
    names = [name for name in SERIES if any(name in figures for figures in drawn)]
    handles = [mpl.lines.Line2D([], [], **{**SERIES[n], **style}) for n in names]
    picture.legend(handles, names, loc="upper left", ncols=len(names))


# -- the one that says it all ------------------------------------------------------

NARROW = 4.4
"""How many inches wide it is, so that a telephone can show it."""


def ratios(lines: Mapping[str, Line]) -> Picture:
    """Return the picture of how many times as fast as torch each work is done."""
    height = 0.17 * len(lines) + 0.5
    picture = Picture(figsize=(NARROW, height))
    left = room_for(lines, NARROW)
    axes = picture.add_axes((left, 0.4 / height, 0.9 - left, 1 - 0.45 / height))
    found = [line.row.torch.median / line.row.ours.median for line in lines.values()]
    axes.set_xscale("log")
    axes.barh(range(len(found)), [x - 1 for x in found], 0.6, 1, color=OURS)
    for y, x in enumerate(found):
        text = f"{x:.0f}" if x >= 10 else f"{x:.1f}"
        axes.text(max(x, 1) * 1.08, y, text, va="center", fontsize=7)
    axes.axvline(1, color=TORCH, linewidth=1)
    axes.set_yticks(range(len(lines)), [*lines], color=INK)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("times as fast as torch")
    return picture


def summary_of(lines: Mapping[str, Line]) -> dict[str, str]:
    """Return the SVG of the works that torch does, too, if there are any."""
    with mpl.rc_context(STYLE):
        label = "how many times as fast as torch"
        return {"summary": svg(ratios(lines), label, "34rem")} if lines else {}


# -- all of them -------------------------------------------------------------------

PICTURES: Mapping[str, Callable[[Mapping[str, Line]], Picture]] = {
    "speed": times,
    "exchange": times,
    "memory": peaks,
    "start": times,
    "leaves": partial(curves, "leaves", lambda x: x.at, "time per leaf"),
    "ranks": partial(curves, "ranks", lambda _: 1, "time"),
    "depth": partial(curves, "depth", lambda _: DEEP, "time per leaf"),
}


def pictures_of(results: Results) -> dict[str, str]:
    """Return the SVG of each group that has lines."""
    with mpl.rc_context(STYLE):
        return {
            group: svg(draw(lines), f"{group}: torch, ours and the raw limit")
            for group, draw in PICTURES.items()
            if (lines := results.of_group(group))
        }


def svg(picture: Picture, label: str, widest: str = "46rem") -> str:
    """Return the picture as a piece of HTML that is a file as well."""
    file = io.StringIO()
    picture.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z]+(_\d+)+(\.\w+)?"', "", text)
    text = re.sub(r"(\.\d\d)\d+(?=[ \"LM])", r"\1", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg ([^>]*?)(height|width)="[^"]*"', r"<svg \1", text)
    text = re.sub(r'<svg ([^>]*?)(height|width)="[^"]*"', r"<svg \1", text)
    head = (
        f'<svg class="picture" style="max-width: {widest}" color="{INK}" '
        f'font-family="sans-serif" role="img" aria-label="{label}" '
    )
    return text.replace("<svg ", head, 1).replace(f": {INK}", ": currentColor")
