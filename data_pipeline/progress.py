"""How far a long pass over records has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import tqdm

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """A context manager: `with Progress("checked", total) as progress: progress.add(n)`. Everything goes to stderr."""

    def __init__(self, what: str, total: int, unit: str = "records"):
        """Args: what: the verb of a line, as in "checked 5 of 20 records"; total: how many there are."""
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._last_line = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=total, desc=what, unit=f" {unit}", disable=not self._terminal)

    def add(self, count: int, note: str = "") -> None:
        """`count` more are done; in a log, `note` is printed, or else how far it is if the last line was long ago."""
        self._done += count
        self._bar.update(count)
        if self._terminal:
            return
        if note:
            print(note, file=sys.stderr, flush=True)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            print(f"{self._what} {self._done} of {self._total} {self._unit}", file=sys.stderr, flush=True)
        else:
            return
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()
