"""Attributes that a text or a pickle gives to instances: as data, and only as that."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from types import MemberDescriptorType
from typing import Any


def takes_attribute(cls: type, name: object) -> bool:
    """Return whether an instance may be told to have an attribute, as data.

    That is one of its slots, or what its ``__dict__`` has room for; not what Python
    itself looks at, nor what stands in for a method or goes through a property.

    >>> from collections import OrderedDict
    >>> takes_attribute(OrderedDict, "_metadata"), takes_attribute(OrderedDict, "items")
    (True, False)
    >>> takes_attribute(OrderedDict, "__class__"), takes_attribute(dict, "note")
    (False, False)
    """
    if not isinstance(name, str) or (name.startswith("__") and name.endswith("__")):
        return False
    found = inspect.getattr_static(cls, name, None)
    if isinstance(found, MemberDescriptorType):
        return True
    return bool(cls.__dictoffset__) and not _is_behaviour(found)


def _is_behaviour(found: Any) -> bool:
    """Return whether what a class has under a name does something."""
    is_wrapped = isinstance(found, (classmethod, staticmethod))
    return is_wrapped or callable(found) or hasattr(type(found), "__set__")


def with_attributes(x: Any, state: Any) -> Any:
    """Return an object with the attributes that a pickled state tells, set as data.

    Raise ``ValueError`` for what it takes no attribute of that name.
    """
    named = {field.name for field in fields(x)} if is_dataclass(x) else ()
    if isinstance(state, list):  # what a frozen dataclass with slots tells
        state = dict(zip([field.name for field in fields(x)], state, strict=True))
    for group in state if isinstance(state, tuple) else (state,):
        for name, value in (group or {}).items():
            if name not in named and not takes_attribute(type(x), name):
                raise ValueError(
                    f"a {type(x).__name__} takes no attribute {name!r:.40}"
                )
            object.__setattr__(x, name, value)
    return x
