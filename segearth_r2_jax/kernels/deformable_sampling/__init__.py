"""Multi-scale bilinear sampling, the core of deformable attention; `reference` defines it, `api` says which form runs where."""

from segearth_r2_jax.kernels.deformable_sampling.api import deformable_sampling

__all__ = ["deformable_sampling"]
