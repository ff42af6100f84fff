"""show, and what else shows itself: nothing is lost or markup, and all of it short."""

import io
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.kinds.abstract import Local
from sdtree.layout.layout import Box, Layout, Split, mesh_layout
from sdtree.look.listing import ROOM
from sdtree.look.outline import Branch, cropped, outline
from sdtree.look.picture import MOST_BOXES
from sdtree.testing import layouts, trees
from sdtree.text.table import counted, printable, readable_bytes, shortened

SEGMENTS = st.sampled_from(["w", "b", "h0", "h1", "h2", "0", "1", "2", "10", "", "é"])
NAMES = st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), max_size=20)
REPEATED = st.builds(
    lambda inner, count: [f"layers.{i}.{name}" for i in range(count) for name in inner],
    NAMES,
    st.integers(0, 5),
)
TAGS = {
    *("div", "style", "pre", "span", "strong", "code", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "symbol", "use", "rect", "title", "text"),
}
"""All that HTML is made of here."""


def every(branch: Branch) -> Iterator[Branch]:
    yield branch
    for child in branch.below:
        yield from every(child)


def parsed(html: str) -> ET.Element:
    """Return the elements of a piece of HTML; what is not well-formed raises."""
    root = ET.fromstring(html)
    assert {element.tag for element in root.iter()} <= TAGS
    return root


def written(root: ET.Element) -> str:
    """Return all that is to be read, tooltips too; not what stands without a style."""
    [shown] = root.findall("div")
    said = [element.get("title", "") for element in shown.iter()]
    return "\n".join([*shown.itertext(), *said])


def as_title(name: str) -> str:
    return printable(shortened(name))


def as_regex(name: str) -> str:
    """Return what the names look like that a line stands for."""
    ends = re.split(r"\d+…\d+", name)
    return r"\d+".join(map(re.escape, ends))


# -- the outline -------------------------------------------------------------------


@given(NAMES | st.builds(list.__add__, REPEATED, NAMES), st.booleans(), st.data())
def test_every_leaf_is_in_one_line(names, fold, data):
    """In their order where nothing is folded; a line is named as its leaves are."""
    marks = [data.draw(st.integers(0, 1)) for _ in names]
    lines = [*outline(names, marks, fold=fold).lines()] if names else []
    found = [i for _, branch in lines for i in branch.leaves]
    assert sorted(found) == [*range(len(names))]
    assert fold or found == [*range(len(names))]
    for name, branch in lines:
        assert len({marks[i] for i in branch.leaves}) == 1
        for i in branch.leaves:
            assert re.fullmatch(as_regex(name), names[i])
        assert branch.times == len(branch.leaves)


@given(
    NAMES | st.builds(list.__add__, REPEATED, NAMES),
    st.integers(1, 12),
    st.integers(2, 6),
)
def test_what_has_no_room_is_told(names, room, wide):
    """There are no more lines than room, and each leaf is still in one of them."""
    whole = outline(names, [0] * len(names), fold=True)
    cut = cropped(whole, len, room, wide)
    lines = [*cut.lines()]
    assert len(lines) <= room
    assert all(len(branch.below) <= wide for branch in every(cut))
    assert sorted(i for _, b in lines for i in b.leaves) == [*range(len(names))]
    for name, branch in lines:
        if cut.below and branch.is_cut and not branch.is_rest:
            prefix = as_regex(name)
            assert all(re.match(rf"{prefix}\.", names[i]) for i in branch.leaves)


def test_the_largest_is_opened_first():
    names = ["a.x", "a.y", "b.x", "b.y", "c"]
    whole = outline(names, range(5), fold=True)
    cut = cropped(whole, lambda at: sum(10 * (i in (2, 3)) for i in at), 4, 9)
    assert [name for name, _ in cut.lines()] == ["a", "b.x", "b.y", "c"]


def test_siblings_that_differ_are_not_folded():
    """By what stands below, by more than a number, or by too few of them."""
    names = ["h.0.w", "h.1.w", "h.2.v", "x.0.a1", "x.0.b1", "x.0.c1"]
    found = outline(names, [0] * 6, fold=True)
    assert [name for name, _ in found.lines()] == names


# -- the listing -------------------------------------------------------------------


@given(trees())
def test_html_is_well_formed_and_tells_every_name(tree):
    """Whatever keys and values are, they come as text."""
    listing = sd.show(tree)
    said = written(parsed(listing._repr_html_()))
    for row in listing.rows:
        assert as_title(row.name) in said
    assert counted(listing.total.leaves, "leaf", "leaves") in said
    assert readable_bytes(sd.nbytes(tree)) in said


@given(trees())
def test_the_bytes_of_a_branch_are_those_of_its_leaves(tree):
    """What they share counts once, in every branch and in the whole."""
    listing, leaves = sd.show(tree), sd.leaves(tree)
    for branch in every(listing.outline(100, 100)):
        held = [leaves[i] for i in branch.leaves]
        assert listing.sizes.together(branch.leaves) == sd.nbytes(held)


def model(layers: int, experts: int = 1) -> dict[str, object]:
    """Return a model of many layers that are alike."""

    def layer() -> dict[str, torch.Tensor]:
        up = {f"experts.{k}.up": torch.empty(4, 8) for k in range(experts)}
        return {"attn.weight": torch.empty(4, 8), **up, "norm": torch.empty(8)}

    stack = [layer() for _ in range(layers)]
    return {"embed": torch.empty(4, 8), "layers": stack, "step": 3}


def test_what_repeats_stands_in_one_line():
    """What a person reads of a model of 32 layers."""
    text = str(sd.show(model(32, 4)))
    rows = text.split("\n\n")[0].splitlines()
    tensor = "Tensor  (4, 8)  float32"
    assert [re.sub(" {3,}", "  ", row) for row in rows] == [
        "name  kind  shape or value  dtype  leaves  parameters  bytes",
        f"embed  {tensor}  1  32  128 B",
        f"layers.0…31.attn.weight  {tensor}  32  1,024  4.0 KiB",
        f"layers.0…31.experts.0…3.up  {tensor}  128  4,096  16.0 KiB",
        "layers.0…31.norm  Tensor  (8,)  float32  32  256  1.0 KiB",
        "step  int  3  1",
    ]
    assert len({*map(len, rows[:-1])}) == 1


def test_few_leaves_are_listed_one_by_one():
    names = [f"h.{i}.w" for i in range(12)]
    rows = str(sd.show(dict.fromkeys(names, 0))).split("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == ["name", *names]


def wide(count: int) -> dict[str, object]:
    """Return leaves whose names have nothing in common that would fold them."""
    words = ["ab", "cd", "ef", "gh"]
    names = [f"{words[i % 4]}{i % 7}.{i}.x{'y' * (i % 5)}" for i in range(count)]
    return {name: torch.empty(2) for name in names}


@pytest.mark.parametrize("make", [model, wide], ids=["alike", "unlike"])
def test_forty_thousand_leaves_are_shown_in_a_few_lines(make):
    """Text and HTML stay short, and all leaves are counted in them."""
    tree = make(13_400 if make is model else 40_000)
    listing = sd.show(tree)
    assert listing.total.leaves >= 40_000
    assert sum(line.leaves for line in listing.lines()) == listing.total.leaves
    assert len(listing.lines()) <= ROOM
    assert len(str(listing).splitlines()) < 150
    html = listing._repr_html_()
    assert len(html) < 1_000_000
    assert sum(1 for _ in parsed(html).iter()) < 15_000


def test_work_grows_as_the_leaves_do():
    """Ten times the leaves are at most eleven times the calls, some dozens each."""

    def calls(count: int) -> int:
        found = 0

        def count_one(_frame, event, _arg):
            nonlocal found
            found += event in ("call", "c_call")

        tree = wide(count)
        sys.setprofile(count_one)
        try:
            sd.show(tree)._repr_html_()
        finally:
            sys.setprofile(None)
        return found

    calls(40)
    few, many = calls(1_000), calls(10_000)
    assert many < 11 * few
    assert many < 100 * 10_000


def test_hostile_names_are_harmless():
    names = ["<script>alert(1)</script>", "\x1b[2J\n", "x" * 9000, "a\u202eb", "\ud800"]
    listing = sd.show({**dict.fromkeys(names, 1), "v": "</pre><script>"})
    html, text = listing._repr_html_(), str(listing)
    parsed(html)
    assert "<script" not in html
    assert "\x1b" not in html + text
    assert "\u202e" not in html + text
    assert max(map(len, text.splitlines())) < 200
    html.encode()


def test_ties_are_marked():
    w = torch.ones(2)
    said = written(parsed(sd.show({"a": w, "b": w, "c": torch.ones(2)})._repr_html_()))
    assert said.count("tie 1") == 2
    assert "16 B" in said


# -- in a terminal -----------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stand_at_prompt(monkeypatch):
    """Stand at an interactive prompt, in a terminal of 100 columns with colours."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name, value in {"COLUMNS": "100", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_prompt_shows_a_tree_in_colours(monkeypatch):
    stand_at_prompt(monkeypatch)
    listing = sd.show({**model(32), "\x1b[2J": 1})
    text = repr(listing)
    assert "\x1b[1mname" in text
    assert "\x1b[2J" not in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert re.search(r"├─ attn\.weight .32 +Tensor +\(4, 8\)", plain)
    assert plain.endswith(f"{listing.total.leaves} leaves, 9.1 KiB")
    assert "\x1b" not in str(listing)


def test_without_rich_it_is_plain_there_too(monkeypatch):
    stand_at_prompt(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich", None)
    listing = sd.show({"w": 1})
    assert repr(listing) == str(listing)


def test_elsewhere_it_is_plain():
    listing = sd.show(model(50))
    assert repr(listing) == str(listing)


@given(trees())
@settings(max_examples=20)
def test_rich_prints_every_name(tree):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=2000)
    listing = sd.show(tree)
    console.print(listing)
    text = console.file.getvalue()
    for row in listing.rows:
        for part in row.name.split(".")[:20]:
            assert printable(shortened(part)) in text


# -- layouts -----------------------------------------------------------------------


@st.composite
def laid_out(draw) -> Layout:
    """Return layouts of meshes: uneven, empty and strided shards, replicas, terms."""
    found = draw(layouts(8, partial=("sum",)))
    splits = tuple(Split(axis, dim) for axis, dim in found.splits)
    at = torch.ones(found.mesh).nonzero().tolist()
    places = dict(zip(map(tuple, at), found.ranks, strict=True))
    partial = bool(found.terms)
    return mesh_layout(found.shape, found.mesh, splits, places.__getitem__, partial)


@given(laid_out())
def test_a_picture_shows_the_tensor_and_every_rank(layout):
    """The boxes fill it without overlap, and each rank is in those that it holds."""
    root = parsed(layout._repr_html_())
    rects = [*root.iter("rect")]
    holding = {r for r in layout.ranks if any(b.numel for b in layout.boxes[r])}
    said = " ".join(title.text or "" for title in root.iter("title"))
    assert named(said) == holding
    if len(layout.shape) <= 2 and holding:
        [svg] = root.iter("svg")
        whole = float(svg.get("width", 0)) * float(svg.get("height", 0))
        areas = [float(r.get("width", 0)) * float(r.get("height", 0)) for r in rects]
        assert sum(areas) == pytest.approx(whole, rel=0.05)


def named(text: str) -> set[int]:
    """Return the ranks that tooltips name, as ``ranks 0…2, 5: [0:2, 0:3]``."""
    found: set[int] = set()
    for spans in re.findall(r"ranks? ([^:]+): \[", text):
        for span in spans.split(", "):
            first, _, last = span.partition("…")
            found |= {*range(int(first), int(last or first) + 1)}
    return found


def over(ranks: int, rows: int) -> Layout:
    """Return the layout of a matrix that ranks hold row by row."""
    return mesh_layout((rows, 4), (ranks,), (Split(0, 0),), lambda at: at[0])


def test_layouts_of_many_ranks_stay_short():
    layout = over(1024, 4096)
    assert repr(layout) == (
        "Layout((4096, 4) in 1,024 boxes on ranks 0…1023: [0:4, 0:4] on 0, [4:8, 0:4] "
        "on 1, [8:12, 0:4] on 2, [12:16, 0:4] on 3, … 1,020 more)"
    )
    root = parsed(layout._repr_html_())
    assert len([*root.iter("rect")]) == MOST_BOXES
    assert f"the first {MOST_BOXES} boxes are drawn" in written(root)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (
            over(2, 4),
            "(4, 4) in 2 boxes on ranks 0, 1: [0:2, 0:4] on 0, [2:4, 0:4] on 1",
        ),
        (over(2, 1), "(1, 4) whole on ranks 0, 1, nothing on 1"),
        (over(2, 0), "(0, 4) empty on ranks 0, 1"),
        (Layout((), {3: (Box(0, (), (), ()),)}), "() whole on rank 3"),
        (
            Layout((2,), dict.fromkeys((0, 1), (Box(0, (0,), (0,), (2,)),)), True),
            "(2,) as terms to be reduced on ranks 0, 1",
        ),
    ],
)
def test_a_layout_says_who_holds_what(layout, text):
    assert repr(layout) == f"Layout({text})"
    parsed(layout._repr_html_())


def test_sharded_leaves_have_a_picture():
    """The same for those that lie alike, and never more than there is room for."""
    local = (Local((2, 4), (4, 1), torch.float32),)
    form = sd.Abstract(torch.Tensor, (4, 4), torch.float32, local, over(2, 4))
    root = parsed(sd.show({"a": form, "b": form, "c": 1})._repr_html_())
    [symbol] = root.iter("symbol")
    uses = [use.get("href") for use in root.iter("use")]
    assert uses == [f"#{symbol.get('id')}"] * 4
    assert "(4, 4) in 2 boxes on ranks 0, 1" in written(root)
    assert repr(form).endswith("float32, in 2 boxes on ranks 0, 1)")
    assert "<svg" in form._repr_html_()


# -- what else shows itself --------------------------------------------------------


@given(trees())
def test_a_structure_shows_its_keys_and_containers(tree):
    spec = sd.structure(tree)
    said = written(parsed(spec._repr_html_()))
    for path in spec.paths():
        for key in path:
            assert printable(shortened(repr(key))) in said or "…" in said


def test_large_structures_stay_short():
    spec = sd.structure(model(2_000) | wide(2_000))
    assert repr(spec).startswith(
        "TreeSpec({'embed': *, 'layers': [0…1999: {'attn.weight': *, "
        "'experts.0.up': *, 'norm': *}], 'step': *, 'ab0.0.x': *"
    )
    assert "more})" in repr(spec)
    assert len(repr(spec)) < 5_000
    assert len(spec._repr_html_()) < 100_000
    parsed(spec._repr_html_())


def test_a_transform_shows_its_stages():
    transform = sd.select("<b>.**") | sd.cast(dtype=torch.half) | sd.gather(ranks=0)
    root = parsed(transform._repr_html_())
    assert [cell.text for cell in root.iter("code")] == [
        "select('<b>.**')",
        "cast(dtype=torch.float16)",
        "gather(ranks=0)",
    ]
    assert "ranks exchange leaves" in written(root)
    assert "identity" in written(parsed(sd.identity._repr_html_()))


def test_differences_show_themselves():
    found = sd.diff({"<i>": 1, "b": 2}, {"<i>": 2, "c": "</td>"})
    said = written(parsed(found._repr_html_()))
    assert "3 differences" in said
    assert "<i>" in said
    assert "str '</td>'" in said
    assert "no differences" in written(parsed(sd.diff(1, 1)._repr_html_()))


def test_many_differences_stay_short():
    found = sd.diff(dict.fromkeys(range(5000), 1), dict.fromkeys(range(5000), 2))
    assert len(str(found).splitlines()) == 101
    assert str(found).endswith("… and 4,901 more")
    assert len(found) == 5000
    assert "… and 4,900 more" in written(parsed(found._repr_html_()))
