"""The public names: what completion shows, and that each tells what it is."""

import inspect
import rlcompleter
from collections.abc import Iterator
from typing import Any

import pytest

import sdtree as sd
import sdtree.compat
import sdtree.testing

TABLE = """
flatten unflatten structure TreeSpec leaves paths names items map map_with_path
Transform identity chain where whole explain Plan record
Mismatch Selector selector select drop partition combine rename prefix strip_prefix
copy offload to cast empty_like wait gather distribute broadcast redistribute
similar equal diff Diff spec nbytes ties show save load metadata
rule rules from_transformers Rule BoundRule convert
convert_file register_leaf register_container Abstract ABSENT Shards shards Stager
errors testing compat stage
"""
DESIGNED = set(TABLE.split())


def test_what_is_shown_is_what_is_designed():
    """All names, and no other."""
    assert set(dir(sd)) == DESIGNED
    assert dir(sd) == sorted([*sd.__all__, "testing"])


def test_completion_shows_the_public_names_alone():
    """Submodules, whether imported or not, and borrowed names stay out of sight."""
    shown = rlcompleter.Completer({"sd": sd}).attr_matches("sd.")
    found = {text.removeprefix("sd.").partition("(")[0] for text in shown}
    assert found == set(dir(sd))


def test_a_star_takes_the_public_names():
    """All but ``testing``, which needs hypothesis."""
    taken: dict[str, Any] = {}
    exec("from sdtree import *", taken)
    assert {name for name in taken if name[0] != "_"} == set(dir(sd)) - {"testing"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gater", "sd.gather"), ("treespec_", "sd.TreeSpec"), ("stream", ".stream(tree)")],
)
def test_a_name_that_is_not_there_leads_to_one_that_is(name, meant):
    with pytest.raises(AttributeError) as error:
        getattr(sd, name)
    assert f"no {name!r}" in str(error.value)
    assert meant in str(error.value)


def test_a_module_of_ours_is_imported_as_any():
    """That ``sd.stream`` leads on hides no module."""
    from sdtree import testing
    from sdtree.transform import stream

    assert stream.Stream
    assert testing is sdtree.testing


# -- what they say of themselves ---------------------------------------------------


def public() -> Iterator[tuple[str, Any]]:
    """Yield what the public modules hold that can have a docstring, by its name."""
    for module in (sd, sd.errors, sd.testing, sd.compat):
        for name in dir(sd) if module is sd else vars(module):
            found = getattr(module, name)
            own = getattr(found, "__module__", None) or type(found).__module__
            if name[0] != "_" and callable(found) and own.startswith("sdtree."):
                yield f"{module.__name__}.{name}", found


def members() -> Iterator[tuple[str, Any, type]]:
    """Yield the public methods and properties of the public classes."""
    for name, cls in public():
        for member in vars(cls) if inspect.isclass(cls) else ():
            found = inspect.getattr_static(cls, member)
            if member[0] != "_" and (inspect.isroutine(found) or is_property(found)):
                yield f"{name}.{member}", found, cls


def is_property(x: object) -> bool:
    return isinstance(x, property)


def identify(x: object) -> str:
    return x if isinstance(x, str) else ""


VERBS = {"Return", "Yield", "Raise", "Register", "Check", "Write", "Call", "End"}
"""With what a function says what it does."""


def first_line(x: object) -> str:
    """Return the first line of a docstring, a sentence; of a function, an order."""
    line = (inspect.getdoc(x) or "").partition("\n")[0]
    assert line.endswith(".")
    if inspect.isroutine(x) or is_property(x):
        assert line.split()[0] in VERBS
    return line


@pytest.mark.parametrize(("name", "x"), [*public()], ids=identify)
def test_every_public_name_says_what_it_is_and_shows_it(name, x):
    """The first line says what is returned, an example follows, which doctest runs."""
    assert first_line(x)
    assert ">>>" in inspect.getdoc(x)


@pytest.mark.parametrize(("name", "x", "cls"), [*members()], ids=identify)
def test_every_public_member_says_what_it_is_and_is_shown(name, x, cls):
    """It has an example of its own, or stands in that of its class."""
    assert first_line(x)
    examples = [line for line in inspect.getdoc(cls).split("\n") if ">>>" in line]
    member = name.rpartition(".")[2]
    assert ">>>" in inspect.getdoc(x) or f".{member}" in "".join(examples)
