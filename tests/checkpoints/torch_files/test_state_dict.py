"""A file or a folder of weights becomes tensors by name; an index is believed only as far as its shards agree."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from segearth_r2_jax.checkpoints.torch_files.state_dict import BIN, BIN_INDEX, INDEX, SINGLE, read_state_dict, stored_names
from segearth_r2_jax.errors import UserError

TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.bias": np.ones(2, np.float16),
    "norm.weight": np.arange(3.0),
}
SHARDS = {"layer.weight": 1, "layer.bias": 1, "norm.weight": 2}


def save(tensors, file) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
        return
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files are not checked")
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, file)


@pytest.fixture(params=[".safetensors", ".bin"])
def suffix(request) -> str:
    return request.param


@pytest.fixture
def sharded(tmp_path, suffix):
    """Two shards and their index; calling it changes the index's weight_map."""
    stem, index = ("model", INDEX) if suffix == ".safetensors" else ("pytorch_model", BIN_INDEX)
    weight_map = {name: f"{stem}-{number:05d}-of-00002{suffix}" for name, number in SHARDS.items()}
    for file in set(weight_map.values()):
        save({name: TENSORS[name] for name in TENSORS if weight_map[name] == file}, tmp_path / file)

    def change(edit=lambda weight_map: None):
        edit(weight_map)
        (tmp_path / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        return tmp_path

    change.index = tmp_path / index
    change()
    return change


def assert_whole(read) -> None:
    assert read.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert read[name].name == name
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype)
        assert np.asarray(read[name]).tobytes() == array.tobytes()


def test_a_single_file_by_its_name_or_its_folder(tmp_path, suffix):
    file = tmp_path / (SINGLE if suffix == ".safetensors" else BIN)
    save(TENSORS, file)
    assert_whole(read_state_dict(file))
    assert_whole(read_state_dict(str(tmp_path)))
    assert stored_names(tmp_path) == (file.name,)


def test_shards_by_their_folder_or_their_index(sharded):
    assert_whole(read_state_dict(sharded.index.parent))
    assert_whole(read_state_dict(sharded.index))
    assert stored_names(sharded.index.parent) == (sharded.index.name,)


def test_safetensors_are_preferred_as_transformers_does(tmp_path):
    save(TENSORS, tmp_path / SINGLE)
    (tmp_path / BIN).write_bytes(b"never opened")
    assert stored_names(tmp_path) == (SINGLE, BIN)
    assert_whole(read_state_dict(tmp_path))


def test_a_single_file_beside_shards_is_ambiguous(sharded, suffix):
    single = SINGLE if suffix == ".safetensors" else BIN
    folder = sharded.index.parent
    save({"stale": np.ones(2)}, folder / single)
    with pytest.raises(UserError, match=f"{folder}: holds {single} and {sharded.index.name}; expected one of them"):
        read_state_dict(folder)
    assert_whole(read_state_dict(sharded.index))


def test_a_shard_that_is_a_link_elsewhere_is_read(sharded, tmp_path_factory):
    """As in the cache of the Hugging Face hub."""
    folder = sharded.index.parent
    shard = next(file for file in folder.iterdir() if "00001" in file.name)
    elsewhere = tmp_path_factory.mktemp("blobs") / "0123abc"
    shutil.move(shard, elsewhere)
    shard.symlink_to(elsewhere)
    assert_whole(read_state_dict(folder))


def test_an_empty_folder_and_no_folder(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no {SINGLE} and no {INDEX} there, and no {BIN} and no {BIN_INDEX}"):
        read_state_dict(tmp_path)
    for name in ("absent", "absent.bin", "absent.safetensors", INDEX):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "..", ".", "", "sub\\file", "a\0b", "..\n/x"])
def test_an_index_may_not_point_outside_its_folder(sharded, name):
    folder = sharded(lambda weight_map: weight_map.update({"layer.bias": name}))
    with pytest.raises(UserError, match="expected the name of a file in the same folder") as refusal:
        read_state_dict(folder)
    assert "\n" not in str(refusal.value)


def test_an_index_must_agree_with_its_shards(sharded):
    def rename(weight_map):
        weight_map["other"] = weight_map.pop("layer.bias")

    with pytest.raises(UserError, match=r"has key layer.bias, which .* places in no file"):
        read_state_dict(sharded(rename))
    with pytest.raises(UserError, match=r"places key other in .*, which does not have it"):
        read_state_dict(sharded(lambda weight_map: weight_map.update({"layer.bias": weight_map["other"]})))
    with pytest.raises(UserError, match=r"has key layer.bias, which .* places in .*00002-of-00002"):
        read_state_dict(sharded(lambda weight_map: weight_map.update({"layer.bias": weight_map["norm.weight"]})))


def test_a_missing_shard_is_named(sharded):
    sharded(lambda weight_map: (sharded.index.parent / weight_map["layer.bias"]).unlink())
    with pytest.raises(UserError, match=r"model-00001-of-00002\.[a-z]+: no such file"):
        read_state_dict(sharded.index.parent)


def test_a_truncated_shard_is_named(sharded):
    shard = next(file for file in sharded.index.parent.iterdir() if "00002" in file.name and file != sharded.index)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{shard}: not a whole"):
        read_state_dict(sharded.index.parent)


def test_a_key_in_two_shards_is_a_duplicate(sharded):
    folder = sharded(lambda weight_map: weight_map.update(more=weight_map["norm.weight"]))
    save({**TENSORS, "more": np.ones(1)}, folder / json.loads(sharded.index.read_text())["weight_map"]["more"])
    with pytest.raises(UserError, match=r"00002-of-00002\.[a-z]+: duplicate key layer.(weight|bias): another shard has it too"):
        read_state_dict(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_a_broken_index_is_refused_by_name(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=INDEX):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list; expected a dict of tensors by name"),
        ({"epoch": 3}, "key epoch holds a int; expected tensors by name only"),
        ({"model": {"a": 1}}, "key model holds a dict; expected tensors by name only"),
        ({1: 2}, "key a int holds a int; expected tensors by name only"),
    ],
)
def test_a_file_of_something_else_than_tensors_by_name(tmp_path, content, message):
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files are not checked")
    torch.save(content, tmp_path / BIN)
    with pytest.raises(UserError, match=f"{tmp_path / BIN}: {message}"):
        read_state_dict(tmp_path)
