"""What a language model reads and learns from one instruction and its answer."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs import conversation
from segearth_r2_jax.inputs.conversation import (
    IGNORE_LABEL,
    IMAGE_SLOT,
    PADDING,
    REFER_SLOT,
    LabelMismatch,
    encode_prompt,
    encode_training,
    expand,
    pad_row,
    smallest_bucket,
    training_lengths,
)

TRAIN = "train_phi_v0"
ANSWER = "Sure, they are [SEG] and [SEG]."


def text_of(tokenizer, ids) -> str:
    """Ids as text, marks by name."""
    marks = {IMAGE_SLOT: "<image>", REFER_SLOT: "<refer>"}
    pieces, run = [], []
    for token in [*map(int, ids), None]:
        if token is not None and token >= 0:
            run.append(token)
            continue
        pieces.append(tokenizer.decode(run))
        pieces.append(marks.get(token, ""))
        run = []
    return "".join(pieces)


def test_the_training_text(small_tokenizer):
    row = encode_training(small_tokenizer, TRAIN, "  two tanks ", ANSWER)
    assert text_of(small_tokenizer, row.ids) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
        "answers to the user's questions. USER: This is an image \n<image>\n, please doing Reasoning Segmentation according to the "
        "following instruction:\n<refer> <|assistant|> ASSISTANT: \nSure, they are [SEG] and [SEG].<|endoftext|>"
    )
    assert text_of(small_tokenizer, row.refer_ids) == "two tanks[SEG]"


def test_the_first_release_s_prefix(small_tokenizer):
    row = encode_prompt(small_tokenizer, "train_phi_v0_vision_tags", "two tanks")
    assert text_of(small_tokenizer, row.ids).endswith(
        "USER: This is an image <|vision_bos|> <image> <|vision_eos|> <|sep|> <|user|>, please doing Reasoning Segmentation according "
        "to the following instruction:\n<refer> <|assistant|> ASSISTANT:"
    )


def test_the_prompt_is_the_training_text_up_to_the_answer(small_tokenizer):
    prompt = encode_prompt(small_tokenizer, TRAIN, "two tanks")
    trained = encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER)
    length = len(prompt.ids)
    np.testing.assert_array_equal(trained.ids[:length], prompt.ids)
    np.testing.assert_array_equal(trained.refer_ids, prompt.refer_ids)
    # What comes next was supervised, so that a model continues the prompt by itself.
    assert (trained.labels[length:] == trained.ids[length:]).all()
    assert (prompt.labels == IGNORE_LABEL).all()
    assert prompt.attention_mask.all()
    assert len(prompt.seg_indices) == 0


def test_labels_begin_two_ids_before_the_answer(small_tokenizer):
    row = encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER)
    supervised = row.labels != IGNORE_LABEL
    assert small_tokenizer.decode(row.ids[supervised]) == ": \nSure, they are [SEG] and [SEG].<|endoftext|>"
    np.testing.assert_array_equal(row.labels[supervised], row.ids[supervised])


def test_the_end_is_no_key_but_is_learned(small_tokenizer):
    row = encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER)
    assert row.attention_mask[:-1].all()
    assert not row.attention_mask[-1]
    assert row.labels[-1] == small_tokenizer.end_id


@pytest.mark.parametrize("answer", ["It is [SEG]. ASSISTANT: more", "It is [SEG].<|endoftext|> more"])
def test_an_answer_that_cannot_be_told_from_its_prompt_is_not_learned(small_tokenizer, answer):
    with pytest.warns(LabelMismatch, match=r"^r7: "):
        row = encode_training(small_tokenizer, TRAIN, "a tank", answer, "r7")
    assert (row.labels == IGNORE_LABEL).all()
    assert len(row.seg_indices) == 1


def test_marks_and_tokens_in_a_user_s_words_are_only_words(small_tokenizer):
    words = "an <image> of a <refer> at [SEG]"
    for template in conversation.TEMPLATES:
        row = expand(encode_prompt(small_tokenizer, template, words), 3)
        assert (row.token_ids == IMAGE_SLOT).sum() == 3
        assert len(row.seg_positions) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = encode_training(small_tokenizer, TRAIN, words, ANSWER)
    assert (row.ids == IMAGE_SLOT).sum() == (row.ids == REFER_SLOT).sum() == 1
    assert len(row.seg_indices) == 2


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_an_empty_instruction_is_refused_by_name(small_tokenizer, instruction):
    with pytest.raises(UserError, match=r"^r7: the instruction is empty"):
        encode_training(small_tokenizer, TRAIN, instruction, ANSWER, "r7")
    with pytest.raises(UserError, match="the instruction is empty"):
        encode_prompt(small_tokenizer, "eval_llama2", instruction)


def test_templates_have_names_and_uses(small_tokenizer):
    with pytest.raises(UserError, match="no prompt template is called 'llava'"):
        encode_prompt(small_tokenizer, "llava", "a tank")
    with pytest.raises(UserError, match="only prompts"):
        encode_training(small_tokenizer, "eval_llama2", "a tank", ANSWER)


def test_every_position_has_its_place(small_tokenizer):
    row = encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER)
    expanded = expand(row, 5)
    image, refer = (int(np.flatnonzero(row.ids == mark)[0]) for mark in (IMAGE_SLOT, REFER_SLOT))
    assert expanded.length == len(row.ids) - 2 + 5 + len(row.refer_ids)
    assert expanded.image_start == image
    np.testing.assert_array_equal(expanded.token_ids[:image], row.ids[:image])
    assert (expanded.token_ids[image : image + 5] == IMAGE_SLOT).all()
    assert (expanded.token_ids == IMAGE_SLOT).sum() == 5
    start = refer + 4
    end = start + len(row.refer_ids)
    np.testing.assert_array_equal(expanded.token_ids[image + 5 : start], row.ids[image + 1 : refer])
    np.testing.assert_array_equal(expanded.token_ids[start:end], row.refer_ids)
    np.testing.assert_array_equal(expanded.token_ids[end:], row.ids[refer + 1 :])
    np.testing.assert_array_equal(expanded.labels[end:], row.labels[refer + 1 :])
    assert (expanded.labels[:end] == IGNORE_LABEL).all()
    assert expanded.attention_mask[:-1].all()
    assert not expanded.attention_mask[-1]
    # The [SEG] that closes the instruction is not a mask query.
    seg = small_tokenizer.seg_id
    assert expanded.token_ids[end - 1] == seg
    np.testing.assert_array_equal(expanded.seg_positions, np.flatnonzero(expanded.token_ids == seg)[1:])
    assert (expanded.labels[expanded.seg_positions] == seg).all()


def test_an_answer_without_masks(small_tokenizer):
    row = expand(encode_training(small_tokenizer, TRAIN, "a unicorn", "There is none."), 5)
    padded = pad_row(row, row.length + 2, 3)
    assert row.seg_positions.shape == (0,)
    np.testing.assert_array_equal(padded["seg_positions"], [0, 0, 0])
    assert not padded["mask_valid"].any()


def test_rows_are_padded_to_a_bucket(small_tokenizer):
    row = expand(encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER), 5)
    padded = pad_row(row, row.length + 7, 4)
    assert {key: (value.shape, value.dtype.name) for key, value in padded.items()} == {
        "token_ids": ((row.length + 7,), "int32"),
        "labels": ((row.length + 7,), "int32"),
        "attention_mask": ((row.length + 7,), "bool"),
        "image_start": ((), "int32"),
        "seg_positions": ((4,), "int32"),
        "mask_valid": ((4,), "bool"),
    }
    np.testing.assert_array_equal(padded["token_ids"][: row.length], row.token_ids)
    assert (padded["token_ids"][row.length :] == PADDING).all()
    assert (padded["labels"][row.length :] == IGNORE_LABEL).all()
    assert not padded["attention_mask"][row.length :].any()
    np.testing.assert_array_equal(padded["seg_positions"], [*row.seg_positions, 0, 0])
    np.testing.assert_array_equal(padded["mask_valid"], [True, True, False, False])


def test_what_does_not_fit_is_refused_by_name(small_tokenizer):
    row = expand(encode_training(small_tokenizer, TRAIN, "two tanks", ANSWER), 5)
    assert pad_row(row, row.length, 2)["mask_valid"].all()
    with pytest.raises(UserError, match=rf"^r7: needs {row.length} token positions, at most {row.length - 1} fit"):
        pad_row(row, row.length - 1, 2, "r7")
    with pytest.raises(UserError, match=r"^r7: has 2 masks, at most 1 fit"):
        pad_row(row, row.length, 1, "r7")
    assert smallest_bucket(9, (16, 8, 10), "r7") == 10
    assert smallest_bucket(8, (16, 8, 10), "r7") == 8


@pytest.mark.parametrize("template", [TRAIN, "train_phi_v0_vision_tags"])
def test_lengths_are_those_of_the_expanded_rows(small_tokenizer, template):
    texts = [("two tanks", ANSWER), ("  the lake \n", "None."), ("Zürich " * 30, "[SEG]"), ("a", "")]
    expected = [expand(encode_training(small_tokenizer, template, *text), 9).length for text in texts]
    assert training_lengths(small_tokenizer, template, texts, 9).tolist() == expected
    assert training_lengths(small_tokenizer, template, [], 9).tolist() == []


def test_lengths_where_the_instruction_stands_in_the_prompt(small_tokenizer, monkeypatch):
    inline = dataclasses.replace(conversation.TEMPLATES["eval_llama2"], separator=" \n")
    monkeypatch.setattr(conversation, "TEMPLATES", {"inline": inline})
    texts = [("two tanks", ANSWER), (" the lake ", "None.")]
    expected = [expand(encode_training(small_tokenizer, "inline", *text), 9).length for text in texts]
    assert training_lengths(small_tokenizer, "inline", texts, 9).tolist() == expected
