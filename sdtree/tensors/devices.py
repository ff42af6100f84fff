"""Devices: the one that is meant by a name, and whether it is there."""

from __future__ import annotations

from typing import Final

import torch

REFUSALS: Final = (AssertionError, NotImplementedError, RuntimeError)
"""What torch raises for a device that it cannot use, each backend in its own way."""


def device_named(device: object, place: str) -> torch.device:
    """Return the device of a name; raise ``ValueError`` for one that torch lacks.

    ``place`` is what the message calls the argument.

    >>> device_named("cuda:1", "to")
    device(type='cuda', index=1)
    """
    if isinstance(device, torch.device):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f"{place}: a {type(device).__name__} is no device; give its name, such as "
            "'cpu' or 'cuda:0', or a torch.device"
        )
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"{place}: torch knows no device {device!r}; its names are such as 'cpu', "
            "'cuda', 'cuda:0', 'mps', 'xpu' and 'meta'"
        ) from None


def check_present(device: torch.device | None) -> None:
    """Raise a RuntimeError if this machine does not have the device.

    >>> check_present(torch.device("cpu"))
    """
    try:
        torch.empty(0, device=device)
    except REFUSALS as error:
        gist = str(error).partition("\n")[0]
        here = torch.accelerator.current_accelerator()
        raise RuntimeError(
            f"this process cannot use device {str(device)!r} ({gist}); here is "
            f"{'cpu alone' if here is None else f'cpu, and {here}'}"
        ) from error
