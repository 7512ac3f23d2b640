"""Rates come from the time between the ends of steps, and utilisation from the published peak of the device."""

from __future__ import annotations

import types

import jax
import pytest
from micro_run import micro_run

from segearth_r2_jax.training import throughput
from segearth_r2_jax.training.flops import training_flops
from segearth_r2_jax.training.throughput import Throughput

CONFIG = micro_run("", trainable=("^mask_decoder",))


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = types.SimpleNamespace(time=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now.time)
    return now


def devices(kind: str, count: int):
    return [types.SimpleNamespace(device_kind=kind)] * count


def test_rates_are_counted_from_the_end_of_one_step_to_the_end_of_the_next(clock):
    meter = Throughput(CONFIG, devices("TPU v5 lite", 4))
    assert meter.step(tokens=300, length=256, starved=5.0) == {}, "the first step waits for the compiler"
    clock.time += 2
    rates = meter.step(tokens=300, length=256, starved=5.5)
    flops = training_flops(CONFIG.model, CONFIG.trainable, batch=2, tokens=256, masks=4).total
    assert rates == pytest.approx(
        {"samples_per_second": 1.0, "tokens_per_second": 150.0, "data_wait": 0.25, "mfu": flops / (2 * 4 * 197e12)}, rel=1e-9
    )


def test_what_happens_between_steps_does_not_count(clock):
    meter = Throughput(CONFIG, devices("cpu", 1))
    meter.step(tokens=1, length=256, starved=0.0)
    clock.time += 60  # A validation and a checkpoint, in which a batch was waited for.
    meter.restart(starved=7.0)
    clock.time += 4
    assert meter.step(tokens=8, length=256, starved=8.0) == {"samples_per_second": 0.5, "tokens_per_second": 2.0, "data_wait": 0.25}


def test_the_formula_is_told_with_its_numbers():
    words, record = Throughput(CONFIG, devices("TPU v5 lite", 4)).describe()
    assert "4 x 197 TFLOP/s" in words
    assert f"{record['flops_per_step']['256']:.4g} FLOPs per step with rows of 256 tokens" in words
    assert record["flops_per_step"]["256"] == sum(record["parts"]["256"].values())
    assert (record["peak_flops_per_device"], record["devices"]) == (197e12, 4)
    words, record = Throughput(CONFIG, devices("cpu", 1)).describe()
    assert "no peak is known for 'cpu'" in words
    assert record["peak_flops_per_device"] is None


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    held = [None, {"peak_bytes_in_use": 3 * 2**30}, {"peak_bytes_in_use": 2**30}, {"bytes_limit": 5}]
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in held])
    assert throughput.device_memory() == {"device_memory_gib": 3.0}
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)])
    assert throughput.device_memory() == {}
