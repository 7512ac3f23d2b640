"""Times of contenders in one process, taken in turns: what else happens on the machine then falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds that a call of each contender takes, `rounds` times in turns after one call that is not counted.

    A contender returns when its work is done: a JAX function waits with `jax.block_until_ready`.
    """
    for call in contenders.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, Any]:
    """median, spread (half of the range between the quartiles, in relation to the median) and all of some times, in seconds."""
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": round(median, 4), "spread": round((high - low) / 2 / median, 3), "seconds": [round(s, 4) for s in seconds]}
