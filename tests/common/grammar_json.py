"""The JSON of specs as it may come from anyone: built by its grammar, and forged.

A text is valid, or is one in which some parts were exchanged for others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from grammar_pickles import foreign_pickles as foreign_pickles
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from sdtree.testing import arrays, blocks, layouts, plain_values, trees
from sdtree.tree.flattening import structure
from sdtree.tree.plain_json import dump
from sdtree.tree.portable import FACTORIES, dump_shape
from sdtree.tree.scalars import is_plain

DRAWN = settings(phases=[Phase.generate])
"""Settings of one who looks for a text, and not for the smallest."""

Json = Any

NUMBERS = st.sampled_from(
    [0, 1, 2, 999, 1001, 2**31 - 1, 2**31, 2**63, 10**30, -1, True, 1.0, 1e300]
)
CLASSES = st.sampled_from(
    [
        *("dict", "list", "tuple", "OrderedDict", "defaultdict", "Counter", "deque"),
        *("sdtree.testing.samples:Pair", "sdtree.testing.samples:Layer"),
        *("sdtree.testing.samples:State", "sdtree.testing.samples:Rows"),
        *("os:system", "builtins:type", "leaf", ""),
    ]
)
PLAIN_NAMES = st.sampled_from(
    [
        *("int", "float", "complex", "bytes", "tuple", "numpy", "Size", "device"),
        *("BytesIO", "dtype", "layout", "memory_format", "function", "__class__"),
    ]
)
WORDS = st.sampled_from(
    [
        *("", "w", "data", "first", "weight", "items", "__class__", "__dict__", "_m"),
        *("float32", "strided", "_dynamo", "compile", "nn", "cpu", "cuda:9", "xla"),
        *("O", "|O", "<f4", "|V8", "<U3", "T", "f4,f4", "(2,)f4", "U999999999"),
        *("QUFBQUFBQUE=", "AAAA", "0x1f", "-0x1", "7ff8000000000001", "zz", "=A"),
        *FACTORIES,
    ]
)


def scalars() -> SearchStrategy[Json]:
    return st.none() | NUMBERS | WORDS | st.floats(allow_nan=False, width=32)


def junk() -> SearchStrategy[Json]:
    """Return JSON data that may stand in the place of any other."""
    return st.recursive(
        scalars() | st.sampled_from(["leaf", "absent"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(PLAIN_NAMES | WORDS, inner, max_size=2)
        ),
        max_leaves=4,
    )


def plain() -> SearchStrategy[Json]:
    """Return plain values as JSON, and what looks like some."""
    scalar = arrays().filter(lambda x: isinstance(x, np.generic) and is_plain(x.dtype))
    true = st.one_of(plain_values(), scalar).map(dump)
    forged = st.builds(lambda name, x: {name: x}, PLAIN_NAMES, junk())
    pairs = st.lists(scalars(), min_size=2, max_size=2)
    forged_pairs = st.builds(lambda name, x: {name: x}, PLAIN_NAMES, pairs)
    return st.one_of(scalars(), true, forged, forged_pairs)


def shapes() -> SearchStrategy[Json]:
    """Return the JSON of shapes: of true trees, and made of parts that need not fit."""
    true = trees(st.just(0)).map(lambda tree: dump_shape(structure(tree).shape))
    return st.one_of(true, st.recursive(st.just("leaf"), made_up, max_leaves=5))


@st.composite
def made_up(draw: DrawFn, children: SearchStrategy[Json]) -> Json:
    """Return a container of any class with any keys, children and state."""
    data: dict[str, Json] = {"type": draw(CLASSES)}
    if draw(st.booleans()):
        data["size"] = draw(NUMBERS)
    else:
        keys = draw(st.lists(plain(), max_size=3))
        data["keys"] = keys
        if draw(st.booleans()):
            data["children"] = [draw(children) for _ in keys]
    if draw(st.booleans()):
        data["state"] = draw(st.dictionaries(STATES, state_parts(), max_size=2))
    return data


STATES = st.sampled_from(
    [
        *("attributes", "children", "itself", "data", "hidden"),
        *("default_factory", "maxlen", "metadata", "x"),
    ]
)


def state_parts() -> SearchStrategy[Json]:
    names = st.lists(WORDS, max_size=2)
    attributes = names.map(
        lambda found: {
            "spec": {"type": "dict", "keys": found},
            "leaves": [0 for _ in found],
        }
    )
    number = NUMBERS.map(lambda n: {"spec": "leaf", "leaves": [n]})
    inner = CLASSES.map(lambda name: {"type": name, "keys": []})
    return st.one_of(attributes, number, inner, WORDS, st.none(), junk())


@st.composite
def forged_specs(draw: DrawFn) -> str:
    """Return texts of specs; in most of them something is not as it should be.

    >>> from hypothesis import find
    >>> "dict" in find(forged_specs(), lambda text: "dict" in text, settings=DRAWN)
    True
    """
    text = json.dumps(_forged(draw, draw(shapes())))
    how = draw(st.sampled_from([None] * 8 + ["twice", "cut", "deep"]))
    if how == "twice" and text.startswith("{"):
        return '{"type": "dict", ' + text[1:]
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    return '{"type":"list","size":1,"children":[' * 5000 if how == "deep" else text


@st.composite
def forged_layouts(draw: DrawFn) -> str:
    """Return texts of layouts; in most of them something is not as it should be.

    >>> from hypothesis import find
    >>> find(forged_layouts(), lambda text: text.startswith("{"), settings=DRAWN) > ""
    True
    """
    told = draw((layouts() | blocks()).map(lambda x: x.layout().to_json()))
    text = json.dumps(_forged(draw, json.loads(told)))
    how = draw(st.sampled_from([None] * 8 + ["cut", "deep"]))
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    return '{"shape":' * 5000 if how == "deep" else text


def _forged(draw: DrawFn, data: Json) -> Json:
    """Return data in which up to two parts were exchanged for others."""
    for _ in range(draw(st.integers(0, 2))):
        data = _exchanged(draw, deepcopy(data))
    return data


def _exchanged(draw: DrawFn, data: Json) -> Json:
    """Return the data with another in the place of some part of it."""
    places = list(_places(data))
    if not places:
        return draw(junk())
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["other", "plain", "shape", "gone", "more"]))
    if how == "gone":
        del holder[key]
    elif how == "more" and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif how == "more":
        holder[draw(WORDS)] = holder[key]
    else:
        holder[key] = draw({"plain": plain(), "shape": shapes()}.get(how, junk()))
    return data


def _places(data: Json) -> Iterator[tuple[Json, Any]]:
    """Yield each place in data: what holds it, and under which key."""
    for key in data if isinstance(data, dict) else range(len(_elements(data))):
        yield data, key
        yield from _places(data[key])


def _elements(data: Json) -> list[Json]:
    return data if isinstance(data, list) else []
