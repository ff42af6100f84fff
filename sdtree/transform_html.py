"""A transform as a notebook shows it: its stages in order, and what each does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sdtree.html import Html, element, framed, table_html, tag
from sdtree.stages import Acting, Choosing, Communicating, Moving, Stage, Whole
from sdtree.table import Table

DOES: Final = {
    Moving: ("moves leaves, by name", "blue"),
    Choosing: ("chooses leaves", "orange"),
    Acting: ("acts on leaves", "teal"),
    Whole: ("takes the tree whole", "purple"),
    Communicating: ("ranks exchange leaves", "red"),
}
"""What the sorts of stages do, each in its colour."""


def transform_html(stages: Sequence[Stage]) -> str:
    """Return what a notebook shows of a transform of these stages."""
    plain = " | ".join(stage.text for stage in stages) or "identity"
    if not stages:
        return framed(element("code", plain), plain=plain)
    rows = [(element("code", stage.text), _does(stage)) for stage in stages]
    return framed(table_html(Table(("stage", "what it does"), rows)), plain=plain)


def _does(stage: Stage) -> Html:
    return tag(*DOES[type(stage)])
