"""Batches have the promised form, hold what the records say, and come in an order that resumes exactly."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from lasers_example import SHAPES, annotation, row_masks
from PIL import Image

from data_pipeline import mask_canvas
from data_pipeline.build_shards import build_shards
from data_pipeline.loader import ListedRecords, Loader, LoaderConfig, ShardedRecords
from data_pipeline.manifest import seal
from data_pipeline.shard_folder import decode_mask_counts, encode_mask_counts
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs import conversation, tokenizer
from segearth_r2_jax.inputs.image_processing import squash
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.raster.rle import encode

CONFIG = LoaderConfig(
    batch_size=2,
    image_size=64,
    siglip_size=28,
    num_image_tokens=9,
    token_buckets=(512,),
    max_masks=3,
    mask_canvas=64,
    seed=5,
    num_epochs=2,
)
RECORDS = 11


@pytest.fixture(scope="module")
def shards(lasers_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "out"
    build_shards("lasers", lasers_folder, folder, shards=2)
    return ShardedRecords(folder)


@pytest.fixture(scope="module")
def batches(shards, small_tokenizer):
    with Loader(shards, small_tokenizer, CONFIG) as loader:
        return list(loader)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def changed(shards, number, **changes) -> ListedRecords:
    """The records with fields of one of them replaced."""
    records = [shards[index] for index in range(len(shards))]
    records[number] = dataclasses.replace(records[number], **changes)
    return ListedRecords(records)


def test_the_form_of_a_batch(batches):
    assert {key: (value.shape, value.dtype.name) for key, value in batches[0].items()} == {
        "image": ((2, 64, 64, 3), "uint8"),
        "image_siglip": ((2, 28, 28, 3), "uint8"),
        "token_ids": ((2, 512), "int32"),
        "labels": ((2, 512), "int32"),
        "attention_mask": ((2, 512), "bool"),
        "image_start": ((2,), "int32"),
        "seg_positions": ((2, 3), "int32"),
        "mask_valid": ((2, 3), "bool"),
        "masks": ((2, 3, 64, 64), "uint8"),
        "mask_size": ((2, 2), "int32"),
        "mask_frame": ((2, 2), "int32"),
        "record_index": ((2,), "int64"),
    }


def test_rows_hold_what_the_records_say(batches, lasers_folder, small_tokenizer):
    for batch in batches:
        for row, number in enumerate(batch["record_index"].tolist()):
            h, w = SHAPES[number % len(SHAPES)]
            content = annotation(number)
            with Image.open(lasers_folder / "train/images" / content["image_name"]) as file:
                image = np.asarray(file.convert("RGB"))
            np.testing.assert_array_equal(batch["image"][row], Letterbox(h, w, 64).place_image(image))
            np.testing.assert_array_equal(batch["image_siglip"][row], squash(image, 28))
            text = conversation.encode_training(small_tokenizer, "train_phi_v0", content["description"], content["answer"])
            for key, value in conversation.pad_row(conversation.expand(text, 9), 512, 3).items():
                np.testing.assert_array_equal(batch[key][row], value)
            expected = row_masks(number)
            assert batch["mask_valid"][row].sum() == len(expected)
            height, width = batch["mask_size"][row]
            assert (height, width) == mask_canvas.canvas_size(h, w, 64)
            if max(h, w) <= 64:
                assert (height, width) == (h, w)
                np.testing.assert_array_equal(batch["masks"][row, : len(expected), :h, :w], expected)
            assert not batch["masks"][row, :, height:].any()
            assert not batch["masks"][row, :, :, width:].any()
            assert not batch["masks"][row, len(expected) :].any()
            assert batch["mask_frame"][row].tolist() == [max(height, width)] * 2


def test_the_stretched_frame_is_the_mask_s_own(shards, small_tokenizer):
    with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, frame="stretch")) as loader:
        for batch in itertools.islice(loader, 5):
            np.testing.assert_array_equal(batch["mask_frame"], batch["mask_size"])


def test_every_record_comes_once_per_epoch(batches):
    order = np.concatenate([batch["record_index"] for batch in batches])
    assert len(batches) == RECORDS
    first, second = order[:RECORDS], order[RECORDS:]
    np.testing.assert_array_equal(np.sort(first), np.arange(RECORDS))
    np.testing.assert_array_equal(np.sort(second), np.arange(RECORDS))
    assert (first != second).any()
    assert (first != np.arange(RECORDS)).any()


def test_the_seed_fixes_the_order(shards, small_tokenizer, batches):
    def order(seed):
        with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, seed=seed)) as loader:
            return [batch["record_index"].tolist() for batch in itertools.islice(loader, 5)]

    expected = [batch["record_index"].tolist() for batch in batches[:5]]
    assert order(5) == expected
    assert order(6) != expected


def test_what_fills_no_batch_is_left_out_only_at_the_end(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, batch_size=4)) as loader:
        order = np.concatenate([batch["record_index"] for batch in loader])
        with pytest.raises(StopIteration):
            next(loader)
    np.testing.assert_array_equal(order, np.concatenate([batch["record_index"] for batch in batches])[:20])


def test_two_workers_give_the_data_of_none(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, workers=2)) as loader:
        got = list(loader)
    assert len(got) == len(batches)
    for left, right in zip(got, batches, strict=True):
        assert_same(left, right)


def test_one_worker_goes_on_from_the_state_of_none(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, CONFIG) as loader:
        for _ in range(3):
            next(loader)
        state = loader.get_state()
    with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, workers=1)) as loader:
        loader.set_state(state)
        got = list(loader)
    assert len(got) == len(batches) - 3
    for left, right in zip(got, batches[3:], strict=True):
        assert_same(left, right)


def test_it_resumes_exactly_at_every_step(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, CONFIG) as loader:
        states = [json.loads(json.dumps(loader.get_state()))]
        for _ in loader:
            states.append(loader.get_state())
    for step, state in enumerate(states):
        with Loader(shards, small_tokenizer, CONFIG) as resumed:
            resumed.set_state(state)
            assert resumed.get_state() == state
            rest = list(resumed)
        assert len(rest) == len(batches) - step
        for left, right in zip(rest[:2], batches[step : step + 2], strict=True):
            assert_same(left, right)


def test_it_goes_back_in_place(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, CONFIG) as loader:
        next(loader)
        state = loader.get_state()
        assert_same(next(loader), batches[1])
        next(loader)
        loader.set_state(state)
        assert_same(next(loader), batches[1])


def test_a_loader_that_nobody_closes_leaves_quietly(shards, tmp_path, small_tokenizer):
    tokenizer.save_tokenizer(small_tokenizer, tmp_path / "tokenizer.json")
    script = tmp_path / "script.py"
    script.write_text(
        "from data_pipeline.loader import Loader, LoaderConfig, ShardedRecords\n"
        "from segearth_r2_jax.inputs.tokenizer import load_tokenizer\n"
        f"source, tokenizer = ShardedRecords({str(shards.folder)!r}), load_tokenizer({str(tmp_path)!r})\n"
        f"loader = Loader(source, tokenizer, {CONFIG!r})\n"
        "print(next(loader)['record_index'].shape)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(2,)\n")
    assert "Traceback" not in done.stderr


def test_a_state_of_other_data_is_refused(shards, small_tokenizer):
    with Loader(shards, small_tokenizer, CONFIG) as loader:
        state = loader.get_state()
        for key in ("seed", "records", "data"):
            with pytest.raises(UserError, match=f"cannot resume, the data had {key} 77"):
                loader.set_state({**state, key: 77})


def test_processes_share_each_global_batch(shards, small_tokenizer):
    config = dataclasses.replace(CONFIG, batch_size=6)
    with Loader(shards, small_tokenizer, config) as loader:
        whole = [batch["record_index"] for batch in loader]
    for count in (2, 3):
        parts = []
        for process in range(count):
            with Loader(shards, small_tokenizer, config, process_index=process, process_count=count) as loader:
                parts.append([batch["record_index"] for batch in loader])
                assert loader.get_state()["position"] == 18
        assert {len(part) for part in parts} == {len(whole)} == {3}
        for together, *shares in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(shares), together)
    # A run may go on with another number of processes.
    with Loader(shards, small_tokenizer, config, process_index=1, process_count=3) as loader:
        loader.set_state({**loader.get_state(), "position": 6})
        np.testing.assert_array_equal(next(loader)["record_index"], whole[1][2:4])


def test_an_endless_stream(shards, small_tokenizer, batches):
    with Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, num_epochs=None)) as loader:
        for left, right in zip(itertools.islice(loader, 11), batches, strict=True):
            assert_same(left, right)
        assert next(loader)["record_index"].shape == (2,)
        loader.set_state({**loader.get_state(), "position": 4_000_000_000})
        assert next(loader)["record_index"].shape == (2,)


def test_records_with_too_many_masks(shards, small_tokenizer):
    config = dataclasses.replace(CONFIG, max_masks=2, num_epochs=1)
    with pytest.raises(UserError, match=r"train_ann\.json: row 'row3': has 3 masks, max_masks is 2; raise it or set too_many_masks"):
        Loader(shards, small_tokenizer, config)
    with Loader(shards, small_tokenizer, dataclasses.replace(config, too_many_masks="skip")) as loader:
        assert (loader.skipped, loader.records_per_epoch) == (2, 9)
        seen = np.concatenate([batch["record_index"] for batch in loader])
    assert len(set(seen.tolist())) == 8
    assert not {3, 7} & set(seen.tolist())
    only = ListedRecords([shards[3]])
    with pytest.raises(UserError, match="every record has more than max_masks"):
        Loader(only, small_tokenizer, dataclasses.replace(config, too_many_masks="skip"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "It is [SEG], [SEG]."}, r"the answer has 2 \[SEG\], but there are 1 masks"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"instruction": "tank " * 500}, "token positions, at most 512 fit"),
        ({"image_bytes": b""}, "image area/1.jpg: is empty"),
        ({"height": 41}, "the image is 64 x 40, the record says 41 x 40"),
        ({"masks": ({"size": [64, 40], "counts": "0"},)}, "mask 0"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_named(shards, small_tokenizer, changes, message):
    with (
        Loader(changed(shards, 1, **changes), small_tokenizer, CONFIG) as loader,
        pytest.raises(UserError, match=rf"^train/annotations/train_ann\.json: row 'row1'.*{message}") as raised,
    ):
        list(loader)
    assert "\n" not in str(raised.value)


def test_damage_is_named_from_a_worker_process_too(shards, small_tokenizer):
    source = changed(shards, 1, answer="It is [SEG], [SEG].")
    with (
        Loader(source, small_tokenizer, dataclasses.replace(CONFIG, workers=1)) as loader,
        pytest.raises(UserError, match=r"row 'row1': the answer has 2 \[SEG\]") as raised,
    ):
        list(loader)
    assert "\n" not in str(raised.value)


def test_withheld_masks_are_refused_at_once(shards, small_tokenizer):
    with pytest.raises(UserError, match="row 'row4': has no masks to train on"):
        Loader(changed(shards, 4, masks=None, answer=None), small_tokenizer, CONFIG)


def test_an_answer_that_cannot_be_learned_still_trains_its_mask(shards, small_tokenizer):
    source = ListedRecords([dataclasses.replace(shards[1], answer="[SEG] ASSISTANT: no")] * 2)
    with warnings.catch_warnings(), Loader(source, small_tokenizer, CONFIG) as loader:
        warnings.simplefilter("ignore", conversation.LabelMismatch)
        batch = next(loader)
    assert (batch["labels"] == conversation.IGNORE_LABEL).all()
    assert batch["mask_valid"].sum() == 2


def test_large_masks_are_shrunk_with_their_frame(shards, small_tokenizer):
    image = np.zeros((300, 200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    mask = np.zeros((300, 200), np.uint8)
    mask[:150] = 1
    record = dataclasses.replace(shards[1], image_bytes=buffer.getvalue(), height=300, width=200, masks=(encode(mask),))
    with Loader(ListedRecords([record] * 2), small_tokenizer, CONFIG) as loader:
        batch = next(loader)
    assert batch["mask_size"].tolist() == [[64, 43]] * 2
    assert batch["mask_frame"].tolist() == [[64, 64]] * 2
    np.testing.assert_array_equal(batch["masks"][0, 0, :64, :43], np.repeat([[1], [0]], 32, 0) * np.ones((1, 43)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"token_buckets": ()}, "token_buckets"),
        ({"workers": -1}, "workers"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"frame": "crop"}, "frame must be letterbox or stretch"),
        ({"too_many_masks": "drop"}, "too_many_masks must be error or skip"),
        ({"on_corrupt": "ignore"}, "on_corrupt must be error or skip"),
        ({"template": "eval_llama2"}, "only prompts"),
        ({"template": "vicuna"}, "no prompt template is called 'vicuna'"),
    ],
)
def test_a_wrong_configuration_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_configuration_that_does_not_fit_is_refused(shards, small_tokenizer):
    with pytest.raises(UserError, match="batch_size 2 cannot be divided among 3 processes"):
        Loader(shards, small_tokenizer, CONFIG, process_count=3)
    with pytest.raises(UserError, match="11 records x 2 epochs do not fill one batch of 23"):
        Loader(shards, small_tokenizer, dataclasses.replace(CONFIG, batch_size=23))
    with pytest.raises(UserError, match="there are no records"):
        Loader(ListedRecords([]), small_tokenizer, CONFIG)


def test_shards_that_are_not_there_are_named(shards, tmp_path):
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        ShardedRecords(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        ShardedRecords(tmp_path)
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    entry["mask_counts"] = encode_mask_counts(decode_mask_counts(entry["mask_counts"]).tolist()[:-1])
    for shard in shards.folder.glob("*.tfrecord"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(UserError, match="the shards hold 11 records, the manifest says 10"):
        ShardedRecords(tmp_path)
