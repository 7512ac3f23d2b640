"""Mixtures of data sets and buckets of token lengths: every process sees the same shapes, and no record is lost."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from shards_example import make_record, write_shards

from data_pipeline import token_lengths
from data_pipeline.loader import Loader, LoaderConfig, open_shards
from data_pipeline.shard_folder import ListedRecords
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import encode_training, expand

CONFIG = LoaderConfig(
    batch_size=4,
    image_size=16,
    siglip_size=8,
    num_image_tokens=4,
    token_buckets=(512, 400, 300),
    max_masks=2,
    mask_canvas=16,
    seed=1,
    num_epochs=3,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of shards, texts of very different lengths."""
    root = tmp_path_factory.mktemp("sets")
    large = [make_record(number, words=(1, 2, 40, 3, 90)[number % 5], name="large") for number in range(30)]
    small = [make_record(number, words=(1, 40)[number % 2], name="small") for number in range(10)]
    return write_shards(root / "large", large, 3), write_shards(root / "small", small, 1)


def load(source, tokenizer, config, **process):
    with Loader(source, tokenizer, config, **process) as loader:
        return list(loader)


def ids(batches) -> list[int]:
    return np.concatenate([batch["record_index"] for batch in batches]).tolist()


def test_every_row_of_a_batch_is_of_its_bucket(folders, small_tokenizer):
    source = open_shards(str(folders[0]))
    batches = load(source, small_tokenizer, CONFIG)
    lengths = [
        expand(encode_training(small_tokenizer, CONFIG.template, record.instruction, record.answer), CONFIG.num_image_tokens).length
        for record in (source[number] for number in range(len(source)))
    ]
    buckets = np.array([min(bucket for bucket in CONFIG.token_buckets if bucket >= length) for length in lengths])
    assert set(buckets) == set(CONFIG.token_buckets)
    for batch in batches:
        assert set(buckets[batch["record_index"]]) == {batch["token_ids"].shape[1]}
    # Three epochs, less what fills no batch of its bucket at the end.
    times = Counter(ids(batches))
    for bucket in CONFIG.token_buckets:
        members = np.flatnonzero(buckets == bucket)
        assert {times[number] for number in members} <= {2, 3}
        assert sum(times[number] for number in members) == 3 * len(members) // 4 * 4


def test_processes_agree_on_the_bucket_of_every_batch(folders, small_tokenizer):
    source = open_shards(str(folders[0]))
    whole = load(source, small_tokenizer, CONFIG)
    for count in (2, 4):
        parts = [load(source, small_tokenizer, CONFIG, process_index=index, process_count=count) for index in range(count)]
        for together, *shares in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate([share["record_index"] for share in shares]), together["record_index"])
            assert {share["token_ids"].shape[1] for share in shares} == {together["token_ids"].shape[1]}


def test_a_run_with_buckets_goes_on_with_other_processes(folders, small_tokenizer):
    source = open_shards(str(folders[0]))
    whole = load(source, small_tokenizer, CONFIG)
    with Loader(source, small_tokenizer, CONFIG, process_index=1, process_count=2) as loader:
        for _ in range(5):
            next(loader)
        state = json.loads(json.dumps(loader.get_state()))
    with Loader(source, small_tokenizer, CONFIG) as loader:
        loader.set_state(state)
        assert ids(loader) == ids(whole[5:])
        with pytest.raises(UserError, match="cannot resume, the data had batch_size 2 and now has 4"):
            loader.set_state({**state, "batch_size": 2})
    with (
        Loader(source, small_tokenizer, dataclasses.replace(CONFIG, token_buckets=(512, 400))) as loader,
        pytest.raises(UserError, match=r"the data had buckets \[\[300, "),
    ):
        loader.set_state(state)


def test_a_text_that_no_bucket_holds_is_an_error_before_training(folders, small_tokenizer):
    config = dataclasses.replace(CONFIG, token_buckets=(300, 400))
    with pytest.raises(UserError, match=r"large\.json: row 'large4': needs \d+ token positions, at most 400 fit"):
        Loader(open_shards(str(folders[0])), small_tokenizer, config)


def test_texts_are_measured_without_the_images(folders, small_tokenizer, monkeypatch):
    source = open_shards(str(folders[0]))
    monkeypatch.setattr(type(source), "__getitem__", None)
    with Loader(source, small_tokenizer, CONFIG) as loader:
        assert loader.get_state()["buckets"] == [[300, 18], [400, 6], [512, 6]]


def test_long_measuring_tells_how_far_it_is(folders, small_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(token_lengths, "_LOG_SECONDS", -1)
    monkeypatch.setattr(token_lengths, "_CHUNK", 16)
    Loader(open_shards(str(folders[0])), small_tokenizer, CONFIG).close()
    assert capsys.readouterr().err.splitlines() == ["measuring texts: 16 of 30 records", "measuring texts: 30 of 30 records"]


@pytest.mark.parametrize("buckets", [(512,), (300, 512)])
def test_a_mixture_has_its_shares(folders, small_tokenizer, buckets):
    large, small = folders
    source = open_shards(f"{large}=1, {small}=3")
    config = dataclasses.replace(CONFIG, token_buckets=buckets, num_epochs=4)
    batches = load(source, small_tokenizer, config)
    records = ids(batches)
    assert len(records) == pytest.approx(160, abs=8)
    assert sum(number >= 30 for number in records) == pytest.approx(120, abs=8)
    # Within a set and a bucket, none comes again before all have come.
    length = {number: batch["token_ids"].shape[1] for batch in batches for number in batch["record_index"].tolist()}
    for first, last in ((0, 30), (30, 40)):
        for bucket in buckets:
            times = Counter(number for number in records if first <= number < last and length[number] == bucket)
            assert max(times.values()) - min(times[number] for number in range(first, last) if length.get(number) == bucket) <= 1
    assert source[35].record_id == "small5"
    assert "small" in source.place(35)


def test_a_mixture_goes_on_with_other_processes(folders, small_tokenizer):
    source = open_shards(f"{folders[0]}=0.5,{folders[1]}=0.5")
    config = dataclasses.replace(CONFIG, token_buckets=(512,), num_epochs=1)
    whole = ids(load(source, small_tokenizer, config))
    with Loader(source, small_tokenizer, config) as loader:
        next(loader)
        state = loader.get_state()
    parts = []
    for index in range(2):
        with Loader(source, small_tokenizer, config, process_index=index, process_count=2) as loader:
            loader.set_state(state)
            parts.append(ids(loader))
    assert np.reshape(parts, (2, -1, 2)).swapaxes(0, 1).ravel().tolist() == whole[4:]
    other = open_shards(f"{folders[0]}=0.6,{folders[1]}=0.4")
    with Loader(other, small_tokenizer, config) as loader, pytest.raises(UserError, match="the data had shares"):
        loader.set_state(state)


def test_a_set_without_usable_records_is_named(folders, small_tokenizer, tmp_path):
    write_shards(tmp_path / "many", [make_record(number, masks=3) for number in range(4)])
    config = dataclasses.replace(CONFIG, too_many_masks="skip")
    with pytest.raises(UserError, match="every record of data set 2 has more than max_masks = 2"):
        Loader(open_shards(f"{folders[0]},{tmp_path / 'many'}"), small_tokenizer, config)


def test_without_shares_every_record_comes_equally_often(folders, small_tokenizer):
    source = open_shards(",".join(map(str, folders)))
    config = dataclasses.replace(CONFIG, token_buckets=(512,), num_epochs=1)
    assert sorted(ids(load(source, small_tokenizer, config))) == list(range(40))


def test_listed_records_have_buckets_too(small_tokenizer):
    source = ListedRecords([make_record(number, words=number % 2 * 60 + 1) for number in range(8)])
    batches = load(source, small_tokenizer, dataclasses.replace(CONFIG, num_epochs=1))
    assert sorted(ids(batches)) == list(range(8))
    assert all(len(set(batch["record_index"] % 2)) == 1 for batch in batches)
