"""What a container is beside its children, and how a new one gets to be that again.

Attributes are kept as they are, but that the ``_metadata`` of a state dict is a copy.
One that is a child of the container, or the container itself, is so in the new one,
too. One that holds data of its own is refused: what no path leads to, no transform
would see.
"""

from __future__ import annotations

import dataclasses
from collections import UserList, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from sdtree.errors import UnknownContainer
from sdtree.kinds.handler import find_handler
from sdtree.kinds.values import same_value
from sdtree.typing import Key, Tree

METADATA = "_metadata"
"""What torch keeps with a state dict: versions by module, and no data."""


class State(dict[str, Any]):
    """What a container is beside its children. Equal if its values are the same.

    ``attributes`` are kept as they are, but for those of ``children``, which are the
    children of these keys, and of ``itself``, which are the container.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return False
        return same_value(dict(self), dict(other), in_order=True)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def attributes_of(cls: type) -> Callable[[object], dict[str, Any]]:
    """Return what tells the attributes of an instance, those in its slots too."""
    slots = [name for base in cls.__mro__ for name in _slots(base)]

    def tell(x: object) -> dict[str, Any]:
        own: Any = getattr(x, "__dict__", None)
        found: dict[str, Any] = {"__dict__": x} if own is x else dict(own or ())
        found.update({name: getattr(x, name) for name in slots if hasattr(x, name)})
        return found

    return tell


def _slots(cls: type) -> Iterator[str]:
    """Yield the names of the slots of a class, as they are kept if they are private."""
    slots: str | Collection[str] = cls.__dict__.get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        private = name.startswith("__") and not name.endswith("__")
        if name not in ("__dict__", "__weakref__"):
            yield f"_{cls.__name__.lstrip('_')}{name}" if private else name


def state_of(
    x: object,
    attributes: Mapping[str, Any],
    keys: Sequence[Key],
    children: Collection[Tree],
    **own: Any,
) -> State | None:
    """Return what a container of these parts is beside them, None if nothing."""
    itself: list[str] = []
    held: dict[str, Key] = {}
    kept: dict[str, Any] = {}
    for name, value in attributes.items():
        kept[name] = None
        if value is x:
            itself.append(name)
        elif name != METADATA and (key := _child(name, value, keys, children)):
            held[name] = key[0]
        else:
            if name != METADATA and not _is_plain(value):
                _reject_data(x, name, value, children)
            kept[name] = value
    found: dict[str, Any] = {"attributes": kept, "children": held, "itself": itself}
    return State(own | {name: part for name, part in found.items() if part}) or None


def _child(
    name: str, value: object, keys: Sequence[Key], children: Collection[Tree]
) -> list[Key]:
    """Return the keys of the children that an attribute is, one of its name first.

    Plain values, which are one wherever they are, must be called so.
    """
    pairs = zip(keys, children, strict=True)
    found = [key for key, child in pairs if child is value]
    own = [key for key in found if key == name]
    return own if _is_plain(value) else [*own, *found]


def restored(
    x: Any, state: State | None, keys: Sequence[Key], children: Sequence[Tree]
) -> Any:
    """Return a new container with the attributes that it had; a lost child is none."""
    if not state or "attributes" not in state:
        return x
    held, itself = state.get("children", {}), state.get("itself", ())
    now = dict(zip(keys, children, strict=True)) if held else {}
    for name, value in state["attributes"].items():
        if name in held:
            if held[name] in now:
                object.__setattr__(x, name, now[held[name]])
        elif name == METADATA:
            object.__setattr__(x, name, _apart(value))
        else:
            object.__setattr__(x, name, x if name in itself else value)
    return x


def with_own_metadata(state: State) -> State:
    """Return a state that has a metadata of its own, if it has any."""
    attributes = state.get("attributes", {})
    if METADATA not in attributes:
        return state
    own = {**attributes, METADATA: _apart(attributes[METADATA])}
    return State(state, attributes=own)


def _apart(metadata: Any) -> Any:
    """Return the metadata of a state dict, of its own where it is dicts of dicts.

    ``load_state_dict`` writes into those of what it is given.
    """
    if not isinstance(metadata, dict):
        return metadata
    made: dict[Any, Any] = metadata.copy()
    own = {name: x.copy() for name, x in made.items() if type(x) is dict}
    dict.update(made, own)  # in the places that they have
    return made


# -- data that no path leads to ----------------------------------------------------

HOLDERS = (Mapping, list, tuple, set, frozenset, deque, UserList)


def _is_plain(value: object) -> bool:
    """Return whether a value never changes: it is the same one wherever it stands."""
    handler = find_handler(type(value))
    is_empty = type(value) is tuple and not value  # of which there is only one
    return is_empty if handler is None else handler.is_plain


def _reject_data(
    x: object, name: str, value: object, children: Collection[Tree]
) -> None:
    """Raise ``UnknownContainer`` if there is data in an attribute, or a child."""
    known = {id(x), *(id(child) for child in children if not _is_plain(child))}
    seen: set[int] = set()
    left = [value]
    while left:
        part = left.pop()
        is_data = find_handler(type(part)) is not None and not _is_plain(part)
        if is_data or id(part) in known:
            cls, held = type(x).__qualname__, type(part).__qualname__
            raise UnknownContainer(
                f"the attribute {name} of this {cls} holds a {held}, to which no path "
                "leads; make it an item, or say how the whole comes "
                f"apart with sd.register_container({cls}, flatten=..., unflatten=...)"
            )
        if id(part) not in seen:
            seen.add(id(part))
            left.extend(_inside(part))


def _inside(value: object) -> Collection[object]:
    """Return what a value holds, as far as that can be told."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [getattr(value, name) for name in names if hasattr(value, name)]
    if not isinstance(value, HOLDERS):
        return ()
    return value.values() if isinstance(value, Mapping) else value
