"""Pickles read as data: what each operation does to the stack, and nothing besides.

What a pickle names is never looked up by this module, nor called: a ``Meaning`` says
what comes of it. So a pickle can make what that knows, and no more.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, BinaryIO, Final, Protocol

from sdtree.errors import FileError, UnknownLeaf, one_of

FEW: Final = 100_000
"""How much a pickle may unfold to, however short it is."""

LETTERS: Final = 16
"""As much as how many letters or bytes a part of a container is."""

OFTEN: Final = 4
"""How often all data of a file may be copied or looked at."""

DEEP: Final = 100
"""How deep tuples may be that are to be hashed."""


class Meaning(Protocol):
    """What the names of a pickle stand for, and what is made of them."""

    room: Room

    def named(self, module: str, name: str) -> Any:
        """Return what a name stands for."""
        ...

    def called(self, what: Any, args: tuple[Any, ...]) -> Any:
        """Return what is made by a call."""
        ...

    def new(self, cls: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return a new instance, which a state may follow."""
        ...

    def given(self, x: Any, state: Any) -> Any:
        """Return an instance with a state."""
        ...

    def extend(self, x: Any, items: Iterable[Any]) -> None:
        """Put elements into what is no list, or pairs into what is no dict."""
        ...

    def stored(self, place: Any) -> Any:
        """Return the storage that lies at a place beside the pickle."""
        ...


class Unfinished:
    """What stands for a value until its state has told what it is: no key till then."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.value: Any = self
        self.args: tuple[Any, ...] = ()

    def finish(self, state: Any) -> Any:
        """Return the value, ``NotImplemented`` if it is none that is known."""
        raise NotImplementedError

    def told(self, state: Any) -> str:
        """Return how to call what is not known."""
        raise NotImplementedError


class Room:
    """How much a pickle may still unfold to, where what it holds is shared.

    Else a few bytes could claim any time and any memory. ``data`` is how many bytes the
    whole file has.
    """

    def __init__(self, size: int, data: int) -> None:
        self.left = max(size, FEW)
        self.left_data = OFTEN * max(data, FEW)

    def spend(self, count: int) -> None:
        """Take as much of it; raise ``FileError`` if there is not as much."""
        self.left -= count
        if self.left < 0:
            raise FileError("what is shared in it unfolds to more than it is worth")

    def spend_on_data(self, nbytes: int) -> None:
        """Take what it takes to copy data of the file, or to look at it."""
        self.left_data -= nbytes
        if self.left_data < 0:
            raise FileError("its data is shared by more than it is worth")

    def spend_on_keys(self, keys: Iterable[Any]) -> None:
        """Take what it takes to hash keys: a tuple is, as often as it is shared."""
        self._spend_on([*keys], (tuple, frozenset))

    def spend_on_copies(self, values: Iterable[Any]) -> None:
        """Take what it takes to copy values, and to hash what is in them."""
        self._spend_on([*values], (tuple, frozenset, list, dict, set))

    def _spend_on(self, level: list[Any], holders: tuple[type, ...]) -> None:
        """Take as much as there is in values, level by level.

        Python hashes tuples by recursion, and ends if they are too deep for that.
        """
        for depth in count():
            inner = [x for x in level if isinstance(x, holders)]
            texts = [x for x in level if isinstance(x, (str, bytes, bytearray))]
            self.spend(sum(len(x) // LETTERS for x in texts))
            if not inner:
                return
            if depth > DEEP and any(isinstance(x, (tuple, frozenset)) for x in inner):
                raise FileError(f"it has tuples that are nested {DEEP} times and more")
            self.spend(sum(len(x) + 1 for x in inner))
            level = [part for x in inner for part in x]


class Tape:
    """A file that is read in one direction: it is not asked for its position.

    What a pickle claims to hold is not more than the file has, so that no memory is
    taken for it before it is there.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._read, self._size = file.read, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """Return so many bytes, or less if the file ends before."""
        return self._read(min(count, self._size))


class Machine:
    """Reads one pickle."""

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, tape: Tape) -> Any:
        """Return what a pickle holds."""
        operations: Any = pickletools.genops(tape)  # type: ignore[arg-type]
        name = "its beginning"
        try:
            for operation, argument, _ in operations:
                name = operation.name
                _ACTS[name](self, argument)
            return self.stack.pop()
        except (FileError, UnknownLeaf, MemoryError, OSError):
            raise
        except Exception as error:  # what it takes need not be there, or be of its kind
            raise FileError(f"a damaged pickle, at {name}: {error!r:.80}") from error

    def marked(self) -> list[Any]:
        """Return what is on the stack above the mark, and take both off."""
        found, self.stack = self.stack, self.below.pop()
        return found


# -- what the operations do --------------------------------------------------------

Act = Callable[[Machine, Any], None]


def _push(machine: Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(value: Any) -> Act:
    return lambda machine, _: machine.stack.append(value)


def _fresh(make: Callable[[], Any]) -> Act:
    return lambda machine, _: machine.stack.append(make())


def _push_text(machine: Machine, value: str) -> None:
    """Push what Python 2 had as its str: text, or else bytes."""
    raw = value.encode("latin-1")
    try:
        machine.stack.append(raw.decode())
    except UnicodeDecodeError:
        machine.stack.append(raw)


def _mark(machine: Machine, _: None) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine, _: None) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _drop_marked(machine: Machine, _: None) -> None:
    machine.marked()


def _put(machine: Machine, place: int | None) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _get(machine: Machine, place: int) -> None:
    found = machine.memo[place]
    machine.stack.append(found.value if isinstance(found, Unfinished) else found)


def _tuple_of(count: int) -> Act:
    def act(machine: Machine, _: None) -> None:
        parts = tuple(_popped(machine, count))
        machine.stack.append(parts)

    return act


def _make_set(machine: Machine, _: None) -> None:
    items = machine.marked()
    machine.meaning.room.spend_on_keys(items)
    machine.stack.append(frozenset(items))


def _make_dict(machine: Machine, _: None) -> None:
    pairs = machine.marked()
    machine.stack.append({})
    _put_pairs(machine, pairs)


def _put_items(machine: Machine, items: Sequence[Any]) -> None:
    x = machine.stack[-1]
    if isinstance(x, list):
        list.extend(x, items)
    elif isinstance(x, deque):
        deque.extend(x, items)
    else:
        machine.meaning.extend(x, items)


def _put_pairs(machine: Machine, pairs: Sequence[Any]) -> None:
    x, keys, values = machine.stack[-1], pairs[::2], pairs[1::2]
    if isinstance(x, dict):
        machine.meaning.room.spend_on_keys(keys)
        base: Any = OrderedDict if isinstance(x, OrderedDict) else dict
        for key, value in zip(keys, values, strict=True):
            base.__setitem__(x, key, value)
    else:
        machine.meaning.extend(x, zip(keys, values, strict=True))


def _add_items(machine: Machine, _: None) -> None:
    items, x = machine.marked(), _as(set, machine.stack[-1])
    machine.meaning.room.spend_on_keys(items)
    x.update(items)


def _name(machine: Machine, text: str) -> None:
    module, _, name = text.partition(" ")
    machine.stack.append(machine.meaning.named(module, name))


def _name_on_stack(machine: Machine, _: None) -> None:
    module, name = machine.stack[-2:]
    machine.stack[-2:] = [machine.meaning.named(module, name)]


def _call(machine: Machine, _: None) -> None:
    what, args = machine.stack[-2:]
    machine.stack[-2:] = [machine.meaning.called(what, _as(tuple, args))]


def _new(machine: Machine, _: None) -> None:
    cls, args = machine.stack[-2:]
    machine.stack[-2:] = [machine.meaning.new(cls, _as(tuple, args), {})]


def _new_with_options(machine: Machine, _: None) -> None:
    cls, args, options = machine.stack[-3:]
    made = machine.meaning.new(cls, _as(tuple, args), _as(dict, options))
    machine.stack[-3:] = [made]


def _object(machine: Machine, _: None) -> None:
    cls, *args = machine.marked()
    machine.stack.append(machine.meaning.called(cls, tuple(args)))


def _instance(machine: Machine, text: str) -> None:
    args = machine.marked()
    _name(machine, text)
    machine.stack[-1] = machine.meaning.called(machine.stack[-1], tuple(args))


def _give_state(machine: Machine, _: None) -> None:
    state = machine.stack.pop()
    machine.stack[-1] = machine.meaning.given(machine.stack[-1], state)


def _find_stored(machine: Machine, _: None) -> None:
    machine.stack[-1] = machine.meaning.stored(machine.stack[-1])


def _as(cls: type, x: Any) -> Any:
    if type(x) is not cls:
        raise FileError(f"a pickle has {one_of(type(x))} for {one_of(cls)}")
    return x


def _nothing(machine: Machine, _: Any) -> None:
    pass


def _popped(machine: Machine, count: int) -> list[Any]:
    found = machine.stack[-count:]
    if len(found) < count:
        raise FileError("a pickle that takes more than it has put there")
    del machine.stack[-count:]
    return found


_ACTS: Final[dict[str, Act]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2"), _push),
    **dict.fromkeys(("LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE"), _push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("STRING", "SHORT_BINSTRING", "BINSTRING"), _push_text),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": _fresh(list),
    "EMPTY_DICT": _fresh(dict),
    "EMPTY_SET": _fresh(set),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _drop_marked,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.marked())),
    "LIST": lambda machine, _: _push(machine, machine.marked()),
    "DICT": _make_dict,
    "FROZENSET": _make_set,
    "APPEND": lambda machine, _: _put_items(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _put_items(machine, machine.marked()),
    "SETITEM": lambda machine, _: _put_pairs(machine, _popped(machine, 2)),
    "SETITEMS": lambda machine, _: _put_pairs(machine, machine.marked()),
    "ADDITEMS": _add_items,
    "GLOBAL": _name,
    "STACK_GLOBAL": _name_on_stack,
    "REDUCE": _call,
    "NEWOBJ": _new,
    "NEWOBJ_EX": _new_with_options,
    "OBJ": _object,
    "INST": _instance,
    "BUILD": _give_state,
    "BINPERSID": _find_stored,
}
