"""The largest batch that fits, soon: a program that does not fit is refused in seconds, one that fits takes minutes to compile."""

from __future__ import annotations

from collections.abc import Callable

from segearth_r2_jax.ahead_of_time.report import Report

# How much further than the temporaries of the first program allow the second one goes, so that it does not fit.
_OVERSHOOT = 2.5
# As many sizes in a row on one side of the limit tell that memory does not grow along a line.
_STREAK = 3


def largest_batch(compile_batch: Callable[[int], Report], *, unit: int = 1, compilations: int = 8) -> dict[int, Report]:
    """Reports by batch size, in the order in which they were compiled; sizes are multiples of `unit`.

    After one unit comes a size that is most likely too large. Then a straight line between the largest size that fits and the smallest
    that does not says where the limit is, and the first size beyond it is tried, so that most sizes are refused at once. Where the line
    is of no use, the steps down grow, and the way up is halved. The search ends when the two are neighbours or within 2 %, when one unit
    does not fit, or after `compilations`.
    """
    tried: dict[int, Report] = {}
    guess = 1
    while len(tried) < compilations:
        tried[guess * unit] = compile_batch(guess * unit)
        low = max((size // unit for size, report in tried.items() if report.memory.fits), default=0)
        high = min((size // unit for size, report in tried.items() if not report.memory.fits), default=None)
        if high is not None and (low == 0 or high - low <= max(1, low // 50)):
            break
        guess = _beyond(tried, unit, low) if high is None else _between(tried, unit, low, high)
    return tried


def _beyond(tried: dict[int, Report], unit: int, low: int) -> int:
    """A size above `low`, in units, that is most likely too large."""
    memory = tried[low * unit].memory
    if len(tried) > 1 or not memory.temporaries:
        return 2 * low
    return low + max(1, int(_OVERSHOOT * (memory.usable - memory.needed) / memory.temporaries))


def _between(tried: dict[int, Report], unit: int, low: int, high: int) -> int:
    """The next size to try, in units, above `low` and below `high`."""
    fits = [report.memory.fits for report in tried.values()]
    streak = next((n for n, other in enumerate(reversed(fits)) if other != fits[-1]), len(fits))
    if streak >= _STREAK and fits[-1]:
        return (low + high) // 2
    if streak >= _STREAK:
        return max(high - 2 ** (streak - 2), low + 1)
    fitting, failing = tried[low * unit].memory, tried[high * unit].memory
    limit = low + (high - low) * (fitting.usable - fitting.needed) / (failing.needed - fitting.needed)
    return min(max(int(limit) + 1, low + 1), high - 1)
