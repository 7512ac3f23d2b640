"""safetensors in and out: exact, lazy, and suspicious of what it is given."""

from __future__ import annotations

import json
import os

import ml_dtypes
import numpy as np
import pytest

from segearth_r2_jax.checkpoints.torch_io import INDEX, SINGLE, read_safetensors, write_safetensors
from segearth_r2_jax.errors import UserError


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16),
        "single": np.float32([[np.pi]]),
        "double": np.array([np.pi, 5e-324]),
        "index": np.array([[2**62, -1]]),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "flag": np.array([True, False]),
    }


def same(read, written) -> bool:
    array = np.asarray(read)
    return (array.dtype, array.shape, array.tobytes()) == (written.dtype, written.shape, written.tobytes())


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30, 1])
def test_every_dtype_is_written_and_read_exactly(tmp_path, tensors, max_shard_bytes):
    total = write_safetensors(tmp_path, tensors.items(), max_shard_bytes=max_shard_bytes)
    assert total == sum(array.nbytes for array in tensors.values())
    read = read_safetensors(tmp_path)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype)
        assert same(read[name], array)
    files = sorted(os.listdir(tmp_path))
    if max_shard_bytes == 10**9:
        assert files == [SINGLE]
        assert read_safetensors(tmp_path / SINGLE).keys() == tensors.keys()
    else:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == total
        assert files == sorted({INDEX, *index["weight_map"].values()})
        assert f"model-00001-of-{len(files) - 1:05d}.safetensors" in files


def test_torch_reads_what_is_written(tmp_path, tensors):
    torch = pytest.importorskip("torch", reason="torch is not installed: its reading of our files is not checked")
    from safetensors.torch import load_file

    write_safetensors(tmp_path, tensors.items())
    loaded = load_file(tmp_path / SINGLE)
    assert loaded["brain"].dtype == torch.bfloat16
    assert torch.equal(loaded["transposed"], torch.tensor(tensors["transposed"]))


def test_a_failure_while_writing_leaves_nothing(tmp_path, tensors):
    def failing():
        yield from tensors.items()
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_safetensors(tmp_path, failing(), max_shard_bytes=1)
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no {SINGLE}"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "huge header", "duplicate key"])
def test_a_broken_file_is_refused_by_name(tmp_path, tensors, content):
    write_safetensors(tmp_path, tensors.items())
    path = tmp_path / SINGLE
    data = path.read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is no weights file at all, only text that somebody renamed",
            "truncated": data[:-10],
            "huge header": (2**60).to_bytes(8, "little") + data[8:],
            "duplicate key": len(header).to_bytes(8, "little") + header + bytes(8),
        }[content]
    )
    with pytest.raises(UserError, match=f"{path}: not a whole safetensors file"):
        read_safetensors(tmp_path)


@pytest.fixture
def shards(tmp_path, tensors):
    write_safetensors(tmp_path, tensors.items(), max_shard_bytes=1)
    index = json.loads((tmp_path / INDEX).read_text())

    def change(edit):
        edit(index["weight_map"])
        (tmp_path / INDEX).write_text(json.dumps(index))
        return tmp_path

    return change


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "..", "", "sub\\file"])
def test_an_index_may_not_point_outside_its_folder(shards, name):
    folder = shards(lambda weight_map: weight_map.update(half=name))
    with pytest.raises(UserError, match="expected the name of a file in the same folder"):
        read_safetensors(folder)


def test_an_index_must_agree_with_its_shards(shards):
    def rename(weight_map):
        weight_map["other"] = weight_map.pop("half")

    with pytest.raises(UserError, match=r"has key half, which .* places in no file"):
        read_safetensors(shards(rename))
    with pytest.raises(UserError, match=r"places key other in .*, which does not have it"):
        read_safetensors(shards(lambda weight_map: weight_map.update(half=weight_map["other"])))


def test_a_missing_shard_is_named(shards, tmp_path):
    shards(lambda weight_map: (tmp_path / weight_map["half"]).unlink())
    with pytest.raises(UserError, match=r"model-00001-of-00007.safetensors: no such file"):
        read_safetensors(tmp_path)


def test_a_key_in_two_shards_is_a_duplicate(tmp_path, tensors):
    write_safetensors(tmp_path, tensors.items())
    (tmp_path / SINGLE).rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    weight_map = {**dict.fromkeys(tensors, "a.safetensors"), "more": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"b.safetensors: duplicate key"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_a_broken_index_is_refused_by_name(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=INDEX):
        read_safetensors(tmp_path)
