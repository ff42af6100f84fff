"""Transforms of local tensors: copy, offload, to, cast, empty_like, wait.

Each is one pass over the local tensors of a window, so it works on every leaf kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import arrived
from sdtree.tensors.devices import device_named
from sdtree.tensors.remake import (
    Allocator,
    buffers_on,
    in_dtype,
    remake,
    remake_some,
)
from sdtree.transform.casting import cast_like, cast_to
from sdtree.transform.into import Rewriter, writer
from sdtree.transform.stages import Action, LeafStage, StageContext, always
from sdtree.transform.transform import Transform, keeping_verb
from sdtree.transform.window import (
    Filler,
    Parts,
    Remaker,
    Window,
    apart,
    blame,
    put,
)
from sdtree.tree.alike import Into, Like
from sdtree.tree.pairing import pair
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree


@keeping_verb
def copy(*, into: Tree | None = None) -> Transform:
    """Return the tree with tensors of its own, or written into buffers.

    Law: ``copy(t) = t`` bit for bit, and no leaf of the result shares storage with the
    input; leaves share storage in it if and only if they do in the input. Strides stay,
    but a leaf that is tied to none and fills less than half of its span becomes dense.
    ``requires_grad`` stays; ``.grad``, graph, hooks and tangents do not. Conj and neg
    bits are resolved, which unties a tensor from its conjugate.

    What stands beside the leaves is passed on, not copied: attributes of tensors, also
    such as ``p.main_grad``, and of containers are the input's; of the ``_metadata`` of
    a state dict, into which ``load_state_dict`` writes, the result has its own.

    ``into=`` is a tree of buffers of the same paths, shapes and dtypes, which is
    checked whole before the first byte is written; the result is the tree of those.

    >>> state = {"w": torch.arange(3)}
    >>> sd.copy(state, into=sd.empty_like(state))
    {'w': tensor([0, 1, 2])}
    """
    return _copied("copy", Allocator(), into)


@keeping_verb
def offload(
    *,
    device: str | torch.device = "cpu",
    pin: bool = False,
    share: bool = False,
    into: Tree | None = None,
) -> Transform:
    """Return the tree with copies of its tensors on a device, the CPU by default.

    As ``copy``, also for tensors that are there already. ``pin=True`` puts them into
    page-locked memory, ``share=True`` into memory that other processes can map: into
    one slab, allocated at once; what is shared is one storage, and one file descriptor.

    >>> sd.offload({"w": torch.ones(2), "step": 3})
    {'w': tensor([1., 1.]), 'step': 3}
    """
    room = _slab(device, pin, share)
    shown = _shown(device=room.device, pin=pin, share=share)
    return _copied("offload", room, into, shown)


@keeping_verb
def to(device: str | torch.device) -> Transform:
    """Return the tree with its tensors on ``device``; those there already stay.

    Leaves of which all is there are the same objects, and ties are kept. A meta tensor
    has no data to move and stays meta.

    >>> sd.to({"w": torch.ones(2)}, "meta")["w"].device
    device(type='meta')
    """
    target = device_named(device, "sd.to(tree, device)")
    moved = Call(_moved, target)
    return _remade(f"to({str(target)!r})", moved, Call(_changed, moved), device=target)


@keeping_verb
def cast(*, dtype: torch.dtype | None = None, like: Tree = ...) -> Transform:
    """Return the tree with floating-point tensors of ``dtype``, or of dtypes ``like``.

    With ``dtype=``, which is floating-point, tensors of other dtypes stay. With
    ``like=``, a tree of the same paths, each tensor takes the dtype of the one at
    its path. Leaves that do not change are the same objects, Parameters and what is
    inside a graph, too; ties of members of one dtype are kept, strides as ``copy`` has
    them.

    Law: every leaf whose dtype is floating-point has the new one, type and marks as
    before. A tensor subclass that is over other tensors becomes what its own
    ``to(dtype)`` makes of it, a kind of your own what it says (``register_leaf``).
    Where there is no such conversion, ``UnknownLeaf`` names the leaf: of quantized
    weights, say, that would be dequantized, or of an array that lies as no tensor does.

    >>> sd.cast({"w": torch.ones(2), "n": torch.tensor(1)}, dtype=torch.bfloat16)
    {'w': tensor([1., 1.], dtype=torch.bfloat16), 'n': tensor(1)}
    """
    if (dtype is None) == (like is ...):
        raise TypeError(
            "cast takes dtype= or like=, one of the two; write "
            "sd.cast(tree, dtype=torch.bfloat16)"
        )
    if dtype is None:
        bind = Call(_cast_like, Like(like))
        stage = LeafStage("cast(like=...)", bind, on_abstract=True, is_paired=True)
        return Transform((stage,))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"cast: dtype={dtype!r} is no torch.dtype; give one such as "
            f"{_dtype_like(dtype)}"
        )
    if not dtype.is_floating_point:
        raise TypeError(
            f"cast: dtype={dtype} is not floating-point; for other conversions use "
            "sd.map(lambda t: t.to(...))"
        )
    return _remade(f"cast(dtype={dtype})", Call(in_dtype, dtype), Call(_cast, dtype))


@keeping_verb
def empty_like(
    *, device: str | torch.device = "cpu", pin: bool = False, share: bool = False
) -> Transform:
    """Return the tree with unfilled tensors of the same sizes and ties.

    They are buffers for ``into=``, with strides as ``copy`` has them. Plain values
    stay; so do meta tensors. With ``pin=True`` or ``share=True`` they lie in one slab,
    allocated at once; what is shared is one storage then, and one file descriptor.

    >>> sd.empty_like({"w": torch.ones(2, 3), "step": 3})["w"].shape
    torch.Size([2, 3])
    """
    room = _slab(device, pin, share)
    text = f"empty_like({_shown(device=room.device, pin=pin, share=share)})"
    unfilled = Call(remake, room=room, filled=False)
    return _remade(text, unfilled, copies=True, device=room.device)


@keeping_verb
def wait() -> Transform:
    """Return the tree with the results of asynchronous collectives arrived.

    >>> sd.wait({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    stage = LeafStage.by("wait()", _all_arrived, by_leaf=True, on_abstract=True)
    return Transform((stage,))


# -- what they are made of ---------------------------------------------------------


_always, _written, _put = always, writer, put
"""What was pickled before names them here."""


def _all_arrived(window: Window) -> list[Leaf]:
    try:
        return list(map(arrived, window.leaves))
    except (UnknownLeaf, RuntimeError):
        blame(window.leaves, window.path)
        raise


def _moved(device: torch.device, ts: Sequence[Tensor]) -> Sequence[Tensor]:
    away = [i for i, t in enumerate(ts) if not _is_on(t, device)]
    return remake_some(ts, away, Allocator(device))


def _new(remaker: Remaker, _: Window, parts: Parts) -> list[Leaf]:
    return parts.join(remaker(parts.tensors))


def _changed(remaker: Remaker, _: Window, parts: Parts) -> list[Leaf]:
    return parts.join_changed(remaker(parts.tensors))


def _cast(dtype: torch.dtype, window: Window, parts: Parts) -> list[Leaf]:
    return cast_to(dtype, parts, window.path)


def _dtype_like(name: object) -> torch.dtype:
    """Return the dtype that is meant by what is none, as far as torch names it so."""
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    text = str(name).removeprefix("torch.")
    found = getattr(torch, short.get(text, text), None)
    return found if isinstance(found, torch.dtype) else torch.bfloat16


def _remade(
    text: str,
    remaker: Remaker,
    filler: Filler | None = None,
    *,
    copies: bool = False,
    device: torch.device | None = None,
) -> Transform:
    """Return the transform that puts what is made of local tensors into the leaves.

    The ``filler`` has a way of its own with those that are more than their tensors.
    """
    act = Call(put, filler or Call(_new, remaker), of_bare=remaker)
    stage = LeafStage.by(text, act, on_abstract=True, copies=copies, device=device)
    return Transform((stage,))


def _copied(
    name: str, room: Allocator, into: Tree | None, shown: str = ""
) -> Transform:
    """Return the transform that copies, into buffers if there are any."""
    if into is None:
        copied = Call(remake, room=room)
        text = f"{name}({shown})"
        return _remade(text, copied, copies=True, device=room.device)
    given = Into(into)
    again = Call(Rewriter, given)
    stage = LeafStage(
        f"{name}(into=...)", Call(writer, given), is_paired=True, again=again
    )
    return Transform((stage,))


def _cast_like(like: Like, entry: StageContext) -> Action:
    """Return the action that gives each leaf the dtype of the one at its path."""
    leaves, spec = take(like.tree)
    order = pair(entry.spec, spec, "like=")

    def filler(window: Window, parts: Parts) -> list[Leaf]:
        partners = [leaves[order[k]] for k in window.positions]
        return cast_like(parts, apart(partners, window.path), window.path)

    return Call(put, filler)


def _is_on(t: Tensor, device: torch.device) -> bool:
    if t.is_meta or t.device == device:
        return True
    return str(device) == device.type == t.device.type  # it has no index: any will do


def _slab(device: str | torch.device, pin: bool, share: bool) -> Allocator:
    """Return where buffers are made: in a slab if they are pinned or shared."""
    room = buffers_on(device_named(device, "device="), pin, share)
    if (pin or share) and room.device != torch.device("cpu"):
        raise ValueError(f"pin= and share= are for the CPU, not for device={device}")
    if pin and not torch.accelerator.is_available():
        raise RuntimeError(
            "pin=True needs an accelerator to pin memory for, and there is none here; "
            "leave it out, or give pin=torch.accelerator.is_available()"
        )
    return room


def _shown(*, device: torch.device | None, pin: bool, share: bool) -> str:
    shown = [f"device={str(device)!r}"] if str(device) != "cpu" else []
    shown += [f"{name}=True" for name, on in (("pin", pin), ("share", share)) if on]
    return ", ".join(shown)
