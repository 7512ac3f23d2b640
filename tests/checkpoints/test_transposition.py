"""`copy_transposed` moves bits, whatever they mean and however the source lies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from segearth_r2_jax.checkpoints import transposition
from segearth_r2_jax.checkpoints.transposition import copy_transposed


@pytest.fixture(params=["xla", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With JAX's CPU device, and as if there were none."""
    if request.param == "numpy":
        monkeypatch.setattr(transposition, "_cpu", lambda: None)
    return request.param


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (513, 2561), (1025, 7), (0, 4)])
@pytest.mark.usefixtures("way")
def test_every_bit_arrives(dtype: str, shape: tuple[int, int]):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rows, columns = shape
    bits = np.random.default_rng(0).integers(0, 256, (rows, columns * dtype.itemsize), np.uint8)
    source = bits % 2 == 1 if dtype.kind == "b" else bits.view(dtype)
    target = np.empty((columns, rows), dtype)
    copy_transposed(target, source)
    assert target.tobytes() == np.ascontiguousarray(source.T).tobytes()


@pytest.mark.usefixtures("way")
def test_a_part_of_a_matrix_goes_into_a_part_of_another_and_is_cast():
    source = np.arange(600 * 700, dtype=np.float32).reshape(600, 700)
    target = np.zeros((710, 610), np.float64)
    copy_transposed(target[5:605, 4:604], source[:, 50:650])
    assert np.array_equal(target[5:605, 4:604], source[:, 50:650].T)
    assert not target[:5].any()
    assert not target[:, 604:].any()
