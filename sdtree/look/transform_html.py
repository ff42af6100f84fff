"""A transform as a notebook shows it: its stages in order, and what each does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sdtree.text.html import Html, element, framed, table_html, tag
from sdtree.text.showing import add_showing
from sdtree.text.table import Table
from sdtree.transform.prepared import Prepared
from sdtree.transform.stages import (
    CollectiveStage,
    LeafStage,
    PathStage,
    SelectStage,
    Stage,
    TreeStage,
)
from sdtree.transform.transform import Transform

DOES: Final = {
    PathStage: ("moves leaves, by name", "blue"),
    SelectStage: ("chooses leaves", "orange"),
    LeafStage: ("acts on leaves", "teal"),
    TreeStage: ("takes the tree whole", "purple"),
    CollectiveStage: ("ranks exchange leaves", "red"),
}
"""What the sorts of stages do, each in its colour."""


def transform_html(transform: Transform) -> str:
    """Return what a notebook shows of a transform."""
    plain, stages = repr(transform), transform.stages
    if not stages:
        return framed(element("code", plain), plain=plain)
    rows = [
        (element("code", stage.text), _does(stage)) for stage in stages if stage.text
    ]
    return framed(table_html(Table(("stage", "what it does"), rows)), plain=plain)


def prepared_html(prepared: Prepared) -> str:
    """Return what a notebook shows of a transform that is prepared."""
    plain = repr(prepared)
    rows = [
        (element("code", stage.text), _does(stage), _when(stage, prepared.anew))
        for stage in prepared.stages
        if stage.text
    ]
    table = table_html(Table(("stage", "what it does", "when"), rows))
    return framed(element("p", plain, cls="head"), table, plain=plain)


def _when(stage: Stage, anew: Sequence[str]) -> Html:
    is_anew = stage.text in anew
    return tag(*(("anew at each call", "orange") if is_anew else ("prepared", "teal")))


def _does(stage: Stage) -> Html:
    return tag(*DOES[type(stage)])


add_showing(Transform, html=transform_html)
add_showing(Prepared, html=prepared_html)
