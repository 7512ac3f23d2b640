"""A lazy tensor reads nothing before it is asked, and gives memory back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor, MappedFile
from segearth_r2_jax.errors import UserError

SIZE = 2**23
FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bytes"
    np.arange(SIZE // 4, dtype=np.float32).tofile(path)
    return MappedFile(path)


def resident(file: MappedFile) -> int:
    """Bytes of the mapped file that lie in memory on account of this process."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("no /proc/self/smaps: what is in memory cannot be seen")
    lines = iter(smaps.read_text().splitlines())
    for line in lines:
        if line.endswith(str(file.path)):
            return next(int(field.split()[1]) * 1024 for field in lines if field.startswith("Rss:"))
    raise AssertionError("the file is not mapped")


def test_pages_are_read_when_values_are_looked_at_and_given_back(file):
    array = file.view(FLOAT32, (SIZE // 4,))
    tensor = LazyTensor("x", array.shape, FLOAT32, lambda: array, (file,))
    assert resident(file) == 0
    total = float(np.asarray(tensor).sum(dtype=np.float64))
    assert resident(file) == SIZE
    tensor.release()
    assert resident(file) == 0
    assert float(array.sum(dtype=np.float64)) == total  # read anew


def test_nothing_is_loaded_for_shape_size_or_name():
    def fails():
        raise AssertionError("loaded")

    tensor = LazyTensor("x", (2, 3, 2**40), FLOAT32, fails)
    assert tensor.nbytes == 24 * 2**40
    assert tensor.renamed("y") == LazyTensor("y", (2, 3, 2**40), FLOAT32, lambda: None)
    assert "fails" not in repr(tensor)
    assert tensor.release() is None  # of no file
    assert LazyTensor("scalar", (), FLOAT32, fails).nbytes == 4


def test_numpy_converts_and_copies_as_asked(file):
    tensor = LazyTensor("x", (2, 3), FLOAT32, lambda: file.view(FLOAT32, (2, 3), 4), (file,))
    assert np.asarray(tensor).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not np.asarray(tensor).flags.writeable
    assert np.array(tensor).flags.writeable
    assert np.asarray(tensor, np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tensor, np.float16, copy=False)
    with pytest.raises(ValueError, match="read-only"):
        tensor.load()[0] = 1


def test_an_empty_file_has_no_bytes_and_only_empty_arrays(tmp_path):
    (tmp_path / "empty").touch()
    file = MappedFile(tmp_path / "empty")
    assert (file.size, file.mmap, file.bytes(0, 8)) == (0, None, b"")
    assert file.view(FLOAT32, (0, 3)).shape == (0, 3)
    file.release()


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such file"):
        MappedFile(tmp_path / "absent")
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be read \(Is a directory\)"):
        MappedFile(tmp_path)
