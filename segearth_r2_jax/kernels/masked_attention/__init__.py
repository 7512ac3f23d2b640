"""Attention of mask queries to the pixels inside their predicted masks; `reference` defines it, `api` says which form runs where."""

from segearth_r2_jax.kernels.masked_attention.api import masked_attention
from segearth_r2_jax.kernels.masked_attention.reference import blocked_pixels

__all__ = ["blocked_pixels", "masked_attention"]
