"""Times of contenders in one process, taken in turns: what else happens on the machine then falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds that a call of each contender takes, `rounds` times in turns after one call that is not counted.

    A contender returns when its work is done: a JAX function waits with `jax.block_until_ready`.

    Returns:
        median, spread (half of the range between the quartiles, in relation to the median) and all times, by contender.
    """
    for call in contenders.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.3f} s", flush=True)
    return {name: summary(times) for name, times in seconds.items()}


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and spread of some times."""
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": round(median, 4), "spread": round((high - low) / 2 / median, 3), "seconds": [round(s, 4) for s in seconds]}
