"""Tables: nothing is lost in them, and they fit where they are put."""

from hypothesis import given
from hypothesis import strategies as st

from sdtree.text.table import GAP, Table, breadth, fold, printable, readable_bytes

CELLS = st.text(alphabet="ab.*層", max_size=30)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5)


@given(st.text(), st.integers(1, 40))
def test_fold_loses_nothing(text, width):
    """The pieces are the text, and none is wider than asked for, but for one letter."""
    pieces = fold(text, width)
    assert "".join(pieces) == text
    for piece in pieces:
        assert breadth(piece) <= width or len(piece) == 1


@given(st.text())
def test_printable_is_one_line_of_text(text):
    """No control character comes through, and what has none stays."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


@given(ROWS)
def test_a_row_is_a_line(rows):
    """Without a width, there is one line for each row, cells in their order."""
    titles, *lines = Table(("a", "b", "c"), rows).lines()
    assert titles.split() == ["a", "b", "c"]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.split() == [cell for cell in row if cell]


@given(ROWS, st.integers(20, 100))
def test_lines_fit_the_width(rows, width):
    """Lines are as wide as asked for, but where the further columns need more."""
    columns = zip(*rows, strict=True) if rows else [("",)] * 3
    _, *further = [max(1, *map(breadth, column)) for column in columns]
    room = max(width, sum(further) + 3 * len(GAP))
    table = Table(("a", "b", "c"), rows)
    assert all(breadth(line) <= room for line in table.lines(width))


@given(ROWS)
def test_columns_begin_in_one_place(rows):
    """However wide the letters of a script are."""
    table = Table(("a", "b"), [(a, f"|{b}") for a, b, _ in rows])
    places = {breadth(line[: line.index("|")]) for line in [*table.lines()][1:]}
    assert len(places) <= 1


def test_names_stand_alone_where_there_is_no_room_beside_them():
    rows = [("model.encoder.layer.0.weight", "value", "7 of 8 elements differ")]
    assert list(Table(("name", "differs in", "a"), rows).lines(40)) == [
        "name",
        "    differs in  a",
        "model.encoder.layer.0.weight",
        "    value       7 of 8 elements differ",
    ]


def test_names_fold_at_their_dots():
    """What a person sees at 42 columns."""
    rows = [("model.encoder.layer.0.weight", "Tensor", "8.0 KiB")]
    assert list(Table(("name", "kind", "bytes"), rows, {2}).lines(42)) == [
        "name                    kind      bytes",
        "model.encoder.layer.0.  Tensor  8.0 KiB",
        "weight",
    ]


def test_readable_bytes_stay_short():
    assert [readable_bytes(1024**i) for i in range(5)] == [
        "1 B",
        "1.0 KiB",
        "1.0 MiB",
        "1.0 GiB",
        "1.0 TiB",
    ]
    assert readable_bytes(1024**2 - 1) == "1.0 MiB"
