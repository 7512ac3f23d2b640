"""Trains random batches on a mesh of simulated devices, in a process of its own: `python mesh_run.py 2x2x2 STEPS PRESET`
(test_meshes.py sets the environment).

Prints one JSON object: the losses of every step, and of every parameter and moment of the compiled step its bytes, its share on a device,
and the share that the sharding table asks for. In float64: in float32 the losses of random data drift apart by themselves, because sums
over devices are taken in another order.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import jax
import optax
from micro_run import micro_model, micro_run
from random_weights import random_params
from test_step import random_batch

from segearth_r2_jax.models.binding import abstract_module, flatten, logical_axes
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.sharding import rules
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.schedules import OptimizerConfig, make_optimizer
from segearth_r2_jax.training.state import initial_state, split_params, state_shardings
from segearth_r2_jax.training.step import compile_train_step


def shares(tree: dict, shapes: dict, axes: dict, mesh: jax.sharding.Mesh) -> list[dict]:
    """One entry per leaf of `tree`, a nested dict of compiled shardings."""
    found = []
    for path, sharding in flatten(tree).items():
        shape, names = shapes[path].shape, axes[path]
        asked = 1
        # The table, read anew: which names of this leaf are split by an axis that divides them. Vectors stay whole over fsdp.
        vector = sum(name != "layers" for name in names) == 1
        for size, name in zip(shape, names, strict=True):
            by = math.prod(mesh.shape[a] for a in rules.PARAMETER_RULES.get(name, ()) if not (vector and a == "fsdp"))
            asked *= by if size % by == 0 else 1
        whole, part = math.prod(shape), math.prod(sharding.shard_shape(shape))
        found.append({"path": path, "bytes": shapes[path].size * 8, "parts": whole // part, "asked": asked})
    return found


shape, steps, preset = tuple(map(int, sys.argv[1].split("x"))), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_enable_x64", True)
config = micro_model() if preset == "micro" else SegEarthR2Config.tiny(vocab_size=1024)


def make(rngs):
    return SegEarthR2(config, rngs=rngs)


abstract, optimizer = abstract_module(make), make_optimizer(OptimizerConfig(learning_rate=1e-3), 100)
mesh = make_mesh(MeshShape(*shape))
params = jax.tree.map(lambda leaf: leaf.astype("float64"), random_params(make))
state = initial_state(*split_params(params, ("",)), optimizer)
places = state_shardings(jax.eval_shape(lambda: state), optimizer, logical_axes(abstract), mesh)
step = compile_train_step(abstract, optimizer, dataclasses.replace(micro_run("").step, dtype="float64"), mesh, places)
by_row = rules.batch_sharding(mesh)
batches = [{key: jax.device_put(value, by_row) for key, value in random_batch(seed, config, rows=8).items()} for seed in range(steps)]
state = jax.device_put(state, places)
compiled = step.lower(state, batches[0]).compile()
shapes, axes = flatten(state.trainable), flatten(logical_axes(abstract))
made = compiled.output_shardings[0]
leaves = shares(made.trainable, shapes, axes, mesh)
for moment in ("mu", "nu"):
    leaves += shares(optax.tree_utils.tree_get(made.opt_state, moment), shapes, axes, mesh)
losses = []
for batch in batches:
    state, report = compiled(state, batch)
    losses.append({name: float(value) for name, value in report.metrics.items()})
print(json.dumps({"losses": losses, "leaves": leaves}))
