"""``patch``: as long as it is on, torch's own code calls the functions of sdtree."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from threading import RLock
from types import ModuleType
from typing import Any, Final, Self, final

from torch.distributed import _state_dict_utils as torchs

from sdtree.compat import collective, flat, local

Function = Callable[..., Any]

OURS: Final[tuple[Function, ...]] = (
    collective.all_gather_sharded_tensor,
    collective.broadcast_state_dict,
    collective.broadcast_tensors,
    collective.distribute_state_dict,
    collective.distribute_tensors,
    collective.gather_state_dict,
    flat.flatten_state_dict,
    flat.set_element,
    flat.traverse_state_dict,
    flat.unflatten_state_dict,
    local.check_state_dict_similarity,
    local.copy_state_dict,
    local.create_cpu_state_dict,
    local.iterate_state_dict,
    local.offload_state_dict_to_cpu,
)


def _stand_in(ours: Function) -> Function:
    """Return a function of its own that does the same.

    Only a patch puts it anywhere, so what is found can be taken back; that somebody has
    imported ours by another name is left alone.
    """

    @wraps(ours)
    def call(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    return call


STAND_INS: Final = {f"_{ours.__name__}": _stand_in(ours) for ours in OURS}
_LOCK: Final = RLock()
_ORIGINALS: Final[dict[str, Function]] = {}
_ON: Final[set[Patch]] = set()
"""The patches that are on."""


@final
class Patch:
    """Torch's functions swapped for ours until ``undo`` is called, or the block ends.

    >>> on = sd.compat.patch()
    >>> on.undo()
    """

    def undo(self) -> None:
        """End this patch. Torch's functions are back once no other is on.

        To end it again does nothing.
        """
        with _LOCK:
            if self in _ON:
                _ON.remove(self)
                if not _ON:
                    _swap(STAND_INS, _ORIGINALS)

    def __enter__(self) -> Self:
        if self not in _ON:
            raise RuntimeError("this patch has ended; patch() makes another")
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch() -> Patch:
    """Return a patch that is on: a block for ``with``, or something to ``undo``.

    Wherever a module has imported one of torch's functions, ours takes its place:
    ``get_model_state_dict`` and its kin, stagers, FSDP then run on ours. That holds for
    all threads. Patches may nest, and end in any order; what modules import meanwhile
    is torch's again when the last has ended.

    >>> from torch.distributed.checkpoint.state_dict import get_model_state_dict
    >>> with sd.compat.patch():
    ...     state = get_model_state_dict(torch.nn.Linear(2, 1))
    >>> on = sd.compat.patch()
    >>> on.undo()
    """
    made = Patch()
    with _LOCK:
        if not _ON:
            known = vars(torchs)
            _ORIGINALS.update({n: known[n] for n in STAND_INS if n in known})
        _ON.add(made)
        _swap(_ORIGINALS, STAND_INS)
    return made


def _swap(old: Mapping[str, Function], new: Mapping[str, Function]) -> None:
    """Put functions in the place of others in every module that has one of these."""
    others = {id(old[name]): new[name] for name in _ORIGINALS}
    for module in [*sys.modules.values()]:
        if isinstance(module, ModuleType):
            for name, value in [*vars(module).items()]:
                if id(value) in others:
                    setattr(module, name, others[id(value)])
