"""Transforms are values: they compose, run in one pass, stream, and show themselves."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import (
    Any,
    Final,
    Never,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    get_overloads,
    overload,
)

import torch

from sdtree.kinds.strangers import NAMES, add_stranger, reject_file_names
from sdtree.naming.selectors import Selector
from sdtree.tensors.modes import uncompiled
from sdtree.text.showing import html_of
from sdtree.transform.prepared import Prepared, plan_of
from sdtree.transform.run import Run, call, stretches_of
from sdtree.transform.stages import (
    Stage,
    TreeStage,
    communicating,
    failing_together,
    next_to_communicate,
)
from sdtree.transform.stream import Stream, pairs_of
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Tree

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transform:
    """A pure function on trees that composes, streams and shows what it is.

    Laws: ``identity`` is neutral and ``|`` associative; ``(f | g)(t) = g(f(t))``;
    ``dict(f.stream(t)) = dict(items(f(t)))``; how the tree is cut never shows,
    but that what is made of memory which a function hands out twice may come apart.

    >>> sd.select("model.**") | sd.cast(dtype=torch.bfloat16)
    select('model.**') | cast(dtype=torch.bfloat16)
    """

    stages: tuple[Stage, ...] = ()

    @uncompiled
    def __call__(self, tree: Tree, /) -> Tree:
        """Return the tree that all stages make of ``tree``."""
        self._reject_tree(tree)
        return call(stretches_of(self.stages), tree)

    def _reject_tree(self, tree: Tree) -> None:
        if type(tree) is dict:
            return
        try:
            if isinstance(tree, Transform):
                told = f"a transform is no tree; compose them: {self} | {tree}"
                raise TypeError(told)
            if isinstance(tree, NAMES):
                reject_file_names(tree)
        except TypeError:
            with failing_together([*communicating(self.stages)], None):
                raise

    @uncompiled
    def stream(self, tree: Tree, /) -> Stream:
        """Return an iterator over the (path, leaf) that result, one window alive.

        They come in path order of the result, the members of a tie together at the
        place of the first; where ranks exchange leaves, in the sorted order of the
        paths there. Such a stream is to be exhausted or closed on all ranks before
        they communicate again: use it in a ``with`` block.

        >>> list(sd.prefix("model").stream({"a.b": 1}))
        [(('model.a.b',), 1)]
        """
        self._reject_tree(tree)
        *before, last = stretches_of(self.stages)
        if isinstance(last[0] if last else None, TreeStage):
            before, last = [*before, last], []
        tree = call(before, tree, last)
        stage = next_to_communicate(last)
        if stage is None:
            return Stream(pairs_of(Run.of(tree, last)), source=(tree, tuple(last)))
        return Stream.across(stage.meeting.start(tree, last, stage))

    @uncompiled
    def prepare(self, tree: Tree, /, *, reuse: bool = False) -> Prepared:
        """Return the transform, ready to be called on many trees of one form.

        That is that of ``tree``: its structure, and of each leaf the kind, shape,
        dtype, strides, layout, device and ties; data and plain values may be others.
        Law: ``f.prepare(t)(u) = f(u)``. Another tree raises ``SpecMismatch``, on all
        ranks if they meet. Collective where the transform is: ranks agree here, and
        not at each call. With ``reuse`` every call returns the same tensors.

        >>> run = sd.cast(dtype=torch.bfloat16).prepare({"w": torch.zeros(2), "n": 1})
        >>> run({"w": torch.ones(2), "n": 2})
        {'w': tensor([1., 1.], dtype=torch.bfloat16), 'n': 2}
        """
        self._reject_tree(tree)
        if type(reuse) is not bool:
            raise TypeError(f"prepare: reuse={reuse!r}; give True or False")
        return Prepared(self.stages, tree, partial(plan_of, self), reuse)

    def __or__(self, other: Transform) -> Transform:
        return chain(self, other)

    def __ror__(self, other: Never) -> NoReturn:
        raise no_transform("|", other)

    def __getitem__(self, key: Never) -> NoReturn:
        """Raise what tells also why a transform is not iterated over."""
        raise TypeError(
            "a transform has no items, the tree that it makes has; call it, "
            "transform(tree), or iterate over transform.stream(tree)"
        )

    def __repr__(self) -> str:
        shown = (stage.text for stage in self.stages if stage.text)
        return " | ".join(shown) or "identity"

    def _repr_html_(self) -> str:
        return html_of(self)


identity: Final = Transform()
"""The transform that returns the tree as it is, in new containers.

>>> sd.identity({"a": [1]})
{'a': [1]}
"""


@uncompiled
def chain(*transforms: Transform) -> Transform:
    """Return the transform that runs the given ones in order, in one pass.

    Law: ``chain(f, g)(t) = g(f(t))`` where the steps return. A leaf that a later stage
    drops by name is not touched by the earlier ones.

    >>> grow = sd.map(lambda x: x + 1)
    >>> sd.chain(sd.drop("**.step"), grow)({"a": {"w": 1, "step": 5}})
    {'a': {'w': 2}}
    """
    for t in transforms:
        if not isinstance(t, Transform):
            raise no_transform("chain", t)
    return Transform(tuple(stage for t in transforms for stage in t.stages))


def no_transform(place: str, x: object) -> TypeError:
    """Return the error for what stands where a transform should, and says what to do.

    >>> no_transform("chain", print)
    TypeError('chain takes transforms; sd.map(fn) makes one of a function of leaves, ...
    """
    name = getattr(x, "__name__", type(x).__name__)
    if _makes_transform(x):
        advice = f"sd.{name} is not called yet: write sd.{name}(...)"
    elif inspect.isfunction(x) and x.__module__.startswith("sdtree."):
        advice = ends_chain(x)
    elif isinstance(x, (list, tuple)) and x and isinstance(x[0], Transform):
        advice = f"give those of the {name} one by one: sd.chain(*transforms)"
    elif callable(x):
        advice = (
            "sd.map(fn) makes one of a function of leaves, sd.whole(fn) of a function "
            "of trees"
        )
    elif isinstance(x, str):
        advice = f"sd.select({x!r}) makes one of a selector"
    elif isinstance(x, torch.dtype):
        advice = f"sd.cast(dtype={x}) makes one of a dtype"
    else:
        advice = f"a {name} is none; a tree goes in a call: transform(tree)"
    return TypeError(f"{place} takes transforms; {advice}")


def _makes_transform(x: object) -> bool:
    """Return whether a function of ours returns a transform if it is given no tree."""
    if not inspect.isfunction(x) or not x.__module__.startswith("sdtree."):
        return False
    forms = [inspect.unwrap(x), *get_overloads(x)]
    returned = [inspect.get_annotations(form).get("return") for form in forms]
    return "Transform" in returned


def ends_chain(function: Callable[..., Any]) -> str:
    """Return what to write for a function that is no step of a chain."""
    _, *others = inspect.signature(function).parameters.values()
    needed = [
        p.name for p in others if p.default is p.empty and p.kind < p.VAR_POSITIONAL
    ]
    call = ", ".join(["transform(tree)", *needed])
    name = function.__name__
    return f"sd.{name} is no step of a chain; write sd.{name}({call})"


def on_trees(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function of trees that tells what to write if it is given too little."""
    signature = inspect.signature(function)

    @uncompiled
    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{error}; {ends_chain(function)}") from None
        return function(*args, **options)

    return call


add_stranger(Transform, "call it on a tree: transform(tree)")
add_stranger(Selector, "it goes behind the tree: sd.select(tree, selector)")
add_stranger(TreeSpec, "spec.make(leaves) and sd.unflatten(flat, spec=spec) fill it")


# -- operations in both call forms -------------------------------------------------


class Verb(Protocol[P]):
    """An operation: given a tree it runs now, without one it is a transform."""

    @overload
    def __call__(self, tree: Tree, /, *args: P.args, **kwargs: P.kwargs) -> Tree: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Transform: ...


class KeepingVerb(Protocol[P]):
    """An operation whose result has the type that the tree has."""

    @overload
    def __call__(self, tree: T, /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Transform: ...


def keeping_verb(make: Callable[P, Transform]) -> KeepingVerb[P]:
    """Return what ``verb`` does, of an operation that keeps the types of trees."""
    return verb(make)


Guard = Callable[[Mapping[str, Any], Tree], AbstractContextManager[None]]
"""What has other ranks hear of an error, by the options of a call and its tree."""


def verb(make: Callable[P, Transform], guard: Guard | None = None) -> Verb[P]:
    """Return the operation that ``make`` makes the transform of, in both call forms.

    A tree is given if there is one positional argument more than ``make`` takes. Then
    others may wait in the call, and the ``guard`` tells them of arguments that are bad.
    """
    parameters = inspect.signature(make).parameters.values()
    subjects = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    @uncompiled
    @wraps(make)
    def call(*args: Any, **options: Any) -> Any:
        if len(args) <= sum(p.name not in options for p in subjects):
            return make(*args, **options)
        try:
            reject_as_tree(make.__name__, args[0], [p.name for p in subjects], names)
            if len(args) > 1 + len(subjects):
                raise _too_many(make, [p.name for p in subjects], names, args)
            transform = make(*args[1:], **options)
        except Exception:
            with nullcontext() if guard is None else guard(options, args[0]):
                raise
        return transform(args[0])

    return call


def _too_many(
    make: Callable[..., Transform],
    subjects: Sequence[str],
    options: Sequence[str],
    args: Sequence[object],
) -> TypeError:
    """Return the error for arguments by position that are to be named, or are one."""
    verb, more = make.__name__, args[1:]
    shown = [as_code(x) if is_short(x) else "..." for x in more]
    if not subjects:
        named = f", {options[0]}={_first(make, options[0], more[0])}" if options else ""
        return TypeError(
            f"sd.{verb} takes a tree and then options by name; write "
            f"sd.{verb}(tree{named})"
        )
    told = f"sd.{verb} takes a tree and {' and '.join(subjects)}, here is more"
    if len(subjects) > 1:
        return TypeError(f"{told}: {', '.join(shown)}")
    together = f"({', '.join(shown)})"
    error = _refusal(make, tuple(more))
    advice = error or f"if these are one, write sd.{verb}(tree, {together})"
    return TypeError(f"{told}: {', '.join(shown)}; {advice}")


def _first(make: Callable[..., Transform], option: str, value: object) -> str:
    """Return how a value reads that may be meant for an option."""
    fits = is_short(value) and not _refusal(make, **{option: value})
    return as_code(value) if fits else "..."


def _refusal(make: Callable[..., Transform], *args: object, **options: object) -> str:
    """Return why no transform is made of these, empty if one is."""
    try:
        make(*args, **options)
    except Exception as error:
        return str(error)
    return ""


def as_code(x: object) -> str:
    """Return how a value is written."""
    return repr(str(x)) if isinstance(x, torch.device) else reprlib.repr(x)


SHORT: Final = (
    *(str, int, float, re.Pattern),
    *(torch.dtype, torch.device, type(None)),
)


def is_short(x: object) -> bool:
    """Return whether a message can show a value."""
    return isinstance(x, SHORT)


def reject_as_tree(
    name: str, tree: Tree, subjects: Sequence[str] = (), options: Sequence[str] = ()
) -> None:
    """Raise a TypeError that shows the right call if something else was meant."""
    is_name = isinstance(tree, Selector) or (bool(subjects) and isinstance(tree, str))
    if not (is_name or isinstance(tree, (Transform, torch.dtype, torch.device))):
        return  # a tree is not shown: that would take longer than many a call
    shown = as_code(tree)
    option = "dtype" if isinstance(tree, torch.dtype) else "device"
    if isinstance(tree, Transform):
        call = f"{shown} | sd.{name}(...)"
    elif is_name or option in subjects:
        call = f"sd.{name}(tree, {shown}) or sd.{name}({shown})"
    elif option in options:
        call = f"sd.{name}(tree, {option}={shown}) or sd.{name}({option}={shown})"
    else:
        call = f"sd.{name}(tree)"
    raise TypeError(f"sd.{name}: {shown} stands where the tree goes; write {call}")
