"""Ids, labels and spliced rows equal those that the reference implementation produced."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segearth_r2_jax.inputs.conversation import IMAGE_SLOT, PADDING, Conversation, encode_prompt, encode_training, expand, pad_row
from segearth_r2_jax.inputs.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def reference(fixtures_dir):
    with np.load(fixtures_dir / "text.npz") as arrays:
        return json.loads((fixtures_dir / "text.json").read_text()), dict(arrays), load_tokenizer(fixtures_dir)


@pytest.mark.parametrize("index", range(4))
def test_training_ids_and_labels(reference, index):
    samples, arrays, tokenizer = reference
    assert len(samples) == 4
    row = encode_training(tokenizer, "train_phi_v0", samples[index]["query"], samples[index]["answer"])
    np.testing.assert_array_equal(row.ids, arrays[f"ids_{index}"])
    np.testing.assert_array_equal(row.labels, arrays[f"labels_{index}"])
    np.testing.assert_array_equal(row.refer_ids, arrays[f"refer_{index}"])
    assert tokenizer.decode(row.labels[row.labels >= 0]) == samples[index]["supervised_text"]
    assert len(row.seg_indices) == samples[index]["answer"].count("[SEG]")


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(("variant", "template"), [("off", "eval_llama2"), ("fork", "eval_llama2_train_prefix")])
def test_evaluation_prompts(reference, index, variant, template):
    samples, arrays, tokenizer = reference
    prompt = encode_prompt(tokenizer, template, samples[index]["query"])
    np.testing.assert_array_equal(prompt.ids, arrays[f"eval_{variant}_ids_{index}"])
    image = int(np.flatnonzero(prompt.ids == IMAGE_SLOT)[0])
    text = tokenizer.decode(prompt.ids[:image]) + "<image>" + tokenizer.decode(prompt.ids[image + 1 :])
    assert text == samples[index]["eval_prompt"][variant]
    assert len(prompt.refer_ids) == 0


def test_the_fixture_s_tokenizer_is_complete(reference):
    tokenizer = reference[2]
    assert len(tokenizer) == 421
    assert tokenizer.seg_id == 420
    assert tokenizer.end_id == 0


def test_splicing(fixtures_dir):
    """Upstream collates first (padding ids stay in the row as tokens nobody attends to) and splices then."""
    with np.load(fixtures_dir / "train_forward.npz") as stored:
        arrays = {key: stored[key] for key in stored.files if not key.endswith("__f64")}
    length = arrays["prep_labels"].shape[1]
    for row in range(3):
        ids = arrays["input_ids"][row]
        conversation = Conversation(
            ids=ids,
            labels=arrays["labels"][row],
            attention_mask=arrays["attention_mask"][row],
            refer_ids=arrays[f"token_refer_id_{row}"],
            seg_indices=np.flatnonzero(arrays["SEG_token_embedding_indices"][row]),
        )
        expanded = expand(conversation, 729)
        padded = pad_row(expanded, length, 4)
        np.testing.assert_array_equal(padded["labels"], arrays["prep_labels"][row])
        np.testing.assert_array_equal(padded["attention_mask"], arrays["prep_attention_mask"][row])
        np.testing.assert_array_equal(padded["seg_positions"][padded["mask_valid"]], np.flatnonzero(arrays["prep_seg_indices"][row]))
        image = np.flatnonzero(arrays["prep_image_indices"][row])
        assert padded["image_start"] == image[0]
        np.testing.assert_array_equal(np.flatnonzero(padded["token_ids"] == IMAGE_SLOT), image)
        assert (padded["token_ids"] == PADDING).sum() == length - expanded.length
        # The collator's mask is "not padding": that is what `encode_training` gives the final end of text, too.
        np.testing.assert_array_equal(arrays["attention_mask"][row], ids != 510)
