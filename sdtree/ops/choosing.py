"""Which leaves: ``select``, ``drop``, ``where``, ``partition`` and ``combine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdtree.errors import NameCollision, SpecMismatch
from sdtree.kinds.calls import Call
from sdtree.kinds.strangers import reject_file_names
from sdtree.kinds.values import same_value
from sdtree.naming.closest import no_match
from sdtree.naming.modules import Metadata, metadata_of, with_metadata
from sdtree.naming.selectors import Selector, selector
from sdtree.path import same_key
from sdtree.path import where as place
from sdtree.tensors.modes import uncompiled
from sdtree.transform.selecting import matching
from sdtree.transform.stages import (
    Action,
    LeafStage,
    SelectStage,
    StageContext,
    TreeStage,
    communicating,
    failing_together,
)
from sdtree.transform.transform import (
    Transform,
    keeping_verb,
    no_transform,
    on_trees,
)
from sdtree.transform.window import Window
from sdtree.tree.beside import METADATA, State
from sdtree.tree.containers import ABSENT, is_mapping
from sdtree.tree.deep import Deep, run
from sdtree.tree.flattening import check_spec
from sdtree.tree.pairing import pair
from sdtree.tree.spec import Node, Shape, TreeSpec, node_of, take
from sdtree.typing import Key, Leaf, Path, Tree


@keeping_verb
def select(which: object, /, *, missing_ok: bool = False) -> Transform:
    """Return the tree of the leaves that a selector matches.

    ``which`` is what ``sd.selector`` takes: a glob, a regex, leaf types, a predicate.
    A key whose leaves are all dropped leaves its mapping, a dropped element leaves
    ``ABSENT``. ``NoMatch`` is raised if nothing matches, unless ``missing_ok``.

    >>> sd.select({"model": {"w": 1}, "step": 2}, "model.**")
    {'model': {'w': 1}}
    """
    return _choosing("select", which, True, missing_ok)


@keeping_verb
def drop(which: object, /, *, missing_ok: bool = False) -> Transform:
    """Return the tree without the leaves that a selector matches.

    Law: ``drop(s)`` is ``select(~s)``, but that it keeps empty containers.

    >>> sd.drop({"model": {"w": 1}, "lrs": [0.1, 0.2]}, "lrs.0")
    {'model': {'w': 1}, 'lrs': [ABSENT, 0.2]}
    """
    return _choosing("drop", which, False, missing_ok)


def _choosing(name: str, which: object, keeps: bool, missing_ok: bool) -> Transform:
    chosen = selector(which)
    return Transform((SelectStage(f"{name}({chosen})", chosen, keeps, missing_ok),))


@on_trees
def partition(tree: Tree, which: object, /) -> tuple[Tree, Tree]:
    """Return the tree of the leaves that a selector matches, and the tree of the rest.

    Law: ``combine(*partition(t, s)) = t`` up to the order of keys in mappings. Either
    side may be empty.

    >>> sd.partition({"a": 1, "b": 2.0}, float)
    ({'b': 2.0}, {'a': 1})
    """
    chosen = selector(which)
    return (
        select(chosen, missing_ok=True)(tree),
        drop(chosen, missing_ok=True)(tree),
    )


@uncompiled
def combine(*trees: Tree, spec: TreeSpec | None = None) -> Tree:
    """Return the tree that holds the leaves of all trees, each in its place.

    ``ABSENT`` yields to what another tree has there. Two leaves at one path raise
    ``NameCollision``. Keys come in the order met, or in that of ``spec``, which must
    fit.

    >>> sd.combine({"a": 1, "l": [2, sd.ABSENT]}, {"l": [sd.ABSENT, 3]})
    {'a': 1, 'l': [2, 3]}
    """
    if not trees:
        raise TypeError("combine takes at least one tree: sd.combine(tree, other)")
    reject_file_names(*trees)
    if spec is not None:
        check_spec("combine", spec)
    taken = [take(tree) for tree in trees]
    by_path: dict[Path, Leaf] = {}
    for found, own in taken:
        for path, leaf in zip(own.paths(), found, strict=True):
            if path in by_path:
                raise NameCollision(
                    f"{place(path)}: two of the trees have a leaf here; drop one of "
                    "them first, by sd.drop or sd.partition"
                )
            by_path[path] = leaf
    merged = TreeSpec(run(_merged([own.shape for _, own in taken], ())))
    if spec is not None:
        pair(spec, merged, "the combined tree")
        merged = spec
    return merged.make([by_path[path] for path in merged.paths()])


def _merged(shapes: Sequence[Shape], path: Path) -> Deep[Shape]:
    """Return the shape that holds what any of them holds."""
    held = [shape for shape in shapes if shape is not ABSENT]
    if len(held) < 2:
        return held[0] if held else ABSENT
    nodes = [shape for shape in held if isinstance(shape, Node)]
    if len(nodes) < len(held):
        raise NameCollision(
            f"{place(path)}: a leaf in one tree and a container in another; "
            "rename one of them"
        )
    first = nodes[0]
    for other in nodes[1:]:
        _check_combines(first, other, path)
    below = _by_key(nodes, path)
    children: list[Shape] = []
    for key, inner in below.items():
        children.append((yield _merged(inner, (*path, key))))
    keys = tuple(below) if is_mapping(first.cls) else first.keys
    state = _merged_state([node.aux for node in nodes], path)
    return node_of(first.cls, keys, children, state)


def _check_combines(a: Node, b: Node, path: Path) -> None:
    if a.cls is not b.cls or (not is_mapping(a.cls) and set(a.keys) != set(b.keys)):
        raise SpecMismatch(
            f"{place(path)}: a {a.cls.__name__} of {len(a.keys)} in one tree and a "
            f"{b.cls.__name__} of {len(b.keys)} in another; these do not combine"
        )


def _by_key(nodes: Sequence[Node], path: Path) -> dict[Key, list[Shape]]:
    """Return what stands at each key of the nodes, in the order met."""
    own: dict[Key, Key] = {}
    below: dict[Key, list[Shape]] = {}
    for node in nodes:
        for key, child in node.parts():
            known = own.setdefault(key, key)
            if not same_key(known, key):
                raise NameCollision(
                    f"{place(path)}: the keys {known!r} and {key!r} are equal, and one "
                    "mapping cannot have both; rename one of them"
                )
            below.setdefault(key, []).append(child)
    return below


def _merged_state(states: Sequence[State | None], path: Path) -> State | None:
    """Return the state of all, their ``_metadata`` united."""
    first, *others = states
    others = [state for state in others if state != first]
    for state in others:
        if _fixed(first) != _fixed(state):
            raise SpecMismatch(
                f"{place(path)}: the containers to combine differ in {first} and "
                f"{state}"
            )
    if not others:
        return first
    given = [state for state in (first, *others) if state]
    merged = State(pair for state in given for pair in state.items())
    for name in ("attributes", "children"):
        if name in merged:
            parts = (state.get(name, {}) for state in given)
            merged[name] = {k: x for part in parts for k, x in part.items()}
    found = [metadata for state in given if (metadata := metadata_of(state))]
    return with_metadata(merged, _united(found, path)) if found else merged


def _united(found: Sequence[Metadata], path: Path) -> dict[str, Any]:
    united: dict[str, Any] = {}
    for metadata in found:
        for module, value in metadata.items():
            if not same_value(united.setdefault(module, value), value):
                raise SpecMismatch(
                    f"{place(path)}: the _metadata to combine differs for the module "
                    f"{module!r}: {united[module]} and {value}; take it off one of them"
                )
    return united


def _fixed(state: State | None) -> State:
    """Return a state without what tells of children: each part has that of its own."""
    rest = State(state or {})
    attributes, held = rest.pop("attributes", {}), rest.pop("children", {})
    moves = {*held, METADATA} if metadata_of(state) is not None else {*held}
    own = {name: value for name, value in attributes.items() if name not in moves}
    return State(rest, attributes=own)


# -- where -------------------------------------------------------------------------


@keeping_verb
def where(
    which: object, transform: Transform, /, *, missing_ok: bool = False
) -> Transform:
    """Return the tree with a transform applied to the leaves that a selector matches.

    The others pass unchanged. Law: ``where(s, f)(t)`` has the leaves of
    ``combine(f(matched), rest)`` with ``matched, rest = partition(t, s)``.

    >>> sd.where({"l": {"weight": 1, "bias": 2}}, "**.bias", sd.map(lambda x: 0))
    {'l': {'weight': 1, 'bias': 0}}
    """
    if isinstance(which, Transform):
        raise TypeError("where takes the selector first: where('**.bias', transform)")
    if not isinstance(transform, Transform):
        raise no_transform("where", transform)
    chosen = selector(which)
    text = f"where({chosen}, {transform})"
    stages = transform.stages
    acting = [x for x in stages if isinstance(x, LeafStage) and not x.is_paired]
    if len(acting) == len(stages):
        return Transform((_acting(text, chosen, acting, missing_ok),))
    return Transform((_whole(text, chosen, transform, missing_ok),))


def _acting(
    text: str, chosen: Selector, stages: Sequence[LeafStage], missing_ok: bool
) -> LeafStage:
    """Return the stage that acts on the leaves that match, window by window."""
    return LeafStage(
        text,
        Call(_masked, text, chosen, tuple(stages), missing_ok),
        by_leaf=all(stage.by_leaf for stage in stages),
        on_abstract=chosen.by_form and all(stage.on_abstract for stage in stages),
        copies=any(stage.copies for stage in stages),
        device=next((stage.device for stage in stages if stage.device), None),
    )


def _whole(
    text: str, chosen: Selector, transform: Transform, missing_ok: bool
) -> TreeStage:
    """Return the stage that takes the tree apart, and together again."""
    split = Call(_split, text, chosen, missing_ok)
    apply = Call(_apply, split, transform)
    return TreeStage(text, apply, transform.stages, split, combine, chosen.by_form)


def _split(
    text: str, chosen: Selector, missing_ok: bool, tree: Tree
) -> tuple[Tree, Tree]:
    matched, rest = partition(tree, chosen)
    if not missing_ok and not take(matched)[0]:
        raise no_match(text, chosen.globs, take(tree)[1].names())
    return matched, rest


def _apply(
    split: Callable[[Tree], tuple[Tree, Tree]], transform: Transform, tree: Tree
) -> Tree:
    with failing_together([*communicating(transform.stages)], tree):
        matched, rest = split(tree)
    return combine(transform(matched), rest)


def mask_of(stage: LeafStage) -> tuple[Selector, Sequence[LeafStage]] | None:
    """Return which leaves a stage of ``where`` means, and what acts on them."""
    bind: Any = stage.bind
    is_masked = isinstance(bind, Call) and bind.func is _masked
    return bind.args[1:3] if is_masked else None


def _masked(
    text: str,
    chosen: Selector,
    stages: Sequence[LeafStage],
    missing_ok: bool,
    entry: StageContext,
) -> Action:
    """Return the action that passes only the leaves that match through the stages."""
    actions = [stage.bind(entry) for stage in stages]
    matches = matching(text, chosen, missing_ok, entry.spec, entry.at_end)

    def act(window: Window) -> list[Leaf]:
        hits = [k for k, match in enumerate(matches(window)) if match]
        inside = [window.leaves[k] for k in hits]
        positions = [window.positions[k] for k in hits]
        for action in actions:
            inside = action(Window(window.spec, positions, inside))
        result = list(window.leaves)
        for k, leaf in zip(hits, inside, strict=True):
            result[k] = leaf
        return result

    return act
