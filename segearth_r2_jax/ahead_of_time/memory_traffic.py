"""The bytes that a compiled program moves to and from the device's main memory (HBM), read from its text.

Every instruction that runs on its own, a fusion being one, reads each of its inputs once and writes each of its outputs once; arrays
that the compiler placed in another memory (VMEM) cost nothing. Of an array of which only a slice is read or replaced, as of the stacked
parameters of scanned layers, the slice counts. Arrays count as they lie in memory, filled up to whole tiles. What a sort or a kernel reads
more than once counts once: a lower bound there.
"""

from __future__ import annotations

from segearth_r2_jax.ahead_of_time.hlo_text import Array, Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_VIEWS = {"bitcast", "get-tuple-element"}
# A fusion inside a fusion that names other tiles for its input, which stays where it is.
_ALIAS = "output_to_operand_aliasing={{}: (0, {})}"


def memory_traffic(program: Program) -> int:
    """Bytes read and written per device and call of the program."""
    return sum(
        times * _moved(instruction, program.computations[computation], program)
        for instruction, computation, times in program.instructions()
    )


def _moved(instruction: Instruction, computation: dict[str, Instruction], program: Program) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")) or '"AllocateBuffer"' in instruction.rest:
        return 0
    inputs = [computation[name].arrays for name in instruction.operands]
    if opcode.endswith("-start"):
        outputs = _started(instruction, inputs)
        read = _padded(outputs) if opcode == "slice-start" and sum(map(_hbm, inputs)) else sum(map(_hbm, inputs))
        return read + _hbm(outputs)
    if opcode in _SLICES:
        indices = sum(map(_hbm, inputs[1:]))
        return indices + _hbm(instruction.arrays) + (_padded(instruction.arrays) if _hbm(inputs[0]) else 0)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = inputs[1] if opcode == "dynamic-update-slice" else inputs[-1]
        return _hbm(update) + (_padded(update) if _hbm(instruction.arrays) else 0)
    if opcode == "fusion":
        (called,) = instruction.called
        inside = program.computations[called]
        read = sum(min(_hbm(arrays), _read(inside, i, program)) for i, arrays in enumerate(inputs) if _hbm(arrays))
        return read + _written(instruction, inside)
    return sum(map(_hbm, inputs)) + _hbm(instruction.arrays)


def _started(instruction: Instruction, inputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    """What an instruction makes that another one waits for: its type also has its inputs and scalars that keep count."""
    outputs = [array for array in instruction.arrays if array.dims]
    for array in (array for arrays in inputs for array in arrays):
        if array in outputs:
            outputs.remove(array)
    return tuple(outputs)


def _hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.padded_bytes for array in arrays if array.space == 0)


def _padded(arrays: tuple[Array, ...]) -> int:
    return sum(array.padded_bytes for array in arrays)


def _read(inside: dict[str, Instruction], number: int, program: Program) -> int:
    """Bytes that a fused computation reads of its parameter `number`."""
    parameter = next(other for other in inside.values() if other.opcode == "parameter" and other.operands == (str(number),))
    return _read_of(inside, parameter, program)


def _read_of(inside: dict[str, Instruction], value: Instruction, program: Program) -> int:
    total = 0
    for user in inside.values():
        if value.name not in user.operands or user.opcode in ("parameter", "constant"):
            continue
        if user.opcode in _VIEWS or _ALIAS in user.rest:
            total += _read_of(inside, user, program)
        elif user.opcode in _SLICES and user.operands[0] == value.name and value.name not in user.operands[1:]:
            total += _padded(user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name and value.name not in user.operands[1:]:
            continue
        elif user.opcode == "fusion":
            (called,) = user.called
            positions = [i for i, name in enumerate(user.operands) if name == value.name]
            total += sum(_read(program.computations[called], i, program) for i in positions)
        else:
            return _padded(value.arrays)
    return min(total, _padded(value.arrays))


def _written(fusion: Instruction, inside: dict[str, Instruction]) -> int:
    root = next(other for other in inside.values() if other.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.arrays):
        return _hbm(fusion.arrays)
    total = 0
    for array, result in zip(fusion.arrays, results, strict=True):
        while result.opcode == "bitcast" and result.operands[0] in inside:
            result = inside[result.operands[0]]
        if array.space == 0:
            replaced = result.opcode == "dynamic-update-slice"
            total += _padded(inside[result.operands[1]].arrays) if replaced else array.padded_bytes
    return total
