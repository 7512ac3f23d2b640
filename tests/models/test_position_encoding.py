"""`sine_position` encodes y in the first half of the features and x in the second, each axis scaled to 2 pi."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from segearth_r2_jax.models.position_encoding import sine_position


def test_a_single_feature_by_hand():
    position = sine_position(3, 5, 8, "float32")
    assert position.shape == (3, 5, 8)
    # The second pair of the half of y: wavelength 10000^(2/4).
    angle = 2 / 3 * 2 * np.pi / 100
    np.testing.assert_allclose(position[1, 4, 2:4], [np.sin(angle), np.cos(angle)], atol=1e-6)
    np.testing.assert_allclose(position[1, 4, 4:6], [np.sin(2 * np.pi), np.cos(2 * np.pi)], atol=1e-5)


def test_rows_share_y_and_columns_share_x():
    position = np.asarray(sine_position(4, 6, 16, "float32"))
    assert (position[:, :1, :8] == position[:, :, :8]).all()
    assert (position[:1, :, 8:] == position[:, :, 8:]).all()
    assert len(np.unique(position.reshape(24, 16), axis=0)) == 24


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_it_has_the_dtype_asked_for(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        assert sine_position(2, 2, 4, dtype).dtype == dtype
