"""The optimizer of the reference's scripts: AdamW, linear warm-up from 0, cosine to 0."""

from __future__ import annotations

import dataclasses
import math

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The reference's values: lr 5e-5, warm-up over 3 % of the steps, no weight decay, no clipping (`clip_norm` None)."""

    learning_rate: float = 5e-5
    warmup_ratio: float = 0.03
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Step (0-based) -> learning rate, as transformers' `get_cosine_schedule_with_warmup`."""
    warmup = math.ceil(num_steps * config.warmup_ratio)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(num_steps, warmup + 1))


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    adamw = optax.adamw(
        learning_rate_schedule(config, num_steps), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    return adamw if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
