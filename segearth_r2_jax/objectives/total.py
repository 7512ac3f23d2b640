"""The training objective: language modelling + 5 BCE + 5 dice over all predictions + 0.01 spatial attention supervision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from segearth_r2_jax.models.segearth_r2 import SegEarthR2Output
from segearth_r2_jax.objectives.language_modeling import next_token_loss
from segearth_r2_jax.objectives.mask_losses import PointDraws, PointSampling, mask_losses, select_points
from segearth_r2_jax.objectives.spatial_attention import attention_losses, attention_target


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The reference's weights. `attention` = 0 switches the spatial supervision off: its rows are then not computed at all."""

    bce: float = 5.0
    dice: float = 5.0
    attention: float = 0.01


def total_loss(
    output: SegEarthR2Output,
    batch: Mapping[str, jax.Array],
    draws: PointDraws,
    weights: LossWeights,
    sampling: PointSampling,
    *,
    logits_of: Callable[[jax.Array], jax.Array],
    logits_chunk: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective and its four terms, each as it enters the sum.

    Args:
        output: of `SegEarthR2.__call__`.
        batch: `labels` [b, t], `masks` [b, m, c, c], `mask_size`, `mask_frame` [b, 2], `mask_valid` [b, m] (see `data_pipeline.loader`).
        draws: the step's random points, for p predictions of b * m masks.
        logits_of: the model's `phi.logits`.
        logits_chunk: positions of each row whose logits exist at the same time (see `next_token_loss`).

    Returns:
        (loss, {"loss_llm", "loss_bce", "loss_dice", "loss_attention"}).
    """
    b, m = batch["mask_valid"].shape
    valid = batch["mask_valid"].reshape(b * m)
    masks = batch["masks"].reshape(b * m, *batch["masks"].shape[2:])
    logits = output.mask_logits.reshape(output.mask_logits.shape[0], b * m, *output.mask_logits.shape[3:])

    points = select_points(logits, draws, sampling)
    bce, dice = mask_losses(logits, masks, jnp.repeat(batch["mask_frame"], m, axis=0), valid, points)
    terms = {
        "loss_llm": next_token_loss(output.hidden, batch["labels"], logits_of, chunk=logits_chunk),
        "loss_bce": weights.bce * bce.sum(),
        "loss_dice": weights.dice * dice.sum(),
    }
    if output.attention_rows is not None:
        rows = output.attention_rows.reshape(output.attention_rows.shape[0], b * m, -1)
        target = attention_target(masks, jnp.repeat(batch["mask_size"], m, axis=0), math.isqrt(rows.shape[-1]))
        terms["loss_attention"] = weights.attention * attention_losses(rows, target, valid).sum()
    else:
        terms["loss_attention"] = jnp.zeros_like(terms["loss_llm"])
    return sum(terms.values()), terms
