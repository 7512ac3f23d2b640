"""The programs of a run, traced for devices that need not exist: the training step, and what answering consists of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inference.segment import BUCKET_STEP, MASKS_PER_PASS, inference_functions, prompt_arrays
from segearth_r2_jax.models.binding import abstract_module, module_params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.sharding.mesh import MESH_AXES
from segearth_r2_jax.sharding.rules import batch_sharding
from segearth_r2_jax.training.abstract import abstract_batch, abstract_run
from segearth_r2_jax.training.batches import loader_config
from segearth_r2_jax.training.flops import FlopCount, inference_flops, training_flops
from segearth_r2_jax.training.run_config import RunConfig
from segearth_r2_jax.training.step import compile_train_step

# What `predict` uses where nothing else is asked for: the longest answer, and the compute dtype of an accelerator.
ANSWER_TOKENS = 128
# Room for the template's words before the image; about 35 in the training template, more in the other.
TEMPLATE_TOKENS = 48
INFERENCE_DTYPE = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    traced: of the jitted function. arguments: their bytes on a device, of all that the caller holds, used or not. mesh: the devices
    that it runs on, together. flops: the model's, of one call on all of them. sizes: what was traced, for the reader. unknown_trips: how
    often a loop runs whose end the program itself decides. resident: bytes that a device keeps for other programs meanwhile.
    """

    name: str
    traced: jax.stages.Traced
    arguments: int
    mesh: Mesh
    flops: FlopCount
    sizes: dict[str, int]
    unknown_trips: int = 1
    resident: int = 0


def row_shares(mesh: Mesh) -> int:
    """Devices, or groups of devices, that have rows of their own."""
    return math.prod(mesh.shape[axis] for axis in batch_sharding(mesh).spec[0])


def training_program(config: RunConfig, mesh: Mesh, *, rows: int, tokens: int) -> Program:
    """The training step that `train` would compile on `mesh`, `rows` images per group of devices, token rows of `tokens` tokens.

    Raises:
        UserError: the rows do not divide into the parts that `config.step.accumulate` asks for, or no image fits the token rows.
    """
    if rows % config.step.accumulate:
        raise UserError(f"{rows} rows per device are not a multiple of config.step.accumulate, {config.step.accumulate}")
    image = config.model.siglip.num_tokens
    if tokens <= image:
        raise UserError(f"{tokens} tokens per row have no room for text: the image alone takes {image}")
    run = abstract_run(config, mesh)
    total, masks = rows * row_shares(mesh), config.data.max_masks
    batch = abstract_batch(loader_config(config), mesh, rows=total, tokens=tokens)
    step = compile_train_step(run.model, run.optimizer, config.step, mesh, run.shardings)
    supervised = config.step.weights.attention > 0
    return Program(
        name="train",
        traced=step.trace(run.state, batch),
        arguments=_bytes((run.state, batch)),
        mesh=mesh,
        flops=training_flops(config.model, config.trainable, batch=total, tokens=tokens, masks=masks, supervise_attention=supervised),
        sizes={"images per device": rows, "images": total, "tokens": tokens, "masks": masks},
    )


def inference_programs(model: SegEarthR2Config, device: jax.Device, *, rows: int, prompt_tokens: int | None = None) -> list[Program]:
    """What `predict`, `evaluate` and `serve` run on one device, which holds all parameters in bfloat16: encode an image, answer `rows`
    prompts with up to 128 tokens, decode 8 masks of each.

    prompt_tokens: the image, the template's words before it, and text; by default room for 64 tokens of text. UserError if there is none.
    """
    mesh = Mesh(np.array([device]).reshape(1, 1, 1), MESH_AXES)
    place = NamedSharding(mesh, PartitionSpec())

    def placed(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=place), tree)

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    prefix_tokens = TEMPLATE_TOKENS + model.siglip.num_tokens
    tokens = prompt_tokens or prefix_tokens + BUCKET_STEP
    if tokens <= prefix_tokens:
        raise UserError(f"{tokens} tokens per prompt have no room for text: image and template take {prefix_tokens}")
    prompt = prompt_arrays([np.zeros(tokens - prefix_tokens, np.int32)], 1)
    prompts = {key: array(rows, *value.shape[1:], dtype=value.dtype) for key, value in prompt.items()}
    tokens = prompts["token_ids"].shape[1]
    # Which ids end an answer or ask for a mask changes nothing in the program's size.
    functions = inference_functions(model, INFERENCE_DTYPE, 0, 1)
    params = placed(module_params(abstract_module(lambda rngs: SegEarthR2(model, rngs=rngs))), jnp.dtype(INFERENCE_DTYPE))
    image, view = ((1, size, size, 3) for size in (model.image_size, model.siglip.image_size))
    before = array(1, TEMPLATE_TOKENS, dtype=jnp.int32)
    encode = functions.encode.trace(params, array(*image, dtype=jnp.uint8), array(*view, dtype=jnp.uint8), before)
    prefix, features = placed(encode.out_info)
    answer = functions.answer.trace(params, [prefix] * rows, prompts, max_new_tokens=ANSWER_TOKENS)
    states = array(rows, MASKS_PER_PASS, model.phi.hidden_size, dtype=jnp.dtype(INFERENCE_DTYPE))
    masks = functions.masks.trace(params, [features] * rows, states)

    weights, held, prefixes = _bytes(params), rows * _bytes(features), rows * _bytes(prefix)

    def flops(batch: int) -> dict[str, FlopCount]:
        return inference_flops(
            model, batch=batch, prefix_tokens=prefix_tokens, prompt_tokens=tokens, new_tokens=ANSWER_TOKENS, masks=MASKS_PER_PASS
        )

    return [
        Program(
            name="predict: encode",
            traced=encode,
            arguments=weights,
            mesh=mesh,
            flops=flops(1)["encode"],
            sizes={"images": 1, "tokens": prefix_tokens},
            resident=(rows - 1) * (_bytes(features) + _bytes(prefix)),
        ),
        Program(
            name="predict: answer",
            traced=answer,
            arguments=weights + prefixes + _bytes(prompts),
            mesh=mesh,
            flops=flops(rows)["answer"],
            sizes={"prompts": rows, "tokens": tokens, "new tokens": ANSWER_TOKENS},
            # The first token comes from the prompt; every further one is a round of the loop.
            unknown_trips=ANSWER_TOKENS - 1,
            resident=held,
        ),
        Program(
            name="predict: masks",
            traced=masks,
            arguments=weights + held + _bytes(states),
            mesh=mesh,
            flops=flops(rows)["masks"],
            sizes={"prompts": rows, "masks": MASKS_PER_PASS},
            resident=prefixes,
        ),
    ]


def _bytes(tree: Any) -> int:
    """Bytes of arrays on each of the devices that they lie on."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
