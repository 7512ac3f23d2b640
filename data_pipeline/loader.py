"""Shards -> batches of static shape, in an order that a seed fixes and a few numbers resume.

    position -> record (order.py) -> this process's share -> read, decode, letterbox, tokenize (rows.py, in parallel) -> batch

Built on Grain. Three properties are ours to keep, and tests keep them:

* *The number of workers never changes the data.* Rows are made in parallel, batches are put together afterwards in one place.
* *The state is the position in the global stream of records*, not Grain's iterator state: it does not depend on the number of
  workers or of processes, so a run may resume on another machine and see exactly the records it has not seen.
* *All processes have the same shapes at every step.* What decides them, the token bucket of a batch, follows from its position.

The stream is one permutation of all records per epoch, or several of them mixed. A batch is the next piece of it, and process p of n makes
the p-th of n equal parts of every batch: put one after the other, they are the batch that one process makes. At the end of the last epoch,
records that do not fill a global batch are left out; in between a batch may span two epochs.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipeline.order import Order, ProcessShare
from data_pipeline.rows import Batch, LoaderConfig, MakeRow, collate, too_many_masks
from data_pipeline.shard_folder import ListedRecords, MixedRecords, RecordSource, ShardedRecords, open_shards
from data_pipeline.token_lengths import bucket_of_records
from data_pipeline.worker_process import start_worker
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import Tokenizer

__all__ = ["ListedRecords", "Loader", "LoaderConfig", "MixedRecords", "ShardedRecords", "open_shards"]

# Rows come from worker processes through pipes. Shared memory, Grain's default, is fresh memory for every array, whose pages cost more
# than the copy that it saves (benchmarks/results/loader.md), and containers often have no more than 64 MiB of it.
_NEVER_SHARED = 1 << 60


class Loader(Iterator[Batch]):
    """Batches of one process's rows: `batch_size / process_count` each. A context manager; `close` ends its workers.

    Attributes:
      records_per_epoch: how many records an epoch gives, over all processes.
      skipped: how many records are left out because they have more than `max_masks` masks.
      corrupt: how many rows of this process have been left empty because their record is damaged.
    """

    def __init__(
        self,
        source: RecordSource,
        tokenizer: Tokenizer,
        config: LoaderConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Raises UserError if the records and the configuration do not fit together.

        A `MixedRecords` gives each of its sets its share of the rows. With several token buckets the words of all records are read
        and encoded here, once, and a text that no bucket holds is an error at once; with one bucket nothing is read before it is needed.
        """
        if config.batch_size % process_count:
            raise UserError(f"loader: batch_size {config.batch_size} cannot be divided among {process_count} processes")
        self.config = config
        self._source = source
        self._tokenizer = tokenizer
        self._process = process_index, process_count
        sets = self._usable_records()
        self.records_per_epoch = sum(len(records) for records in sets)
        self.skipped = len(source) - self.records_per_epoch
        self.corrupt = 0
        self._order, identity = self._lay_out(sets)
        if len(self._order) < config.batch_size:
            raise UserError(
                f"loader: {self.records_per_epoch} records x {config.num_epochs} epochs do not fill one batch of {config.batch_size}"
            )
        self._identity = {"seed": config.seed, "records": self.records_per_epoch, "data": source.digest, **identity}
        self._position = 0  # In the global stream: how many records all processes together have been given.
        # Grain's iterator while there is one. Its threads complain if the interpreter goes away under them, so that a loader which
        # nobody closes is closed at exit, and its iterator forgotten while Grain's modules are still whole.
        self._iterator: list[Any] = []
        weakref.finalize(self, _close, self._iterator)

    def __next__(self) -> Batch:
        """The next batch; StopIteration after the last epoch, UserError naming a record that cannot be trained on."""
        if not self._iterator:
            self._iterator.append(self._open())
        try:
            batch, damages = next(self._iterator[0])
        except UserError as error:
            # Grain writes remarks about its traceback into the message.
            raise UserError(str(error).splitlines()[0]) from None
        self._position += self.config.batch_size
        for damage in damages:
            self.corrupt += 1
            print(f"damaged record {self.corrupt}, its row is left empty: {damage}", file=sys.stderr, flush=True)
        return batch

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs to go on after the last batch that was given: the same on every process, and JSON."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called, whatever the number of workers or processes now is.

        With one token bucket the batch size may have changed too. Raises UserError if the order of the records is not that of the
        state: other records, shares, buckets, or another seed.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(f"loader: cannot resume, the data had {key} {state.get(key)} and now has {value}")
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends threads and worker processes; a later `next` starts them again."""
        _close(self._iterator)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usable_records(self) -> list[np.ndarray]:
        """The numbers of the records to train on, by data set."""
        counts = self._source.masks_per_record
        if not len(counts):
            raise UserError("loader: there are no records")
        if counts.min() < 0:
            raise UserError(f"{self._name(np.argmin(counts))}: has no masks to train on")
        if self.config.too_many_masks == "error" and counts.max() > self.config.max_masks:
            # Said before training starts instead of in its middle.
            raise UserError(too_many_masks(self._name(np.argmax(counts)), int(counts.max()), self.config))
        sizes = self._source.sizes if isinstance(self._source, MixedRecords) else (len(counts),)
        sets, start = [], 0
        for size in sizes:
            sets.append((start + np.flatnonzero(counts[start : start + size] <= self.config.max_masks)).astype(np.int32))
            start += size
            if not len(sets[-1]):
                which = "" if len(sizes) == 1 else f" of data set {len(sets)}"
                raise UserError(f"loader: every record{which} has more than max_masks = {self.config.max_masks} masks, or there is none")
        return sets

    def _name(self, number: np.integer) -> str:
        record = self._source[int(number)]
        return f"{record.source}: row {record.record_id!r}"

    def _lay_out(self, sets: list[np.ndarray]) -> tuple[Order, dict[str, Any]]:
        """The order of the records, and what else than seed and records it depends on."""
        config = self.config
        buckets = sorted(set(config.token_buckets))
        bucket_of_record = None
        identity: dict[str, Any] = {}
        if isinstance(self._source, MixedRecords) and len(sets) > 1:
            weights = self._source.weights
            identity["shares"] = [[len(records), weight] for records, weight in zip(sets, weights, strict=True)]
        else:
            weights = (1.0,)
        if len(buckets) > 1:
            records = np.concatenate(sets)
            bucket_of_record = bucket_of_records(self._source, records, self._tokenizer, config.template, config.num_image_tokens, buckets)
            filled = np.bincount(bucket_of_record[records], minlength=len(buckets)).tolist()
            identity["buckets"] = [list(pair) for pair in zip(buckets, filled, strict=True)]
            identity["batch_size"], identity["num_epochs"] = config.batch_size, config.num_epochs
        order = Order(
            sets,
            weights,
            seed=config.seed,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            buckets=buckets,
            bucket_of_record=bucket_of_record,
        )
        return order, identity

    def _open(self) -> Any:
        config = self.config
        index, count = self._process
        batches = max(0, len(self._order) - self._position) // config.batch_size
        own = config.batch_size // count
        share = ProcessShare(self._order, self._position, config.batch_size, index * own, own, batches)
        rows = grain.MapDataset.source(share).map(MakeRow(self._source, self._tokenizer, config))
        threads = max(1, min(16, _processors()) // max(1, config.workers))
        dataset = rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        if config.workers:
            # Grain's workers read its flags; without absl.app.run nobody has parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            dataset = grain.experimental.WithOptionsIterDataset(dataset, grain.experimental.DatasetOptions(min_shm_size=_NEVER_SHARED))
            options = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
        # Batching comes last: inside the workers, each would fill batches with its own rows only.
        made = dataset.batch(
            own,
            drop_remainder=True,
            batch_fn=lambda rows: (collate(rows, config), [row["damage"] for row in rows if row["damage"]]),
        )
        # The next batch is put together while the accelerator works on this one.
        return iter(grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _close(iterator: list[Any]) -> None:
    if iterator:
        iterator.pop().close()
