"""Shards -> batches of static shape, in an order that a seed fixes and a few numbers resume.

    shuffled record numbers -> this process's share -> read, decode, letterbox, tokenize (threads or worker processes) -> batch

Built on Grain. Two properties are ours to keep, and tests keep them:

* *The number of workers never changes the data.* Rows are made in parallel, batches are put together afterwards in one place.
* *The state is the position in the global stream of records*, not Grain's iterator state: it does not depend on the number of
  workers or of processes, so a run may resume on another machine and see exactly the records it has not seen.

The stream is one permutation of all records per epoch; process p of n takes positions p, p+n, p+2n ... of it. At the end of the last
epoch, records that do not fill a global batch are left out; in between a batch may span two epochs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import grain
import numpy as np
from absl import flags

from data_pipeline.masks import canvas_masks, canvas_size
from data_pipeline.schema import MANIFEST, Record
from data_pipeline.shard_folder import decode_mask_counts
from data_pipeline.tfrecord import TFRecordSource
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import (
    TokenRow,
    count_masks,
    encode_training,
    expand,
    get_template,
    pad_row,
    smallest_bucket,
)
from segearth_r2_jax.inputs.image_processing import squash
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.inputs.letterbox import Letterbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a batch looks like and in which order records come.

    Attributes:
      batch_size: rows of a global batch, over all processes.
      image_size: side of the letterboxed frame for Swin, in pixels.
      siglip_size: side of the squashed image for SigLIP, in pixels.
      num_image_tokens: positions that an image takes in the language model's sequence.
      token_buckets: lengths that token rows may be padded to; a batch takes the smallest that holds its longest row. One bucket
        means one shape. With several processes there must be one: they cannot see each other's rows.
      max_masks: masks per image, padded with a validity mask.
      mask_canvas: side of the canvas that target masks lie on, in pixels; larger masks are shrunk to it.
      template: prompt template of `inputs.conversation`.
      seed: fixes the order of the records.
      workers: worker processes; 0 makes rows in threads of this process.
      num_epochs: None for an endless stream.
      frame: "letterbox" places targets like the image; "stretch" gives the reference's misplaced targets of non-square images.
      too_many_masks: a record with more than max_masks is an "error", or "skip" leaves it out (`Loader.skipped` counts them).
    """

    batch_size: int
    image_size: int
    siglip_size: int
    num_image_tokens: int
    token_buckets: tuple[int, ...]
    max_masks: int
    mask_canvas: int = 1024
    template: str = "train_phi_v0"
    seed: int = 0
    workers: int = 0
    num_epochs: int | None = None
    frame: str = "letterbox"
    too_many_masks: str = "error"

    def __post_init__(self):
        sizes = ("batch_size", "image_size", "siglip_size", "num_image_tokens", "max_masks", "mask_canvas")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"loader: {name} must be at least 1, it is {getattr(self, name)}")
        if not self.token_buckets or min(self.token_buckets) < 1:
            raise UserError(f"loader: token_buckets must be one or more positive lengths, they are {self.token_buckets}")
        if self.workers < 0 or (self.num_epochs is not None and self.num_epochs < 1):
            raise UserError("loader: workers must be at least 0 and num_epochs at least 1 (or None for an endless stream)")
        if self.frame not in ("letterbox", "stretch"):
            raise UserError(f"loader: frame must be letterbox or stretch, it is {self.frame!r}")
        if self.too_many_masks not in ("error", "skip"):
            raise UserError(f"loader: too_many_masks must be error or skip, it is {self.too_many_masks!r}")
        if get_template(self.template).separator is None:
            raise UserError(f"loader: the template {self.template!r} only prompts; train with train_phi_v0")


class RecordSource(Protocol):
    """Records by number. Worker processes receive a pickled copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    @property
    def masks_per_record(self) -> np.ndarray:
        """How many masks each record has, int [records]; -1 where they are withheld."""
        ...


class ShardedRecords:
    """The records of one split of a folder that `build_shards` wrote."""

    def __init__(self, folder: str | os.PathLike[str], split: str = "train"):
        """Raises UserError naming the folder if it is no finished build or lacks the split."""
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            splits: dict[str, Any] = manifest["splits"]
            entries = splits[split]["shards"] if split in splits else None
        except OSError:
            raise UserError(f"{folder}: holds no {MANIFEST}; expected a folder that data_pipeline.build_shards has finished") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest of data_pipeline.build_shards ({error})") from None
        if entries is None:
            raise UserError(f"{folder}: holds no split {split!r}; it has {', '.join(splits)}")
        self.folder = folder
        self._examples = TFRecordSource([folder / entry["file"] for entry in entries])
        self.masks_per_record = np.concatenate([decode_mask_counts(entry["mask_counts"]) for entry in entries] or [np.zeros(0, np.int16)])
        if len(self.masks_per_record) != len(self._examples):
            raise UserError(
                f"{folder}: the shards hold {len(self._examples)} records, the manifest says {len(self.masks_per_record)}; "
                "build them again"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        return Record.from_example(self._examples[index], f"{self.folder}: record {index}")


class ListedRecords:
    """Records in memory, for small sets."""

    def __init__(self, records: Sequence[Record]):
        self._records = list(records)
        self.masks_per_record = np.array([-1 if r.masks is None else len(r.masks) for r in self._records], np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


@dataclasses.dataclass(frozen=True)
class MakeRow(grain.transforms.Map):
    """Record number -> one row, before it is padded to the shapes of a batch."""

    source: RecordSource
    tokenizer: PreTrainedTokenizerFast
    config: LoaderConfig

    def map(self, index: int) -> dict[str, Any]:
        """Reads, decodes, letterboxes and tokenizes record `index`; UserError naming the record if it cannot be trained on."""
        record, config = self.source[int(index)], self.config
        name = f"{record.source}: row {record.record_id!r}"
        row = encode_row(record, self.tokenizer, config, name)
        image = decode_image(record.image_bytes, f"{name}: image {record.image_name}")
        height, width = image.shape[:2]
        if (height, width) != (record.height, record.width):
            raise UserError(f"{name}: the image is {height} x {width}, the record says {record.height} x {record.width}")
        canvas = canvas_size(height, width, config.mask_canvas)
        return {
            "image": Letterbox(height, width, config.image_size).place_image(image),
            "image_siglip": squash(image, config.siglip_size),
            "tokens": dataclasses.asdict(row),
            "masks": canvas_masks(record.masks or (), height, width, config.mask_canvas, name),
            "mask_size": np.array(canvas, np.int32),
            "mask_frame": np.array((max(canvas),) * 2 if config.frame == "letterbox" else canvas, np.int32),
            "record_index": np.int64(index),
        }


def encode_row(record: Record, tokenizer: PreTrainedTokenizerFast, config: LoaderConfig, name: str) -> TokenRow:
    """The token row of a record, checked: UserError beginning with `name` if it is too long or its masks do not fit its answer."""
    if record.answer is None or record.masks is None:
        raise UserError(f"{name}: has no masks to train on")
    if count_masks(record.answer) != len(record.masks):
        raise UserError(f"{name}: the answer has {count_masks(record.answer)} [SEG], but there are {len(record.masks)} masks")
    if len(record.masks) > config.max_masks:
        raise UserError(f"{name}: has {len(record.masks)} masks, max_masks is {config.max_masks}; raise it or set too_many_masks to skip")
    row = expand(encode_training(tokenizer, config.template, record.instruction, record.answer, name), config.num_image_tokens)
    smallest_bucket(row.length, config.token_buckets, name)
    return row


def collate(rows: Sequence[dict[str, Any]], config: LoaderConfig) -> Batch:
    """Rows of `MakeRow` -> a batch of b = len(rows) rows, t tokens, m masks.

    image uint8 [b,S,S,3], image_siglip uint8 [b,V,V,3], token_ids and labels int32 [b,t], attention_mask bool [b,t],
    image_start int32 [b], seg_positions int32 [b,m] and mask_valid bool [b,m], masks uint8 [b,m,C,C] (0 or 1, at the top left),
    mask_size int32 [b,2] (height and width of the masks on the canvas), mask_frame int32 [b,2] (what [0,1] spans when points are
    sampled from them), record_index int64 [b].
    """
    token_rows = [TokenRow(**row["tokens"]) for row in rows]
    length = smallest_bucket(max(row.length for row in token_rows), config.token_buckets, "batch")
    padded = [pad_row(row, length, config.max_masks) for row in token_rows]
    batch = {key: np.stack([row[key] for row in padded]) for key in padded[0]}
    for key in ("image", "image_siglip", "mask_size", "mask_frame", "record_index"):
        batch[key] = np.stack([row[key] for row in rows])
    batch["masks"] = np.zeros((len(rows), config.max_masks, config.mask_canvas, config.mask_canvas), np.uint8)
    for target, row in zip(batch["masks"], rows, strict=True):
        count, height, width = row["masks"].shape
        target[:count, :height, :width] = row["masks"]
    return batch


class Loader(Iterator[Batch]):
    """Batches of one process's rows: `batch_size / process_count` each. A context manager; `close` ends its workers."""

    def __init__(
        self,
        source: RecordSource,
        tokenizer: PreTrainedTokenizerFast,
        config: LoaderConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Raises UserError if the records and the configuration do not fit together."""
        if config.batch_size % process_count:
            raise UserError(f"loader: batch_size {config.batch_size} cannot be divided among {process_count} processes")
        if process_count > 1 and len(config.token_buckets) > 1:
            raise UserError("loader: with several processes there must be one token bucket, so that all have the same shapes")
        self.config = config
        self._source = source
        self._tokenizer = tokenizer
        self._process = process_index, process_count
        self._records = self._usable_records()
        if config.num_epochs is not None and len(self._records) * config.num_epochs < config.batch_size:
            raise UserError(
                f"loader: {len(self._records)} records x {config.num_epochs} epochs do not fill one batch of {config.batch_size}"
            )
        self._position = 0  # In the global stream: how many records all processes together have been given.
        # Grain's iterator while there is one. Its threads complain if the interpreter goes away under them, so that a loader which
        # nobody closes is closed at exit, and its iterator forgotten while Grain's modules are still whole.
        self._iterator: list[Any] = []
        weakref.finalize(self, _close, self._iterator)

    @property
    def skipped(self) -> int:
        """How many records are left out because they have more than `max_masks` masks."""
        return len(self._source) - len(self._records)

    @property
    def records_per_epoch(self) -> int:
        """How many records an epoch gives, over all processes."""
        return len(self._records)

    def __next__(self) -> Batch:
        """The next batch; StopIteration after the last epoch, UserError naming a record that cannot be trained on."""
        if not self._iterator:
            self._iterator.append(self._open())
        try:
            batch = next(self._iterator[0])
        except UserError as error:
            # Grain writes remarks about its traceback into the message.
            raise UserError(str(error).splitlines()[0]) from None
        self._position += self.config.batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on after the last batch that was given: the same on every process, and JSON."""
        return {"position": self._position, "seed": self.config.seed, "records": len(self._records)}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was called, whatever the number of workers, processes or rows per batch now is.

        Raises UserError if the order of the records is not that of the state: other records, or another seed.
        """
        expected = {"seed": self.config.seed, "records": len(self._records)}
        for key, value in expected.items():
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

    def _usable_records(self) -> np.ndarray:
        counts = self._source.masks_per_record
        if not len(counts):
            raise UserError("loader: there are no records")
        if counts.min() < 0:
            record = self._source[int(np.argmin(counts))]
            raise UserError(f"{record.source}: row {record.record_id!r}: has no masks to train on")
        if self.config.too_many_masks == "error" and counts.max() > self.config.max_masks:
            # Said before training starts instead of in its middle.
            record = self._source[int(np.argmax(counts))]
            raise UserError(
                f"{record.source}: row {record.record_id!r}: has {counts.max()} masks, max_masks is {self.config.max_masks}; "
                "raise it or set too_many_masks to skip"
            )
        usable = np.flatnonzero(counts <= self.config.max_masks)
        if not len(usable):
            raise UserError(f"loader: every record has more than max_masks = {self.config.max_masks} masks")
        return usable

    def _open(self) -> Any:
        config = self.config
        index, count = self._process
        local_batch = config.batch_size // count
        stream = grain.MapDataset.source(self._records).seed(config.seed).shuffle().repeat(config.num_epochs)
        if config.num_epochs is not None:
            end = self._position + (len(stream) - self._position) // config.batch_size * config.batch_size
            stream = stream[: max(end, self._position)]
        stream = stream[self._position + index :: count]
        rows = stream.map(MakeRow(self._source, self._tokenizer, config))
        threads = max(1, min(16, os.cpu_count() or 1) // max(1, config.workers))
        dataset = rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        if config.workers:
            # Grain's workers read its flags; without absl.app.run nobody has parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2))
        # Batching comes last: inside the workers, each would fill batches with its own rows only.
        batches = dataset.batch(local_batch, drop_remainder=True, batch_fn=lambda made: collate(made, config))
        # The next batch is put together while the accelerator works on this one.
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _close(iterator: list[Any]) -> None:
    if iterator:
        iterator.pop().close()
