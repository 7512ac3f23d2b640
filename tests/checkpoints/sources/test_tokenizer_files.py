"""Tokenizers on their way: fast and slow files, [SEG] added by the reference's rule, nothing else changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from source_files import random_weights, tiny_config, write_merged, write_slow_tokenizer, write_tokenizer_without_seg

from segearth_r2_jax.checkpoints.sources.open import open_source
from segearth_r2_jax.checkpoints.sources.tokenizer_files import has_tokenizer, tokens_with_seg, write_tokenizer
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer

TEXTS = ("the river bank  and the road", "Ünïcode, 1234\n\n   end<|endoftext|> a", "here: [SEG] and [SEG]", "\t\tx   y", " lead")
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def source(tmp_path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_seg_is_added_behind_all_tokens_and_the_rest_stays(source, target):
    n = write_tokenizer_without_seg(source)
    assert tokens_with_seg(source) == (n + 1, False)
    assert write_tokenizer(source, target)
    assert tokens_with_seg(target) == (n + 1, True)
    before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (source, target))
    added = {"id": n, "content": "[SEG]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    assert after["added_tokens"] == [*before["added_tokens"], added]
    assert (after["model"]["vocab"], after["pre_tokenizer"]) == (before["model"]["vocab"], before["pre_tokenizer"])
    # The product's own reader adds the token in the same way to a file without it.
    ours, theirs = load_tokenizer(target), load_tokenizer(source)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert n in ours.encode("here: [SEG]")


def test_a_gap_in_the_numbers_of_the_tokens_counts_as_rows(source):
    n = write_tokenizer_without_seg(source)
    content = json.loads((source / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = n + 6
    content["added_tokens"].append({**content["added_tokens"][0], "id": n + 6, "content": last})
    (source / "tokenizer.json").write_text(json.dumps(content))
    assert tokens_with_seg(source) == (n + 8, False)


def test_a_tokenizer_that_has_seg_keeps_its_bytes(source, target):
    write_tokenizer_without_seg(source)
    write_tokenizer(source, target)
    (target / "tokenizer_config.json").write_text('{"tokenizer_class":   "CodeGenTokenizer"}')
    again = target.parent / "again"
    again.mkdir()
    assert not write_tokenizer(target, again)
    assert {name: (again / name).read_bytes() for name in os.listdir(again)} == {
        name: (target / name).read_bytes() for name in os.listdir(target)
    }


def test_a_slow_tokenizers_files_become_a_tokenizer_json_of_the_same_ids(source, target):
    n = write_tokenizer_without_seg(source / "fast")
    write_slow_tokenizer(source, {"  ": n, "\t\t": n + 1, "[SEG]": n + 2})
    assert has_tokenizer(source)
    assert tokens_with_seg(source) == (n + 3, True)
    assert not write_tokenizer(source, target)
    plain = json.loads(load_tokenizer(source / "fast").to_json())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "[SEG]"]
    (source / "fast" / "tokenizer.json").write_text(json.dumps(plain))
    theirs, ours = load_tokenizer(source / "fast"), load_tokenizer(target)
    for text in ("the river bank and the road", "Ünïcode, 1234\n end<|endoftext|> a", "here: [SEG] and", " lead"):
        expected = [n + 2 if number == theirs.seg_id else number for number in theirs.encode(text)]
        assert ours.encode(text) == expected
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert [ours.decode([number]) for number in ours.encode("a  \t\tb")[1:3]] == ["  ", "\t\t"]
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_the_slow_files_learn_of_a_token_that_is_added(source, target):
    n = write_tokenizer_without_seg(source / "fast")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    write_slow_tokenizer(source, {"  ": n}, {"added_tokens_decoder": {str(n): {"content": "  ", **flags}}, "model_max_length": 2048})
    assert write_tokenizer(source, target)
    assert json.loads((target / "added_tokens.json").read_text()) == {"  ": n, "[SEG]": n + 1}
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"][str(n + 1)] == {"content": "[SEG]", **flags}
    assert config["model_max_length"] == 2048
    assert tokens_with_seg(target) == (n + 2, True)
    (target / "tokenizer.json").unlink()  # and the slow ones alone say the same
    assert tokens_with_seg(target) == (n + 2, True)


def test_transformers_reads_what_was_built_and_says_the_same(source, target):
    from transformers import AutoTokenizer

    n = write_tokenizer_without_seg(source / "fast")
    write_slow_tokenizer(source, {"  ": n})
    write_tokenizer(source, target)
    theirs, ours = AutoTokenizer.from_pretrained(str(target), local_files_only=True), load_tokenizer(target)
    assert theirs.convert_tokens_to_ids("[SEG]") == n + 1 == ours.seg_id
    assert [theirs.encode(text, add_special_tokens=False) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer\.json"),
        ("tokenizer.json", "\0\0", r"tokenizer\.json: not a tokenizer\.json"),
        ("merges.txt", "#version: 0.2\na b c d\n", r"vocab\.json and merges\.txt are no tokenizer"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json and merges\.txt are no tokenizer"),
        ("added_tokens.json", '{"[SEG]": 9000}', r"the added token '\[SEG\]' has number 9000, but \d+ would be the next one"),
        ("added_tokens.json", '{"[SEG]": "x"}', "its added tokens cannot be read"),
        ("special_tokens_map.json", '{"eos_token": 3.5, "pad_token": [[]]}', "its added tokens cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [3]}', "its added tokens cannot be read"),
        ("tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}', "tokenizer_class is 'LlamaTokenizer'; without tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(source, target, name, content, message):
    write_slow_tokenizer(source, {})
    (source / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_tokenizer(source, target)
    assert not os.listdir(target)


def test_a_folder_without_a_tokenizer_says_so(source, target):
    write_slow_tokenizer(source, {})
    (source / "merges.txt").unlink()
    assert not has_tokenizer(source)
    with pytest.raises(UserError, match=r"no tokenizer\.json, and no merges\.txt"):
        write_tokenizer(source, target)


def test_a_merged_checkpoint_without_seg_gets_a_row_for_it_unless_its_table_is_padded(tmp_path):
    for rows, expected in ((300, 300), (0, None)):
        n = write_tokenizer_without_seg(tmp_path / "tokenizer")
        config = tiny_config(embed_rows=rows or n)
        weights = random_weights(config)
        folder = write_merged(tmp_path / f"merged_{rows}", weights, config)
        write_tokenizer_without_seg(folder)
        opened = open_source(folder)
        table = opened.tensors[EMBEDDING]
        assert opened.kind == "merged SegEarth-R2 checkpoint"
        assert table.shape == (expected or n + 1, 96)
        assert table.load()[:n].tobytes() == weights[EMBEDDING][:n].tobytes()
        if expected is None:
            assert opened.origins[EMBEDDING].transform == "as stored, 1 rows added: initialised: normal 0.02, seed 0"
            assert opened.config["vocab_size"] == n + 1
            assert 0.01 < table.load()[-1].std() < 0.03
        else:
            assert opened.origins[EMBEDDING].transform == "as stored"
