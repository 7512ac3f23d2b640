"""Reads pickles without ever running what a pickle may ask to run.

`pickle.load` imports and calls whatever the file names. Here the opcodes (documented in `pickletools`) are obeyed by a machine of our
own: it builds dicts, lists, tuples, sets, texts, numbers and bytes, and where the file names something to call, it looks the name up
in a table of our own functions that the caller gives. Nothing is imported, no attribute is looked up, and a name that is not in the
table is an error that says the name. Without a table even naming something is an error.

How much memory a file takes is in proportion to its own size: lengths are held against the bytes that are there before any are read,
and places in the memo are keys, not sizes. Constructors that copy what they are given must keep a budget, since a pickle can give the
same value many times.
"""

from __future__ import annotations

import dataclasses
import io
import mmap
import pickletools
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from segearth_r2_jax.errors import UserError

# Bytes of at least this length stay where they are, as a memoryview of the file.
LEFT_IN_PLACE = 2**16

_NUMBERS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"))
_TEXTS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# How each opcode of bytes states their number.
_BYTES = {"SHORT_BINBYTES": "<B", "BINBYTES": "<I", "BINBYTES8": "<Q", "BYTEARRAY8": "<Q"}
# Opcodes that build more than texts, numbers, lists, tuples and dicts.
_BEYOND_PLAIN = frozenset(_BYTES) | {
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD"),
    *("PERSID", "BINPERSID", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
}


class Refused(Exception):
    """The pickle is damaged or asks for what it is not given; constructors raise it, too. The message is part of a line."""


@dataclasses.dataclass(frozen=True)
class Constructor:
    """A function of ours that stands for something that pickles call.

    name: what the file calls it. function: takes the values that the file gives; a TypeError, ValueError or OverflowError from it
        means that they are none that it can take.
    """

    name: str
    function: Callable[..., Any] = dataclasses.field(repr=False)


class Unfinished(ABC):
    """A value that becomes whole by the state that the pickle gives afterwards, such as an array of numpy."""

    finished: Any = None

    @abstractmethod
    def finish(self, state: Any) -> Any:
        """The whole value; it takes this one's place everywhere. Raises Refused if it cannot be built from `state`."""


@dataclasses.dataclass(frozen=True)
class Named:
    """Something that a file may name, as an argument of a constructor, but not call."""

    name: str


@dataclasses.dataclass(frozen=True)
class InertClass:
    """The name of a class that the caller does not need. It is never looked for."""

    name: str


@dataclasses.dataclass(eq=False)
class Inert:
    """What the pickle says about an object of an `InertClass`: nothing of it was run.

    arguments: of its construction; keywords: the named ones; state: what it was to be filled with.
    Items that the pickle adds to it are left out.
    """

    name: str
    arguments: tuple[Any, ...] = dataclasses.field(repr=False)
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    state: Any = dataclasses.field(default=None, repr=False)


Source = bytes | mmap.mmap


def load_pickle(
    data: Source,
    name: str,
    *,
    start: int = 0,
    constructors: Mapping[tuple[str, str], Any] | None = None,
    inert: tuple[str, ...] = (),
    persistent: Callable[[Any], Any] | None = None,
    integer_bits: int = 64,
) -> tuple[Any, int]:
    """The value of the pickle, of any protocol, that begins at byte `start` of `data`, and the byte after it.

    name: of the file, for messages.
    constructors: (module, name) -> a `Constructor`, or a value that the name stands for. None: plain values only, that is dicts, lists,
        tuples, texts, numbers, booleans and None.
    inert: modules whose classes, and those of the modules below them, become `InertClass`, their objects `Inert`.
    persistent: gives the value of a persistent id.
    integer_bits: of the largest number.

    Raises:
        UserError: naming the file and the byte, where the pickle is damaged or asks for something that it is not given.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(start)
    machine = _Machine(constructors, inert, persistent, integer_bits)
    done = start
    try:
        while True:
            position = stream.tell()
            opcode, argument = _next(stream, data)
            done = position
            if opcode == "STOP":
                return machine.result(), stream.tell()
            machine.obey(opcode, argument)
    except Refused as error:
        raise UserError(f"{name}: byte {done}: {error}") from None
    except (ValueError, OverflowError) as error:  # From pickletools: a file cut short, a wrong number or text.
        raise UserError(f"{name}: not a pickle, or cut short, after byte {done} ({' '.join(str(error).split()):.120})") from None


def shown(value: Any) -> str:
    """A value from a file for a message: texts on one line, without control characters, not long; of others what they are."""
    if isinstance(value, str):
        return f"{value!r:.200}"[1:-1]
    return value.name if isinstance(value, Constructor | InertClass | Named) else f"a {type(value).__name__}"


def _next(stream: Any, data: Source) -> tuple[str, Any]:
    """The next opcode and its argument; ValueError if there is none."""
    code = stream.read(1)
    info = pickletools.code2op.get(code.decode("latin-1"))
    if info is None:
        raise ValueError(f"there is no opcode {code!r}" if code else "the pickle ends without STOP")
    if info.arg is None:
        return info.name, None
    if info.name in _BYTES:
        return info.name, _bytes(stream, data, _BYTES[info.name])
    return info.name, info.arg.reader(stream)


def _bytes(stream: Any, data: Source, size: str) -> bytes | memoryview:
    head = stream.read(struct.calcsize(size))
    if len(head) < struct.calcsize(size):
        raise ValueError("the pickle ends within a length")
    (count,) = struct.unpack(size, head)
    begin = stream.tell()
    if count > len(data) - begin:
        raise ValueError(f"{count:,} bytes claimed, {len(data) - begin:,} are there")
    if count < LEFT_IN_PLACE:
        return stream.read(count)
    stream.seek(begin + count)
    return memoryview(data)[begin : begin + count].toreadonly()


class _Machine:
    """The stack, the marks and the memo of the machine that `pickletools` documents."""

    def __init__(
        self,
        constructors: Mapping[tuple[str, str], Any] | None,
        inert: tuple[str, ...],
        persistent: Callable[[Any], Any] | None,
        integer_bits: int,
    ) -> None:
        self.values: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.plain = constructors is None
        self.constructors = constructors or {}
        self.inert = inert
        self.persistent = persistent
        self.largest = 2 ** (integer_bits - 1)

    def obey(self, opcode: str, argument: Any) -> None:
        if self.plain and opcode in _BEYOND_PLAIN:
            what = self._asked_for(opcode, argument)
            raise Refused(f"holds {opcode}, which asks for more than plain values (texts, numbers, lists, dicts){what}; it is not obeyed")
        if opcode in _NUMBERS or opcode in _TEXTS or opcode in _BYTES:
            if isinstance(argument, int) and not -self.largest <= argument < self.largest:
                raise Refused(f"holds a number of more than {self.largest.bit_length()} bits")
            self.values.append(argument)
        elif opcode in _CONSTANTS:
            self.values.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.values.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            self.values.append(tuple(self._last(_TUPLES[opcode])))
        elif operation := getattr(self, f"_op_{opcode.lower()}", None):
            operation(argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise Refused(f"holds {opcode}, which asks for more than plain values and known constructors; it is not obeyed")

    def result(self) -> Any:
        if len(self.values) != 1 or self.marks:
            raise Refused("does not end with one value")
        return _whole(self.values[0])

    # The stack and the memo.

    def _op_mark(self, _: None) -> None:
        self.marks.append(len(self.values))

    def _op_pop(self, _: None) -> None:
        if self.marks and self.marks[-1] == len(self.values):  # Protocol 0 takes back a mark by POP.
            self.marks.pop()
        else:
            self._last(1)

    def _op_pop_mark(self, _: None) -> None:
        self._since_mark()

    def _op_dup(self, _: None) -> None:
        self.values.append(self._top())

    def _op_put(self, place: int) -> None:
        self.memo[place] = self._top()

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self._top()

    def _op_get(self, place: int) -> None:
        if place not in self.memo:
            raise Refused("refers to a value that it does not hold")
        self.values.append(_whole(self.memo[place]))

    _op_binget = _op_long_binget = _op_get

    # Containers.

    def _op_list(self, _: None) -> None:
        self.values.append(self._since_mark())

    def _op_tuple(self, _: None) -> None:
        self.values.append(tuple(self._since_mark()))

    def _op_dict(self, _: None) -> None:
        items = self._since_mark()
        self.values.append({})
        self._set_items(items)

    def _op_frozenset(self, _: None) -> None:
        self.values.append(frozenset(_keys(self._since_mark(), "set")))

    def _op_append(self, _: None) -> None:
        self._extend(self._last(1))

    def _op_appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _op_additems(self, _: None) -> None:
        items = self._since_mark()
        if not isinstance(self._top(), set | Inert):
            raise Refused("adds items to something that is no set")
        if isinstance(self._top(), set):
            self._top().update(_keys(items, "set"))

    def _op_setitem(self, _: None) -> None:
        self._set_items(self._last(2))

    def _op_setitems(self, _: None) -> None:
        self._set_items(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._top(), list | Inert):
            raise Refused("appends to something that is no list")
        if isinstance(self._top(), list):
            self._top().extend(items)

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not isinstance(self._top(), dict | Inert) or len(keys) != len(values):
            raise Refused("sets items of something that is no dict")
        if isinstance(self._top(), dict):
            self._top().update(zip(_keys(keys, "dict"), values, strict=True))

    # Names, and what is made with them.

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")  # pickletools joins the two lines by a space
        self.values.append(self._named(module, name))

    def _op_stack_global(self, _: None) -> None:
        self.values.append(self._named(*self._last(2)))

    def _op_reduce(self, _: None) -> None:
        function, arguments = self._last(2)
        self.values.append(self._call(function, arguments))

    def _op_newobj(self, _: None) -> None:
        cls, arguments = self._last(2)
        self.values.append(self._new(cls, arguments))

    def _op_newobj_ex(self, _: None) -> None:
        cls, arguments, keywords = self._last(3)
        self.values.append(self._new(cls, arguments, keywords))

    def _op_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.values.append(self._new(self._named(module, name), tuple(self._since_mark())))

    def _op_obj(self, _: None) -> None:
        cls, *arguments = self._since_mark() or [None]
        self.values.append(self._new(cls, tuple(arguments)))

    def _op_build(self, _: None) -> None:
        value, state = self._last(2)
        if isinstance(value, Unfinished):
            if value.finished is not None:
                raise Refused("gives one value its state twice")
            value.finished = value.finish(state)
        elif isinstance(value, Inert):
            value.state = state
        elif not isinstance(value, OrderedDict):  # PyTorch hangs attributes (`_metadata`) on it, which are no items.
            raise Refused(f"sets the state of a {type(value).__name__}, which has none")
        self.values.append(_whole(value))

    def _op_binpersid(self, _: None) -> None:
        (identity,) = self._last(1)
        if self.persistent is None:
            raise Refused("refers to a value outside of the pickle")
        self.values.append(self.persistent(identity))

    def _op_persid(self, identity: str) -> None:
        if self.persistent is None:
            raise Refused("refers to a value outside of the pickle")
        self.values.append(self.persistent(identity))

    def _asked_for(self, opcode: str, argument: Any) -> str:
        """What an opcode names, for a message."""
        if opcode in ("GLOBAL", "INST"):
            return f": {shown(argument.replace(' ', '.', 1))}"
        return f": {'.'.join(map(shown, self.values[-2:]))}" if opcode == "STACK_GLOBAL" else ""

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("names something by values that are no texts")
        if (module, name) in self.constructors:
            return self.constructors[module, name]
        if any(module == known or module.startswith(f"{known}.") for known in self.inert):
            return InertClass(f"{module}.{name}")
        raise Refused(f"asks for {shown(module)}.{shown(name)}, which is not among what this file may hold; nothing of it was run")

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, InertClass):
            return self._new(function, arguments)
        if not isinstance(function, Constructor) or not isinstance(arguments, tuple):
            raise Refused(f"calls {shown(function)}, which is no constructor; it is not obeyed")
        try:
            return function.function(*arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise Refused(f"gives {function.name} what it cannot take ({' '.join(str(error).split()):.120})") from None

    def _new(self, cls: Any, arguments: Any, keywords: Any = None) -> Inert:
        if not isinstance(cls, InertClass) or not isinstance(arguments, tuple) or not isinstance(keywords, dict | None):
            raise Refused(f"makes an object of {shown(cls)}, which is no class that this file may hold; it is not obeyed")
        return Inert(cls.name, arguments, keywords or {})

    def _top(self) -> Any:
        if not self.values or (self.marks and self.marks[-1] == len(self.values)):
            raise Refused("takes a value where there is none")
        return self.values[-1]

    def _last(self, count: int) -> list[Any]:
        if len(self.values) - (self.marks[-1] if self.marks else 0) < count:
            raise Refused("takes a value where there is none")
        items = self.values[-count:]
        del self.values[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("takes a value where there is none")
        start = self.marks.pop()
        items = self.values[start:]
        del self.values[start:]
        return items


def _whole(value: Any) -> Any:
    return value.finished if isinstance(value, Unfinished) and value.finished is not None else value


def _keys(keys: list[Any], container: str) -> list[Any]:
    # Not any hashable key: the hash of tuples within tuples is computed without a bound on their depth.
    if not all(isinstance(key, str | int | float | bytes | None) for key in keys):
        raise Refused(f"holds a {container} whose keys are neither texts nor whole numbers")
    return keys
