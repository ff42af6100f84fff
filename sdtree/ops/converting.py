"""Leaves of one naming and layout as those of another: ``convert``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from sdtree.conversion.assembly import Assembly
from sdtree.conversion.converting import (
    RESTS,
    Remembered,
    Rules,
    compare_data,
    converted,
    origins,
)
from sdtree.conversion.rule import BoundRule, Rule, reject_rule
from sdtree.errors import SpecMismatch
from sdtree.exchange.convert import Conversion, ConvertOptions
from sdtree.exchange.preparing import MEETING
from sdtree.kinds.abstract import look_at
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import tensors_of
from sdtree.path import with_place
from sdtree.tensors.modes import making
from sdtree.transform.into import writer
from sdtree.transform.overlap import clash_of
from sdtree.transform.stages import (
    Action,
    CollectiveStage,
    LeafStage,
    StageContext,
    TreeStage,
)
from sdtree.transform.transform import Transform, verb
from sdtree.transform.window import WINDOW_BYTES, Window
from sdtree.tree.alike import Into, Like
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree
from sdtree.wire.collectives import check_bucket


def _hearing(options: Mapping[str, Any], tree: Tree) -> AbstractContextManager[None]:
    """Return what has others hear of arguments that are bad, if there are any."""
    group = options.get("group")
    targets = [options[name] for name in ("like", "into") if name in options]
    if group is None and not any(x is not None and _is_sharded(x) for x in targets):
        return nullcontext()
    return MEETING.guard(group, tree)


@partial(verb, guard=_hearing)
def convert(
    rules: Rule | BoundRule | Sequence[Rule | BoundRule],
    /,
    *,
    like: Tree | None = None,
    into: Tree | None = None,
    rest: str = "refuse",
    group: Any = None,
    bucket_bytes: int = WINDOW_BYTES,
    verify: bool = True,
) -> Transform:
    """Return the tree of the leaves that rules make.

    A leaf that only changes its name is handed on; others are put together one by one
    as dense tensors, plain ones whatever their parts were. They stand where ``rename``
    would put the first of what they are made of, or as in ``like``, a tree of their
    names, shapes and dtypes, which tells sizes, too; with ``into`` they are written
    into the leaves of a tree. Leaves that no rule names are refused, or by ``rest``
    kept or dropped.

    Leaves that ranks share become ``Shards``, views of what is here, and nothing is
    sent. With a sharded leaf in ``like`` or ``into``, or a ``group``, it is collective:
    each rank receives what it lacks, straight into its part of the targets. Law: that
    equals gather, then convert, then distribute.

    Law: ``convert(convert(t, r), r.inverse())`` is ``t``, bit for bit. Everything is
    checked before the first byte is made: ``ConvertError`` names a leaf that no rule
    names, that has no partner, that differs from others in shape or dtype, that would
    be made twice, or sizes that do not fit.

    >>> fuse = sd.rule(["q [a c]", "k [b c]"], "qk [(a + b) c]")
    >>> sd.convert({"q": torch.ones(2, 1), "k": torch.zeros(1, 1)}, fuse)
    {'qk': tensor([[1.],
            [1.],
            [0.]])}
    """
    chosen = _checked(rules)
    if rest not in RESTS:
        raise ValueError(f"convert: rest={rest!r} is none of {', '.join(RESTS)}")
    if like is not None and into is not None:
        raise TypeError("convert takes like= or into=, one of the two")
    wanted = Like(like) if into is None and like is not None else None
    wanted = wanted if into is None else Into(into)
    shown = [name for name, x in (("like", like), ("into", into)) if x is not None]
    text = _text(chosen, [f"{name}=..." for name in shown], rest)
    if wanted is None and group is not None:
        raise TypeError("convert: group= is for like= or into=; without, nothing moves")
    check_bucket(bucket_bytes)
    if wanted is not None and (group is not None or _is_sharded(wanted.tree)):
        bind = Call(Conversion.of, ConvertOptions(chosen, wanted, rest))
        how = group, verify, bucket_bytes
        return Transform((CollectiveStage(text, bind, MEETING, *how, like=wanted),))
    return _at_home(text, chosen, wanted, rest)


def _at_home(text: str, rules: Rules, wanted: Like | None, rest: str) -> Transform:
    """Return the transform that makes leaves without a word between ranks."""
    run = Call(_converted, rules, wanted, rest)
    found = Call(origins, rules, wanted, rest)
    whole = replace(TreeStage.by(text, run), is_lazy=True, origins=found)
    if not compare_data(rules):
        again = Call(Remembered, rules, wanted, rest)
        whole = replace(whole, again=again, like=wanted)
    if not isinstance(wanted, Into):
        whole = replace(whole, takes_unmade=True)
        make = LeafStage.by("", _made, by_leaf=True, on_abstract=True)
        make = replace(make, pour=_poured, makes=True)
        return Transform((whole, make))
    # Its source is made first: buffers may overlap what a convert before has read.
    make = LeafStage("", Call(_made_apart, wanted), by_leaf=True, on_abstract=True)
    make = replace(make, makes=True)
    write = LeafStage("", Call(writer, wanted), is_paired=True)
    return Transform((whole, make, write))


def _checked(rules: Any) -> Rules:
    """Return rules that are given as one or several."""
    found = [*rules] if isinstance(rules, (list, tuple)) else [rules]
    for each in found:
        if not isinstance(each, (Rule, BoundRule)):
            reject_rule(each)
    if not found:
        raise TypeError("convert takes a rule or more, such as sd.rule('old', 'new')")
    return tuple(cast("list[Rule]", found))


def _is_sharded(tree: Tree) -> bool:
    """Return whether ranks share a leaf of a tree."""
    return any(form.layout is not None for form in look_at(take(tree)[0])[0])


def _text(rules: Rules, given: Sequence[str], rest: str) -> str:
    shown = str(rules[0]) if len(rules) == 1 else f"{len(rules)} rules"
    kept = [] if rest == "refuse" else [f"rest={rest!r}"]
    return f"convert({', '.join([shown, *given, *kept])})"


# -- the tree, as it is to be ------------------------------------------------------


def _converted(rules: Rules, like: Like | None, rest: str, tree: Tree) -> Tree:
    return converted(rules, like, rest, tree)


# -- its leaves --------------------------------------------------------------------


def _made(window: Window) -> list[Leaf]:
    """Return the leaves of a window, those that are assemblies put together."""
    made: dict[int, Leaf] = {}
    for i, leaf in enumerate(window.leaves):
        if id(leaf) in made or not isinstance(leaf, Assembly):
            continue
        try:
            with making():
                made[id(leaf)] = leaf.put_together()
        except Exception as error:
            raise with_place(error, window.path(i)) from None
    return [made.get(id(leaf), leaf) for leaf in window.leaves]


def _poured(leaf: Leaf, target: Tensor) -> bool:
    """Put a leaf together in its place, and return whether it goes there as it is."""
    if not isinstance(leaf, Assembly):
        return False
    form = leaf.shape, leaf.dtype, leaf.device
    if form != (target.shape, target.dtype, target.device):
        return False
    leaf.write(target)
    return True


def _made_apart(into: Into, entry: StageContext) -> Action:
    """Return the action that makes leaves, which are to be written elsewhere."""
    with making():
        buffers = [t for leaf in take(into.tree)[0] for t in tensors_of(leaf)]
        sources = [t for leaf in entry.leaves or () for t in _read_of(leaf)]
        colours = [*[0] * len(buffers), *[1] * len(sources)]
        if clash_of([*buffers, *sources], lambda: colours) is not None:
            raise SpecMismatch(
                "into= overlaps the source, nothing was written; give buffers of their "
                "own"
            )
    return _made


def _read_of(leaf: Leaf) -> Sequence[Tensor]:
    """Return the tensors that are read to make a leaf."""
    if isinstance(leaf, Assembly):
        return [*leaf.sources.values()]
    return tensors_of(leaf)
