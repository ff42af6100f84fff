"""Trees as files: in which format, how, and by which ranks."""

from __future__ import annotations

from typing import Any

from sdtree.io.disk.target import Source
from sdtree.io.formats import EVERY, Format
from sdtree.io.hf.splitting import shard_bytes_of
from sdtree.io.leaves.given import with_data
from sdtree.io.pickles.foreigners import check_known
from sdtree.io.suffixes import format_for
from sdtree.io.texts import Metadata, Options, checked
from sdtree.kinds.handler import served_by
from sdtree.tree.spec import take
from sdtree.typing import Tree
from sdtree.wire.collectives import RankGroup


def write_tree(tree: Tree, target: Source, form: Format[Any], options: Options) -> None:
    """Write a tree that is here, or of which each rank has a part."""
    if form.joint is not None:
        rank_group = _rank_group_for(tree)
        if rank_group.others:
            form.joint(tree, target, options, rank_group, _ready)
            return
    ready = _ready(_whole(tree) if form.joint else tree)
    with form.replacing(target) as path:
        form.write(ready, path, options)
        options.done.end()  # while whoever is told may still refuse


def _rank_group_for(tree: Tree) -> RankGroup:
    """Return the ranks that each have a part of a tree, no others if it is all here."""
    from sdtree.exchange.meeting import rank_group_for

    return rank_group_for("save", tree, {}, None)


def _whole(tree: Tree) -> Tree:
    """Return a tree whose sharded leaves are whole, all of which are on this rank."""
    if all(served_by(leaf).layout is None for leaf in take(tree)[0]):
        return tree
    from sdtree.ops.collective import gather

    return gather(tree)


def _ready(tree: Tree) -> Tree:
    check_known(tree)
    return with_data(tree)


def form_of(
    target: Source,
    keep_names: bool,
    metadata: Metadata | None,
    shard_bytes: int | str | None,
) -> tuple[Format[Any], Options]:
    """Return the format in which a target is written, and how."""
    size, texts = size_of(shard_bytes), checked(metadata)
    name = format_for(target, size)
    if texts and EVERY[name].metadata is None:
        raise ValueError(
            f"metadata= goes beside the tensors of a .safetensors file, and {target} "
            "is no such; make it a part of the tree"
        )
    return EVERY[name], Options(keep_names, texts, size)


def size_of(shard_bytes: int | str | None) -> int:
    """Return how many bytes a shard may have, 0 where none are asked for."""
    return 0 if shard_bytes is None else shard_bytes_of(shard_bytes)
