"""One table: the logical name of a dimension -> the mesh axes that split it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segearth_r2_jax.models.layers import LOGICAL_AXES
from segearth_r2_jax.placement import ACTIVATION_AXES, Axes, Placement

Rules = dict[str, tuple[str, ...]]

# Parameters, their gradients and their optimizer state. `fsdp` splits them where they are kept, and a layer gathers its own when it runs;
# `tensor` splits the computation, too.
PARAMETER_RULES: Rules = {
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "channels_in": (),
    "channels_out": ("fsdp",),
    "lora_rank": (),
    "layers": (),
}
# Activations, and the arrays of a batch.
ACTIVATION_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    # While words are looked up in a table whose features are split by `fsdp`.
    "lookup_batch": ("data",),
    "lookup_features": ("fsdp",),
}
# Parameters in the moment of their use.
_IN_USE: Rules = {name: tuple(axis for axis in mesh_axes if axis != "fsdp") for name, mesh_axes in PARAMETER_RULES.items()}
if missing := {*LOGICAL_AXES} - PARAMETER_RULES.keys() | {*ACTIVATION_AXES} - ACTIVATION_RULES.keys():
    raise ValueError(f"logical axes without a rule: {sorted(missing)}")


def partition_spec(shape: tuple[int, ...], axes: Axes, mesh: Mesh, rules: Rules = PARAMETER_RULES) -> PartitionSpec:
    """How an array of `shape` with logical `axes` lies on `mesh`; a dimension that the mesh axes do not divide stays whole."""
    entries: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for size, name in zip(shape, axes, strict=True):
        mesh_axes = () if name is None else tuple(a for a in rules[name] if a not in taken)
        if mesh_axes and size % math.prod(mesh.shape[a] for a in mesh_axes) == 0:
            taken.update(mesh_axes)
            entries.append(mesh_axes)
        else:
            entries.append(None)
    return PartitionSpec(*entries)


def parameter_spec(shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> PartitionSpec:
    """`partition_spec` of a parameter. Vectors (biases, scales) are not split by `fsdp`: to gather one costs more than to keep it."""
    vector = sum(name != "layers" for name in axes) == 1
    return partition_spec(shape, axes, mesh, _IN_USE if vector else PARAMETER_RULES)


def shardings(params: Any, axes: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of the nested dict `params` (arrays or shapes), given the nested dict of its logical axes."""
    if isinstance(params, dict):
        return {key: shardings(value, axes[key], mesh) for key, value in params.items()}
    return NamedSharding(mesh, parameter_spec(params.shape, axes, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension of every array of a batch is split over all devices that hold different data."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATION_RULES["batch"]))


def placement(mesh: Mesh) -> Placement:
    """How a network's arrays lie on `mesh` while it runs (`placement.placed`).

    A kernel is gathered over `fsdp` for its use, after it was cast to the compute dtype, and its gradient is summed straight into the
    parts in which the kernel is kept.
    """

    def put(x: jax.Array, axes: Axes, rules: Rules) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(x.shape, axes, mesh, rules)))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def gather(kernel: jax.Array, axes: Axes) -> jax.Array:
        return put(kernel, axes, _IN_USE)

    gather.defvjp(lambda kernel, axes: (gather(kernel, axes), None), lambda axes, _, gradient: (put(gradient, axes, PARAMETER_RULES),))

    def per_device(function: Callable[..., Any], inputs: Sequence[Axes], outputs: Any) -> Callable[..., Any]:
        def spec(x: jax.ShapeDtypeStruct, axes: Axes) -> PartitionSpec:
            return partition_spec(x.shape, axes, mesh, ACTIVATION_RULES)

        def divided(*arrays: jax.Array) -> Any:
            out = jax.eval_shape(function, *arrays)
            out_specs = tuple(map(spec, out, outputs)) if isinstance(out, tuple) else spec(out, outputs)
            in_specs = tuple(spec(x, axes) for x, axes in zip(arrays, inputs, strict=True))
            # Kernels do not say over which axes what they return varies.
            return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)

        return divided

    return Placement(activation=lambda x, axes: put(x, axes, ACTIVATION_RULES), kernel=gather, per_device=per_device)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
