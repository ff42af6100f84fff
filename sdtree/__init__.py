"""State dicts as trees: pure, composable transforms on torch and optree."""

import typing as _typing
from importlib import import_module as _import

import sdtree.kinds as _kinds
import sdtree.tree.moved as _moved
from sdtree import errors as errors
from sdtree.errors import Mismatch as Mismatch
from sdtree.kinds.abstract import Abstract as Abstract
from sdtree.kinds.handler import register_leaf as register_leaf
from sdtree.naming.selectors import Selector as Selector
from sdtree.naming.selectors import selector as selector
from sdtree.ops.choosing import combine as combine
from sdtree.ops.choosing import drop as drop
from sdtree.ops.choosing import partition as partition
from sdtree.ops.choosing import select as select
from sdtree.ops.choosing import where as where
from sdtree.ops.flattening import flatten as flatten
from sdtree.ops.flattening import unflatten as unflatten
from sdtree.ops.local import cast as cast
from sdtree.ops.local import copy as copy
from sdtree.ops.local import empty_like as empty_like
from sdtree.ops.local import offload as offload
from sdtree.ops.local import to as to
from sdtree.ops.local import wait as wait
from sdtree.ops.looking import nbytes as nbytes
from sdtree.ops.looking import spec as spec
from sdtree.ops.looking import ties as ties
from sdtree.ops.mapping import map as map
from sdtree.ops.mapping import map_with_path as map_with_path
from sdtree.ops.mapping import whole as whole
from sdtree.ops.renaming import prefix as prefix
from sdtree.ops.renaming import rename as rename
from sdtree.ops.renaming import strip_prefix as strip_prefix
from sdtree.transform.transform import Transform as Transform
from sdtree.transform.transform import chain as chain
from sdtree.transform.transform import identity as identity
from sdtree.tree.containers import ABSENT as ABSENT
from sdtree.tree.containers import register_container as register_container
from sdtree.tree.flattening import items as items
from sdtree.tree.flattening import leaves as leaves
from sdtree.tree.flattening import names as names
from sdtree.tree.flattening import paths as paths
from sdtree.tree.flattening import structure as structure
from sdtree.tree.spec import TreeSpec as TreeSpec

if _typing.TYPE_CHECKING:
    from sdtree import compat as compat
    from sdtree import stage as stage
    from sdtree import testing as testing
    from sdtree.conversion.gallery import rules as rules
    from sdtree.conversion.importing import from_transformers as from_transformers
    from sdtree.conversion.rule import BoundRule as BoundRule
    from sdtree.conversion.rule import Rule as Rule
    from sdtree.conversion.rule import rule as rule
    from sdtree.io import convert_file as convert_file
    from sdtree.io import load as load
    from sdtree.io import metadata as metadata
    from sdtree.io import save as save
    from sdtree.kinds.shards import Shards as Shards
    from sdtree.look.listing import show as show
    from sdtree.ops.collective import broadcast as broadcast
    from sdtree.ops.collective import distribute as distribute
    from sdtree.ops.collective import gather as gather
    from sdtree.ops.collective import redistribute as redistribute
    from sdtree.ops.comparing import equal as equal
    from sdtree.ops.comparing import similar as similar
    from sdtree.ops.converting import convert as convert
    from sdtree.ops.differing import Diff as Diff
    from sdtree.ops.differing import diff as diff
    from sdtree.ops.sharding import shards as shards
    from sdtree.plan.explaining import Plan as Plan
    from sdtree.plan.explaining import explain as explain
    from sdtree.stage import Stager as Stager
    from sdtree.wire import record as record

_moved.stand_for("sdtree.rules")
del _kinds, _moved

__all__ = [
    "ABSENT",
    "Abstract",
    "BoundRule",
    "Diff",
    "Mismatch",
    "Plan",
    "Rule",
    "Selector",
    "Shards",
    "Stager",
    "Transform",
    "TreeSpec",
    "broadcast",
    "cast",
    "chain",
    "combine",
    "compat",
    "convert",
    "convert_file",
    "copy",
    "diff",
    "distribute",
    "drop",
    "empty_like",
    "equal",
    "errors",
    "explain",
    "flatten",
    "from_transformers",
    "gather",
    "identity",
    "items",
    "leaves",
    "load",
    "map",
    "map_with_path",
    "metadata",
    "names",
    "nbytes",
    "offload",
    "partition",
    "paths",
    "prefix",
    "record",
    "redistribute",
    "register_container",
    "register_leaf",
    "rename",
    "rule",
    "rules",
    "save",
    "select",
    "selector",
    "shards",
    "show",
    "similar",
    "spec",
    "stage",
    "strip_prefix",
    "structure",
    "ties",
    "to",
    "unflatten",
    "wait",
    "where",
    "whole",
]

_LATER = {
    "BoundRule": "sdtree.conversion.rule",
    "Rule": "sdtree.conversion.rule",
    "rule": "sdtree.conversion.rule",
    "rules": "sdtree.conversion.gallery",
    "from_transformers": "sdtree.conversion.importing",
    "convert": "sdtree.ops.converting",
    "broadcast": "sdtree.ops.collective",
    "distribute": "sdtree.ops.collective",
    "gather": "sdtree.ops.collective",
    "record": "sdtree.wire",
    "redistribute": "sdtree.ops.collective",
    "equal": "sdtree.ops.comparing",
    "similar": "sdtree.ops.comparing",
    "Diff": "sdtree.ops.differing",
    "diff": "sdtree.ops.differing",
    "convert_file": "sdtree.io",
    "load": "sdtree.io",
    "metadata": "sdtree.io",
    "save": "sdtree.io",
    "Shards": "sdtree.kinds.shards",
    "shards": "sdtree.ops.sharding",
    "show": "sdtree.look.listing",
    "explain": "sdtree.plan.explaining",
    "Plan": "sdtree.plan.explaining",
    "Stager": "sdtree.stage",
}
"""Imported when first asked for: not every process reads files, or is one of many."""


def __dir__() -> list[str]:
    """Return the public names. ``testing``, which needs hypothesis, is one of them."""
    return sorted([*__all__, "testing"])


if not _typing.TYPE_CHECKING:  # which knows all names, and complains of others

    def __getattr__(name: str) -> _typing.Any:
        if name in _LATER:
            found = globals()[name] = getattr(_import(_LATER[name]), name)
            return found
        if name in ("compat", "stage", "testing"):
            return _import(f"sdtree.{name}")
        known = {public.lower(): f"sd.{public}" for public in __dir__()}
        meant = _import("sdtree.text.meant").meant_by(name, known)
        hint = f"did you mean {meant}?" if meant else "dir(sdtree) lists all names"
        raise AttributeError(f"sdtree has no {name!r}; {hint}", name=name)
