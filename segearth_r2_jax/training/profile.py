"""A trace of a few steps of a run, by JAX's profiler."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

# Of this start of the run: the first step waits for the compiler, the second may still write to caches.
FIRST = 3


class Profile:
    """Traces `steps` steps of this start of a run, from the third on, into `folder`. For one process: that of its own devices."""

    def __init__(self, folder: epath.Path, steps: int, say: Callable[[str], None]):
        """say: prints a line."""
        self._folder, self._steps, self._say = folder, steps, say
        self._local: Path | None = None  # Where the trace is written while it runs: the profiler knows local files only.
        self._done = False

    def before(self, nth: int, previous: Any) -> None:
        """Called before the nth step of this start (from 1) is dispatched; previous: what the step before it gives."""
        if nth == FIRST:
            jax.block_until_ready(previous)
            self._local = Path(tempfile.mkdtemp(prefix="segearth-r2-profile-"))
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Its events crowd out the device's.
            jax.profiler.start_trace(str(self._local), create_perfetto_trace=True, profiler_options=options)

    def after(self, nth: int, report: Any) -> None:
        """Called once the nth step is dispatched; report: what it gives."""
        if nth == FIRST + self._steps - 1:
            jax.block_until_ready(report)
            self.close()

    def close(self) -> None:
        """Writes what was traced and says where it is."""
        if self._done:
            return
        self._done = True
        if self._local is None:
            self._say(f"profile: nothing was traced, this start had fewer than {FIRST} steps to do")
            return
        jax.profiler.stop_trace()
        perfetto = None
        for file in sorted(path for path in self._local.rglob("*") if path.is_file()):
            target = self._folder / file.relative_to(self._local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            perfetto = target if file.name.startswith("perfetto_trace") else perfetto
        shutil.rmtree(self._local)
        self._say(f"profile: open {perfetto} at https://ui.perfetto.dev, or the folder with XProf: xprof --logdir {self._folder}")
