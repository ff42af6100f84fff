"""Which attributes a text may give to the instances of a class."""

from __future__ import annotations

import inspect
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
