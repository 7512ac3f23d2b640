"""Point-sampled binary cross-entropy and dice over the decoder's predictions (PointRend sampling, as in Mask2Former).

Reference: `Mask_Criterion.py`. One query belongs to one target there, so the Hungarian matching is the identity and none is done here.
Every prediction of the decoder (deep supervision) draws its own points.

n masks, p predictions, k points.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.point_sampling import sample_points, smallest_points
from segearth_r2_jax.models.layers import wide


@dataclasses.dataclass(frozen=True)
class PointSampling:
    """How many points a mask is judged on, and how many of them where the prediction is least certain."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    @property
    def num_candidates(self) -> int:
        """Points drawn to choose the uncertain ones from."""
        return int(self.num_points * self.oversample_ratio)

    @property
    def num_uncertain(self) -> int:
        return int(self.num_points * self.importance_ratio)

    @property
    def num_uniform(self) -> int:
        return self.num_points - self.num_uncertain


class PointDraws(NamedTuple):
    """Uniform draws in [0, 1): candidates [p, n, num_candidates, 2] and uniform [p, n, num_uniform, 2], as (x, y)."""

    candidates: jax.Array
    uniform: jax.Array


def draw_points(rng: jax.Array, num_predictions: int, num_masks: int, sampling: PointSampling) -> PointDraws:
    """The random numbers of one step."""
    candidates, uniform = jax.random.split(rng)
    shape = (num_predictions, num_masks)
    return PointDraws(
        jax.random.uniform(candidates, (*shape, sampling.num_candidates, 2)),
        jax.random.uniform(uniform, (*shape, sampling.num_uniform, 2)),
    )


def select_points(logits: jax.Array, draws: PointDraws, sampling: PointSampling) -> jax.Array:
    """The points at which the predictions are judged: the candidates with the smallest |logit|, then the uniform ones.

    Args:
        logits: [p, n, h, w]; no gradient flows into the choice.

    Returns:
        [p, n, k, 2], (x, y) in [0, 1].
    """
    sampled = sample_points(jax.lax.stop_gradient(logits), draws.candidates)
    uncertain = smallest_points(draws.candidates, jnp.abs(sampled), sampling.num_uncertain)
    return jnp.concatenate([uncertain, draws.uniform.astype(uncertain.dtype)], axis=2)


def mask_losses(logits: jax.Array, masks: jax.Array, frames: jax.Array, valid: jax.Array, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy and dice of every prediction, each averaged over the valid masks.

    Args:
        logits: [p, n, h, w] mask logits.
        masks: [n, c, c], 0 or 1. Every target is sampled at its own size, so masks of different sizes share a batch without moving
            (the reference pads them to a common size first, which shifts them).
        frames: int [n, 2], the (height, width) of the top-left region of `masks[i]` that [0, 1] x [0, 1] of the prediction spans.
        valid: bool [n]; padding masks neither add nor count.
        points: [p, n, k, 2] from `select_points`.

    Returns:
        (bce [p], dice [p]) in float32 or wider.
    """
    p, n, k = points.shape[:3]
    predicted = sample_points(logits, points)
    predicted = predicted.astype(wide(predicted.dtype))
    by_mask = points.transpose(1, 0, 2, 3).reshape(n, p * k, 2)
    target = sample_points(masks, by_mask, frames).astype(predicted.dtype).reshape(n, p, k).transpose(1, 0, 2)

    bce = (jax.nn.softplus(predicted) - predicted * target).mean(-1)
    probability = jax.nn.sigmoid(predicted)
    dice = 1 - (2 * (probability * target).sum(-1) + 1) / (probability.sum(-1) + target.sum(-1) + 1)
    count = jnp.maximum(valid.sum(), 1)
    return tuple(jnp.where(valid, loss, 0).sum(-1) / count for loss in (bce, dice))
