"""Leaves over others that lie on several ranks, where nothing tells so of them."""

from __future__ import annotations

from collections.abc import Iterator

from sdtree.kinds.handler import Handler, handler_of, served_by
from sdtree.kinds.wrapper import Wrapper
from sdtree.typing import Aux, Leaf


def hidden_in(leaf: Leaf) -> str:
    """Return the name of the kind of shards that a leaf is over, empty if of none.

    A wrapper of torch's may be over DTensors, and what a user's kind comes apart into.
    """
    ts, aux = handler_of(leaf).flatten(leaf)
    found = (*_inner(aux), *map(served_by, ts))
    return next((x.kind.__name__ for x in found if x.layout is not None), "")


def _inner(aux: Aux) -> Iterator[Handler]:
    """Yield what took the inner tensors of a wrapper apart, and those inside them."""
    form = getattr(aux, "form", None)
    for part in form.inner if isinstance(form, Wrapper) else ():
        yield part.handler
        yield from _inner(part.aux)
