"""The parameters of each function, in words, in the place of a second signature."""

import inspect
from collections.abc import Iterator
from typing import Any, get_overloads

from signatures import MADE_FOR_YOU, is_verb, result_of, shown_type
from sphinx.application import Sphinx
from sphinx.util import logging

import sdtree as sd

log = logging.getLogger(__name__)

WORDS = {
    "tree": "the tree",
    "trees": "the tree, then others that are paired with it by path",
    "rest": "further trees, paired with the first by path",
    "a": "a tree, or its like",
    "b": "the one that it is compared with",
    "which": "a selector: a glob, a regex, types, a predicate, or a tuple of these",
    "x": "what stands for a selector",
    "fn": "a function of a leaf, or of as many leaves as there are trees",
    "transform": "what is to be done, a step or a chain",
    "transforms": "steps, in order",
    "missing_ok": "whether it is well if no leaf matches",
    "dtype": "the dtype of what is floating-point",
    "device": "where the tensors are to lie",
    "pin": "whether in page-locked memory, for copies to a device in the background",
    "share": "whether in memory that other processes see",
    "into": "buffers to write over, a tree of the same form; they are returned",
    "like": "a tree that says of each leaf what it is to become; it is not written to",
    "ranks": "where: a rank, several, a function of the path, ``balanced``, or all",
    "src": "the rank that has the whole",
    "group": "the ranks that take part; all, if it is not given",
    "bucket_bytes": "how many bytes of leaves travel, and are held, at a time",
    "verify": "whether ranks compare what they are about to do before the first byte",
    "strict": "whether both trees are to have the same leaves",
    "on_mismatch": "called with the ``Mismatch``, if ``strict`` is false",
    "report": "whether to return a tuple, of the tree and the ``Mismatch``",
    "rule": "a pair of pattern and replacement, a mapping of such, or a function",
    "rules": "a pair of pattern and replacement, a mapping of such, or a function",
    "segment": "what is put before every name",
    "segments": "what is taken off, each once where it leads",
    "sep": "what stands between the keys in a name",
    "spec": "the structure that is to come out",
    "flat": "a mapping of names to leaves",
    "depth": "how many segments the prefixes of the totals have",
    "values": "whether the data of tensors is compared, too",
    "rtol": "how far apart numbers may be, as a part of the second",
    "atol": "how far apart numbers may be beside that",
    "whole": "whether sharded leaves count whole",
    "source": "the path of a file, a folder of shards or a directory of DCP",
    "target": "the path to write; its suffix tells the format",
    "path": "where it stands",
    "mmap": "whether data is read when it is used",
    "metadata": "texts that stand beside the tensors, by name",
    "keep_names": "whether an alias is written under each of its names",
    "shard_bytes": "the size of a shard, ``5GB`` say, of a Hugging Face folder",
    "on_progress": "called with how many bytes are done, and how many there are",
    "kind": "the class of the leaf",
    "flatten": "a function from a leaf to its local tensors, and to the rest of it",
    "unflatten": "the function back, from the rest and tensors",
    "layout": "a function from a leaf to its ``Layout``, if it is sharded",
    "cast": "a function from a leaf and a dtype to what it becomes by ``sd.cast``",
    "cls": "the class of the container",
    "fill": "the values of axes that the source has not, by axis",
    "drop": "axes that the target has not",
    "agree": "axes along which all of the source is equal, of which one is kept",
    "alias": "axes in names along which the targets are one and the same tensor",
    "sizes": "how many elements axes have, by axis",
    "model": "the name of a kind of model",
    "config": "a mapping or an object with the sizes that rules ask for",
    "layouts": "a tree of layouts, by path, name or glob",
    "strategy": "a Hypothesis strategy that draws what is tried",
    "examples": "how many are tried",
}
"""What a parameter means, wherever it stands."""

OF_ONE = {
    "whole.shape": "the shape of the tensor",
    "whole.ranks": "the ranks that have it",
    "mesh_layout.shape": "the shape of the whole tensor",
    "mesh_layout.mesh": "how many ranks the mesh has along each of its axes",
    "mesh_layout.splits": "which axis of the mesh splits which dim, in order",
    "mesh_layout.rank_at": "a function from a coordinate in the mesh to a rank",
    "mesh_layout.is_partial": "whether what ranks hold is still to be reduced",
    "mesh_layout.doubt": "why nobody can tell whether it is so, if nobody can",
    "forced.wire": "``pairs``, as on gloo, or ``collective``, as on NCCL",
    "whole.fn": "a function of a tree, which it leaves as it is",
    "strip_prefix.segment": "what is taken off, once where it leads",
    "strip_prefix.segments": "more of such",
    "map.fn": "a function of a leaf, and of one more for each further tree",
    "map_with_path.fn": "the same, that is given the path first",
    "rule.source": "the names and dims of the leaves that are there, a text or several",
    "rule.target": "the same of those that are to be made",
    "rules.source": "the code base that the leaves are named by",
    "rules.target": "the one by which they are to be",
    "convert.rules": "a rule or several",
    "convert.group": "the ranks that exchange what they lack, if they are not all",
    "convert.rest": "what becomes of the others: ``refuse``, ``keep`` or ``drop``",
    "from_transformers.model": "a model of transformers, or its config",
    "combine.trees": "trees, each of which has some of the leaves",
    "register_container.flatten": "a function from a container to its children and aux",
    "register_container.unflatten": "the function back, from aux and children",
    "explain.tree": "the tree that it would be called on, with or without data",
}
"""What one means in one function, where it means something else."""

A_STEP = "; without it a step of a chain is returned"


def parameters(
    app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Put a list of the parameters below the docstring of a function."""
    own = name.rpartition(".")[2]
    if what == "function" and own not in MADE_FOR_YOU:
        lines += ["", *fields_of(own, found)]


def fields_of(name: str, found: Any) -> Iterator[str]:
    """Yield the field list of a function: each parameter, its type and default."""
    for parameter in every_parameter(found):
        own = STARS.get(parameter.kind, "") + parameter.name
        words = words_of(name, parameter)
        if not words and getattr(sd, name, None) is found:
            log.warning("parameters.py has no words for %s of %s", own, name)
        yield f":param {own}: {words}"
        if parameter.annotation is not parameter.empty:
            yield f":type {own}: {shown_type(parameter.annotation)}"


def every_parameter(found: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function in all of its forms, the tree first."""
    signatures = [inspect.signature(form) for form in get_overloads(found) or [found]]
    every = {p.name: p for each in signatures for p in each.parameters.values()}
    if is_verb(found) and "tree" not in every:
        kind = inspect.Parameter.POSITIONAL_ONLY
        every["tree"] = inspect.Parameter("tree", kind, annotation="Tree")
    is_later = bool(signatures[0].parameters) and "fn" in signatures[0].parameters
    return sorted(every.values(), key=lambda p: p.name != "tree" and not is_later)


def words_of(name: str, parameter: inspect.Parameter) -> str:
    """Return what a parameter of a function means, and what it is by default."""
    own = parameter.name
    words = OF_ONE.get(f"{name}.{own}") or WORDS.get(own, "")
    if own == "tree" and makes_step(getattr(sd, name, None)):
        words += A_STEP
    default = repr(parameter.default)
    is_told = parameter.default is not parameter.empty and default not in UNTOLD
    return f"{words}; ``{default}`` by default" if is_told else words


UNTOLD = ("None", "Ellipsis", "...")
"""Defaults that mean that nothing is given."""


def makes_step(found: Any) -> bool:
    """Return whether a function returns a transform if no tree is given."""
    forms = [inspect.signature(form) for form in get_overloads(found)] if found else []
    return is_verb(found) or "Transform" in map(result_of, forms)


STARS = {
    inspect.Parameter.VAR_POSITIONAL: r"\*",
    inspect.Parameter.VAR_KEYWORD: r"\*\*",
}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", parameters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
