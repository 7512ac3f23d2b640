"""Finished folders of shards with records of any number, written in milliseconds."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.manifest import seal
from data_pipeline.schema import Record
from data_pipeline.shard_folder import encode_mask_counts
from data_pipeline.tfrecord import write_shard
from segearth_r2_jax.raster.rle import encode


@functools.cache
def picture(seed: int, side: int = 16) -> bytes:
    """A PNG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_record(number: int, *, words: int = 3, masks: int = 1, name: str = "set") -> Record:
    """Record `number` of a set: its id says which it is, its instruction has about as many words as asked for."""
    mask = np.zeros((16, 16), np.uint8)
    mask[number % 16, :5] = 1
    return Record(
        record_id=f"{name}{number}",
        source=f"{name}.json",
        image_name=f"{number % 7}.png",
        image_bytes=picture(number % 7),
        height=16,
        width=16,
        instruction=" ".join(["tank"] * words),
        answer="It is " + " and ".join(["[SEG]"] * masks) + ".",
        masks=(encode(mask),) * masks,
    )


def write_shards(folder: Path, records: Sequence[Record], shards: int = 2) -> Path:
    """What `build_shards` leaves of `records`, as far as a loader reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(shards):
        part = records[len(records) * number // shards : len(records) * (number + 1) // shards]
        path = folder / f"train-{number:05d}-of-{shards:05d}.tfrecord"
        write_shard(path, (record.to_example() for record in part))
        counts = encode_mask_counts([None if record.masks is None else len(record.masks) for record in part])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"file": path.name, "records": len(part), "mask_counts": counts, "sha256": digest})
    (folder / "manifest.json").write_text(json.dumps(seal({"splits": {"train": {"shards": entries}}})))
    return folder
