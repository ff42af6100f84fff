"""What the names in a file of torch stand for, and what comes of them.

What is known is made here, of data that is checked. What the user allows torch to load
is made by calling it, and nothing else is called. All other names stay names, and what
would be made by them is a ``Foreign``.
"""

from __future__ import annotations

import io
import reprlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import torch
from torch.serialization import get_safe_globals

from sdtree.errors import FileError, UnknownLeaf, one_of
from sdtree.io.pickles import instances
from sdtree.io.pickles.foreign import Foreign
from sdtree.io.pickles.machine import Room, Unfinished
from sdtree.io.pickles.plain_names import PLAIN_NAMES
from sdtree.io.pickles.rebuilding import Rebuilder
from sdtree.io.pickles.stored import STORAGES, Stored
from sdtree.io.refusal import gist
from sdtree.text.short import full_name
from sdtree.tree.attributes import with_attributes
from sdtree.tree.containers import ABSENT, registered
from sdtree.tree.plain_json import FAR, load, of_torch

NEVER: Final = {"sys", "os", "posix", "nt"}
"""Modules of which torch takes nothing, whatever the user allows."""

MOVED: Final = {"torch.tensor": "torch._tensor", "numpy.core": "numpy._core"}
"""Modules that have another name now."""

CALL: Final = "a call of what was made"
LONGEST: Final = 1000
"""How many letters a name has that is put together."""

CONSTANTS: Final = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)

FindStorage = Callable[..., torch.UntypedStorage]
"""Returns the storage of a key, dtype and count, or the view into it that is told."""


class Names:
    """The meaning of the names in one file: what its pickles can make."""

    def __init__(
        self, room: Room, device: torch.device, find: FindStorage, has_data: bool = True
    ) -> None:
        self.room = room
        self.find = find
        self.rebuilder = Rebuilder(room, device, self.called, has_data)
        self.containers = {full_name(cls): cls for cls in registered()}
        self.makers = {
            **PLAIN_NAMES,
            **_OF_TORCH,
            **self.rebuilder.makers(),
            **{x: partial(instances.called, c) for x, c in self.containers.items()},
            "copyreg._reconstructor": self._reconstructed,
            "copyreg.__newobj__": self._newly,
            "copyreg.__newobj_ex__": self.new,
            "builtins.getattr": _attribute,
        }
        self.allowed = _allowed()
        self.users = {id(x) for x in self.allowed.values()}
        self.found: dict[tuple[str, str], Any] = {}

    def named(self, module: str, name: str) -> Any:
        """Return a constant, or what the user allows, or the name."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise FileError(f"a pickle that names {one_of(type(name))}")
        if (module, name) not in self.found:
            self.found[module, name] = self._stands_for(*_today(module, name))
        return self.found[module, name]

    def _stands_for(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == ABSENT_NAME:
            return ABSENT
        if module == "torch" and isinstance(vars(torch).get(name), CONSTANTS):
            return vars(torch)[name]
        if full in self.makers or module in NEVER:
            return Foreign(full)
        return self.allowed.get(full, Foreign(full))

    def called(self, what: Any, args: tuple[Any, ...]) -> Any:
        """Return what a call makes that is known or allowed, else a ``Foreign``."""
        self.room.spend(len(args))
        if not isinstance(what, Foreign):
            return self._by_user(what, args, what)
        if what.args is not None:
            return Foreign(CALL, (what, *args))
        made = self._known(what.name, args)
        return Foreign(what.name, args) if made is NotImplemented else made

    def _known(self, name: str, args: tuple[Any, ...]) -> Any:
        """Return what is made under a name that is known, or ``NotImplemented``."""
        if name in PLAIN_NAMES or name in _COPYING:
            self.room.spend_on_copies(args)
        try:
            made = self.makers[name](*args) if name in self.makers else NotImplemented
        except (MemoryError, FileError, UnknownLeaf):
            raise
        except Exception as error:  # of torch, numpy, or Python, for what is forged
            if any(_is_object(part) for x in args for part in (x, *_inside(x))):
                return NotImplemented
            told = gist(str(error))
            raise FileError(f"{name} of {reprlib.repr(args)}: {told}") from error
        if isinstance(made, Unfinished):
            made.args = args
        return made

    def _by_user(self, what: Any, args: tuple[Any, ...], make: Any, **more: Any) -> Any:
        """Return what the user allows to be made, if nothing in it is foreign."""
        if id(what) not in self.users:
            raise FileError(f"a pickle that calls {one_of(type(what))}")
        if any(isinstance(x, Foreign) for x in args):
            return Foreign(full_name(what), args)
        return make(*args, **more)

    def new(self, cls: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return a new instance, to which a state may be given."""
        if not isinstance(cls, Foreign):
            return self._by_user(cls, args, partial(_instance, cls), **options)
        self.room.spend(len(args))
        if options:
            return Foreign(cls.name, (*args, options))
        if cls.name not in self.containers or cls.args is not None:
            return self.called(cls, args)
        made = instances.new(self.containers[cls.name], args)
        return Foreign(cls.name, args) if made is NotImplemented else made

    def _newly(self, cls: Any, *args: Any) -> Any:
        return self.new(cls, args, {})

    def _reconstructed(self, cls: Any, base: Any, value: Any) -> Any:
        """Return a new instance as the oldest pickles tell it."""
        if isinstance(base, Foreign) and base.name == "builtins.object":
            return self.new(cls, (), {})
        return (
            Foreign(cls.name, (value,)) if isinstance(cls, Foreign) else NotImplemented
        )

    def given(self, x: Any, state: Any) -> Any:
        """Return an instance with the state that follows it."""
        if isinstance(x, Unfinished):
            return _finished(x, state, self.room)
        if isinstance(x, Foreign):
            _check_takes(x)
            x.state = state
            return x
        if type(x) is io.BytesIO:
            return _filled(x, *state)
        if full_name(type(x)) in self.containers or type(x) in instances.BASES:
            return with_attributes(x, state)
        if id(type(x)) not in self.users:
            raise FileError(f"a pickle that gives a state to {one_of(type(x))}")
        return _by_class(x, state)

    def extend(self, x: Any, items: Iterable[Any]) -> None:
        """Put elements, or pairs, into what is not known."""
        if not isinstance(x, Foreign):
            raise FileError(f"a pickle that puts something into {one_of(type(x))}")
        _check_takes(x)
        x.items.extend(items)

    def stored(self, place: Any) -> Any:
        """Return the storage at a place beside the pickle, or the class told there."""
        if isinstance(place, tuple) and place[:1] == ("module",):
            return place[1]
        word, kind, key, _, count, *view = place
        if word not in ("storage", b"storage") or not isinstance(kind, Foreign):
            raise FileError(f"a pickle that wants {reprlib.repr(word)} beside it")
        if type(key) not in (str, int):
            raise FileError(f"a storage under {one_of(type(key))}")
        if type(count) is not int or not 0 <= count < FAR:
            raise FileError(f"a storage of {count!r:.40} elements")
        dtype = STORAGES.get(kind.name.rpartition(".")[2])
        if dtype is None:
            return Foreign(kind.name, (key, count))
        storage = self.find(key, dtype, count, *view)
        return Stored(kind.name, storage, dtype)


def _today(module: str, name: str) -> tuple[str, str]:
    """Return a name as it is called now: of Python 2, of older torch and numpy."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    module = IMPORT_MAPPING.get(module, module)
    for old, new in MOVED.items():
        if f"{module}.".startswith(f"{old}."):
            module = new + module.removeprefix(old)
    return module, name


def _allowed() -> dict[str, Any]:
    """Return what the user allows torch to load, by its name."""
    known = [
        x if isinstance(x, tuple) else (x, full_name(x)) for x in get_safe_globals()
    ]
    return {name: x for x, name in known}


def _size(sizes: Any = ()) -> Any:
    return load({"Size": [*sizes]})


def _device(*parts: Any) -> Any:
    if not all(type(part) in (str, int) for part in parts):
        return NotImplemented
    return load({"device": ":".join(map(str, parts))})


def _layout(name: str) -> Any:
    return of_torch(torch.layout)(name.removeprefix("torch."))


def _attribute(x: Any, name: Any) -> Any:
    """Return the name of what is under a name."""
    is_name = isinstance(x, Foreign) and x.args is None and isinstance(name, str)
    if not is_name or len(x.name) + len(name) > LONGEST:
        return NotImplemented
    return Foreign(f"{x.name}.{name}")


def _is_object(x: Any) -> bool:
    """Return whether something is a foreign object, no name and no storage."""
    return isinstance(x, Foreign) and not isinstance(x, Stored) and x.args is not None


def _inside(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else ()


def _check_takes(x: Foreign) -> None:
    """Raise unless it is an object that has no state yet."""
    if x.args is None or isinstance(x, Stored) or x.state is not None:
        raise FileError(f"a pickle that changes {x.name} once more")


def _finished(x: Unfinished, state: Any, room: Room) -> Any:
    room.spend_on_copies(state)
    x.value = x.finish(state)
    if x.value is NotImplemented:
        x.value = foreign = Foreign(x.told(state), x.args)
        foreign.state = state
    return x.value


def _filled(x: io.BytesIO, data: Any, position: Any, attributes: Any) -> io.BytesIO:
    if attributes or type(data) is not bytes or not 0 <= position < FAR:
        raise FileError("a pickle with a damaged BytesIO")
    x.write(data)
    x.seek(position)
    return x


def _instance(cls: Any, *args: Any, **options: Any) -> Any:
    return cls.__new__(cls, *args, **options)


def _by_class(x: Any, state: Any) -> Any:
    """Give a state to an instance of what the user allows, as pickles do."""
    if hasattr(x, "__setstate__"):
        x.__setstate__(state)
        return x
    return with_attributes(x, state)


def written_names() -> set[str]:
    """Return what our files may name, beyond what torch loads without us."""
    return {*_WRITTEN, *map(full_name, registered())}


def _shards(text: str, tensors: Any) -> Any:
    from sdtree.kinds.shards import restored

    return restored(text, tensors)


SHARDS_NAME: Final = "sdtree.kinds.shards.restored"
ABSENT_NAME: Final = f"{type(ABSENT).__module__}.{ABSENT!r}"
_WRITTEN: Final = (
    *(ABSENT_NAME, SHARDS_NAME, "_io.BytesIO", "builtins.bytes"),
    *("numpy.dtype", "numpy.ndarray"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
_COPYING: Final = {"torch.Size", "torch._utils._rebuild_qtensor"}
_OF_TORCH: Final[dict[str, Callable[..., Any]]] = {
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    SHARDS_NAME: _shards,
}
