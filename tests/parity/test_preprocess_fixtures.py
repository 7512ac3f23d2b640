"""Both towers' pixels equal those that the reference implementation produced."""

from __future__ import annotations

import numpy as np
import pytest

from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, normalize_for_swin, squash
from segearth_r2_jax.inputs.letterbox import Letterbox


def picture(height: int, width: int) -> np.ndarray:
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((7 * x + 13 * y + 31 * c + (x * y) // 17 + 40 * ((x // 9 + y // 5) % 3)) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def reference(fixtures_dir):
    with np.load(fixtures_dir / "preprocess.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("index", range(5))
def test_segmentation_branch(reference, index):
    height, width = (int(n) for n in reference[f"hw_{index}"])
    box = Letterbox(height, width, 1024)
    np.testing.assert_array_equal(box.placed_size, reference[f"new_hw_{index}"])
    frame = box.place_image(picture(height, width))
    np.testing.assert_array_equal(frame.sum((0, 1), dtype=np.int64), reference[f"padded_u8_sum_{index}"])
    np.testing.assert_array_equal(frame[::29, ::31], reference[f"padded_u8_strided_{index}"])
    normalised = np.moveaxis(normalize_for_swin(frame), -1, 0)
    np.testing.assert_allclose(normalised[:, ::29, ::31], reference[f"norm_strided_{index}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(normalised[:, -1, -1], reference[f"norm_corner_{index}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_siglip_branch(reference, index):
    height, width = (int(n) for n in reference[f"hw_{index}"])
    pixels = np.moveaxis(normalize_for_siglip(squash(picture(height, width), 384)), -1, 0)
    np.testing.assert_allclose(pixels[:, ::7, ::11], reference[f"siglip_strided_{index}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pixels.mean((1, 2), dtype=np.float64), reference[f"siglip_mean_{index}"], rtol=0, atol=1e-6)
