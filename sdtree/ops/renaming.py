"""Where leaves stand: ``rename``, ``prefix`` and ``strip_prefix``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from sdtree.kinds.calls import Call
from sdtree.naming.globs import Segments, escape, segments_of
from sdtree.naming.placing import is_flat, moved, renamed
from sdtree.naming.rules import Named, Token, rules_of, shown, tokens_of
from sdtree.tensors.modes import uncompiled
from sdtree.transform.stages import PathStage
from sdtree.transform.transform import Transform, reject_as_tree, verb
from sdtree.tree.spec import TreeSpec, node_of
from sdtree.typing import Tree


@verb
def rename(
    rule: Mapping[str, str] | Callable[[str], str] | tuple[Any, str],
    /,
    *,
    missing_ok: bool = False,
) -> Transform:
    """Return the tree with leaves at other names.

    ``rule`` is a pair (pattern, replacement), a mapping of such pairs of which the
    first that matches counts, or a function from name to name. A pattern is a glob,
    and the stars of the replacement take in order what its wildcards took, or a
    compiled regex, which is substituted. Two leaves at one name raise
    ``NameCollision``, a pattern without match ``NoMatch``.

    Law: names become what the rule makes of them, and only the part of a key that
    changes moves. Keys before and behind it are the very keys, in containers that go
    on; what is within a dotted key stays within it, what is added outside of one is a
    str key of a dict; in a flat tree all stays in one key. An int key stays an int if
    its new text is one. A list or tuple stays one while its elements are at indices
    that it has: they change places, leave ``ABSENT`` and fill it, or move with all of
    it; else it becomes a dict of them. The keys of ``_metadata`` move with what is
    directly below them.

    >>> sd.rename({"state_dict": {"module.w": 1}}, ("*.module.**", "*.**"))
    {'state_dict': {'w': 1}}
    >>> sd.rename({"encoder.0.w": 1}, {"encoder.*.w": "layers.*.weight"})
    {'layers.0.weight': 1}
    """
    text, rules = f"rename({shown(rule)})", tuple(rules_of(rule))
    return Transform((PathStage(text, Call(renamed, rules, missing_ok)),))


@verb
def prefix(segment: str, /) -> Transform:
    """Return the tree below a leading segment.

    A flat tree gets dotted names, a nested one a dict around it. Law:
    ``strip_prefix(prefix(t, s), s) = t``.

    >>> sd.prefix({"w": 1, "b": 2}, "model")
    {'model.w': 1, 'model.b': 2}
    >>> sd.prefix({"layer": {"w": 1}}, "model")
    {'model': {'layer': {'w': 1}}}
    """
    if not isinstance(segment, str):
        raise TypeError(
            f"prefix takes a str, got a {type(segment).__name__}; write "
            "sd.prefix(tree, 'model') or sd.prefix('model')"
        )
    _check_ends("prefix", segment)
    move = Call(_put_below, segments_of(segment))
    return Transform((PathStage(f"prefix({segment!r})", move),))


def _put_below(head: Segments, spec: TreeSpec) -> tuple[TreeSpec, Sequence[int]]:
    if is_flat(spec):
        return moved(spec, lambda old: [*map(Token, head), *tokens_of(old)])
    shape = spec.shape
    for key in reversed(head):
        shape = node_of(dict, (key,), [shape], None)
    return TreeSpec(shape), range(len(spec))


@overload
def strip_prefix(
    segment: str, /, *segments: str, missing_ok: bool = False
) -> Transform: ...
@overload
def strip_prefix(
    tree: Tree, segment: str, /, *segments: str, missing_ok: bool = False
) -> Tree: ...
@uncompiled
def strip_prefix(first: Any, /, *segments: str, missing_ok: bool = False) -> Any:
    """Return the tree without leading segments, each taken off once where it leads.

    Names that do not begin so stay; ``NoMatch`` is raised if none does.

    >>> sd.strip_prefix({"module._orig_mod.w": 1}, "module", "_orig_mod")
    {'w': 1}
    """
    if not isinstance(first, str):
        reject_as_tree("strip_prefix", first)
        return _strip(segments, missing_ok)(first)
    return _strip((first, *segments), missing_ok)


def _strip(segments: Sequence[str], missing_ok: bool) -> Transform:
    if not segments or not all(isinstance(segment, str) for segment in segments):
        raise TypeError(
            "strip_prefix takes the segments to take off: "
            "sd.strip_prefix(tree, 'module') or sd.strip_prefix('module')"
        )
    for segment in segments:
        _check_ends("strip_prefix", segment)
    heads = tuple(segments_of(segment) for segment in segments)
    text = f"strip_prefix({', '.join(map(repr, segments))})"
    rule = Named(text, tuple(f"{escape(s)}.**" for s in segments), Call(_behead, heads))
    return Transform((PathStage(text, Call(renamed, (rule,), missing_ok)),))


def _check_ends(verb: str, segment: str) -> None:
    if len(segment) > 1 and (segment[0] == "." or segment[-1] == "."):
        raise ValueError(
            f"{verb}: the dot at an end of {segment!r} would make an empty segment; "
            f"write {segment.strip('.')!r}"
        )


def _behead(heads: Sequence[Segments], old: Segments) -> list[Token] | None:
    tokens, left = tokens_of(old), list(heads)
    while True:
        texts = tuple(token.text for token in tokens)
        head = next((h for h in left if texts[: len(h)] == h), None)
        if head is None:
            return tokens if len(tokens) < len(old) else None
        left.remove(head)
        tokens = tokens[len(head) :]
