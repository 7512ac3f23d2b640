"""One deformable attention of the pixel decoder at its real size: the sampling alone, forward and backward.

    python -m benchmarks.deformable_sampling [--rounds 9] [--only processor|tpu] [--output benchmarks/results/deformable_sampling.json]

On the processor: this package's form, jitted, against PyTorch's `grid_sample` level by level, as the reference samples where its CUDA
kernel is absent. Both get the same values, locations and weights in float32, their outputs and gradients are compared first, and they
are timed in turns. For TPUs: what the compiler says of memory traffic and temporaries, beside the floor (every input read once, every
output written once). Needs torch for the one half and libtpu for the other.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.machine import machine
from benchmarks.timing import in_turns, summary
from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.ahead_of_time.topology import tpu_devices
from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling

RESULTS = Path(__file__).resolve().parent / "results" / "deformable_sampling.json"
SHAPES = ((32, 32), (64, 64), (128, 128))
QUERIES = sum(h * w for h, w in SHAPES)
HEADS, CHANNELS, POINTS = 8, 32, 4
TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1")
GIB = 2**30


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values, locations, weights and a cotangent. The points of a query lie around its own pixel, as its heads' learned offsets put them:
    a few pixels away on every level, some outside the map.
    """
    rng = np.random.default_rng(seed)
    centres = []
    for h, w in SHAPES:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        centres.append(np.stack([x, y], -1).reshape(-1, 2))
    extent = np.array([(w, h) for h, w in SHAPES])[:, None]
    offsets = rng.normal(scale=4.0, size=(1, QUERIES, HEADS, len(SHAPES), POINTS, 2)) / extent
    weights = rng.random((1, QUERIES, HEADS, len(SHAPES), POINTS))
    return tuple(
        np.asarray(array, np.float32)
        for array in (
            rng.normal(size=(1, QUERIES, HEADS, CHANNELS)),
            np.concatenate(centres)[:, None, None, None] + offsets,
            weights / weights.sum((-2, -1), keepdims=True),
            rng.normal(size=(1, QUERIES, HEADS * CHANNELS)),
        )
    )


def torch_core(values: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The operator from its definition, with PyTorch's bilinear sampler: arguments and result as in `deformable_sampling`."""
    b, q, n, levels, points, _ = locations.shape
    d = values.shape[-1]
    grids = 2 * locations - 1
    sampled = []
    for level, pixels in enumerate(values.split([h * w for h, w in SHAPES], dim=1)):
        maps = pixels.permute(0, 2, 3, 1).reshape(b * n, d, *SHAPES[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(torch.nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(b * n, 1, q, levels * points)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return out.reshape(b, n * d, q).transpose(1, 2).contiguous()


def _forward(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
    return deformable_sampling(values, SHAPES, locations, weights)


def _forward_backward(values: jax.Array, locations: jax.Array, weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    out, pull = jax.vjp(_forward, values, locations, weights)
    return out, *pull(cotangent)


def _torch_forward_backward(values: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor, cotangent: torch.Tensor):
    leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
    out = torch_core(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, cotangent)


def on_the_processor(rounds: int) -> dict[str, Any]:
    """Largest differences to PyTorch's results, then times and their ratios."""
    arrays = inputs()
    ours, theirs = [jnp.asarray(a) for a in arrays], [torch.from_numpy(a) for a in arrays]
    forward, both = jax.jit(_forward), jax.jit(_forward_backward)

    def torch_forward() -> torch.Tensor:
        with torch.no_grad():
            return torch_core(*theirs[:3])

    results = [(np.asarray(a), b.numpy()) for a, b in zip(both(*ours), _torch_forward_backward(*theirs), strict=True)]
    # On a pixel's centre the gradient of a location jumps, and rounding decides on which side of the jump each of the two stands.
    extent = np.array([(w, h) for h, w in SHAPES])[:, None]
    position = arrays[1] * extent - 0.5
    smooth = (np.abs(position - np.round(position)) > 1e-4).all(-1, keepdims=True)
    results[2] = tuple(gradient * smooth for gradient in results[2])
    names = ("output", "gradient of values", "gradient of locations", "gradient of weights")
    differences = {name: float(f"{np.abs(a - b).max() / np.abs(b).max():.1e}") for name, (a, b) in zip(names, results, strict=True)}
    if max(differences.values()) > 1e-4:
        raise SystemExit(f"the results differ, so that times say nothing: {differences}")
    passes: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {"ours": lambda: jax.block_until_ready(forward(*ours[:3])), "pytorch": torch_forward},
        "forward and backward": {
            "ours": lambda: jax.block_until_ready(both(*ours)),
            "pytorch": lambda: _torch_forward_backward(*theirs),
        },
    }
    report: dict[str, Any] = {"differences, in relation to the largest value": differences}
    for name, contenders in passes.items():
        seconds = {name: summary(times) for name, times in in_turns(contenders, rounds).items()}
        speed = round(seconds["pytorch"]["median"] / seconds["ours"]["median"], 2)
        report[name] = {"seconds": seconds, "pytorch / ours": speed}
    return report


def by_the_tpu_compiler(topology: str, dtype: str) -> dict[str, Any]:
    """Traffic, temporaries and floor in GiB of forward and backward on one chip, one image."""
    mesh = Mesh(np.array(tpu_devices(topology)[:1]), ("data",))
    shapes = [
        ((1, QUERIES, HEADS, CHANNELS), dtype),
        ((1, QUERIES, HEADS, len(SHAPES), POINTS, 2), "float32"),
        ((1, QUERIES, HEADS, len(SHAPES), POINTS), "float32"),
        ((1, QUERIES, HEADS * CHANNELS), dtype),
    ]
    arguments = [jax.ShapeDtypeStruct(s, jnp.dtype(d), sharding=NamedSharding(mesh, PartitionSpec())) for s, d in shapes]
    outputs = jax.eval_shape(_forward_backward, *arguments)
    compiled = jax.jit(_forward_backward).lower(*arguments).compile()
    floor = sum(x.size * x.dtype.itemsize for x in (*arguments, *outputs))
    return {
        "topology": topology,
        "dtype": dtype,
        "traffic_gib": round(memory_traffic(Program(compiled.as_text())) / GIB, 3),
        "temporaries_gib": round(compiled.memory_analysis().temp_size_in_bytes / GIB, 3),
        "floor_gib": round(floor / GIB, 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="calls of each contender that are timed")
    parser.add_argument("--only", choices=("processor", "tpu"), help="measure this half, and keep the other from the last time")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    kept = json.loads(args.output.read_text()) if args.only and args.output.is_file() else {}
    report = {"sizes": {"queries": QUERIES, "heads": HEADS, "channels": CHANNELS, "levels": SHAPES, "points": POINTS}, **kept}
    if args.only != "tpu":
        report["processor, float32"] = {"machine": machine(("jax", "jaxlib", "torch", "numpy")), **on_the_processor(args.rounds)}
    if args.only != "processor":
        versions = machine(("jax", "jaxlib", "libtpu"))["versions"]
        chips = [by_the_tpu_compiler(topology, "bfloat16") for topology in TOPOLOGIES]
        report["TPU compiler, one image, forward and backward"] = {"versions": versions, "chips": chips}
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
