"""The memory of the index grows by some bytes per record, and the loader's does not grow while it loads."""

from __future__ import annotations

import gc
import itertools
import json
import os
import tracemalloc

import numpy as np
import pytest
from etils import epath
from shards_example import make_record, write_shards

from data_pipeline.loader import Loader, LoaderConfig, open_shards
from data_pipeline.manifest import read_manifest, seal
from data_pipeline.tfrecord import index_path
from data_pipeline.token_lengths import bucket_of_records

CONFIG = LoaderConfig(
    batch_size=8, image_size=16, siglip_size=8, num_image_tokens=4, token_buckets=(300,), max_masks=2, mask_canvas=16, num_epochs=None
)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 50,000 records: a hundred shards that are links to one."""
    folder = write_shards(tmp_path_factory.mktemp("many") / "shards", [make_record(number) for number in range(500)], 1)
    manifest = read_manifest(epath.Path(folder))
    (entry,) = manifest["splits"]["train"]["shards"]
    original, entries = folder / entry["file"], []
    for number in range(100):
        path = folder / f"train-{number:05d}.tfrecord"
        os.link(original, path)
        os.link(index_path(original), index_path(path))
        entries.append({**entry, "file": path.name})
    manifest["splits"]["train"]["shards"] = entries
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    return folder


def traced(work) -> tuple[object, int]:
    """What `work` gives, and how many bytes are held after it that were not before."""
    gc.collect()
    tracemalloc.start()
    try:
        result = work()
        gc.collect()
        return result, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_the_index_takes_few_bytes_per_record(many, small_tokenizer):
    open_shards(str(many))  # What is imported and cached at the first time is no part of it.
    source, held = traced(lambda: open_shards(str(many)))
    assert len(source) == 50_000
    assert held < 24 * len(source)
    _, held = traced(lambda: Loader(source, small_tokenizer, CONFIG))
    assert held < 8 * len(source)


def test_the_buckets_take_few_bytes_per_record(many, small_tokenizer):
    source = open_shards(str(many))
    records = np.arange(4500, dtype=np.int32)
    bucket, held = traced(lambda: bucket_of_records(source, records, small_tokenizer, CONFIG.template, 4, [300, 512]))
    assert bucket.nbytes == len(source)
    assert held < 2 * len(source) + 300_000


def test_loading_does_not_grow(many, small_tokenizer):
    with Loader(open_shards(str(many)), small_tokenizer, CONFIG) as loader:
        for _ in itertools.islice(loader, 20):
            pass
        _, held = traced(lambda: [None for _ in itertools.islice(loader, 50)])
    # A batch or two, with its rows, may be waiting at either moment.
    one_row = 16 * 16 * 3 + 8 * 8 * 3 + 2 * 16 * 16 + 20 * 300
    assert held < 6 * CONFIG.batch_size * one_row
