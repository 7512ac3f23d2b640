"""Keeps off the terminal what libraries print about errors that they also raise: a user reads one line, not the tracebacks of threads."""

from __future__ import annotations

import logging
import sys


def silence_libraries() -> None:
    """For the rest of the process."""
    logging.getLogger("absl").addFilter(_is_worth_saying)
    # Only Orbax uses asyncio here; when a save fails it leaves behind the errors of all files but the first.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _show


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Orbax warns of metadata files that its own checkpointers do not write, and logs what it raises; its lines begin with the process."""
    return record.levelno >= logging.ERROR and not record.getMessage().startswith("[process=")


def _show(unraisable: sys.UnraisableHookArgs) -> None:
    """TensorStore reports the files of a save that failed to an event loop that has ended, one traceback for each."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
