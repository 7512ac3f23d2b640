"""The tiny preset's stored tokenizer: made from the drawn world's words alone, and fit for any text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.records import TRAIN_SHARES, make_instructions
from data_pipeline.grammar.tokenizer import TINY_TOKENIZER, main
from data_pipeline.synthetic.scene import draw_scene
from segearth_r2_jax.inputs.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY_TOKENIZER)


def test_the_stored_file_is_what_the_words_give(tmp_path):
    assert main(["--output", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(TINY_TOKENIZER.read_text())


def test_it_is_small_and_has_the_tokens_that_the_model_needs(tokenizer):
    assert 512 <= len(tokenizer) <= 1024
    assert tokenizer.seg_id == len(tokenizer) - 1
    assert tokenizer.decode([tokenizer.end_id]) == "<|endoftext|>"
    assert tokenizer.encode("It is [SEG].<|endoftext|>").count(tokenizer.seg_id) == 1


@pytest.mark.parametrize("text", ["", " ", "the lake", "\n\n  two\tlines ", "Größe, naïve, 漢字, 🛩️", "".join(map(chr, range(1, 512)))])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_are_split_as_the_label_rules_expect(tokenizer):
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode(" ASSISTANT: \nSure, the <p>lake</p>[SEG].")]
    assert tokens[:5] == [" ASSISTANT", ":", " ", "\n", "Sure"]


def test_drawn_instructions_take_few_tokens(tokenizer):
    lengths = []
    for index in range(10):
        for made in make_instructions(Facts(draw_scene((1, index), 64, world="simple")), 4, TRAIN_SHARES, np.random.default_rng(index)):
            lengths.append(len(tokenizer.encode(made.description + made.answer)))
    assert np.mean(lengths) < 40
    assert max(lengths) < 140
