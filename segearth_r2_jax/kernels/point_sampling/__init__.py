"""Bilinear samples of maps at points, as the mask losses need them; `reference` defines them, `api` says which form runs where."""

from segearth_r2_jax.kernels.point_sampling.api import sample_points
from segearth_r2_jax.kernels.point_sampling.choice import smallest_points

__all__ = ["sample_points", "smallest_points"]
