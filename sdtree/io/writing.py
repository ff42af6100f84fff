"""Trees as files: ``save`` at once, ``convert_file`` window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from warnings import warn

from torch import Tensor

from sdtree.io.asked import check_asked
from sdtree.io.beside import FORMAT, Metadata, Options, checked
from sdtree.io.crew import ALONE, Crew
from sdtree.io.forecast import foretold
from sdtree.io.foreigners import check_known
from sdtree.io.formats import EVERY, Format, Pull
from sdtree.io.given import check_data, check_given, with_data
from sdtree.io.hf.splitting import shard_bytes_of
from sdtree.io.pages import releaser
from sdtree.io.pouring import pour_of, poured, write
from sdtree.io.reading import Opened, open_file
from sdtree.io.refusal import in_short
from sdtree.io.spooling import room_beside, spooling
from sdtree.io.target import Source, format_for
from sdtree.kinds.handler import served_by
from sdtree.kinds.strangers import reject_file_names
from sdtree.ops.looking import nbytes
from sdtree.tensors.counting import Count, counting
from sdtree.tensors.modes import making, uncompiled
from sdtree.tensors.storage import covered_bytes
from sdtree.transform.run import Run
from sdtree.transform.stages import PathStage, Pour, SelectStage
from sdtree.transform.stream import Stream
from sdtree.transform.transform import Transform, identity
from sdtree.transform.window import Window, apart, handled
from sdtree.tree.spec import take
from sdtree.typing import Leaf, OnProgress, Tree
from sdtree.wire.collectives import RankGroup


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
    transformers writes it; that takes ``sdtree[hf]``. The model.safetensors, or the
    shards of such, that are in the folder are replaced, other files are not.

    To a directory or a folder a tree is written from all ranks where leaves are
    sharded, which is collective: each rank writes its boxes, or shards of about as many
    bytes; what several ranks have is written once. Sharded views of one storage that
    share no bytes come back apart, too.

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
    form, options = _form_of(target, keep_names, metadata, shard_bytes)
    with counting(on_progress) as count:
        if isinstance(tree, Stream):
            into = _Into(target, form, options, ALONE, count, _of_a_user)
            _convert(*_source_of(tree), into)
            return
        reject_file_names(tree)
        counted = options._replace(done=count)
        handled(lambda: _write_tree(tree, target, form, counted), tree)


def _write_tree(
    tree: Tree, target: Source, form: Format[Any], options: Options
) -> None:
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


def _form_of(
    target: Source,
    keep_names: bool,
    metadata: Metadata | None,
    shard_bytes: int | str | None,
) -> tuple[Format[Any], Options]:
    """Return the format in which a target is written, and how."""
    size, texts = _size_of(shard_bytes), checked(metadata)
    name = format_for(target, size)
    if texts and EVERY[name].metadata is None:
        raise ValueError(
            f"metadata= goes beside the tensors of a .safetensors file, and {target} "
            "is no such; make it a part of the tree"
        )
    return EVERY[name], Options(keep_names, texts, size)


def _size_of(shard_bytes: int | str | None) -> int:
    return 0 if shard_bytes is None else shard_bytes_of(shard_bytes)


@uncompiled
def convert_file(
    source: Source | Opened,
    target: Source,
    transform: Transform = identity,
    /,
    *,
    keep_names: bool = False,
    shard_bytes: int | str | None = None,
    on_progress: OnProgress | None = None,
    group: Any = None,
) -> None:
    """Write what a transform makes of one file, or folder, to another, or all of it.

    Law: as ``save(transform(load(source)), target)``. Only what is kept is read, and
    memory holds one window of it: by default 32 MiB, or one leaf or tie; and those
    leaves of a .safetensors file that share bytes where none is the whole. What only a
    run tells, as of ``sd.map``, waits in files beside the target until all of it is
    there; with a sparse tensor in it, it is written at once. The metadata of the source
    is kept; a .pt file has no room for it, and a warning names what is left out.
    ``shard_bytes`` is as in ``save``.
    ``on_progress(done, total)`` is called with bytes of the result. With a ``group``
    its ranks write the file together, each a share of it; that is collective.

    >>> source = getfixture("tmp_path") / "a.pt"
    >>> sd.save({"model": {"w": torch.ones(2)}, "step": 3}, source)
    >>> target = source.with_name("b.safetensors")
    >>> convert_file(source, target, sd.select("model.**") | sd.cast(dtype=torch.half))
    >>> sd.load(target)
    {'model': {'w': tensor([1., 1.], dtype=torch.float16)}}
    """
    check_asked(source, target, transform)
    form, options = _form_of(target, keep_names, None, shard_bytes)
    rank_group = RankGroup.of(group, "convert_file")
    crew = ALONE if group is None else Crew.of(rank_group)
    opened = source if isinstance(source, Opened) else open_file(source)
    if form.metadata is not None:
        options = options._replace(metadata=opened.metadata)
    elif left := left_out(opened, target, shard_bytes):
        warn(left, stacklevel=2)
    with counting(on_progress) as count:
        into = _Into(target, form, options, crew, count, _tensors)
        _convert(opened, transform, into)


class _Into(NamedTuple):
    """Where a conversion goes, how it is written, by whom, and how much is done.

    ``mapped`` returns the tensors of the source whose pages are given back.
    """

    target: Source
    form: Format[Any]
    options: Options
    crew: Crew
    done: Count
    mapped: Callable[[Sequence[Leaf]], Sequence[Tensor]]


class _Plan(NamedTuple):
    """What a conversion will make: the run, its outcome without data, what reads it.

    ``read`` are the leaves of the file.
    """

    run: Run
    outline: Tree
    pour: Pour | None
    read: Sequence[Leaf]


def _convert(opened: Opened, transform: Transform, into: _Into) -> None:
    """Write what a transform makes of a tree, window by window if that is foretold."""
    plan = _foretold(opened, transform, into.form)
    if plan is None:
        into.crew.meet_first(lambda: _convert_spooled(opened, transform, into))
    else:
        _convert_by_window(plan, into)


def _foretold(opened: Opened, transform: Transform, form: Format[Any]) -> _Plan | None:
    """Return the plan of a conversion, None where only a run tells what it makes."""
    pour = _poured(opened, transform) if form.lay_out else None
    transform = transform if pour else opened.loaded | transform
    run, outline = foretold(opened.tree, transform)
    read = take(opened.tree)[0]
    if outline is None:
        return None
    return _Plan(run, outline, pour or pour_of(run), read)


def _convert_by_window(plan: _Plan, into: _Into) -> None:
    """Write what a run makes, window by window, together with the rest of a crew."""
    (run, outline, pour, read), (target, form, options, crew, count, _) = plan, into
    check_known(outline)
    mapped = into.mapped(read)
    with crew.room(form.replacing, target) as path:
        if form.pour is not None:
            pull = _pulled(run, count.expect(nbytes(outline)), mapped)
            form.pour(outline, pull, path, options, crew)
        if form.lay_out is not None:
            lay_out = partial(form.lay_out, outline, path, options)
            _fill_together(lay_out, run, into, pour, mapped)
        crew.meet(count.end)
        crew.meet_first(lambda: form.seal(path))


def _convert_spooled(opened: Opened, transform: Transform, into: _Into) -> None:
    """Write what a transform makes of a tree, of which its data waits in files."""
    with room_beside(into.target) as folder:
        source = take(opened.tree)[0]
        spool = spooling(folder, _tensors(source), into.mapped(source))
        tree = (opened.loaded | transform | spool)(opened.tree)
        check_given(tree)
        alone = into._replace(crew=ALONE, mapped=_tensors)
        plan = _foretold(Opened(tree, opened.format, 0), identity, into.form)
        if plan is None:
            told = into.done.expect(nbytes(tree)).follow
            save(tree, into.target, on_progress=told, **into.options.given())
        else:
            _convert_by_window(plan, alone)


def left_out(
    opened: Opened, target: Source, shard_bytes: int | str | None = None
) -> str:
    """Return in words what a conversion leaves out; empty if nothing."""
    form = EVERY[format_for(target, _size_of(shard_bytes))]
    names = sorted(map(in_short, opened.metadata.keys() - {FORMAT}))
    if form.metadata is not None or not names:
        return ""
    return f"left out, for a .pt file has no room for metadata: {', '.join(names)}"


# -- window by window --------------------------------------------------------------


def _pulled(run: Run, count: Count, mapped: Sequence[Tensor]) -> Pull:
    """Return what makes leaves of a run, and gives back the pages that it has read."""
    release, paths = releaser(mapped), run.spec.every_path

    def pull(positions: Sequence[int]) -> Sequence[Leaf]:
        release()
        leaves = run.pull(positions)
        parts = apart(leaves, lambda i: paths[positions[i]])
        check_data(parts, [paths[k] for k in positions])
        count.add(covered_bytes(parts.tensors))
        return leaves

    return pull


def _fill_together(
    lay_out: Callable[[], Tree],
    run: Run,
    into: _Into,
    pour: Pour | None,
    mapped: Sequence[Tensor],
) -> None:
    """Fill files that the first of a crew lays out, each its share of them."""
    targets: list[Tree] = []

    def map_it() -> None:
        with making():
            targets.append(lay_out())

    def fill() -> None:
        if into.crew.turn:
            map_it()
        _fill(targets[0], run, into, pour, mapped)

    into.crew.meet_first(map_it)
    into.crew.meet(fill)


def _poured(opened: Opened, transform: Transform) -> Pour | None:
    """Return what reads leaves that come out as they are, None if steps act on them."""
    stages = (s for s in transform.stages if not isinstance(s, PathStage))
    acts = any(not isinstance(s, SelectStage) or not s.selector.by_name for s in stages)
    return None if acts else opened.pour


def _fill(
    target: Tree, run: Run, into: _Into, pour: Pour | None, mapped: Sequence[Tensor]
) -> None:
    """Copy what a run makes, window by window, to the leaves mapped to a file."""
    (targets, spec), crew = take(target), into.crew
    place = {i: k for k, i in enumerate(run.ids)}
    release = releaser([*mapped, *_tensors(targets)])
    done, count = 0, into.done.expect(nbytes(target))
    bare = run if pour is None else replace(run, steps=[])
    for ids, leaves in bare.windows(share=(crew.turn, crew.size)):
        window = Window(spec, [place[i] for i in ids], leaves)
        done += _write(window, targets, run, pour)
        count.reach(done * crew.size)
        del window, leaves  # before the next is made
        release()


def _tensors(leaves: Sequence[Leaf]) -> Sequence[Tensor]:
    return apart(leaves, lambda i: (i,)).tensors


def _write(window: Window, targets: Sequence[Leaf], run: Run, pour: Pour | None) -> int:
    """Bring a window to its places, and return how many bytes it has."""
    write(window if pour is None else poured(window, targets, pour, run), targets)
    return covered_bytes(_tensors([targets[k] for k in window.positions]))
