"""The data that the devices of a compiled program exchange: which kinds, how many bytes, along which axes of the mesh."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from segearth_r2_jax.ahead_of_time.hlo_text import Instruction, Program

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_KIND_OF = {kind: kind for kind in KINDS} | {f"{kind}-start": kind for kind in KINDS} | {"ragged-all-to-all": "all-to-all"}
_SHARES = re.compile(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"mesh\[((?:'[^']+'=\d+,?\s*)+)\]\s*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one instruction exchanges each time that it runs.

    bytes: of the array on a device before (or, for an all-gather, after) the exchange, without padding. sent: bytes that each device sends
    with the ring algorithm. axes: mesh axes along which the devices of a group lie, "a+b" if several, "?" if the text does not tell.
    times: how often it runs per call of the program.
    """

    kind: str
    bytes: int
    sent: float
    axes: str
    group: int
    times: int
    name: str


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of one kind along the same axes: totals per device and call of the program."""

    kind: str
    axes: str
    group: int
    count: int
    bytes: int
    sent: float


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """Every collective of `program`, one that starts in one instruction and ends in another as one.

    A TPU program also has collectives inside of fusions: a reduce-scatter is an all-reduce fused with the choice of a part, and a
    collective that runs beside other work stands in several fusions, of which the first ("AsyncCollectiveStart") counts.
    """
    found = []
    for instruction, computation, times in program.instructions():
        if instruction.opcode in _KIND_OF:
            found.append(_collective(instruction, program.computations[computation], mesh, times, _KIND_OF[instruction.opcode]))
        for called in instruction.called if instruction.opcode == "fusion" else ():
            inside = program.computations[called]
            starts = any('"AsyncCollectiveStart"' in other.rest for other in inside.values())
            scatters = called.startswith("all-reduce-scatter")
            for other in inside.values():
                if other.opcode in _KIND_OF and (starts or '"async_collective_fusion_config"' not in other.rest):
                    kind = "reduce-scatter" if scatters and other.opcode == "all-reduce" else _KIND_OF[other.opcode]
                    found.append(_collective(other, inside, mesh, times, kind))
    return found


def exchanges(found: Iterable[Collective]) -> list[Exchange]:
    """Sums by kind and axes, the largest first."""
    sums: dict[tuple[str, str, int], list[float]] = {}
    for item in found:
        total = sums.setdefault((item.kind, item.axes, item.group), [0, 0, 0.0])
        total[0] += item.times
        total[1] += item.times * item.bytes
        total[2] += item.times * item.sent
    made = [Exchange(*key, count=int(count), bytes=int(size), sent=sent) for key, (count, size, sent) in sums.items()]
    return sorted(made, key=lambda exchange: -exchange.sent)


def _collective(instruction: Instruction, computation: dict[str, Instruction], mesh: Mesh, times: int, kind: str) -> Collective:
    size = sum(array.bytes for operand in instruction.operands for array in computation[operand].arrays)
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs") or "")
        axes = _axes(np.array([[int(a), int(b)] for a, b in pairs]), mesh) if pairs else "?"
        return Collective(kind, size, float(size), axes, 2, times, instruction.name)
    groups = replica_groups(instruction.attribute("replica_groups") or "", mesh.size)
    # Of groups that the text does not tell, the largest possible.
    group = mesh.size if groups is None else groups.shape[1]
    share = (group - 1) / group
    sent = {"all-gather": size * (group - 1), "all-reduce": 2 * size * share}.get(kind, size * share)
    size = size * group if kind == "all-gather" else size
    return Collective(kind, size, sent, "?" if groups is None else _axes(groups, mesh), group, times, instruction.name)


def replica_groups(text: str, devices: int) -> np.ndarray | None:
    """The device numbers of every group, int [groups, members]; None if the form is not known here.

    Numbers are positions in the mesh, as a program for several devices has them. Forms: "{{0,1},{2,3}}", "[2,2]<=[4]" with an optional
    transposition "T(1,0)", and "mesh['a'=2,'b'=2] {'b'}". "" and "{}" are one group of all.
    """
    if text in ("", "{}"):
        return np.arange(devices)[None]
    if found := _SHARES.fullmatch(text):
        groups, members, dims, order = found.groups()
        numbers = np.arange(int(groups) * int(members)).reshape([int(size) for size in dims.split(",")])
        if order:
            numbers = numbers.transpose([int(axis) for axis in order.split(",")])
        return numbers.reshape(int(groups), int(members))
    if found := _NAMED.fullmatch(text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
        inside = re.findall(r"'([^']+)'", found.group(2))
        if ":" in found.group(2) or not set(inside) <= sizes.keys():
            return None
        names = list(sizes)
        numbers = np.arange(devices).reshape(list(sizes.values()))
        order = [i for i, name in enumerate(names) if name not in inside] + [names.index(name) for name in inside]
        return numbers.transpose(order).reshape(-1, int(np.prod([sizes[name] for name in inside])))
    if re.fullmatch(r"\{(\{[\d,]+\},?)+\}", text):
        lists = [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
        return np.array(lists) if len({len(group) for group in lists}) == 1 else None
    return None


def _axes(groups: np.ndarray, mesh: Mesh) -> str:
    """The mesh axes along which the members of a group differ."""
    positions = np.unravel_index(groups, mesh.devices.shape)
    differing = [name for name, place in zip(mesh.axis_names, positions, strict=True) if (place != place[:, :1]).any()]
    return "+".join(differing) or "none"
