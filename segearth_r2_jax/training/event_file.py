"""TensorBoard's file of numbers and pictures, written where it is called.

tensorboardX's own SummaryWriter writes in a thread. When the disk is full that thread dies, its queue fills, and the next number waits
for ever; here the run gets the error.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class EventFile:
    """A new events file in `folder`; what older files there say of steps after `first_step` is no longer shown."""

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{first_step}")
        self._write(first_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step, summary=summary.scalar(name, value))

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """image: uint8 [h, w, 3]."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: object) -> None:
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))
