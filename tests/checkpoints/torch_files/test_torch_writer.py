"""PyTorch's `.bin` without PyTorch: what torch reads from it, also mapped and also when it may build tensors only."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import resource
import zipfile

import numpy as np
import pytest
import stored_examples

from segearth_r2_jax.checkpoints.torch_files import torch_writer
from segearth_r2_jax.checkpoints.torch_files.torch_writer import write_torch_file
from segearth_r2_jax.errors import UserError


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return {
        **stored_examples.tensors(),
        "transposed": np.arange(24.0).reshape(2, 3, 4).T,
        "名": np.ones(2, np.float32),
    }


def layout_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (array.shape, array.dtype) for name, array in tensors.items()}


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_every_dtype_and_shape_exactly(tmp_path, tensors, mapped):
    torch = pytest.importorskip("torch", reason="torch is not installed: its reading of our files is not checked")
    path = tmp_path / "weights.bin"
    total = write_torch_file(path, tensors.items(), layout_of(tensors))
    assert total == sum(array.nbytes for array in tensors.values())
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert list(loaded) == list(tensors)
    for name, array in tensors.items():
        tensor = loaded[name]
        assert str(tensor.dtype).removeprefix("torch.") == array.dtype.name
        assert tuple(tensor.shape) == array.shape
        assert tensor.is_contiguous()
        assert bytes(tensor.reshape(-1).view(torch.uint8).numpy()) == array.tobytes()
        tensor.requires_grad_(tensor.is_floating_point())


def test_the_archive_is_what_torch_makes(tmp_path, tensors):
    path = tmp_path / "weights.bin"
    write_torch_file(path, tensors.items(), layout_of(tensors))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        assert {entry.filename for entry in entries} == {
            *(f"archive/{name}" for name in ("data.pkl", "byteorder", "version")),
            *(f"archive/data/{number}" for number in range(len(tensors))),
        }
        pickletools.dis(archive.read("archive/data.pkl"), out=io.StringIO())  # which checks it
        content = path.read_bytes()
        for entry in entries:
            if size := entry.file_size:
                name_size, extra_size = (int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28))
                begin = entry.header_offset + 30 + name_size + extra_size
                assert begin % 64 == 0
                assert content[begin : begin + size] == archive.read(entry)


def test_sizes_above_the_limits_of_small_integers_and_plain_zip(tmp_path, monkeypatch):
    """With the zip limit lowered, instead of a file of 4 GiB."""
    assert [torch_writer._integer(value)[1:] for value in (0, 2**31 - 1)] == [bytes(4), b"\xff\xff\xff\x7f"]
    for value in (2**31, 2**31 + 1, 2**39 - 1, 2**39, 2**40):
        assert pickle.loads(b"\x80\x02" + torch_writer._integer(value) + b".") == value
    monkeypatch.setattr(torch_writer, "_ZIP64", 16)
    torch = pytest.importorskip("torch", reason="torch is not installed: its reading of our files is not checked")
    array = np.arange(100, dtype=np.float32)
    write_torch_file(tmp_path / "large.bin", [("a", array)], layout_of({"a": array}))
    for mapped in (False, True):
        assert np.array_equal(torch.load(tmp_path / "large.bin", weights_only=True, mmap=mapped)["a"].numpy(), array)


def test_the_same_tensors_give_the_same_file(tmp_path, tensors):
    for name in ("a", "b"):
        write_torch_file(tmp_path / name, tensors.items(), layout_of(tensors))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_cannot_be_written_leaves_nothing(tmp_path, tensors):
    with pytest.raises(ValueError, match="nothing is in the layout and did not come"):
        write_torch_file(tmp_path / "x.bin", list(tensors.items())[:-3], layout_of(tensors))
    with pytest.raises(ValueError, match="flag comes twice"):
        write_torch_file(tmp_path / "x.bin", [*tensors.items()][:1] * 2, layout_of(tensors))
    with pytest.raises(UserError, match="key wave: PyTorch files cannot hold uint32"):
        write_torch_file(tmp_path / "x.bin", [], {"wave": ((1,), np.dtype(np.uint32))})
    array = np.zeros(100_000, np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be written \(File too large\)"):
            write_torch_file(tmp_path / "x.bin", [("big", array)], layout_of({"big": array}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
