"""Writing safetensors: exact, one tensor at a time, all or nothing, and read by the libraries that people have."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import stored_examples

from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import write_safetensors, write_safetensors_file
from segearth_r2_jax.checkpoints.torch_files.state_dict import INDEX, SINGLE
from segearth_r2_jax.errors import UserError


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return {
        **stored_examples.tensors(),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "reversed": np.arange(9, dtype=np.int32)[::-2],
    }


def layout_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (array.shape, array.dtype) for name, array in tensors.items()}


def read(folder: Path) -> dict[str, np.ndarray]:
    """With the library of the format's authors."""
    read = {}
    for path in sorted(folder.glob("*.safetensors")):
        read.update(safetensors.numpy.load_file(path))
    return read


def bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


@pytest.mark.parametrize("max_shard_bytes", [1e9, 30, 1])
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "in another order"])
def test_every_dtype_and_shape_is_written_exactly(tmp_path, tensors, max_shard_bytes, backwards):
    given = reversed(tensors.items()) if backwards else tensors.items()
    total = write_safetensors(tmp_path, given, layout_of(tensors), max_shard_bytes=max_shard_bytes)
    assert total == sum(array.nbytes for array in tensors.values())
    assert bits(read(tmp_path)) == bits(tensors)
    files = sorted(os.listdir(tmp_path))
    if max_shard_bytes == 1e9:
        assert files == [SINGLE]
        return
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == total
    assert files == sorted({INDEX, *index["weight_map"].values()})
    assert f"model-00001-of-{len(files) - 1:05d}.safetensors" in files
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)
    sizes = [sum(tensors[name].nbytes for name in index["weight_map"] if index["weight_map"][name] == file) for file in files[:-1]]
    assert all(size <= max(max_shard_bytes, 16 * 3) for size in sizes)


def test_one_file_by_any_name(tmp_path, tensors):
    write_safetensors_file(tmp_path / "adapter_model.safetensors", tensors.items(), layout_of(tensors))
    assert os.listdir(tmp_path) == ["adapter_model.safetensors"]
    assert bits(read(tmp_path)) == bits(tensors)


def test_torch_reads_what_is_written(tmp_path, tensors):
    torch = pytest.importorskip("torch", reason="torch is not installed: its reading of our files is not checked")
    from safetensors.torch import load_file

    write_safetensors(tmp_path, tensors.items(), layout_of(tensors))
    loaded = load_file(tmp_path / SINGLE)
    assert loaded.keys() == tensors.keys()
    assert loaded["brain"].dtype == torch.bfloat16
    assert torch.equal(loaded["transposed"], torch.tensor(tensors["transposed"]))
    assert torch.equal(loaded["double"], torch.tensor(tensors["double"]))


@pytest.mark.parametrize("max_shard_bytes", [1e9, 4000], ids=["one file", "shards"])
def test_transformers_loads_what_is_written(tmp_path, max_shard_bytes):
    torch = pytest.importorskip("torch", reason="torch is not installed: transformers' reading of our files is not checked")
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
    model = PhiForCausalLM(config).eval()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_safetensors(tmp_path, weights.items(), layout_of(weights), max_shard_bytes=max_shard_bytes)
    config.save_pretrained(tmp_path)
    assert (tmp_path / INDEX).exists() == (max_shard_bytes == 4000)
    loaded, notes = PhiForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values()), notes
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_no_more_than_one_tensor_is_in_memory(tmp_path):
    count, shape = 8, (1 << 20,)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for number in range(count):
            yield str(number), np.full(shape, number, np.float32)

    tracemalloc.start()
    write_safetensors(tmp_path, stream(), {str(number): (shape, np.dtype(np.float32)) for number in range(count)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The generator makes the next one while the loop variable still holds the one before.
    assert peak < 3 * 4 * shape[0]
    assert [array[0] for _, array in sorted(read(tmp_path).items())] == list(range(count))


def failing(tensors):
    yield from list(tensors.items())[:-1]
    raise RuntimeError("the source broke")


@pytest.mark.parametrize("max_shard_bytes", [1e9, 1])
def test_a_failure_while_writing_leaves_nothing(tmp_path, tensors, max_shard_bytes):
    with pytest.raises(RuntimeError, match="the source broke"):
        write_safetensors(tmp_path, failing(tensors), layout_of(tensors), max_shard_bytes=max_shard_bytes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [*t.items(), ("flag", t["flag"])], "flag comes twice"),
        (lambda t: [*t.items(), ("other", t["flag"])], "other is not in the layout"),
        (lambda t: [*t.items()][1:], r"flag is in the layout and did not come \(1 in all\)"),
        (lambda t: {**t, "half": t["half"].T}.items(), r"half is float16\[3, 2\]; the layout says float16\[2, 3\]"),
        (lambda t: {**t, "half": t["half"].astype(">f2")}.items(), "half is >f2"),
    ],
)
def test_tensors_that_are_not_those_of_the_plan_are_refused(tmp_path, tensors, change, message):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path, change(tensors), layout_of(tensors))
    assert os.listdir(tmp_path) == []


def test_a_dtype_that_the_format_does_not_have_is_refused(tmp_path):
    array = np.zeros(2, np.complex128)
    with pytest.raises(UserError, match="key wave: safetensors files cannot hold complex128"):
        write_safetensors(tmp_path, [("wave", array)], layout_of({"wave": array}))


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match=rf"^{tmp_path}: [\d,]+ bytes are needed there, 10 are free"):
        write_safetensors(tmp_path, tensors.items(), layout_of(tensors))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path):
    array = np.zeros(100_000, np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be written \(File too large\); [\d,]+ bytes are needed there$"):
            write_safetensors(tmp_path, [("big", array)], layout_of({"big": array}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_target_that_is_a_file_is_one_line(tmp_path, tensors):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written \(File exists\)"):
        write_safetensors(tmp_path / "file", tensors.items(), layout_of(tensors))
