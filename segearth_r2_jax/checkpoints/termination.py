"""The request to leave (SIGTERM), noted until the step that is running can be saved."""

from __future__ import annotations

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Termination:
    """Notes SIGTERM from here on, until `close`.

    In a run of several processes JAX's preemption service notes it instead (`jax_enable_preemption_service`, which launch/runtime.py
    switches on): a signal to one process becomes known to all, and they agree on the step.
    """

    def __init__(self) -> None:
        self._received = False
        # Signals are the main thread's.
        self._installed = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        self._before = signal.signal(signal.SIGTERM, self._note) if self._installed else None

    def reached(self, step: int) -> bool:
        """Whether all processes are to save after this step and leave. All processes call it after every step."""
        if jax.process_count() == 1:
            return self._received
        try:
            return multihost_utils.reached_preemption_sync_point(step)
        except RuntimeError:  # The service is off: whoever started the processes wants SIGTERM to end them.
            return False

    def close(self) -> None:
        """SIGTERM does again what it did before."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            self._installed = False

    def _note(self, number: int, frame: object) -> None:
        self._received = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"SIGTERM: the step that is running is finished and saved, then the run leaves\n")
