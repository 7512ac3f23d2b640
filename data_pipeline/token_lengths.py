"""How long the token row of every record is, found before training starts.

Batches of several lengths need it: all processes have to agree on which records share a batch. Only the words are read, which stand at
the head of a record, and they are encoded many at a time.
"""

from __future__ import annotations

import concurrent.futures
import sys
import time

import numpy as np
import tqdm

from data_pipeline.shard_folder import RecordSource, Texts
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import smallest_bucket, training_lengths
from segearth_r2_jax.inputs.tokenizer import Tokenizer

_CHUNK = 4096
# Threads wait for cloud storage together; with a local disk they would only get in each other's way.
_READING_THREADS = 16
_READ_TOGETHER = 64
# Where no terminal shows a bar, a line is printed this often.
_LOG_SECONDS = 20


def bucket_of_records(
    source: RecordSource, records: np.ndarray, tokenizer: Tokenizer, template: str, num_image_tokens: int, buckets: list[int]
) -> np.ndarray:
    """Which of the ascending `buckets` holds each record: int8 [len(source)]; 0 for those not among `records`.

    A record whose words cannot be read is given the bucket of an empty row: what becomes of damage is decided where its row is made. Raises
    UserError naming the first record that no bucket holds.
    """
    bucket = np.zeros(len(source), np.int8)
    terminal = sys.stderr.isatty()
    told = time.monotonic()
    with (
        concurrent.futures.ThreadPoolExecutor(_READING_THREADS if source.remote else 1) as pool,
        tqdm.tqdm(total=len(records), desc="measuring texts", unit=" records", disable=not terminal or len(records) <= _CHUNK) as bar,
    ):
        for start in range(0, len(records), _CHUNK):
            numbers = records[start : start + _CHUNK]
            parts = [numbers[first : first + _READ_TOGETHER] for first in range(0, len(numbers), _READ_TOGETHER)]
            texts = [text for some in pool.map(lambda part: [_texts(source, int(number)) for number in part], parts) for text in some]
            lengths = training_lengths(tokenizer, template, [(t.instruction, t.answer or "") for t in texts], num_image_tokens)
            # An empty row holds nothing but the image.
            lengths = np.where([text == _UNREADABLE for text in texts], num_image_tokens, lengths)
            if lengths.max() > buckets[-1]:
                number = int(numbers[np.argmax(lengths > buckets[-1])])
                record = source[number]
                smallest_bucket(int(lengths[lengths > buckets[-1]][0]), buckets, f"{record.source}: row {record.record_id!r}")
            bucket[numbers] = np.searchsorted(buckets, lengths)
            bar.update(len(numbers))
            if not terminal and time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                print(f"measuring texts: {start + len(numbers)} of {len(records)} records", file=sys.stderr, flush=True)
    return bucket


_UNREADABLE = Texts("", None)


def _texts(source: RecordSource, number: int) -> Texts:
    try:
        return source.texts(number)
    except UserError:
        return _UNREADABLE
