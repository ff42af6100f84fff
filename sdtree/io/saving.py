"""``save``: a tree, or what a stream makes, as a file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdtree.io.converting.by_window import Into, convert
from sdtree.io.disk.crew import ALONE
from sdtree.io.disk.target import Source
from sdtree.io.reading import Opened
from sdtree.io.texts import Metadata
from sdtree.io.writing import form_of, write_tree
from sdtree.kinds.handler import served_by
from sdtree.kinds.strangers import reject_file_names
from sdtree.tensors.counting import counting
from sdtree.tensors.modes import uncompiled
from sdtree.transform.stream import Stream
from sdtree.transform.transform import Transform
from sdtree.transform.window import handled
from sdtree.tree.spec import take
from sdtree.typing import Leaf, OnProgress, Tree


@uncompiled
def save(
    tree: Tree | Stream,
    target: Source,
    /,
    *,
    keep_names: bool = False,
    metadata: Metadata | None = None,
    shard_bytes: int | str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Write a tree to a file, .pt, .pth, .bin or .safetensors by its suffix.

    .ckpt and .pth.tar are written as .pt is. Without a suffix it is a directory that
    torch.distributed.checkpoint loads, too.

    Law: ``equal(load(save(t)), t)``, with the same structure and ties; what a format
    has no room for raises, naming the leaf, before anything is written. The file takes
    its place when it is complete: until then, and on any failure, ``target`` is what it
    was.

    In a .safetensors file leaves go by their names, which must differ, and any reader
    finds each with its own shape and data. An exact alias is written once, under the
    first of its names, unless ``keep_names`` is true. ``sd.load`` ties what shared
    bytes; views of one storage that share none come back apart.

    Containers of classes that were registered are named in the file: they come back
    where they are registered, too. ``torch.load`` wants their classes to be allowed.

    ``metadata`` are texts by name that stand beside the tensors of a .safetensors file;
    ``sd.metadata`` reads them. With ``shard_bytes``, 5 * 10**9 or ``"5GB"`` say, the
    target is a folder, of shards of at most so many bytes and their index, as
    transformers writes it; that takes ``sdtree[hf]``. The model.safetensors, or the
    shards of such, that are in the folder are replaced, other files are not.

    To a directory or a folder a tree is written from all ranks where leaves are
    sharded, which is collective: each rank writes its boxes, or shards of about as many
    bytes; what several ranks have is written once. Views of one storage that share no
    bytes come back apart there, too.

    A stream that has not begun, ``sd.save(transform.stream(tree), target)``, is written
    window by window, as ``convert_file`` does it: ``transform(tree)`` is never there as
    a whole. One in which ranks exchange leaves is refused.

    ``on_progress(done, total)`` is called with bytes of the tensors that this rank
    writes, some two hundred times at most, and at last with both the same.

    >>> path = getfixture("tmp_path") / "state.pt"
    >>> sd.save({"w": torch.ones(2), "step": 3}, path)
    >>> sd.load(path)
    {'w': tensor([1., 1.]), 'step': 3}
    """
    form, options = form_of(target, keep_names, metadata, shard_bytes)
    with counting(on_progress) as count:
        if isinstance(tree, Stream):
            into = Into(target, form, options, ALONE, count, _of_a_user)
            convert(*_source_of(tree), into)
            return
        reject_file_names(tree)
        counted = options._replace(done=count)
        handled(lambda: write_tree(tree, target, form, counted), tree)


def _source_of(stream: Stream) -> tuple[Opened, Transform]:
    """Return what a stream begins with, as a file of it, and what it is to pass."""
    tree, stages = stream.begin()
    if any(served_by(leaf).layout is not None for leaf in take(tree)[0]):
        raise TypeError(
            "save: the stream has sharded leaves, which are written by all ranks "
            "together; write sd.save(transform(tree), target)"
        )
    return Opened(tree, "", 0), Transform(tuple(stages))


def _of_a_user(_: Sequence[Leaf]) -> Sequence[Tensor]:
    """Return no tensors: pages that someone may have written to are not given back."""
    return ()
