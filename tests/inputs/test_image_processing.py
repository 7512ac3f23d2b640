"""Pixels reach the two towers as upstream gives them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, normalize_for_swin, squash

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(60, 100), (97, 61), (500, 384), (1, 7)])
def test_squashing_equals_the_hugging_face_processor(shape):
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    processor = siglip.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    expected = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    got = normalize_for_siglip(squash(image, 56))
    np.testing.assert_allclose(got, np.moveaxis(expected, 0, -1), atol=2e-7)


def test_normalising_is_the_same_on_numpy_and_on_jax():
    pixels = RNG.integers(0, 256, (4, 5, 3), np.uint8)
    for normalize in (normalize_for_swin, normalize_for_siglip):
        ours = normalize(pixels)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(normalize(jnp.asarray(pixels)), ours, rtol=1e-6, atol=1e-6)
        assert normalize(jnp.asarray(pixels), jnp.bfloat16).dtype == jnp.bfloat16


def test_swin_pixels_have_imagenet_statistics():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    expected = [[[-2.117904, -2.0357141, -1.8044444], [2.2489083, 2.4285715, 2.64]]]
    np.testing.assert_allclose(normalize_for_swin(pixels), expected, rtol=1e-6)


def test_siglip_pixels_span_minus_one_to_one():
    pixels = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(normalize_for_siglip(pixels), [-1, -0.6, 1], atol=1e-6)


def test_only_colour_images_are_squashed():
    with pytest.raises(ValueError, match=r"expected uint8 \[h, w, 3\]"):
        squash(np.zeros((4, 4), np.uint8), 8)
