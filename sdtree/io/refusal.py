"""Why torch would not load a file, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence


def reason(text: str, unsafe: Sequence[str] = ()) -> str:
    """Return why loading failed, from torch's message and what is unsafe there."""
    if "TorchScript" in text:
        return (
            "a TorchScript archive, which is code; open it with torch.jit.load and "
            "save its state_dict()"
        )
    names = unsafe or re.findall(r"GLOBAL (\S+) was not", text)
    if names:
        return (
            f"it needs unsafe loading, for it holds {', '.join(names)}, and that can "
            "run any code; allow these, if you trust them, by "
            "torch.serialization.add_safe_globals([...])"
        )
    said = text.partition("WeightsUnpickler error:")[2] or text
    first = next(iter(said.strip().split("\n")), "") or "no reason given"
    return f"not a checkpoint of torch, or a damaged one: {first}"
