"""How fast a run is: rates from the end of one step to the end of the next, and the utilisation of the devices."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from segearth_r2_jax.sharding.chips import chip_of
from segearth_r2_jax.training.flops import FORMULA, FlopCount, training_flops
from segearth_r2_jax.training.run_config import RunConfig

GIB = 2**30


class Throughput:
    """Measures the steps of one start of a run. What the loop does between steps (saving, validation) is left out with `restart`.

    The first step of a start has no rates: it waits for the compiler.
    """

    def __init__(self, config: RunConfig, devices: list[jax.Device]):
        self._config, self._devices = config, devices
        self._chip = chip_of(devices[0].device_kind)
        self._flops = functools.cache(self._count)
        self._since: float | None = None
        self._starved = 0.0

    def restart(self, starved: float) -> None:
        """From here on the next step is measured; `starved` as in `step`."""
        self._since, self._starved = time.perf_counter(), starved

    def step(self, *, tokens: float, length: int, starved: float) -> dict[str, float]:
        """The rates of the step that has just ended.

        Args:
            tokens: words and image tokens of the batch, without padding.
            length: of its rows, with padding.
            starved: seconds since the start of the run in which the devices waited for data (`Prefetch.starved`).

        Returns:
            samples_per_second and tokens_per_second of all devices together, mfu (where the peak of the device is known) and data_wait
            as shares of 1, device_memory_gib (where the backend tells it): the most that a device of this process has held so far.
        """
        since, starved_before = self._since, self._starved
        self.restart(starved)
        rates = {}
        if since is not None:
            seconds = max(self._since - since, 1e-9)
            rates = {
                "samples_per_second": self._config.data.batch_size / seconds,
                "tokens_per_second": tokens / seconds,
                "data_wait": min((starved - starved_before) / seconds, 1.0),
            }
            if self._chip is not None:
                rates["mfu"] = self._flops(length).total / (seconds * len(self._devices) * self._chip.bf16_flops)
        return rates | device_memory()

    def describe(self) -> tuple[str, dict[str, Any]]:
        """What model FLOP utilisation means in this run: in words, and for `run.json`."""
        count, name = len(self._devices), self._devices[0].device_kind
        totals = {str(length): self._flops(length).total for length in sorted(set(self._config.data.token_buckets))}
        steps = ", ".join(f"{total:.4g} FLOPs per step with rows of {length} tokens" for length, total in totals.items())
        if self._chip is None:
            peak = f"no peak is known for {name!r}, so that mfu is not in the log"
        else:
            peak = f"{count} x {self._chip.bf16_flops / 1e12:.4g} TFLOP/s is the bfloat16 peak of {count} {self._chip.name}"
        record = {
            "formula": FORMULA,
            "flops_per_step": totals,
            "parts": {length: self._flops(int(length)).parts for length in totals},
            "device": name,
            "devices": count,
            "peak_flops_per_device": None if self._chip is None else self._chip.bf16_flops,
        }
        return f"mfu = model FLOPs per step / (seconds x devices x peak); {steps}; {peak}", record

    def _count(self, length: int) -> FlopCount:
        return training_flops(
            self._config.model,
            self._config.trainable,
            batch=self._config.data.batch_size,
            tokens=length,
            masks=self._config.data.max_masks,
            supervise_attention=self._config.step.weights.attention > 0,
        )


def device_memory() -> dict[str, float]:
    """device_memory_gib: the most that one of this process's devices has held so far; empty where the backend does not tell."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
    return {"device_memory_gib": max(held) / GIB} if held else {}
