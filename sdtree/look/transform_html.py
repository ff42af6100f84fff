"""A transform as a notebook shows it: its stages in order, and what each does."""

from __future__ import annotations

from typing import Final

from sdtree.text.html import Html, element, framed, table_html, tag
from sdtree.text.showing import add_showing
from sdtree.text.table import Table
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


def _does(stage: Stage) -> Html:
    return tag(*DOES[type(stage)])


add_showing(Transform, html=transform_html)
