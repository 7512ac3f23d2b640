"""TensorBoard's file: what is written can be read back, and an error reaches the run."""

from __future__ import annotations

import itertools
import resource

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from data_pipeline.tfrecord import scan_offsets
from segearth_r2_jax.training.event_file import EventFile


def test_numbers_and_pictures_are_there_and_later_steps_of_older_files_are_not_shown(tmp_path):
    board = EventFile(tmp_path, first_step=3)
    board.add_scalar("loss", 0.5, 4)
    board.add_image("sample", np.zeros((4, 6, 3), np.uint8), 4)
    board.close()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    # A TFRecord: 12 bytes before each event, 4 behind it.
    events = [event_pb2.Event.FromString(content[start + 12 : end - 4]) for start, end in itertools.pairwise(scan_offsets(file))]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (4, event_pb2.SessionLog.START)
    assert (events[2].step, events[2].summary.value[0].tag, events[2].summary.value[0].simple_value) == (4, "loss", 0.5)
    assert (events[3].summary.value[0].image.height, events[3].summary.value[0].image.width) == (4, 6)


def test_a_full_disk_is_an_error_where_the_number_is_written(tmp_path):
    board = EventFile(tmp_path, first_step=0)
    board.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    board.add_image("sample", np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            board.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
