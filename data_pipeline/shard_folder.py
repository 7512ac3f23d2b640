"""A folder of shards that `build_shards` has finished: its manifest, and its records by number.

The manifest keeps how many masks each record has, so that a loader can say before training starts that a record does not fit: one
entry `mask_counts` per shard, the base64 of int16 numbers (little endian; -1 where masks are withheld). As JSON integers they would
take a hundred times the memory.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np

_COUNTS = np.dtype("<i2")


def encode_mask_counts(counts: Sequence[int | None]) -> str:
    """The manifest's form of the numbers of masks of a shard's records, None where they are withheld.

    Raises ValueError if a record has more than 32767 masks.
    """
    numbers = np.array([-1 if count is None else count for count in counts], np.int64)
    if len(numbers) and numbers.max() > np.iinfo(_COUNTS).max:
        raise ValueError(f"a record has {numbers.max()} masks; at most {np.iinfo(_COUNTS).max} can be written")
    return base64.b64encode(numbers.astype(_COUNTS).tobytes()).decode("ascii")


def decode_mask_counts(text: str) -> np.ndarray:
    """int16 [records], -1 where the masks are withheld; ValueError if `text` is not what `encode_mask_counts` gives."""
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"mask_counts is not base64 ({error})") from None
    if len(content) % _COUNTS.itemsize:
        raise ValueError("mask_counts ends in the middle of a number")
    counts = np.frombuffer(content, _COUNTS)
    if len(counts) and counts.min() < -1:
        raise ValueError(f"mask_counts holds the number {counts.min()}")
    return counts
