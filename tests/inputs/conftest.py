"""A tokenizer that needs no file: fitted to the words that the prompts use."""

from __future__ import annotations

import pytest

from segearth_r2_jax.inputs import conversation, tokenizer


@pytest.fixture(scope="session")
def small_tokenizer():
    texts = [words.before_image + words.after_image + words.before_answer for words in conversation.TEMPLATES.values()]
    return tokenizer.train_tokenizer([*texts, "Where can aircraft park? Sure, it is [SEG]."], vocab_size=400)
