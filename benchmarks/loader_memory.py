"""How much memory the index and the loader of millions of records take in the main process, at the start and over an epoch.

    python -m benchmarks.loader_memory [--records 2000000] [--rows N] [--workers 2] [--output benchmarks/results/loader_memory.json]

The index is synthetic: thousands of shards that are hard links to one small shard, each with an index and an entry in the manifest of its
own. Every row is really read, decoded and tokenized; `--rows` stops before the end of the epoch. Two token buckets make the loader
measure all texts first (`--buckets 1`: it does not).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.loader import LIBRARIES, TOKENIZER
from benchmarks.machine import machine
from data_pipeline.loader import Loader, LoaderConfig, open_shards
from data_pipeline.manifest import seal
from data_pipeline.schema import MANIFEST, Record
from data_pipeline.shard_folder import encode_mask_counts
from data_pipeline.tfrecord import index_path, write_shard
from segearth_r2_jax.inputs.tokenizer import load_tokenizer
from segearth_r2_jax.raster.rle import encode

_PER_SHARD = 500
_MEBIBYTE = 1 << 20


def write_index(folder: Path, records: int) -> Path:
    """A finished folder of `records` records in shards that are all the same file."""
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
    mask = np.zeros((16, 16), np.uint8)
    mask[2:5, 3:9] = 1
    first = Record("0", "drawn.json", "0.png", buffer.getvalue(), 16, 16, "the tank", "It is [SEG].", (encode(mask),))
    texts = ("the tank", "the large tank north of the road at the lake")
    content = [dataclasses.replace(first, record_id=str(n), instruction=texts[n % 2]).to_example() for n in range(_PER_SHARD)]
    original = folder / "shard.tfrecord"
    write_shard(original, content)
    entry = {
        "records": _PER_SHARD,
        "mask_counts": encode_mask_counts([1] * _PER_SHARD),
        "sha256": hashlib.sha256(original.read_bytes()).hexdigest(),
    }
    entries = []
    for number in range(records // _PER_SHARD):
        path = folder / f"train-{number:05d}.tfrecord"
        os.link(original, path)
        os.link(index_path(original), index_path(path))
        entries.append({"file": path.name, **entry})
    (folder / MANIFEST).write_text(json.dumps(seal({"splits": {"train": {"shards": entries}}})))
    return folder


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE, 1)


def peak() -> float:
    """The most that this process has had, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def measure(folder: Path, rows: int | None, workers: int, buckets: tuple[int, ...]) -> dict[str, Any]:
    """Resident memory along an epoch."""
    config = LoaderConfig(
        batch_size=128,
        image_size=16,
        siglip_size=16,
        num_image_tokens=4,
        token_buckets=buckets,
        max_masks=1,
        mask_canvas=16,
        num_epochs=1,
        workers=workers,
    )
    tokenizer = load_tokenizer(TOKENIZER)
    found: dict[str, Any] = {"MiB before": resident()}
    start = time.perf_counter()
    source = open_shards(str(folder))
    found["MiB with the index"] = resident()
    with Loader(source, tokenizer, config) as loader:
        found["MiB with the loader"] = resident()
        found["seconds to open"] = round(time.perf_counter() - start, 1)
        total = min(len(source), rows or len(source))
        along: list[float] = []
        given = 0
        for batch in loader:
            given += len(batch["image"])
            if given * 20 // total > len(along):
                along.append(resident())
                print(f"{given} of {total} rows: {along[-1]} MiB", file=sys.stderr, flush=True)
            if given >= total:
                break
        position = loader.get_state()["position"]
    return {
        **found,
        "rows": given,
        "position": position,
        "MiB after each twentieth": along,
        "MiB at most": peak(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000_000, metavar="N", help="records of the synthetic index")
    parser.add_argument("--rows", type=int, metavar="N", help="rows to load (default: one epoch)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes")
    parser.add_argument("--buckets", type=int, default=2, choices=[1, 2], help="token buckets")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the results go, as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_index(Path(scratch) / "shards", options.records)
        found = measure(folder, options.rows, options.workers, (192, 256)[2 - options.buckets :])
    results = {
        "machine": machine(LIBRARIES),
        "records": options.records,
        "workers": options.workers,
        "token_buckets": options.buckets,
        **found,
    }
    print(json.dumps(results, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
