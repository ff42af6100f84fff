"""HTML that is safe by construction, its tables and bars, and the style they are in.

What is not ``Html`` is text: it is escaped where it goes in, so no key and no value
becomes markup. Colours are mixed with that of the text around, whichever theme the
notebook, the editor or the page has.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import torch

from sdtree.text.table import Table, printable, shortened
from sdtree.typing import Dtype

MOST_ROWS: Final = 100
"""How many rows of one table are."""


class Html(str):
    """Text that is HTML already and goes in as it is."""

    __slots__ = ()


def escaped(text: str) -> Html:
    r"""Return a text as HTML that shows it: in one line, without its middle if long.

    >>> escaped("a<b>\n")
    'a&lt;b&gt;\\n'
    """
    if isinstance(text, Html):
        return text
    return Html(html.escape(printable(shortened(text))))


def element(tag: str, /, *children: str, **attributes: str) -> Html:
    """Return an element: its children escaped unless they are ``Html``.

    The attribute ``cls`` is the class, and other names have ``-`` for ``_``.

    >>> element("td", "a < b", cls="num")
    '<td class="num">a &lt; b</td>'
    """
    return Html(f"<{tag}{_said(attributes)}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Html:
    """Return parts one after the other."""
    return Html("".join(map(escaped, parts)))


def _said(attributes: Mapping[str, str]) -> str:
    return "".join(
        f' {"class" if name == "cls" else name.replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
    )


def bar(share: float) -> Html:
    """Return a bar that fills a share of its place.

    >>> bar(0.5)
    '<span class="bar" style="--share:50.0%"></span>'
    """
    return element("span", cls="bar", style=_share(share))


def tag(text: str, cls: str) -> Html:
    """Return a word that its colour tells apart, of the class given."""
    return element("span", text, cls=f"tag {cls}")


def dtype_name(dtype: Dtype) -> str:
    """Return the name of a dtype without its module.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_tag(dtype: Dtype | None) -> Html:
    """Return the name of a dtype in the colour of its sort, nothing for none."""
    return Html() if dtype is None else tag(dtype_name(dtype), hue_of(dtype))


def hue_of(dtype: Dtype) -> str:
    """Return the colour of a dtype: by whether it is floating-point, and how wide.

    Those that torch does not have are of one colour.
    """
    if not isinstance(dtype, torch.dtype):
        return "grey"
    if dtype.is_complex:
        return "purple"
    if not dtype.is_floating_point:
        return "grey" if dtype is torch.bool else "orange"
    return {1: "green", 2: "teal"}.get(dtype.itemsize, "blue")


def folded(head: Sequence[str], *inner: str, is_open: bool = False) -> Html:
    """Return what opens and closes: its head, and what is seen when it is open."""
    extra = {"open": ""} if is_open else {}
    return element("details", element("summary", *head), *inner, **extra)


def table_html(
    table: Table,
    shares: Mapping[int, Sequence[float]] | None = None,
    *,
    caption: str = "",
    most: int = MOST_ROWS,
) -> Html:
    """Return a table: numbers at the right, a bar behind those that have shares.

    ``shares`` are, by column, what part of the whole (or of the largest) each row has.
    Of more rows than ``most`` the last line tells how many are left out.

    >>> "<td>w</td>" in table_html(Table(("name", "bytes"), [("w", "4 B")], {1}))
    True
    """
    cell = _cells(table, shares or {})
    titles = [cell("th", i, title) for i, title in enumerate(table.titles)]
    rows = [
        element("tr", *(cell("td", i, text, k) for i, text in enumerate(row)))
        for k, row in enumerate(islice(table.rows, most))
    ]
    if len(table.rows) > most:
        left = f"… and {len(table.rows) - most:,} more"
        span = str(len(table.titles))
        rows.append(element("tr", element("td", left, cls="rest", colspan=span)))
    found = element(
        "table",
        element("caption", caption) if caption else Html(),
        element("thead", element("tr", *titles)),
        element("tbody", *rows),
    )
    return element("div", found, cls="wide")


def _cells(table: Table, shares: Mapping[int, Sequence[float]]) -> Callable[..., Html]:
    """Return what makes a cell, of its tag, column, text and row."""

    def cell(tag: str, column: int, text: str, row: int | None = None) -> Html:
        extra = {"cls": "num"} if column in table.right else {}
        if row is not None and column in shares:
            extra = {"cls": "num share", "style": _share(shares[column][row])}
        return element(tag, text, **extra)

    return cell


def _share(share: float) -> str:
    return f"--share:{100 * min(max(share, 0), 1):.1f}%"


def framed(*parts: str, plain: str = "") -> str:
    """Return what a notebook shows: the parts, in the style that is for them alone.

    Where styles are not let in, the ``plain`` text stands instead.
    """
    shown = element("div", *parts, cls="shown", style="display:none")
    text = Html(f'<pre class="plain">{html.escape(_lines(plain))}</pre>')
    style = Html(f"<style>{STYLE}</style>")
    return element("div", style, text, shown, cls="sdtree")


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


STYLE: Final = "".join(
    line.strip()
    for line in """
.sdtree{--blue:#2f7de1;--teal:#0fa3a3;--green:#3a9d4f;--orange:#d9822b;--red:#d64550;
--purple:#8f5bd6;--grey:#8a8f98;--faint:rgba(128,128,128,.16);
--mono:var(--jp-code-font-family,var(--vscode-editor-font-family,
ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace));
--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,
var(--color-foreground-primary,currentColor)));
color:var(--ink);font-size:13px;line-height:1.5;max-width:920px;
container-type:inline-size}
.sdtree .plain{display:none}
.sdtree .shown{display:block!important}
.sdtree code,.sdtree .mono{font-family:var(--mono);font-size:.94em}
.sdtree .faint,.sdtree .rest,.sdtree caption{opacity:.66}
.sdtree.sdtree table{border-collapse:collapse;border:0;margin:.5em 0;
font-size:inherit;width:auto;display:table;table-layout:auto}
.sdtree.sdtree caption{caption-side:top;text-align:left;padding:0 .6em .2em;
font-style:normal;color:inherit}
.sdtree.sdtree tr{background:none!important;border:0}
.sdtree.sdtree tbody tr:hover{background:var(--faint)!important}
.sdtree.sdtree th,.sdtree.sdtree td{text-align:left;padding:.12em .6em;border:0;
white-space:nowrap;color:inherit;line-height:1.5;vertical-align:baseline;
max-width:none}
.sdtree.sdtree th{font-weight:600;border-bottom:1px solid var(--faint)}
.sdtree.sdtree td:first-child{font-family:var(--mono);font-size:.94em}
.sdtree.sdtree .num{text-align:right;font-variant-numeric:tabular-nums}
.sdtree.sdtree .share{min-width:7em;background:linear-gradient(to left,
color-mix(in srgb,var(--blue) 28%,transparent) var(--share),transparent 0)}
.sdtree .wide{overflow-x:auto}
.sdtree .bar{display:inline-block;width:100%;height:.55em;border-radius:2px;
background:var(--faint);overflow:hidden;vertical-align:baseline}
.sdtree .bar::before{content:"";display:block;height:100%;width:var(--share);
background:color-mix(in srgb,var(--blue) 75%,transparent)}
.sdtree .tag{--hue:var(--grey);color:var(--hue);
color:color-mix(in srgb,var(--hue) 72%,var(--ink));white-space:nowrap}
.sdtree .blue{--hue:var(--blue)}.sdtree .teal{--hue:var(--teal)}
.sdtree .green{--hue:var(--green)}.sdtree .orange{--hue:var(--orange)}
.sdtree .red{--hue:var(--red)}.sdtree .purple{--hue:var(--purple)}
.sdtree details{margin:0}
.sdtree summary{cursor:pointer;list-style:none}
.sdtree summary::-webkit-details-marker{display:none}
.sdtree summary:hover,.sdtree .end:hover{background:var(--faint)}
.sdtree summary::before{content:"▸";display:inline-block;width:1em;opacity:.6}
.sdtree details[open]>summary::before{content:"▾"}
.sdtree .tree summary{display:flex;align-items:baseline}
.sdtree .tree summary::before{flex:0 0 1em}
.sdtree .tree .end{padding-left:1em}
.sdtree .head{margin:.2em 0}
.sdtree .tree{margin:.3em 0;border:solid var(--faint);border-width:1px 0;
padding:.2em 0}
.sdtree .row{display:grid;flex:1 1 0;min-width:0;align-items:baseline;gap:0 .8em;
grid-template-columns:minmax(8em,1fr) auto 7em 9em 7.5em 5em 5.5em}
.sdtree .row>*{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.sdtree .row .num{text-align:right;font-variant-numeric:tabular-nums}
.sdtree .name{font-family:var(--mono);font-size:.94em}
.sdtree .below{margin-left:.5em;padding-left:.5em;border-left:1px solid var(--faint)}
.sdtree .marks{display:flex;gap:.5em;align-items:center}
.sdtree .tie{border:1px solid;border-radius:.6em;padding:0 .4em;font-size:.8em}
.sdtree figure{margin:.3em 0 .6em 1em}
.sdtree figcaption{opacity:.75;font-size:.94em}
.sdtree svg{overflow:visible;vertical-align:middle}
.sdtree .symbols{position:absolute}
.sdtree svg rect{stroke:var(--ink);stroke-width:var(--edge,1);stroke-opacity:.45;
vector-effect:non-scaling-stroke}
.sdtree svg text{fill:var(--ink);text-anchor:middle;dominant-baseline:central;
font-family:var(--mono);opacity:var(--label,1)}
.sdtree .thumb{--label:0;--edge:0}
.sdtree .keys{font-family:var(--mono);font-size:.94em;padding-left:1em}
@container (max-width:640px){.sdtree.sdtree td:not(.num){white-space:normal;
overflow-wrap:anywhere}
.sdtree .tree .row{gap:0 .6em;
grid-template-columns:auto auto auto minmax(0,1fr) auto}
.sdtree .tree .name{grid-area:1/1/2/5}
.sdtree .tree .row .num{grid-area:1/5/2/6}
.sdtree .tree .part{display:none}
.sdtree .tree .kind,.sdtree .tree .what,.sdtree .tree .dtype{font-size:.88em;
grid-row:2}
.sdtree .tree .marks{grid-row:2;order:9}
.sdtree .tree .below{margin-left:.3em;padding-left:.3em}}
""".splitlines()
)
"""Rules that reach no further than what ``framed`` returns."""
