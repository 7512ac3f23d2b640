"""Spatial attention supervision (SegEarth-R2, "spatial attention supervision"; reference: the attention part of `SegEarthR2.forward`).

In every layer of the language model the attention that a [SEG] token pays to the image tokens, summed over heads, is pushed away from
its background mean inside the target:

    L = sum_layers 1/N sum_masks -log( mean_{G=1} (A - mean_{G=0} A)^2 + 1e-8 )

with G the target on the grid of image tokens. As in the reference the square makes it blind to sign, the background mean carries
gradient, and a mask with an empty G adds 0 but counts in N.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.models.layers import wide

# The reference brings every mask to this size (nearest) before it goes to the grid (bilinear).
_INTERMEDIATE = 800


def _taps(grid: int) -> np.ndarray:
    """Which of 800 samples the bilinear interpolation to `grid` cells touches with a weight above 0: int [grid, 2]."""
    centre = np.maximum((np.arange(grid) + 0.5) * _INTERMEDIATE / grid - 0.5, 0)
    low = np.floor(centre).astype(np.int32)
    high = np.where(centre > low, np.minimum(low + 1, _INTERMEDIATE - 1), low)
    return np.stack([low, high], axis=1)


def attention_target(masks: jax.Array, sizes: jax.Array, grid: int) -> jax.Array:
    """The targets on the grid of image tokens.

    Args:
        masks: [n, h, w], nonzero inside the target; the valid region is the top-left [sizes[i, 0], sizes[i, 1]].
        sizes: int [n, 2]. The vision tower sees this region squashed to a square, so it, not the letterbox, spans the grid.
        grid: image tokens per side.

    Returns:
        bool [n, grid * grid]: a cell is on if one of the 2 x 2 samples under it is (objects that fall between the samples vanish).
    """
    taps = _taps(grid).reshape(-1)  # [2 * grid]

    def indices(length: jax.Array) -> jax.Array:
        scale = length.astype(jnp.float32) / jnp.float32(_INTERMEDIATE)  # float32, as in torch's nearest interpolation
        return jnp.minimum(jnp.floor(taps.astype(np.float32) * scale[:, None]).astype(jnp.int32), length[:, None] - 1)

    rows, columns = indices(sizes[:, 0]), indices(sizes[:, 1])  # [n, 2 * grid]
    samples = jax.vmap(lambda mask, r, c: mask[r[:, None], c[None, :]])(masks, rows, columns) > 0
    n = masks.shape[0]
    return samples.reshape(n, grid, 2, grid, 2).any((2, 4)).reshape(n, grid * grid)


def attention_losses(rows: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """The loss of every layer, [layers]; their sum is the objective.

    Args:
        rows: [layers, n, cells] attention probabilities of the [SEG] rows on the image tokens, summed over heads.
        target: bool [n, cells], from `attention_target`.
        valid: bool [n]; padding masks neither add nor count.
    """
    rows = rows.astype(wide(rows.dtype))
    inside = target.astype(rows.dtype)
    outside = 1 - inside
    count_inside, count_outside = inside.sum(-1), outside.sum(-1)
    background = (rows * outside).sum(-1, keepdims=True) / jnp.maximum(count_outside, 1)[:, None]
    contrast = (jnp.square(rows - background) * inside).sum(-1) / jnp.maximum(count_inside, 1)
    # The inner where keeps the gradient of the logarithm finite for empty targets.
    per_mask = -jnp.log(jnp.where(count_inside > 0, contrast, 1) + 1e-8)
    per_mask = jnp.where(valid & (count_inside > 0), per_mask, 0)
    return per_mask.sum(-1) / jnp.maximum(valid.sum(), 1)
