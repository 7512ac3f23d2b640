"""Batches wait on the devices, and a checkpoint knows which of them was used."""

from __future__ import annotations

import contextlib
import threading
import time

import jax
import numpy as np
import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.batches import Prefetch

MESH = make_mesh(MeshShape())


class Rows:
    """A loader of batches 0, 1, 2, ...; `wait` seconds for each from the third on; batch `damaged` cannot be read."""

    def __init__(self, wait: float = 0.0, damaged: int | None = None):
        self.position, self.wait, self.damaged = 0, wait, damaged

    def __next__(self):
        if self.position >= 2:
            time.sleep(self.wait)
        if self.position == self.damaged:
            raise UserError("a damaged record")
        self.position += 1
        return {"record_index": np.full(2, self.position - 1), "x": np.full((2, 3), self.position - 1, np.float32)}

    def get_state(self):
        return {"position": self.position}


def taken(batches: Prefetch, count: int, idle=lambda: True):
    return [batches.take(idle) for _ in range(count)]


def test_batches_come_in_order_with_the_state_after_each():
    loader = Rows()
    with contextlib.closing(Prefetch(loader, MESH, 5)) as batches:
        fetched = taken(batches, 5)
    for number, batch in enumerate(fetched):
        assert isinstance(batch.arrays["x"], jax.Array)
        np.testing.assert_array_equal(batch.arrays["x"], np.full((2, 3), number))
        np.testing.assert_array_equal(batch.records, [number, number])
        assert batch.loader_state == {"position": number + 1}
    assert loader.position == 5, "nothing is read that no step needs"


def test_two_batches_are_ahead_of_the_one_that_is_used():
    loader = Rows()
    with contextlib.closing(Prefetch(loader, MESH, 100)) as batches:
        batch = batches.take(lambda: True)
        deadline = time.monotonic() + 10
        while loader.position < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert (batch.loader_state, loader.position) == ({"position": 1}, 3)


@pytest.mark.parametrize("busy", [False, True])
def test_only_waiting_with_idle_devices_is_starving(busy):
    with contextlib.closing(Prefetch(Rows(wait=0.1), MESH, 4)) as batches:
        taken(batches, 4, idle=lambda: not busy)
        assert batches.starved == 0 if busy else batches.starved >= 0.1


def test_an_error_of_the_loader_reaches_the_run_at_its_step():
    with contextlib.closing(Prefetch(Rows(damaged=2), MESH, 9)) as batches:
        taken(batches, 2)
        with pytest.raises(UserError, match="a damaged record"):
            batches.take(lambda: True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
