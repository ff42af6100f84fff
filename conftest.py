"""What the examples in docstrings may take for granted."""

import typing
from typing import Any

import pytest
import torch

import sdtree as sd


@pytest.fixture(autouse=True)
def _names_of_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(sd=sd, torch=torch, typing=typing)
