"""``convert_file``: what a transform makes of a file, window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from warnings import warn

from torch import Tensor

from sdtree.io.converting.asked import check_asked
from sdtree.io.converting.forecast import foretold
from sdtree.io.converting.pouring import pour_of, poured, write
from sdtree.io.converting.spooling import room_beside, spooling
from sdtree.io.disk.crew import ALONE, Crew
from sdtree.io.disk.pages import releaser
from sdtree.io.disk.target import Source
from sdtree.io.formats import EVERY, Format, Pull
from sdtree.io.leaves.given import check_data, check_given
from sdtree.io.pickles.foreigners import check_known
from sdtree.io.reading import Opened, open_file
from sdtree.io.refusal import in_short
from sdtree.io.suffixes import format_for
from sdtree.io.texts import FORMAT, Options
from sdtree.io.writing import form_of, size_of, write_tree
from sdtree.ops.looking import nbytes
from sdtree.tensors.counting import Count, counting
from sdtree.tensors.modes import making, uncompiled
from sdtree.tensors.storage import covered_bytes
from sdtree.transform.run import Run
from sdtree.transform.stages import PathStage, Pour, SelectStage
from sdtree.transform.transform import Transform, identity
from sdtree.transform.window import Window, apart, handled
from sdtree.tree.spec import take
from sdtree.typing import Leaf, OnProgress, Tree
from sdtree.wire.collectives import RankGroup


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
    form, options = form_of(target, keep_names, None, shard_bytes)
    rank_group = RankGroup.of(group, "convert_file")
    crew = ALONE if group is None else Crew.of(rank_group)
    opened = source if isinstance(source, Opened) else open_file(source)
    if form.metadata is not None:
        options = options._replace(metadata=opened.metadata)
    elif left := left_out(opened, target, shard_bytes):
        warn(left, stacklevel=2)
    with counting(on_progress) as count:
        into = Into(target, form, options, crew, count, _tensors)
        convert(opened, transform, into)


class Into(NamedTuple):
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


def convert(opened: Opened, transform: Transform, into: Into) -> None:
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


def _convert_by_window(plan: _Plan, into: Into) -> None:
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


def _convert_spooled(opened: Opened, transform: Transform, into: Into) -> None:
    """Write what a transform makes of a tree, of which its data waits in files."""
    with room_beside(into.target) as folder:
        source = take(opened.tree)[0]
        spool = spooling(folder, _tensors(source), into.mapped(source))
        tree = (opened.loaded | transform | spool)(opened.tree)
        check_given(tree)
        alone = into._replace(crew=ALONE, mapped=_tensors)
        plan = _foretold(Opened(tree, opened.format, 0), identity, into.form)
        if plan is None:
            counted = into.options._replace(done=into.done)
            handled(lambda: write_tree(tree, into.target, into.form, counted), tree)
        else:
            _convert_by_window(plan, alone)


def left_out(
    opened: Opened, target: Source, shard_bytes: int | str | None = None
) -> str:
    """Return in words what a conversion leaves out; empty if nothing."""
    form = EVERY[format_for(target, size_of(shard_bytes))]
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
    into: Into,
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
    target: Tree, run: Run, into: Into, pour: Pour | None, mapped: Sequence[Tensor]
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
