"""Trees as files: ``save`` at once, ``convert_file`` window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from warnings import warn

from torch import Tensor

from sdtree.io.beside import FORMAT, Metadata, Options, checked
from sdtree.io.crew import ALONE, Crew
from sdtree.io.forecast import forecast
from sdtree.io.foreigners import check_known
from sdtree.io.formats import EVERY, Format, Pull
from sdtree.io.hf.splitting import shard_bytes_of
from sdtree.io.pages import releaser
from sdtree.io.reading import Opened, open_file
from sdtree.io.refusal import in_short
from sdtree.io.restriding import Pour
from sdtree.io.safetensors.kinds import as_in_file
from sdtree.io.target import Source, format_for
from sdtree.kinds.handler import kind_of, served_by, tensors_of
from sdtree.kinds.strangers import reject_file_names
from sdtree.ops.local import copy
from sdtree.ops.looking import nbytes
from sdtree.path import where
from sdtree.tensors.modes import making, uncompiled, writing
from sdtree.tensors.storage import covered_bytes, extent
from sdtree.transform.run import Run, stretches_of
from sdtree.transform.stages import (
    PathStage,
    SelectStage,
    Stage,
    TreeStage,
    touches_no_data,
)
from sdtree.transform.transform import Transform
from sdtree.transform.window import Parts, Window, apart, apart_in, handled
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.collectives import RankGroup

OnProgress = Callable[[int, int], None]
"""Called with how many bytes are done and how many there are."""


@uncompiled
def save(
    tree: Tree,
    target: Source,
    /,
    *,
    keep_names: bool = False,
    metadata: Metadata | None = None,
    shard_bytes: int | str | None = None,
) -> None:
    """Write a tree to a file, .pt, .pth, .bin or .safetensors by its suffix.

    Without a suffix it is a directory that torch.distributed.checkpoint loads, too.

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
    transformers writes it; that takes ``sdtree[hf]``. Weights that are in the folder
    are replaced, other files are not.

    To a directory or a folder a tree is written from all ranks where leaves are
    sharded, which is collective: each rank writes its boxes, or shards of about as many
    bytes; what several ranks have is written once.

    >>> path = getfixture("tmp_path") / "state.pt"
    >>> sd.save({"w": torch.ones(2), "step": 3}, path)
    >>> sd.load(path)
    {'w': tensor([1., 1.]), 'step': 3}
    """
    form, options = _form_of(target, keep_names, metadata, shard_bytes)
    reject_file_names(tree)

    def write() -> None:
        if form.joint is not None:
            rank_group = _rank_group_for(tree)
            if rank_group is not None:
                form.joint(tree, target, options, rank_group, _ready)
                return
        ready = _ready(_whole(tree) if form.joint else tree)
        with form.replacing(target) as path:
            form.write(ready, path, options)

    handled(write, tree)


def _rank_group_for(tree: Tree) -> RankGroup | None:
    """Return the ranks that each have a part of a tree, None if it is all here."""
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
    return _with_data(tree)


def _form_of(
    target: Source,
    keep_names: bool,
    metadata: Metadata | None,
    shard_bytes: int | str | None,
) -> tuple[Format[Any], Options]:
    """Return the format in which a target is written, and how."""
    size = 0 if shard_bytes is None else shard_bytes_of(shard_bytes)
    texts = checked(metadata)
    name = format_for(target, size)
    if texts and EVERY[name].metadata is None:
        raise ValueError(
            f"metadata= goes beside the tensors of a .safetensors file, and {target} "
            "is no such; make it a part of the tree"
        )
    return EVERY[name], Options(keep_names, texts, size)


@uncompiled
def convert_file(
    source: Source | Opened,
    target: Source,
    transform: Transform,
    /,
    *,
    keep_names: bool = False,
    shard_bytes: int | str | None = None,
    on_progress: OnProgress | None = None,
    group: Any = None,
) -> None:
    """Write what a transform makes of one file, or folder, to another.

    Law: as ``save(transform(load(source)), target)``. Only what is kept is read, and
    memory holds one window of it: by default 32 MiB, or one leaf or tie; and those
    leaves of a .safetensors file that share bytes where none is the whole. A transform
    whose outcome cannot be foretold, as that of ``sd.map`` or a sparse tensor, is run
    whole first. The metadata of the source is kept; a .pt file has no room for it, and
    a warning names what is left out. ``shard_bytes`` is as in ``save``.
    ``on_progress(done, total)`` is called with bytes of the result. With a ``group``
    its ranks write the file together, each a share of it; that is collective.

    >>> source = getfixture("tmp_path") / "a.pt"
    >>> sd.save({"model": {"w": torch.ones(2)}, "step": 3}, source)
    >>> target = source.with_name("b.safetensors")
    >>> convert_file(source, target, sd.select("model.**") | sd.cast(dtype=torch.half))
    >>> sd.load(target)
    {'model': {'w': tensor([1., 1.], dtype=torch.float16)}}
    """
    report = on_progress or _keep_quiet
    form, options = _form_of(target, keep_names, None, shard_bytes)
    crew = ALONE if group is None else Crew.of("convert_file", RankGroup.of(group))
    opened = source if isinstance(source, Opened) else open_file(source)
    if form.metadata is not None:
        options = options._replace(metadata=opened.metadata)
    elif left := left_out(opened, target, shard_bytes):
        warn(left, stacklevel=2)
    pour = _poured(opened, transform) if form.lay_out else None
    transform = transform if pour else opened.loaded | transform
    tree, (stretch, *more) = _led_on(opened.tree, transform)
    run, read = Run.of(tree, stretch), _tensors(take(opened.tree)[0])
    outline = None if more else _outline(run, stretch)
    if outline is None:
        crew.meet_first(
            lambda: _convert_whole(opened, target, transform, options, report)
        )
        return
    check_known(outline)
    with crew.room(form.replacing, target) as path:
        if form.pour is not None:
            total = nbytes(outline)
            pull = _pulled(run, read, total, report)
            form.pour(outline, pull, path, options, crew)
            report(total, total)
        if form.lay_out is not None:
            lay_out = partial(form.lay_out, outline, path, options)
            _fill_together(lay_out, run, read, report, crew, pour)
        crew.meet_first(lambda: form.seal(path))


def _led_on(tree: Tree, transform: Transform) -> tuple[Tree, list[list[Stage]]]:
    """Return the tree behind the stages in front that touch no data, and the others."""
    stretches = stretches_of(transform.stages)
    while stretches[1:] and all(map(touches_no_data, stretches[0])):
        first, *stretches = stretches
        tree = Transform(tuple(first))(tree)
    return tree, stretches


def _outline(run: Run, stretch: Sequence[Stage]) -> Tree | None:
    """Return what a run will make, without data, None if that cannot be told."""
    if any(isinstance(stage, TreeStage) for stage in stretch):
        return None
    with making():
        return forecast(run)


def _convert_whole(
    opened: Opened,
    target: Source,
    transform: Transform,
    options: Options,
    report: OnProgress,
) -> None:
    """Write what a transform makes of a tree, all at once."""
    result = transform(opened.tree)
    save(result, target, **options.given())
    report(nbytes(result), nbytes(result))


def left_out(
    opened: Opened, target: Source, shard_bytes: int | str | None = None
) -> str:
    """Return in words what a conversion leaves out; empty if nothing."""
    form, _ = _form_of(target, False, None, shard_bytes)
    names = sorted(map(in_short, opened.metadata.keys() - {FORMAT}))
    if form.metadata is not None or not names:
        return ""
    return f"left out, for a .pt file has no room for metadata: {', '.join(names)}"


def _keep_quiet(done: int, total: int) -> None:
    """Report nothing."""


def _with_data(tree: Tree) -> Tree:
    """Return a tree that can be written as it is, with conj and neg bits resolved."""
    leaves, spec = take(tree)
    parts = apart_in(spec, leaves)
    for i, leaf in enumerate(leaves):
        if kind_of(leaf) is not type(leaf):
            raise _no_data(spec.every_path[i], type(leaf).__name__)
    _check_data(parts, spec.paths())
    if any(t.is_conj() or t.is_neg() for t in parts.tensors):
        return copy(tree)
    return tree


def _check_data(parts: Parts, paths: Sequence[Path]) -> None:
    for owner, t in zip(parts.owners(), parts.tensors, strict=True):
        if t.is_meta:
            raise _no_data(paths[owner], "meta tensor")


def _no_data(path: Path, what: str) -> TypeError:
    return TypeError(f"{where(path)}: the {what} has no data to write; drop it first")


# -- window by window --------------------------------------------------------------


def _pulled(run: Run, read: Sequence[Tensor], total: int, report: OnProgress) -> Pull:
    """Return what makes leaves of a run, and gives back the pages that it has read."""
    release, paths = releaser(read), run.spec.every_path
    done = 0

    def pull(positions: Sequence[int]) -> Sequence[Leaf]:
        nonlocal done
        release()
        leaves = run.pull(positions)
        parts = apart(leaves, lambda i: paths[positions[i]])
        _check_data(parts, [paths[k] for k in positions])
        done = min(done + covered_bytes(parts.tensors), total)
        report(done, total)
        return leaves

    return pull


def _fill_together(
    lay_out: Callable[[], Tree],
    run: Run,
    read: Sequence[Tensor],
    report: OnProgress,
    crew: Crew,
    pour: Pour | None,
) -> None:
    """Fill files that the first of a crew lays out, each its share of them."""
    mapped: list[Tree] = []

    def map_it() -> None:
        with making():
            mapped.append(lay_out())

    def fill() -> None:
        if crew.turn:
            map_it()
        _fill(mapped[0], run, read, report, crew, pour)

    crew.meet_first(map_it)
    crew.meet(fill)


def _poured(opened: Opened, transform: Transform) -> Pour | None:
    """Return what reads leaves that come out as they are, None if steps act on them."""
    stages = (s for s in transform.stages if not isinstance(s, PathStage))
    acts = any(not isinstance(s, SelectStage) or not s.selector.by_name for s in stages)
    return None if acts else opened.pour


def _fill(
    mapped: Tree,
    run: Run,
    read: Sequence[Tensor],
    report: OnProgress,
    crew: Crew,
    pour: Pour | None,
) -> None:
    """Copy what a run makes, window by window, to the leaves mapped to a file."""
    targets, spec = take(mapped)
    place = {i: k for k, i in enumerate(run.ids)}
    release = releaser([*read, *_tensors(targets)])
    done, total = 0, nbytes(mapped)
    for ids, leaves in run.windows(share=(crew.turn, crew.size)):
        window = Window(spec, [place[i] for i in ids], leaves)
        done += _write(window, targets, pour)
        report(min(done * crew.size, total), total)
        del window, leaves  # before the next is made
        release()


def _tensors(leaves: Sequence[Leaf]) -> Sequence[Tensor]:
    return apart(leaves, lambda i: (i,)).tensors


def _write(window: Window, targets: Sequence[Leaf], pour: Pour | None) -> int:
    """Copy a window to the leaves in its places and return how many bytes it has."""
    places = [targets[k] for k in window.positions]
    with writing():
        into = apart(places, window.path).tensors
        left = window if pour is None else _not_poured(window, targets, pour)
        sources = apart([*map(as_in_file, left.leaves)], left.path)
        _check_data(sources, left.paths())
        rest = apart([targets[k] for k in left.positions], left.path).tensors
        for source, target in zip(sources.tensors, rest, strict=True):
            _copy_bytes(source, target)
    return covered_bytes(into)


def _not_poured(window: Window, targets: Sequence[Leaf], pour: Pour) -> Window:
    """Read the leaves that are not read yet to their places, and return the others."""
    left = [
        (k, leaf)
        for k, leaf in zip(window.positions, window.leaves, strict=True)
        if not isinstance(leaf, Tensor) or not pour(leaf, *tensors_of(targets[k]))
    ]
    return Window(window.spec, [k for k, _ in left], [leaf for _, leaf in left])


def _copy_bytes(source: Tensor, target: Tensor) -> None:
    if target.is_contiguous():
        target.copy_(source)
    else:  # the strides are alike, and may have one element in several places
        _covered(target).copy_(_covered(source))


def _covered(t: Tensor) -> Tensor:
    return t.as_strided((extent(t),), (1,), t.storage_offset())
