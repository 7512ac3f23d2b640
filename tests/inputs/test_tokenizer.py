"""A tokenizer comes from its file alone, with [SEG] and with padding = end of text."""

from __future__ import annotations

import json
import pickle

import pytest
from cloud_bucket import bucket_in_memory

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer


def test_saved_and_loaded_it_is_the_same(small_tokenizer, tmp_path):
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert len(loaded) == len(small_tokenizer)
        assert loaded.seg_id == small_tokenizer.seg_id == len(loaded) - 1
        assert loaded.end_id == small_tokenizer.end_id
        text = "Zürich: two tanks [SEG][SEG]<|endoftext|>\n  end"
        assert loaded.encode(text) == small_tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def test_it_may_be_in_cloud_storage(small_tokenizer):
    with bucket_in_memory() as bucket:
        save_tokenizer(small_tokenizer, "gs://bucket/run/tokenizer.json")
        assert [name.rpartition("/")[2] for name in bucket.find("gs://bucket/run")] == ["tokenizer.json"]
        for path in ("gs://bucket/run", "gs://bucket/run/tokenizer.json"):
            assert load_tokenizer(path).to_json() == small_tokenizer.to_json()
        with pytest.raises(UserError, match="gs://bucket/other: no such file"):
            load_tokenizer("gs://bucket/other")


def test_the_seg_token_is_added_where_it_is_missing(small_tokenizer, tmp_path):
    content = json.loads(small_tokenizer.to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[SEG]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("a [SEG] b") == small_tokenizer.encode("a [SEG] b")


def test_the_same_texts_give_the_same_tokenizer():
    texts = ["the large tank", "the tank at the lake"]
    first, second = (train_tokenizer(texts, vocab_size=270) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert len(first) == 271


def test_transformers_reads_what_is_saved_and_says_the_same(small_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert len(theirs) == len(small_tokenizer)
    assert theirs.convert_tokens_to_ids("[SEG]") == small_tokenizer.seg_id
    for text in ("Zürich: two tanks [SEG][SEG]<|endoftext|>\n  end", " a [SEG] , b .", "漢字 🛩️  \t"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert small_tokenizer.encode(text) == ids
        assert small_tokenizer.encode_all([text, "a"]) == [ids, theirs.encode("a", add_special_tokens=False)]
        assert small_tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_file_that_cuts_or_pads_is_read_without_that(small_tokenizer, tmp_path):
    content = json.loads(small_tokenizer.to_json())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "the large tanks at the lake"
    assert load_tokenizer(tmp_path).encode(text) == small_tokenizer.encode(text)


def test_it_travels_to_worker_processes(small_tokenizer):
    copy = pickle.loads(pickle.dumps(small_tokenizer))
    assert copy.encode("a tank [SEG]") == small_tokenizer.encode("a tank [SEG]")
    assert (copy.end_id, copy.seg_id) == (small_tokenizer.end_id, small_tokenizer.seg_id)


def test_a_wrong_file_is_named(tmp_path, small_tokenizer):
    with pytest.raises(UserError, match=r"tokenizer.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
        load_tokenizer(tmp_path)
    content = small_tokenizer.to_json().replace("<|endoftext|>", "<|stop|>")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"has no <\|endoftext\|> token"):
        load_tokenizer(tmp_path)
