"""Trees are typed through: what the type checker answers, as it is run on this file."""

from typing import Any, assert_type

import torch
from torch import Tensor
from torch.nn import Parameter

import sdtree as sd
from sdtree.typing import Path

Nested = dict[str, dict[str, list[Tensor]]]


def flat() -> dict[str, Tensor]:
    return {"w": torch.ones(2), "b": torch.zeros(1)}


def nested() -> Nested:
    return {"layer": {"w": [torch.ones(2)]}}


def test_what_keeps_containers_keeps_their_types() -> None:
    tree = flat()
    assert_type(sd.cast(tree, dtype=torch.half), dict[str, Tensor])
    assert_type(sd.copy(tree), dict[str, Tensor])
    assert_type(sd.offload(tree), dict[str, Tensor])
    assert_type(sd.to(tree, "cpu"), dict[str, Tensor])
    assert_type(sd.empty_like(tree), dict[str, Tensor])
    assert_type(sd.wait(tree), dict[str, Tensor])
    assert_type(sd.select(tree, "w"), dict[str, Tensor])
    assert_type(sd.drop(tree, ("w", "x*"), missing_ok=True), dict[str, Tensor])
    assert_type(sd.where(tree, "w", sd.copy()), dict[str, Tensor])
    assert_type(sd.cast(nested(), dtype=torch.half), Nested)
    assert_type(sd.copy({1: Parameter(torch.ones(1))}), dict[int, Parameter])


def test_without_a_tree_they_are_transforms() -> None:
    assert_type(sd.cast(dtype=torch.half), sd.Transform)
    assert_type(sd.copy(into=flat()), sd.Transform)
    assert_type(sd.select("w") | sd.offload(), sd.Transform)
    assert_type(sd.where("w", sd.copy()), sd.Transform)
    assert_type(sd.map(torch.relu), sd.Transform)


def rows(x: Tensor) -> int:
    return x.shape[0]


def named(path: Path, x: Tensor) -> tuple[int, Tensor]:
    return len(path), x


def test_map_has_the_type_that_its_function_returns() -> None:
    assert_type(sd.map(rows, flat()), dict[str, int])
    assert_type(sd.map(rows, [torch.ones(2)]), list[int])
    assert_type(sd.map(lambda x: x.numel() > 1, flat()), dict[str, bool])
    assert_type(sd.map_with_path(lambda path, x: str(path), flat()), dict[str, str])


def test_where_types_cannot_say_it_nothing_is_promised() -> None:
    """The leaves of a nested tree lie below what its type speaks of."""
    assert_type(sd.map(rows, nested()), Any)
    assert_type(sd.map(torch.add, flat(), flat()), Any)
    assert_type(sd.rename(flat(), ("w", "v")), Any)
