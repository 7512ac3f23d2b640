"""A run goes on after faults as if there had been none: a part of what `faults.py` does, and all of it."""

from __future__ import annotations

import signal
from pathlib import Path

import faults
import pytest
from fault_laboratory import Laboratory


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("faults"), shards, steps=15)


@pytest.mark.slow
def test_a_request_to_leave_and_then_a_damaged_step_and_leftovers_cost_no_number(laboratory):
    """One run: told to leave, its newest step damaged on disk, the rest of a save beside it, killed while it saves, and finished."""
    workdir = laboratory.half_done_copy("one")
    steps = laboratory.saved_steps(workdir)
    assert len(steps) == 3
    expected = faults.to_file("flipped", 1)(workdir, steps)
    faults.leftovers(workdir, steps)
    start = laboratory.start(workdir)
    assert start.until_saving()
    start.send(signal.SIGKILL)
    ended = start.end()
    assert ended.status == -signal.SIGKILL
    assert ended.continued == expected == steps[1]
    assert f"steps/{steps[0]} is damaged: trainable/" in ended.output
    assert "steps/900.orbax-checkpoint-tmp was not written to its end; deleted" in ended.output
    finished = laboratory.finish(workdir)
    assert finished.continued >= expected
    assert "Traceback" not in ended.output + finished.output


@pytest.mark.slow
def test_every_fault_of_the_table(laboratory):
    outcomes = faults.survey(laboratory)
    assert sum(outcome.times for outcome in outcomes if "SIGKILL" in outcome.fault) == 20
    assert "| --- |" in faults.table(outcomes, laboratory.folder)
