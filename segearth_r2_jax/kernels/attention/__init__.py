"""Dot-product attention; `reference` defines it, `api` says which form runs where."""

from segearth_r2_jax.kernels.attention.api import attention

__all__ = ["attention"]
