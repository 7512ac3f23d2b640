"""Multi-scale bilinear sampling, the core of deformable attention; `reference` defines it."""

from segearth_r2_jax.kernels.deformable_sampling.reference import deformable_sampling

__all__ = ["deformable_sampling"]
