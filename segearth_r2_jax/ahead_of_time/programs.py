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
from segearth_r2_jax.inputs.conversation import IGNORE_LABEL, IMAGE_SLOT, TokenRow
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

    prompt_tokens: image and text; by default room for 64 tokens of text.
    """
    mesh = Mesh(np.array([device]).reshape(1, 1, 1), MESH_AXES)
    place = NamedSharding(mesh, PartitionSpec())

    def placed(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=place), tree)

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    prompt = _prompt(model.siglip.num_tokens, prompt_tokens or model.siglip.num_tokens + BUCKET_STEP)
    prompts = {key: array(rows, *value.shape[1:], dtype=value.dtype) for key, value in prompt.items()}
    tokens = prompts["token_ids"].shape[1]
    # Which ids end an answer or ask for a mask changes nothing in the program's size.
    functions = inference_functions(model, INFERENCE_DTYPE, 0, 1)
    params = placed(module_params(abstract_module(lambda rngs: SegEarthR2(model, rngs=rngs))), jnp.dtype(INFERENCE_DTYPE))
    image, view = ((1, size, size, 3) for size in (model.image_size, model.siglip.image_size))
    encode = functions.encode.trace(params, array(*image, dtype=jnp.uint8), array(*view, dtype=jnp.uint8))
    image_tokens, features = placed(encode.out_info)
    answer = functions.answer.trace(params, [image_tokens] * rows, prompts, max_new_tokens=ANSWER_TOKENS)
    states = array(rows, MASKS_PER_PASS, model.phi.hidden_size, dtype=jnp.dtype(INFERENCE_DTYPE))
    masks = functions.masks.trace(params, [features] * rows, states)

    weights, held, seen_tokens = _bytes(params), rows * _bytes(features), rows * _bytes(image_tokens)
    flops = inference_flops(model, batch=rows, prompt_tokens=tokens, new_tokens=ANSWER_TOKENS, masks=MASKS_PER_PASS).parts
    seen = inference_flops(model, batch=1, prompt_tokens=tokens, new_tokens=1, masks=1).parts

    def part(counted: dict[str, float], *names: str) -> FlopCount:
        return FlopCount({name: counted[name] for name in names})

    return [
        Program(
            name="predict: encode",
            traced=encode,
            arguments=weights,
            mesh=mesh,
            flops=part(seen, "siglip", "projector", "swin", "pixel_decoder"),
            sizes={"images": 1},
            resident=(rows - 1) * (_bytes(features) + _bytes(image_tokens)),
        ),
        Program(
            name="predict: answer",
            traced=answer,
            arguments=weights + seen_tokens + _bytes(prompts),
            mesh=mesh,
            flops=part(flops, "phi", "lm_head"),
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
            flops=part(flops, "seg_projector", "mask_decoder"),
            sizes={"prompts": rows, "masks": MASKS_PER_PASS},
            resident=seen_tokens,
        ),
    ]


def _prompt(image_tokens: int, tokens: int) -> dict[str, np.ndarray]:
    """A prompt of `tokens` tokens, an image and words, as answering gets it."""
    if tokens <= image_tokens:
        raise UserError(f"{tokens} tokens per prompt have no room for text: the image alone takes {image_tokens}")
    ids = np.concatenate([np.full(image_tokens, IMAGE_SLOT, np.int32), np.zeros(tokens - image_tokens, np.int32)])
    row = TokenRow(ids, np.full(tokens, IGNORE_LABEL, np.int32), np.ones(tokens, bool), 0, np.zeros(0, np.int32))
    return prompt_arrays([row], 1)


def _bytes(tree: Any) -> int:
    """Bytes of arrays on each of the devices that they lie on."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
