"""A report as text for a terminal or a log."""

from __future__ import annotations

from segearth_r2_jax.ahead_of_time.report import Cost, Memory, Report
from segearth_r2_jax.sharding.chips import Chip

GIB = 2**30


def report_lines(report: Report, chip: Chip | None) -> list[str]:
    """The report of one program; all figures are per device."""
    sizes = ", ".join(f"{value} {name}" for name, value in report.sizes.items())
    mesh = " ".join(f"{axis}={size}" for axis, size in report.mesh.items())
    lines = [f"{report.program}: {sizes}; mesh {mesh}; lowered in {report.lower_seconds:.1f} s, compiled in {report.compile_seconds:.1f} s"]
    lines += [f"  {line}" for line in _memory(report.memory)]
    if report.cost is not None:
        lines += [f"  {line}" for line in _cost(report.cost, chip)]
    return lines


def verdict(memory: Memory) -> str:
    """Fits or does not, and by how much."""
    if memory.fits:
        spare = memory.usable - memory.needed
        return f"fits: needs {_gib(memory.needed)}, has {_gib(memory.usable)}, {_gib(spare)} to spare"
    return f"does not fit: needs {_gib(memory.needed)}, has {_gib(memory.usable)}, over by {_gib(memory.needed - memory.usable)}"


def _memory(memory: Memory) -> list[str]:
    named = [
        ("arguments", memory.arguments),
        ("outputs", memory.outputs),
        ("aliased (outputs in place of arguments)", memory.aliased),
        ("temporaries", memory.temporaries),
        ("kept for other programs", memory.resident or None),
    ]
    return [verdict(memory), *(f"  {name:<42} {_gib(size):>12}" for name, size in named if size is not None)]


def _cost(cost: Cost, chip: Chip | None) -> list[str]:
    lines = [f"model FLOPs (analytic) {_flops(cost.model_flops)}; executed, with recomputation {_flops(cost.executed_flops)}"]
    parts = sorted(cost.model_flops_by_part.items(), key=lambda part: -part[1])
    lines.append("  " + ", ".join(f"{name} {_flops(flops)}" for name, flops in parts))
    lines.append(f"HBM traffic {_gib(cost.memory_bytes)}")
    lines.append(f"collectives: arrays of {_mib(cost.collective_bytes)}, {_mib(cost.sent_bytes)} sent")
    for exchange in cost.exchanges:
        lines.append(
            f"  {exchange.kind:<20} {exchange.axes:<12} groups of {exchange.group:<5} {exchange.count:>6} x"
            f" {_mib(exchange.bytes):>14} {_mib(exchange.sent):>14} sent"
        )
    if cost.unknown_loops:
        lines.append(f"loops whose end the program decides, counted as {cost.unknown_trips} rounds: {', '.join(cost.unknown_loops)}")
    if cost.seconds is None or chip is None:
        return [*lines, "no estimate of the time: the chip's peaks are not known"]
    lines.append(f"estimated time {_ms(cost.seconds)}, bound by {cost.bound}: the largest of")
    lines.append(f"  compute     {_ms(cost.compute_seconds):>12}  executed FLOPs at {chip.bf16_flops / 1e12:.0f} TFLOP/s")
    lines.append(f"  memory      {_ms(cost.memory_seconds):>12}  HBM traffic at {chip.hbm_bandwidth / 1e9:.0f} GB/s")
    lines.append(f"  collectives {_ms(cost.collective_seconds):>12}  bytes sent at {chip.interconnect_bandwidth / 1e9:.0f} GB/s")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else _mib(size)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.3f} TFLOP" if flops >= 1e9 else f"{flops / 1e9:.4f} GFLOP"


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1e3 * seconds:,.3f} ms"
