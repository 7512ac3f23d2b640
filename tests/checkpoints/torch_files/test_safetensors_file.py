"""safetensors headers: exact, read in place, and suspicious of what they claim."""

from __future__ import annotations

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest
import stored_examples
from safetensors.numpy import save_file

from segearth_r2_jax.checkpoints.torch_files.safetensors_file import DTYPES, read_safetensors_file
from segearth_r2_jax.errors import UserError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def tensors() -> dict[str, np.ndarray]:
    return {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16),
        "single": np.float32([[np.pi]]),
        "double": np.array([np.pi, 5e-324]),
        "scalar": np.array(7, np.int8),
        "empty": np.zeros((3, 0), np.float32),
        "flag": np.array([True, False]),
    }


def written(file, header, data: bytes = b"", length: int | None = None):
    """A file with this header, an object or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_the_library_writes_is_read_bit_for_bit(file):
    save_file(tensors(), file, metadata={"format": "pt"})
    read = read_safetensors_file(file)
    assert read.keys() == tensors().keys()
    for name, array in tensors().items():
        tensor = read[name]
        assert (tensor.name, tensor.shape, tensor.dtype, tensor.nbytes) == (name, array.shape, array.dtype, array.nbytes)
        loaded = np.asarray(tensor)
        assert (loaded.shape, loaded.dtype, loaded.tobytes()) == (array.shape, array.dtype, array.tobytes())


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(file, name):
    """Against torch, which knows the names of all of them."""
    torch = pytest.importorskip("torch", reason="torch is not installed: the names of the dtypes are not checked")
    from safetensors.torch import save_file

    torch_name = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}.get(name.rstrip("0123456789"), name.lower()) + name.lstrip(
        "BFIUOL"
    )
    dtype = {"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}.get(name) or getattr(torch, torch_name)
    stored = torch.randint(0, 256, (24,), dtype=torch.uint8)
    stored = stored > 127 if name == "BOOL" else stored.view(dtype)
    save_file({"x": stored}, file)
    tensor = read_safetensors_file(file)["x"]
    assert f'"{name}"'.encode() in file.read_bytes()
    assert tensor.load().tobytes() == stored.view(torch.uint8).numpy().tobytes()
    if "8" not in name and name not in ("BF16",):
        np.testing.assert_array_equal(tensor.load(), stored.numpy())


def test_tensors_are_views_of_the_file_in_its_order(file):
    save_file(tensors(), file)
    read = read_safetensors_file(file)
    loaded = read["half"].load()
    assert not loaded.flags.writeable
    assert not loaded.flags.owndata
    assert np.shares_memory(loaded, read["half"].load())
    read["half"].release()
    assert loaded.tobytes() == tensors()["half"].tobytes()
    positions = [tensor.load().ctypes.data for tensor in read.values() if tensor.nbytes]
    assert positions == sorted(positions)


def test_a_tensor_keeps_its_values_under_another_name_and_dtype(file):
    save_file(tensors(), file)
    tensor = read_safetensors_file(file)["half"].renamed("other")
    assert tensor.name == "other"
    assert np.asarray(tensor, np.float32).dtype == np.float32
    copy = np.array(tensor)
    copy[:] = 0
    np.testing.assert_array_equal(np.asarray(tensor), tensors()["half"])
    assert "load" not in repr(tensor)


def test_a_header_without_tensors_and_one_that_is_padded(file):
    assert read_safetensors_file(written(file, {})) == {}
    assert read_safetensors_file(written(file, {"__metadata__": {"format": "pt"}})) == {}
    padded = json.dumps({"a": entry()}).encode() + b"   "
    assert np.asarray(read_safetensors_file(written(file, padded, np.float32([2]).tobytes()))["a"]) == [2]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"", "its tensors take 4 bytes, 0 are there"),
        ({"a": entry()}, bytes(3), "its tensors take 4 bytes, 3 are there"),
        ({"a": entry()}, bytes(5), "its tensors take 4 bytes, 5 are there"),
        ({}, bytes(1), "its tensors take 0 bytes, 1 are there"),
        ({"a": entry(shape=[2])}, bytes(4), r"key a: 4 bytes for \[2\] of F32"),
        ({"a": entry(dtype="F64")}, bytes(4), r"key a: 4 bytes for \[1\] of F64"),
        ({"a": entry(shape=[2**62, 4], offsets=[0, 0])}, b"", "key a: its shape is none"),
        ({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b"", "key a: its shape is none"),
        ({"a": entry(shape=[0, 2**62], offsets=[0, 0])}, b"", "key a: its shape is none"),
        ({"a": entry(shape=[1] * 65)}, bytes(4), "key a: its shape is none"),
        ({"a": entry(shape=[-1])}, bytes(4), "key a: its shape is none"),
        ({"a": entry(shape=[1.0])}, bytes(4), "key a: its shape is none"),
        ({"a": entry(shape=[True])}, bytes(4), "key a: its shape is none"),
        ({"a": {**entry(), "shape": "1"}}, bytes(4), "key a: its shape is none"),
        ({"a": entry(offsets=[0])}, bytes(4), "key a: its data_offsets are not two positions"),
        ({"a": entry(offsets=[-4, 0])}, bytes(4), "key a: its data_offsets are not two positions"),
        ({"a": {**entry(), "data_offsets": None}}, bytes(4), "key a: its data_offsets are not two positions"),
        ({"a": entry(offsets=[4, 0])}, bytes(4), "key a: -4 bytes"),
        ({"a": entry(offsets=[2**60, 2**60 + 4])}, bytes(4), "key a begins at byte 1,152,921,504,606,846,976 of the data; expected 0"),
        ({"a": entry(offsets=[4, 8])}, bytes(8), "key a begins at byte 4 of the data; expected 0"),
        ({"a": entry(), "b": entry()}, bytes(4), "key b begins at byte 0 of the data; expected 4"),
        ({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6), "key b begins at byte 2 of the data; expected 4"),
        ({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12), "key b begins at byte 8 of the data; expected 4"),
        ({"a": entry(dtype="F4")}, bytes(4), "key a has dtype 'F4'; expected one of F64, F32, F16, BF16"),
        ({"a": entry(dtype=["F32"])}, bytes(4), "key a has dtype"),
        ({"a": {"dtype": "F32"}}, bytes(4), "key a: expected its dtype, shape and data_offsets"),
        ({"a": {**entry(), "more": 1}}, bytes(4), "key a: expected its dtype, shape and data_offsets"),
        ({"a": [1]}, bytes(4), "key a: expected its dtype, shape and data_offsets"),
        ({"line\nbreak": [1]}, bytes(4), r"key line\\nbreak: expected"),
        (b'{"a": 1, "a": 1}', b"", "duplicate key a"),
        (b'{"a": {"dtype": "F32", "dtype": "F64"}}', b"", "duplicate key dtype"),
        (b"[]", b"", "its header is a JSON list; expected an object"),
        (b"{", b"", "its header is no JSON"),
        (b"", b"", "its header is no JSON"),
        (b"\xff\xfe", b"", "its header is no JSON"),
        (b"[" * 100_000, b"", "its header is no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "its header is no JSON"),
    ],
)
def test_a_header_that_the_file_does_not_bear_out_is_refused(file, header, data, message):
    with pytest.raises(UserError, match=rf"{file}: not a whole safetensors file \(.*{message}") as refusal:
        read_safetensors_file(written(file, header, data))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 10_000, 100_000_001])
def test_a_header_that_claims_more_than_there_is(file, length):
    with pytest.raises(UserError, match=f"its header claims {length:,} bytes, the file has"):
        read_safetensors_file(written(file, {"a": entry()}, bytes(4), length=length))


@pytest.mark.parametrize("content", [b"", b"1234567", b"only text that somebody has renamed"])
def test_what_is_no_such_file_at_all(file, content):
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: not a whole safetensors file"):
        read_safetensors_file(file)


def test_a_file_that_is_not_there_or_a_folder(file, tmp_path):
    with pytest.raises(UserError, match=f"{file}: no such file"):
        read_safetensors_file(file)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read"):
        read_safetensors_file(tmp_path)


def test_every_cut_and_changed_byte_of_a_header_ends_in_values_or_one_line(file):
    save_file(tensors(), file)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    messages = []
    for content in stored_examples.damaged(data, every=5, changed=header):
        file.write_bytes(content)
        with pytest.raises(UserError) if len(content) < len(data) else contextlib.suppress(UserError):
            try:
                for tensor in read_safetensors_file(file).values():
                    tensor.load().tobytes()
            except UserError as error:
                messages.append(str(error))
                raise
    assert len(messages) > header / 2
    assert all(message.startswith(str(file)) and "\n" not in message for message in messages)
