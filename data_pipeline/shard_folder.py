"""Where records come from: folders of shards that `build_shards` has finished, one or several with weights, or a list in memory.

The manifest of a folder keeps how many masks each record has, so that a loader can say before training starts that a record does not
fit: one entry `mask_counts` per shard, the base64 of int16 numbers (little endian; -1 where masks are withheld). As JSON integers they
would take a hundred times the memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from data_pipeline.manifest import read_manifest
from data_pipeline.random_access import is_remote
from data_pipeline.schema import MANIFEST, Record
from data_pipeline.tf_example import decode_head
from data_pipeline.tfrecord import TFRecordSource
from segearth_r2_jax.errors import UserError

_COUNTS = np.dtype("<i2")
# Words are short and stand before the image: this many bytes of a record nearly always hold them.
_HEAD_BYTES = 2048


class Texts(NamedTuple):
    """The words of a record."""

    instruction: str
    answer: str | None


class RecordSource(Protocol):
    """Records by number. Worker processes receive a pickled copy."""

    # Tells one data set from another in the state of a loader; empty if unknown.
    digest: str
    # Whether reading a record waits for a network.
    remote: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def texts(self, index: int) -> Texts:
        """The words of a record, without its image being read."""
        ...

    def place(self, index: int) -> str:
        """Where the record lies: its shard and the offset of its first byte."""
        ...

    @property
    def masks_per_record(self) -> np.ndarray:
        """How many masks each record has, int [records]; -1 where they are withheld."""
        ...


class ShardedRecords:
    """The records of one split of a folder that `build_shards` wrote, here or in cloud storage."""

    def __init__(self, folder: str | os.PathLike[str], split: str = "train"):
        """Raises UserError naming the folder if it is no finished build or lacks the split."""
        self.folder = epath.Path(folder)
        self.remote = is_remote(self.folder)
        splits = read_manifest(self.folder)["splits"]
        if split not in splits:
            raise UserError(f"{folder}: holds no split {split!r}; it has {', '.join(splits)}")
        path = self.folder / MANIFEST
        try:
            entries = splits[split]["shards"]
            names = [_file_name(entry["file"]) for entry in entries]
            counts = [decode_mask_counts(entry["mask_counts"]) for entry in entries]
            digest = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode())
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest of data_pipeline.build_shards ({error})") from None
        self.digest = digest.hexdigest()[:16]
        self._examples = TFRecordSource([self.folder / name for name in names])
        self.masks_per_record = np.concatenate(counts or [np.zeros(0, _COUNTS)])
        if len(self.masks_per_record) != len(self._examples):
            raise UserError(
                f"{folder}: the shards hold {len(self._examples)} records, the manifest says {len(self.masks_per_record)}; build them again"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        return Record.from_example(self._examples[index], f"{self.folder}: record {index}")

    def texts(self, index: int) -> Texts:
        """The words of a record; UserError naming it if it is damaged. Only the head of the record is read, and not verified."""
        try:
            head = decode_head(self._examples.head(index, _HEAD_BYTES), ("instruction", "answer"))
            return Texts(head["instruction"][0].decode(), head["answer"][0].decode())
        except (ValueError, KeyError, IndexError, AttributeError):
            record = self[index]
            return Texts(record.instruction, record.answer)

    def place(self, index: int) -> str:
        return self._examples.place(index)


class ListedRecords:
    """Records in memory, for small sets."""

    digest = ""
    remote = False

    def __init__(self, records: Sequence[Record]):
        self._records = list(records)
        self.masks_per_record = np.array([-1 if r.masks is None else len(r.masks) for r in self._records], np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def texts(self, index: int) -> Texts:
        return Texts(self._records[index].instruction, self._records[index].answer)

    def place(self, index: int) -> str:
        return f"record {index} of a list"


class MixedRecords:
    """Several sources as one: `weights` are the shares of the rows of a batch that they give, in the long run and evenly spread."""

    def __init__(self, sources: Sequence[RecordSource], weights: Sequence[float]):
        if not sources or len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights; expected at least one, and as many of either")
        self._sources = tuple(sources)
        self.weights = tuple(float(weight) for weight in weights)
        self.sizes = tuple(len(source) for source in sources)
        self._starts = np.cumsum([0, *self.sizes])
        self.masks_per_record = np.concatenate([source.masks_per_record for source in sources])
        self.digest = "+".join(source.digest for source in sources)
        self.remote = any(source.remote for source in sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, number = self._find(index)
        return source[number]

    def texts(self, index: int) -> Texts:
        source, number = self._find(index)
        return source.texts(number)

    def place(self, index: int) -> str:
        source, number = self._find(index)
        return source.place(number)

    def _find(self, index: int) -> tuple[RecordSource, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part], index - int(self._starts[part])


def open_shards(shards: str, split: str = "train") -> MixedRecords:
    """The records of a folder `DIR`, or of several in given shares, `DIR=0.7,OTHER=0.3`; folders may be in cloud storage.

    Shares are relative: `DIR=7,OTHER=3` is the same. Without any (`DIR,OTHER`) every record comes equally often. Raises UserError naming
    the folder, or the share, that is wrong.
    """
    parts = [part.strip() for part in shards.split(",")]
    named = [part.rpartition("=") for part in parts]
    if not all(parts):
        raise UserError(f"shards {shards!r}: a folder's name is missing; expected DIR, or DIR=0.7,OTHER=0.3")
    weighted = [bool(sign) for _, sign, _ in named]
    if any(weighted) != all(weighted):
        raise UserError(f"shards {shards!r}: either every folder has a share or none has; expected DIR=0.7,OTHER=0.3")
    if not any(weighted):
        sources = [ShardedRecords(part, split) for part in parts]
        return MixedRecords(sources, [max(1, len(source)) for source in sources])
    return MixedRecords([ShardedRecords(folder, split) for folder, _, _ in named], [_share(text, shards) for _, _, text in named])


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


def _file_name(name: Any) -> str:
    """A shard lies in the folder of its manifest: a name that leads elsewhere is refused."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _share(text: str, shards: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (share > 0 and math.isfinite(share)):
        raise UserError(f"shards {shards!r}: {text!r} is not a share; expected a number above 0, as in DIR=0.7,OTHER=0.3")
    return share
