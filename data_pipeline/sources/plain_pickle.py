"""Reads a pickle that holds nothing but plain values, without ever running what a pickle may ask to run.

`pickle.load` calls any function that the file names. Here the file is taken apart with `pickletools.genops` and only the opcodes that
make dicts, lists, tuples, texts, numbers, booleans and None are obeyed; any other is an error. A number that says how much memory to
take (the size of the memo) is never obeyed.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from segearth_r2_jax.errors import UserError

_NUMBERS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"))
_TEXTS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LARGEST = 2**63


class _NotPlain(Exception):
    """The pickle is damaged or asks for more than plain values."""


def load_plain_pickle(file: Path) -> Any:
    """The value in the pickle `file`, of any protocol; UserError naming the file, and the byte, where it is damaged or not plain."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    stack = _Stack()
    done = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            done = position
            if opcode.name == "STOP":
                return stack.result()
            stack.obey(opcode.name, argument)
    except _NotPlain as error:
        raise UserError(f"{file}: byte {done}: {error}") from None
    except (ValueError, OverflowError) as error:  # From genops: an unknown opcode, a file cut short, a wrong number or text.
        raise UserError(f"{file}: not a pickle, or cut short, after byte {done} ({' '.join(str(error).split()):.120})") from None
    raise AssertionError("genops ends with STOP or raises")


class _Stack:
    """The unpickling machine of `pickletools`' documentation, for plain values."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def obey(self, opcode: str, argument: Any) -> None:
        if opcode in _NUMBERS or opcode in _TEXTS:
            if isinstance(argument, int) and not -_LARGEST <= argument < _LARGEST:
                raise _NotPlain("holds a number of more than 64 bits")
            self.values.append(argument)
        elif opcode in _CONSTANTS:
            self.values.append(_CONSTANTS[opcode])
        elif opcode == "MARK":
            self.marks.append(len(self.values))
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = self._top()
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _NotPlain("refers to a value that it does not hold")
            self.values.append(self.memo[argument])
        elif opcode in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            self.values.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[opcode]())
        elif opcode in ("LIST", "TUPLE"):
            self.values.append({"LIST": list, "TUPLE": tuple}[opcode](self._since_mark()))
        elif opcode == "DICT":
            items = self._since_mark()
            self.values.append({})
            self._set_items(items)
        elif opcode in _TUPLES:
            self.values.append(tuple(self._last(_TUPLES[opcode])))
        elif opcode in ("APPEND", "APPENDS"):
            items = self._last(1) if opcode == "APPEND" else self._since_mark()
            if not isinstance(self._top(), list):
                raise _NotPlain("appends to something that is no list")
            self._top().extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            self._set_items(self._last(2) if opcode == "SETITEM" else self._since_mark())
        elif opcode not in ("PROTO", "FRAME"):
            raise _NotPlain(f"holds {opcode}, which asks for more than plain values (texts, numbers, lists, dicts); it is not obeyed")

    def result(self) -> Any:
        if len(self.values) != 1 or self.marks:
            raise _NotPlain("does not end with one value")
        return self.values[0]

    def _top(self) -> Any:
        if not self.values or (self.marks and self.marks[-1] == len(self.values)):
            raise _NotPlain("takes a value where there is none")
        return self.values[-1]

    def _last(self, count: int) -> list[Any]:
        if len(self.values) - (self.marks[-1] if self.marks else 0) < count:
            raise _NotPlain("takes a value where there is none")
        items = self.values[-count:]
        del self.values[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise _NotPlain("takes a value where there is none")
        start = self.marks.pop()
        items = self.values[start:]
        del self.values[start:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not isinstance(self._top(), dict) or len(keys) != len(values):
            raise _NotPlain("sets items of something that is no dict")
        # Not any hashable key: the hash of tuples within tuples is computed without a bound on their depth.
        if not all(isinstance(key, str | int | None) for key in keys):
            raise _NotPlain("holds a dict whose keys are neither texts nor whole numbers")
        self._top().update(zip(keys, values, strict=True))
