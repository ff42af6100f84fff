"""How properties are run, and what the examples in docstrings may take for granted."""

import os
import typing
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.vendor import pretty

import sdtree as sd
from sdtree.testing import Pair

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", deadline=None, suppress_health_check=SLOW)
# The same examples each time, and fewer: it is tests.fuzz that goes on drawing.
settings.register_profile(
    "ci", settings.get_profile("dev"), derandomize=True, max_examples=50
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _show(t: torch.Tensor, printer: Any, is_cycle: bool) -> None:
    """Have Hypothesis show a tensor; torch cannot show those of some dtypes."""
    try:
        printer.text(repr(t))
    except NotImplementedError:
        printer.text(f"{t.dtype} of {t.size()} by {t.stride()}")


def _show_pair(pair: Pair, printer: Any, is_cycle: bool) -> None:
    printer.repr_call("Pair", pair, {})


pretty.for_type_by_name("torch", "Tensor", _show)
pretty.for_type_by_name(Pair.__module__, "Pair", _show_pair)


@pytest.fixture(autouse=True)
def _names_of_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(sd=sd, torch=torch, typing=typing)
