"""The text of a compiled program (optimised HLO): its computations, the sizes of its arrays, and how often each computation runs.

What the compiler tells about a whole program counts the body of a loop once. Networks whose layers are scanned spend their time in such
bodies, so loops are followed here: a loop that counts from one constant to another runs as often as that says, any other as often as the
caller assumes, and the loops that this concerns are named.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|condition|body|true_computation|false_computation|branch_computations|called_computations)=")
_NAME = re.compile(r"%([^\s,(){}]+)")
_TRIP_COUNT = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program. `space` is the memory it lies in: 0 is the device's main memory (HBM)."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bits(self) -> int:
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        digits = re.search(r"\d+", self.dtype)
        return int(digits.group()) if digits else 0

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.ceil(math.prod(self.dims) * self.bits / 8)

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory: the last dimensions filled up to whole tiles."""
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if not tile or not self.dims:
            return self.bytes
        dims = [self.dims[int(i)] for i in reversed(order.split(","))]
        sizes = [int(size) for size in tile.group(1).split(",")][-len(dims) :]
        for i, size in enumerate(reversed(sizes), 1):
            dims[-i] = math.ceil(dims[-i] / size) * size
        return math.ceil(math.prod(dims) * self.bits / 8)

    @property
    def space(self) -> int:
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found.group(1)) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`arrays` are those of the result, several if it is a tuple; `rest` is what stands behind the operands."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        return arrays_of(self.type)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs, not those that only say how to combine two numbers."""
        names = _NAME.findall(self.attribute("to_apply") or "") if self.opcode == "call" else []
        for found in _CALLED.finditer(self.rest):
            tail = self.rest[found.end() :]
            end = tail.index("}") if tail.startswith("{") else re.search(r"[,\s]|$", tail).start()
            names += _NAME.findall(tail[: end + 1])
        return tuple(dict.fromkeys(names))

    def attribute(self, name: str) -> str | None:
        """The text of `name=...` up to the next attribute, None if it has none."""
        found = re.search(rf"(?:^|[\s,]){name}=", self.rest)
        if not found:
            return None
        tail, depth = self.rest[found.end() :], 0
        for i, letter in enumerate(tail):
            depth += (letter in "{[(") - (letter in "}])")
            if letter == "," and depth == 0:
                return tail[:i]
        return tail


class Program:
    """A compiled program.

    Args:
        text: of `jax.stages.Compiled.as_text()`.
        unknown_trips: how often a loop is assumed to run whose number of rounds the text does not show.

    Attributes:
        runs: how often each computation runs per call of the program; those inside of fusions are not listed.
        unknown_loops: names of the loops for which `unknown_trips` was taken.
    """

    def __init__(self, text: str, *, unknown_trips: int = 1):
        self.computations = dict(_computations(text))
        self.entry = next(name for name, is_entry in _entries(text) if is_entry)
        self.unknown_loops: list[str] = []
        self.runs: dict[str, int] = {}
        self._unknown_trips = unknown_trips
        self._follow(self.entry, 1)

    def _follow(self, computation: str, times: int) -> None:
        self.runs[computation] = self.runs.get(computation, 0) + times
        for instruction in self.computations[computation].values():
            if instruction.opcode == "fusion":
                continue
            rounds = 1
            if instruction.opcode == "while":
                known = self.trip_count(computation, instruction)
                if known is None:
                    self.unknown_loops.append(instruction.name)
                rounds = self._unknown_trips if known is None else known
            for name in instruction.called:
                if name in self.computations:
                    self._follow(name, times * rounds)

    def instructions(self) -> Iterator[tuple[Instruction, str, int]]:
        """(instruction, its computation, how often it runs) of everything that runs on its own, not as a part of a fusion."""
        for computation, times in self.runs.items():
            for instruction in self.computations[computation].values():
                yield instruction, computation, times

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Rounds of the loop: as the compiler notes it, or from its counter's start, step and limit where these are constants."""
        if noted := _TRIP_COUNT.search(loop.rest):
            return int(noted.group(1))
        condition, body = (self.computations[_NAME.match(loop.attribute(key)).group(1)] for key in ("condition", "body"))
        test = _root(condition)
        if test.opcode != "compare" or "direction=LT" not in test.rest:
            return None
        index, limit = _tuple_index(condition, test.operands[0]), _constant(condition, test.operands[1])
        if index is None or limit is None:
            return None
        start = _element(self.computations[computation], loop.operands[0], index)
        start = None if start is None else _constant(self.computations[computation], start)
        step = _step(body, index)
        return None if start is None or step is None else max(0, math.ceil((limit - start) / step))


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type: one, or those of a tuple."""
    return tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size), layout or "")
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _entries(text: str) -> Iterator[tuple[str, bool]]:
    for line in text.splitlines():
        if line.endswith("{") and line[:1] in "%E" and " -> " in line:
            yield _NAME.search(line).group(1), line.startswith("ENTRY")


def _computations(text: str) -> Iterator[tuple[str, dict[str, Instruction]]]:
    name, instructions = "", {}
    for line in text.splitlines():
        if line.endswith("{") and line[:1] in "%E" and " -> " in line:
            name, instructions = _NAME.search(line).group(1), {}
        elif line == "}" and name:
            yield name, instructions
            name = ""
        elif name and " = " in line:
            instruction = _instruction(line)
            instructions[instruction.name] = instruction


def _instruction(line: str) -> Instruction:
    left, _, right = _COMMENT.sub("", line).partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, _, _ = right[end:].strip().partition("(")
    first = right.index("(", end)
    last = _closing(right, first)
    inside = right[first + 1 : last]
    operands = (inside,) if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    root = left.lstrip().startswith("ROOT")
    return Instruction(_NAME.search(left).group(1), opcode, right[:end], operands, right[last + 1 :].lstrip(", "), root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.root)


def _behind_copies(computation: dict[str, Instruction], name: str) -> Instruction | None:
    found = computation.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "convert") and found.operands:
        found = computation.get(found.operands[0])
    return found


def _constant(computation: dict[str, Instruction], name: str) -> int | None:
    found = _behind_copies(computation, name)
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.operands[0]):
        return None
    return int(found.operands[0])


def _tuple_index(computation: dict[str, Instruction], name: str) -> int | None:
    """Which element of the loop's state `name` is."""
    found = _behind_copies(computation, name)
    return int(found.attribute("index")) if found is not None and found.opcode == "get-tuple-element" else None


def _element(computation: dict[str, Instruction], name: str, index: int) -> str | None:
    found = _behind_copies(computation, name)
    return found.operands[index] if found is not None and found.opcode == "tuple" else None


def _step(body: dict[str, Instruction], index: int) -> int | None:
    """What a round adds to the counter."""
    root = _root(body)
    found = _behind_copies(body, root.operands[index]) if root.opcode == "tuple" else None
    if found is None or found.opcode != "add":
        return None
    for counter, step in (found.operands, found.operands[::-1]):
        if _tuple_index(body, counter) == index:
            return _constant(body, step)
    return None
