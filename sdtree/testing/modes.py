"""What may be set around a call, and is to have no effect on it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, TypeVar

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

T = TypeVar("T")


class Setting(NamedTuple):
    """Something that torch has set around a call: a name, and how it is set.

    >>> quiet = Setting("no_grad", torch.no_grad()(lambda act: act()))
    >>> quiet(torch.is_grad_enabled)
    False
    """

    name: str
    run: Callable[[Callable[[], object]], object]

    def __call__(self, act: Callable[[], T]) -> T:
        """Return what a call returns where this is set around it."""
        found: list[T] = []
        self.run(lambda: found.append(act()))
        return found[0]

    def __repr__(self) -> str:
        return f"<{self.name}>"


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _default_device(device: str) -> Generator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def _deterministic() -> Generator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _mode(name: str, make: Callable[[], AbstractContextManager[object]]) -> Setting:
    def run(act: Callable[[], object]) -> None:
        with make():
            act()

    return Setting(name, run)


def _level(enter: Callable[..., Callable[..., object]]) -> Setting:
    """Return a level of ``torch.func``: the call is made inside a function of it."""

    def run(act: Callable[[], object]) -> None:
        def inside(x: Tensor) -> Tensor:
            act()
            return x.sum()

        enter(inside)(torch.ones(2))

    return Setting(f"torch.func.{enter.__name__}", run)


_CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "device meta": lambda: torch.device("meta"),
    "default device meta": lambda: _default_device("meta"),
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "default dtype float16": lambda: _default_dtype(torch.float16),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": _deterministic,
    "forward mode": torch.autograd.forward_ad.dual_level,
    "fake": FakeTensorMode,
}

MODES: tuple[Setting, ...] = (
    *(_mode(name, make) for name, make in _CONTEXTS.items()),
    *map(_level, (torch.func.vmap, torch.func.grad, torch.func.functionalize)),
)


def modes() -> SearchStrategy[Setting]:
    """Return what may be set around a call, such as a default device or a grad mode.

    >>> import hypothesis
    >>> mode = hypothesis.find(modes(), lambda mode: mode.name == "inference_mode")
    >>> mode(torch.is_inference_mode_enabled)
    True
    """
    return st.sampled_from(MODES)
