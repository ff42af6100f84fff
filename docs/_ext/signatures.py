"""Signatures as they are written, those of operations in the form that takes a tree."""

import inspect
from collections.abc import Sequence
from typing import Any, get_overloads

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

import sdtree as sd

MADE_FOR_YOU = {
    *("Diff", "Difference", "Listing", "Mismatch", "Opened", "Prepared", "Selector"),
    *("Stream", "Traffic", "Transform", "TreeSpec", "Color"),
}
"""Classes that nobody calls: what a function returns, or hands on."""


def signature(
    app: Sphinx,
    what: str,
    name: str,
    found: Any,
    options: Any,
    args: str | None,
    returned: str | None,
) -> tuple[str, str] | None:
    """Return the parameters and the result of a function or a class."""
    if args is None or what not in ("class", "exception", "function", "method"):
        return None
    if what == "exception" or name.rpartition(".")[2] in MADE_FOR_YOU:
        return "", ""
    written = inspect.signature(found)
    if what == "method":
        written = without_self(written)
    args = shown(written)
    if what != "function":
        return args, result_of(written) if what == "method" else ""
    if forms := get_overloads(found):
        return with_tree(forms)
    if not is_verb(found):
        return args, result_of(written)
    rest = args.removeprefix("(").removeprefix("/, ")
    return "(tree, /)" if rest == ")" else f"(tree, {_by_position(rest)}", "Tree"


def with_tree(forms: Sequence[Any]) -> tuple[str, str]:
    """Return the last of the forms that take a tree: it has all that can be given."""
    told = [inspect.signature(form) for form in forms]
    *_, last = (one for one in told if result_of(one) != "Transform")
    return shown(last), result_of(last)


def shown(written: inspect.Signature) -> str:
    parameters = [_brief(p) for p in written.parameters.values()]
    written = written.replace(parameters=parameters)
    return stringify_signature(written, show_return_annotation=False)


class Long:
    """A default that would take lines to write out."""

    def __repr__(self) -> str:
        return "..."


def _brief(parameter: inspect.Parameter) -> inspect.Parameter:
    is_long = len(repr(parameter.default)) > 60
    return parameter.replace(default=Long()) if is_long else parameter


def result_of(written: inspect.Signature) -> str:
    """Return what a function is said to return."""
    is_told = written.return_annotation is not written.empty
    return shown_type(written.return_annotation) if is_told else ""


def shown_type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else annotation.__name__


def without_self(written: inspect.Signature) -> inspect.Signature:
    """Return the signature of a method as it is called on something."""
    parameters = list(written.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    return written.replace(parameters=parameters)


def _by_position(rest: str) -> str:
    """Return the parameters behind the tree, with one mark that ends the positions."""
    return rest if ", /" in rest else f"/, {rest}"


def is_verb(found: Any) -> bool:
    """Return whether ``verb`` has made a function of another, in the same module."""
    made_of = getattr(found, "__wrapped__", None)
    said = inspect.get_annotations(made_of).get("return") if made_of else None
    return said in (sd.Transform, "Transform")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
