"""The trees that are measured."""

from typing import Any

import torch

import sdtree as sd

Tree = dict[Any, Any]
ADAM = ("step", "exp_avg", "exp_avg_sq")
AMSGRAD = (*ADAM, "max_exp_avg_sq")


def optimizer(parameters: int) -> Tree:
    """Return the state of AMSGrad: four tensors a parameter, and three numbers."""
    group = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.0}
    return {"state": _states(parameters, AMSGRAD), "param_groups": [group]}


def tiny_tensors(count: int, depth: int, tied: bool = True) -> Tree:
    """Return tiny tensors in one dict, or three to a dict; if ``tied``, two are."""
    states = _states(count // len(ADAM), ADAM)
    if tied:
        states[0]["exp_avg_sq"] = states[0]["exp_avg"].detach()
    return states if depth > 1 else sd.flatten(states)


def large_tensors(count: int, elements: int) -> Tree:
    """Return tensors with storage of their own, every byte of it touched."""
    return {f"layers.{i}.weight": torch.full((elements,), i / 3) for i in range(count)}


def layers(leaves: int) -> Tree:
    """Return tiny tensors, ten to a dict."""
    return {"layers": {str(i): _layer(10) for i in range(leaves // 10)}}


def nested(leaves: int, depth: int) -> Tree:
    """Return tiny tensors, as many in each of ``depth`` dicts, one within the other."""
    tree = _layer(leaves // depth)
    for _ in range(depth - 1):
        tree = {**_layer(leaves // depth), "inner": tree}
    return tree


def _layer(leaves: int) -> dict[str, torch.Tensor]:
    return {f"weight{i}": torch.randn(4, 4) for i in range(leaves)}


def _states(count: int, names: tuple[str, ...]) -> dict[int, dict[str, torch.Tensor]]:
    return {i: {name: _tensor(name) for name in names} for i in range(count)}


def _tensor(name: str) -> torch.Tensor:
    return torch.tensor(1.0) if name == "step" else torch.randn(4, 4)
