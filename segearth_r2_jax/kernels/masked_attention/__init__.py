"""Attention of mask queries to the pixels inside their predicted masks; `reference` defines it."""

from segearth_r2_jax.kernels.masked_attention.reference import blocked_pixels, masked_attention

__all__ = ["blocked_pixels", "masked_attention"]
