"""Several processes that share an evaluation: what one has to say reaches all, errors too, without a common filesystem."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from segearth_r2_jax.errors import UserError

Answer = TypeVar("Answer")

# Exit statuses as the command line gives them.
_WRONG_INPUT, _CRASH = 2, 1
# Messages are padded to a power of two from here on: every other length would be compiled anew.
_SHORTEST = 1024


class _Said(NamedTuple):
    status: int
    message: str
    answer: Any


def leads() -> bool:
    """Whether this is the process that speaks for all."""
    return jax.process_index() == 0


def agree(action: Callable[[], Answer]) -> list[Answer]:
    """What `action` returns in every process, in their order. All processes have to call it, as often as each other.

    The answers have to be JSON; with one process they are passed on as they are. If `action` raises an error in some processes all end: the
    first of these with its error, as do others with another error, the rest with SystemExit of the same status.
    """
    if jax.process_count() == 1:
        return [action()]
    failure: Exception | None = None
    try:
        said = _Said(0, "", action())
    except Exception as error:
        failure = error
        said = _Said(_WRONG_INPUT if isinstance(error, UserError) else _CRASH, str(error), None)
    everyone = [_Said(*answer) for answer in _gather(said)]
    failed = [other for other in everyone if other.status]
    if not failed:
        return [other.answer for other in everyone]
    # An error that all processes see is told once.
    is_first = all(other.message != said.message for other in everyone[: jax.process_index()])
    if failure is not None and is_first:
        raise failure
    raise SystemExit(failed[0].status)


def _gather(value: Any) -> list[Any]:
    """The `value` of every process, through the devices: lengths first, then the padded text."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(text.size, np.int32))
    longest = max(_SHORTEST, 1 << int(lengths.max() - 1).bit_length())
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - text.size)))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]
