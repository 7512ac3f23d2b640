"""The largest batch that fits, in as few compilations as possible."""

from __future__ import annotations

from collections.abc import Callable

from segearth_r2_jax.ahead_of_time.report import Report


def largest_batch(compile_batch: Callable[[int], Report], *, unit: int = 1, compilations: int = 6) -> dict[int, Report]:
    """Reports by batch size, in the order in which they were compiled; sizes are multiples of `unit`.

    The memory that a step needs grows about evenly with its batch, and no faster than if all temporaries of the first did. That gives the
    second size; then a straight line through two sizes says where to look, and where it points to a size already known, the sizes between
    the largest that fits and the smallest that does not are halved. The search ends when these two are neighbours, when one unit does not
    fit, or after `compilations`.
    """
    tried: dict[int, Report] = {}
    guess = 1
    while len(tried) < compilations:
        tried[guess * unit] = compile_batch(guess * unit)
        fitting = [size // unit for size, report in tried.items() if report.memory.fits]
        failing = [size // unit for size, report in tried.items() if not report.memory.fits]
        low, high = max(fitting, default=0), min(failing, default=None)
        if high is not None and high - low <= 1:
            break
        guess = _next(tried, unit, low, high)
    return tried


def _next(tried: dict[int, Report], unit: int, low: int, high: int | None) -> int:
    """The next size to try, in units, above `low` and below `high`."""
    sizes = sorted(tried)[-2:]
    if len(sizes) < 2:
        memory = tried[sizes[0]].memory
        return min(64, max(2, 1 + (memory.usable - memory.needed) // memory.temporaries)) if memory.temporaries else 2
    needs = [tried[size].memory.needed for size in sizes]
    slope = (needs[1] - needs[0]) / (sizes[1] - sizes[0])
    usable = tried[sizes[0]].memory.usable
    reach = int((sizes[0] + (usable - needs[0]) / slope) / unit) if slope > 0 else 2 * low
    if high is None:
        return min(max(reach, low + 1), 8 * low)
    return reach if low < reach < high else (low + high) // 2
