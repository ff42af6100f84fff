"""``Shards``: plain local tensors, and the layout that says what they are parts of."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from sdtree.errors import LayoutError
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import Basis, Handler, add_handler, handler_of
from sdtree.layout.fitting import misplaced
from sdtree.layout.layout import Box, Layout, Region, shown
from sdtree.tensors.bits import same_bits
from sdtree.text.showing import html_of, text_of
from sdtree.typing import Aux, Leaf

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


@final
class Shards:
    """A leaf that ranks share, over plain local tensors: for layouts of every sort.

    ``tensors`` are those of this rank, a tensor or several, as the boxes of ``layout``
    number them; a rank without boxes gives an empty one, which has dtype and device.
    They are held as they are, without copy and without grad. Two are equal if they have
    one layout and, on this rank, the same bits.

    >>> from sdtree.layout import whole
    >>> alone = whole((4, 2), (0,))
    >>> x = sd.Shards(torch.ones(4, 2), alone)
    >>> x
    Shards((4, 2), float32, whole on rank 0)
    >>> x.shape, str(x.dtype), str(x.device)
    (torch.Size([4, 2]), 'torch.float32', 'cpu')
    """

    __slots__ = ("__weakref__", "layout", "tensors")
    layout: Layout
    tensors: tuple[Tensor, ...]

    def __init__(self, tensors: Tensor | Sequence[Tensor], layout: Layout) -> None:
        if not isinstance(layout, Layout):
            raise LayoutError(
                f"Shards takes local tensors and then their Layout, and a "
                f"{type(layout).__name__} is none; sdtree.layout has it"
            )
        found: list[Any] = (
            [*tensors] if isinstance(tensors, (list, tuple)) else [tensors]
        )
        fault = _fault_in_layout(layout) or _fault_in_cover(layout) or _fault_in(found)
        if not fault:
            sizes = tuple(tuple(t.shape) for t in found)
            fault = _misfit(sizes, layout, this_rank())
        if fault:
            raise LayoutError(f"Shards: {fault}")
        _fill(self, layout, [t.detach() for t in found])

    @staticmethod
    def of(x: DTensor, /) -> Shards:
        """Return a DTensor as its local tensor and its layout; nothing is copied.

        Law: ``Shards.of(x).to_dtensor(x.device_mesh)`` has what ``x`` holds here, and
        placements that say the same.

        >>> import torch.distributed as dist
        >>> from torch.distributed.tensor import distribute_tensor, init_device_mesh
        >>> dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        >>> x = distribute_tensor(torch.ones(2), init_device_mesh("cpu", (1,)))
        >>> sd.Shards.of(x), sd.Shards.of(x).to_dtensor(x.device_mesh).placements
        (Shards((2,), float32, whole on rank 0), (Replicate(),))
        >>> dist.destroy_process_group()
        """
        handler = handler_of(x)
        layout = None if handler.layout is None else handler.layout(x)
        if layout is None:
            raise LayoutError(
                f"Shards.of takes a leaf that ranks share, and a {type(x).__name__} "
                "lies on one; give its local tensor a layout: sd.Shards(tensor, layout)"
            )
        return Shards(handler.flatten(x)[0], layout)

    def to_dtensor(self, mesh: DeviceMesh, /) -> DTensor:
        """Return the DTensor over the same local tensor; raise if no mesh says it.

        The placements follow from the layout: of those that say it, the plainest, so
        that all ranks find the same.

        >>> from sdtree.layout import whole
        >>> try:
        ...     sd.Shards(torch.ones(2), whole((2,), (0,))).to_dtensor("cpu")
        ... except TypeError as error:
        ...     print(error)
        to_dtensor takes a DeviceMesh, not a str
        """
        from sdtree.kinds.placements import dtensor_of

        return dtensor_of(self.tensors, self.layout, mesh)

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the whole."""
        return torch.Size(self.layout.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Return the one dtype of all local tensors."""
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        """Return the one device of the local tensors of this rank."""
        return self.tensors[0].device

    def __setattr__(self, name: str, _: object) -> None:
        raise AttributeError(f"Shards stay as they are; make others to change {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Shards stay as they are; {name} cannot go")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Shards)
            and self.layout == other.layout
            and len(self.tensors) == len(other.tensors)
            and all(map(same_bits, self.tensors, other.tensors))
        )

    def __hash__(self) -> int:
        return hash((self.layout, self.dtype))

    def __reduce__(self) -> tuple[Callable[..., Shards], tuple[object, ...]]:
        return restored, (_text(self.layout), self.tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        from copy import deepcopy

        return _made(self.layout, deepcopy(self.tensors, memo))

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Shards({tuple(self.shape)}, {dtype}, {text_of(self)})"

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return html_of(self)


def with_layout(held: Leaf, layout: Layout) -> Shards | Abstract:
    """Return one or more local tensors as a leaf that ranks share.

    What has no data, and so no local tensor here, is foretold.
    """
    if isinstance(held, Abstract) and held.kind in (Tensor, Parameter):
        return replace(held, kind=Shards, shape=layout.shape, layout=layout)
    return Shards(held, layout)  # pyright: ignore[reportArgumentType]


def this_rank() -> int:
    """Return the number of this process among the ranks, 0 where there are no others.

    Torch's module is asked for only where somebody has imported it.
    """
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not (dist.is_available() and dist.is_initialized()):
        return 0
    return dist.get_rank()


def restored(text: str, tensors: Sequence[Tensor]) -> Shards:
    """Return what was pickled, whichever rank it was of; raise if it cannot be right.

    A file may come from anyone, and from another rank: whether it fits this one is seen
    when ranks exchange it.
    """
    layout = _layout(text)
    fault = _fault_in_layout(layout) or _fault_in(tensors)
    if fault:
        raise LayoutError(f"Shards: {fault}")
    return _made(layout, tensors)


@lru_cache(maxsize=4096)
def _text(layout: Layout) -> str:
    """Return the JSON of a layout, the same object for all leaves that share it."""
    return layout.to_json()


@lru_cache(maxsize=4096)
def _layout(text: str) -> Layout:
    return Layout.from_json(text)


@lru_cache(maxsize=4096)
def _fault_in_layout(layout: Layout) -> str:
    """Return why plain local tensors cannot have a layout, empty if they can."""
    if layout.is_partial:
        return (
            "the layout is partial, terms of a reduction that nobody would make; "
            "redistribute or gather the leaf first"
        )
    if layout.parts is not None:
        return (
            f"the layout is that of a {layout.parts.kind.__name__}, whose local "
            "tensors are parts of several wholes; make dense tensors of it first"
        )
    return layout.doubt or _fault_in_boxes(layout)


def _fault_in_boxes(layout: Layout) -> str:
    """Return which box a rank has twice, whose data nothing would compare."""
    for rank, boxes in layout.boxes.items():
        first: dict[Region, Box] = {}
        for box in boxes:
            one = first.setdefault((box.offset, box.size), box)
            if one is not box and box.numel:
                return (
                    f"rank {rank} has {shown(box.offset, box.size)} in local tensor "
                    f"{one.tensor} and again in {box.tensor}, and nothing tells which "
                    "counts if they differ; leave one out"
                )
    return ""


@lru_cache(maxsize=4096)
def _fault_in_cover(layout: Layout) -> str:
    """Return which boxes overlap, or what is missing, empty if all is covered once."""
    try:
        layout.check_coverage()
    except LayoutError as error:
        return str(error)
    return ""


def _fault_in(tensors: Sequence[Any]) -> str:
    """Return why values cannot be the local tensors of one leaf, empty if they can."""
    if not tensors:
        return (
            "there are no local tensors; where this rank has no box give an empty one, "
            "torch.empty(0, dtype=..., device=...)"
        )
    for k, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            return f"local tensor {k} is a {type(t).__name__}; give torch tensors"
        if fault := _fault_in_kind(t):
            return f"local tensor {k} is {fault}"
        for what in ("dtype", "device"):
            first, own = getattr(tensors[0], what), getattr(t, what)
            if first != own:
                return (
                    f"local tensor {k} has {what} {own}, and local tensor 0 {first}; "
                    "all of a leaf have one"
                )
    return ""


def _fault_in_kind(t: Tensor) -> str:
    """Return what a tensor is that is not its own local tensor, empty if it is."""
    plain = t.detach()
    handler = handler_of(plain)
    _, aux = handler.flatten(plain)
    if type(plain) is Tensor and handler.is_dense(aux):
        return ""
    if handler.layout is not None:
        return f"a {type(t).__name__}, which has a layout; sd.Shards.of(x) takes it"
    return f"a {type(t).__name__} that is not dense; make one of it first"


@lru_cache(maxsize=4096)
def _misfit(sizes: Sequence[tuple[int, ...]], layout: Layout, me: int) -> str:
    """Return why local tensors are not those of a rank, empty if they are."""
    boxes = layout.boxes.get(me, ())
    count = max((box.tensor + 1 for box in boxes), default=1)
    if len(sizes) != count:
        return (
            f"the layout has boxes in {count} local tensors of rank {me}, and here are "
            f"{len(sizes)}"
        )
    bare = {*range(count)} - {box.tensor for box in boxes}
    if boxes and bare:
        return (
            f"the layout has no box in local tensor {min(bare)} of rank {me}, which "
            "would be lost; number the tensors as the boxes do, from 0 on"
        )
    if me not in layout.boxes and math.prod(sizes[0]):
        return (
            f"rank {me} is none of {layout.ranks}, the ranks of the layout, and has a "
            f"local tensor of shape {sizes[0]}; give an empty one, or leave the leaf "
            "out here"
        )
    return misplaced(boxes, sizes, layout.shape, me)


def _fill(x: Shards, layout: Layout, tensors: Sequence[Tensor]) -> None:
    object.__setattr__(x, "layout", layout)
    object.__setattr__(x, "tensors", tuple(tensors))


def _made(layout: Layout, tensors: Sequence[Tensor]) -> Shards:
    """Return the leaf over local tensors that are known to fit."""
    new = object.__new__(Shards)
    _fill(new, layout, tensors)
    return new


def _flatten(x: Shards) -> tuple[Sequence[Tensor], Aux]:
    return x.tensors, x.layout


def _itself(layout: Layout) -> Layout:
    return layout


add_handler(
    Handler(
        Shards,
        _flatten,
        _made,
        attrgetter("layout"),
        tensors=attrgetter("tensors"),
        basis=Basis(attrgetter("layout"), _itself),
        dtype=attrgetter("dtype"),
    )
)
