"""How several processes agree: each process of this module is played by the test, which says what the others said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.evaluation import processes


@pytest.fixture
def play(monkeypatch):
    """Calls `agree` as process `index`, the others having said `others` (None in its own place)."""

    def play(index, others, action):
        monkeypatch.setattr("jax.process_count", lambda: len(others))
        monkeypatch.setattr("jax.process_index", lambda: index)

        def gather(own):
            return [json.loads(json.dumps(own if other is None else other)) for other in others]

        monkeypatch.setattr(processes, "_gather", gather)
        return processes.agree(action)

    return play


def fail(error):
    def action():
        raise error

    return action


def test_one_process_agrees_with_itself():
    answer = object()
    assert processes.agree(lambda: answer) == [answer]
    with pytest.raises(UserError, match="wrong"):
        processes.agree(fail(UserError("wrong")))


def test_everyone_hears_all_answers_in_their_order(play):
    assert play(1, [[0, "", [1, 2]], None, [0, "", []]], lambda: [3]) == [[1, 2], [3], []]


def test_the_process_with_the_error_tells_it_and_the_others_leave_with_its_status(play):
    with pytest.raises(UserError, match=r"^row 3: no mask$"):
        play(1, [[0, "", []], None], fail(UserError("row 3: no mask")))
    with pytest.raises(SystemExit) as end:
        play(0, [None, [2, "row 3: no mask", None]], lambda: [])
    assert end.value.code == 2


def test_an_error_that_all_see_is_told_once(play):
    same = [2, "no such folder", None]
    with pytest.raises(UserError, match="no such folder"):
        play(0, [None, same], fail(UserError("no such folder")))
    with pytest.raises(SystemExit) as end:
        play(1, [same, None], fail(UserError("no such folder")))
    assert end.value.code == 2


def test_a_crash_keeps_its_traceback_and_its_status(play):
    with pytest.raises(ZeroDivisionError):
        play(1, [[0, "", None], None], lambda: 1 // 0)
    with pytest.raises(SystemExit) as end:
        play(0, [None, [1, "division by zero", None]], lambda: 1)
    assert end.value.code == 1


@pytest.mark.parametrize("length", [0, 1, 1020, 1024, 1025, 5000])
def test_texts_of_any_length_come_through_padded_to_a_power_of_two(monkeypatch, length):
    padded = []

    def allgather(array):
        padded.append(array.shape)
        return np.stack([array, array])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", allgather)
    value = {"text": "ü" + "a" * length}
    assert processes._gather(value) == [value, value]
    _, (size,) = padded
    assert size >= 1024
    assert size & (size - 1) == 0
