"""What the compiler makes of a program, per device: memory, work, communication, and the time that these take at the least."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from segearth_r2_jax.ahead_of_time import hlo_text
from segearth_r2_jax.ahead_of_time.collectives import Exchange, collectives, exchanges
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.ahead_of_time.program_flops import program_flops
from segearth_r2_jax.ahead_of_time.programs import Program
from segearth_r2_jax.ahead_of_time.topology import out_of_memory, quiet_stderr
from segearth_r2_jax.sharding.chips import Chip


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device's main memory. needed = arguments + outputs - aliased + temporaries + resident; usable: what the compiler allows.

    aliased: outputs that take the place of donated arguments. resident: what stays there for other programs. Of a program that does not
    fit the compiler tells the sum only: the parts are then None, but for the arguments.
    """

    arguments: int
    outputs: int | None
    aliased: int | None
    temporaries: int | None
    resident: int
    needed: int
    usable: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one call, per device.

    model_flops: the analytic count (`training.flops`), total and by part. executed_flops: matrix products that run, recomputation
    included, evenly divided. memory_bytes: see `memory_traffic`. exchanges: see `collectives`. Seconds: each at the published peak of
    the chip; None where the chip is not known. unknown_loops: loops counted as `unknown_trips` rounds.
    """

    model_flops: float
    model_flops_by_part: dict[str, float]
    executed_flops: float
    memory_bytes: int
    exchanges: list[Exchange]
    compute_seconds: float | None
    memory_seconds: float | None
    collective_seconds: float | None
    unknown_loops: list[str]
    unknown_trips: int

    @property
    def seconds(self) -> float | None:
        """The estimated time of a call: the largest of the three, as if the other two were hidden behind it."""
        if self.compute_seconds is None:
            return None
        return max(self.compute_seconds, self.memory_seconds, self.collective_seconds)

    @property
    def bound(self) -> str:
        times = {"compute": self.compute_seconds, "memory": self.memory_seconds, "collectives": self.collective_seconds}
        return max(times, key=lambda name: times[name] or 0.0)

    @property
    def sent_bytes(self) -> float:
        return sum(exchange.sent for exchange in self.exchanges)

    @property
    def collective_bytes(self) -> int:
        return sum(exchange.bytes for exchange in self.exchanges)


@dataclasses.dataclass(frozen=True)
class Report:
    """One program. `cost` is None where it does not fit: there is then no program to read."""

    program: str
    sizes: dict[str, int]
    mesh: dict[str, int]
    memory: Memory
    cost: Cost | None
    lower_seconds: float
    compile_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form, with what is derived."""
        values = dataclasses.asdict(self)
        values["memory"]["fits"] = self.memory.fits
        if self.cost is not None:
            derived = ("seconds", "bound", "sent_bytes", "collective_bytes")
            values["cost"] |= {name: getattr(self.cost, name) for name in derived}
        return values


def compile_program(program: Program, chip: Chip | None, usable: int) -> Report:
    """Compiles `program`; `usable` is the memory of a device in bytes.

    Raises:
        jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    began = time.perf_counter()
    lowered = program.traced.lower()
    lowering = time.perf_counter() - began
    began = time.perf_counter()
    compiled = needs = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet_stderr():
                compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            needs = out_of_memory(str(error))
            if needs is None:
                raise
        compiling = time.perf_counter() - began
        text = None if compiled is None else _compiled_text(compiled, Path(folder))

    if compiled is None:
        memory, cost = Memory(program.arguments, None, None, None, program.resident, needs[0] + program.resident, usable), None
    else:
        stats = compiled.memory_analysis()
        arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
        aliased, temporaries = stats.alias_size_in_bytes, stats.temp_size_in_bytes
        # What a program does not use is no argument of it, but its caller holds it all the same.
        resident = program.resident + max(0, program.arguments - arguments)
        needed = arguments + outputs - aliased + temporaries + resident
        memory = Memory(arguments, outputs, aliased, temporaries, resident, needed, usable)
        cost = _cost(program, text, chip)
    mesh = dict(program.mesh.shape)
    return Report(program.name, program.sizes, mesh, memory, cost, round(lowering, 2), round(compiling, 2))


def _compiled_text(compiled: jax.stages.Compiled, folder: Path) -> str:
    """The compiled program: as JAX gives it or, where it cannot, what the compiler wrote down in `folder`. Programs in which a SparseCore
    scatters beside the TensorCore (v5p, v6e) cannot be read back into a module, which JAX needs for the text."""
    try:
        with quiet_stderr():
            return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return max(folder.glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size).read_text()


def _cost(program: Program, text: str, chip: Chip | None) -> Cost:
    compiled, devices = hlo_text.Program(text, unknown_trips=program.unknown_trips), program.mesh.size
    executed = program_flops(program.traced.jaxpr, platform="tpu", while_trips=program.unknown_trips) / devices
    moved, exchanged = memory_traffic(compiled), exchanges(collectives(compiled, program.mesh))
    sent = sum(exchange.sent for exchange in exchanged)
    return Cost(
        model_flops=program.flops.total / devices,
        model_flops_by_part={part: flops / devices for part, flops in program.flops.parts.items()},
        executed_flops=executed,
        memory_bytes=moved,
        exchanges=exchanged,
        compute_seconds=executed / chip.bf16_flops if chip else None,
        memory_seconds=moved / chip.hbm_bandwidth if chip else None,
        collective_seconds=sent / chip.interconnect_bandwidth if chip else None,
        unknown_loops=compiled.unknown_loops,
        unknown_trips=program.unknown_trips,
    )
