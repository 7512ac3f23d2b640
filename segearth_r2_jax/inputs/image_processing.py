"""What each of the two image towers expects of its pixels.

The towers see different geometries: Swin the letterboxed frame (`letterbox.py`), SigLIP the whole image squashed to a square, as
`SiglipImageProcessor` of Hugging Face transformers does with `siglip-so400m-patch14-384`.
Pixels travel as uint8 and are normalised on the device, where it costs nothing and a quarter of the bytes has to be moved.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from PIL import Image

# ImageNet statistics, RGB, of pixels in 0..255 (detectron2's), for Swin.
SWIN_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
SWIN_STD = np.array([58.395, 57.12, 57.375], np.float32)

# numpy or jax: this module imports no jax, so that processes which only load data need not.
Array = TypeVar("Array")


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [size, size, 3]: bicubic, the aspect ratio given up."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    return squash_picture(Image.fromarray(image), size)


def squash_picture(picture: Image.Image, size: int) -> np.ndarray:
    """What `squash` gives, for an RGB image of Pillow."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def normalize_for_swin(pixels: Array, dtype: np.typing.DTypeLike = np.float32) -> Array:
    """RGB pixels 0..255 [..., 3] -> zero mean, unit variance over ImageNet, in `dtype`."""
    return (pixels.astype(dtype) - SWIN_MEAN.astype(dtype)) / SWIN_STD.astype(dtype)


def normalize_for_siglip(pixels: Array, dtype: np.typing.DTypeLike = np.float32) -> Array:
    """RGB pixels 0..255 [..., 3] -> [-1, 1], in `dtype`."""
    scale, half = np.asarray(1 / 255, dtype), np.asarray(0.5, dtype)
    return (pixels.astype(dtype) * scale - half) / half
