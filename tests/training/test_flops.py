"""The analytic FLOP count against an independent one: the matrix products of the traced network, counted in its jaxpr."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval
from micro_run import micro_model

from segearth_r2_jax.ahead_of_time.program_flops import program_flops
from segearth_r2_jax.inference.generate import generate
from segearth_r2_jax.kernels.attention import attention
from segearth_r2_jax.models.binding import abstract_module, bind, module_params
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.training.flops import FORMULA, FlopCount, inference_flops, training_flops
from segearth_r2_jax.training.state import join_params, split_params
from segearth_r2_jax.training.step import forward

LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.05)
PUBLISHED = ("lora_", "^phi/lm_head", "^pixel_decoder", "^mask_decoder", "^seg_projector")
BATCH, TOKENS, MASKS = 2, 160, 3
# A platform for which no kernel has a form of its own: every one is what its reference says, without what a form multiplies by zeros.
DEFINITION = "rocm"


def _keep_everything(config: SegEarthR2Config) -> SegEarthR2Config:
    """Without recomputation, which the analytic count leaves out and a jaxpr shows."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {name: dataclasses.replace(part, remat="none") for name, part in parts.items() if hasattr(part, "remat")}
    return dataclasses.replace(config, **kept)


CONFIGS = {
    "tiny": _keep_everything(SegEarthR2Config.tiny(vocab_size=1024)),
    "micro": _keep_everything(micro_model(lora=LORA)),
    "3b": _keep_everything(SegEarthR2Config.segearth_r2_3b(lora=LORA)),
}


def _shape(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _tokens(name: str) -> int:
    return 1024 if name == "3b" else TOKENS


def _abstract(config: SegEarthR2Config):
    abstract = abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))
    return abstract, module_params(abstract)


def _counted(function, *arguments) -> float:
    return program_flops(jax.make_jaxpr(function)(*arguments), platform=DEFINITION)


def _resizing(config: SegEarthR2Config) -> float:
    """Bilinear resizing of the stride-8 map is done with matrix products, which the analytic count leaves out."""
    side, c = config.image_size // 4, config.pixel_decoder.conv_dim
    shape = (BATCH, side, side, c)
    return _counted(lambda x: jax.image.resize(x, shape, "bilinear", antialias=False), _shape(BATCH, side // 2, side // 2, c))


def _recomputed(config: SegEarthR2Config) -> float:
    """The backward pass of masked attention computes its scores and the mask logits of its level again."""
    c, side = config.mask_decoder, config.image_size // 4
    pixels = sum((side >> (3 - i % 3)) ** 2 for i in range(c.num_layers))
    return 2.0 * BATCH * MASKS * pixels * (c.hidden_dim + c.mask_dim)


def _parts(config: SegEarthR2Config, tokens: int) -> dict[str, float]:
    """The forward pass of every part, counted in its jaxpr."""
    abstract, params = _abstract(config)
    size, view, d = config.image_size, config.siglip.image_size, config.phi.hidden_size
    text = _shape(BATCH, tokens, d)
    maps = jax.eval_shape(lambda p, x: bind(abstract, p).swin(x), params, _shape(BATCH, size, size, 3))
    features = jax.eval_shape(lambda p, x: bind(abstract, p).pixel_decoder(x), params, maps)
    width = config.mask_decoder.hidden_dim

    def phi(p, x, mask, rows):
        return bind(abstract, p).phi(x, mask, query_rows=rows)[:2]

    return {
        "siglip": _counted(lambda p, x: bind(abstract, p).siglip(x), params, _shape(BATCH, view, view, 3)),
        "projector": _counted(
            lambda p, x: bind(abstract, p).projector(x), params, _shape(BATCH, config.siglip.num_tokens, config.siglip.hidden_size)
        ),
        "phi": _counted(phi, params, text, _shape(BATCH, tokens, dtype=bool), _shape(BATCH, MASKS, dtype=jnp.int32)),
        "lm_head": _counted(lambda p, x: bind(abstract, p).phi.logits(x), params, text),
        "swin": _counted(lambda p, x: bind(abstract, p).swin(x), params, _shape(BATCH, size, size, 3)),
        "pixel_decoder": _counted(lambda p, x: bind(abstract, p).pixel_decoder(x), params, maps),
        "seg_projector": _counted(lambda p, x: bind(abstract, p).seg_projector(x), params, _shape(BATCH, MASKS, d)),
        "mask_decoder": _counted(
            lambda p, f, x: bind(abstract, p).mask_decoder(f.multi_scale, f.mask_features, x), params, features, _shape(BATCH, MASKS, width)
        ),
    }


@pytest.mark.parametrize("name", ["tiny", "3b"])
def test_every_part_of_the_forward_pass_has_the_flops_of_its_matrix_products(name):
    config = CONFIGS[name]
    counted, resizing = _parts(config, _tokens(name)), {"pixel_decoder": _resizing(config)}
    analytic = training_flops(config, (), batch=BATCH, tokens=_tokens(name), masks=MASKS).parts
    assert analytic.keys() == counted.keys()
    for part, flops in counted.items():
        assert analytic[part] == pytest.approx(flops - resizing.get(part, 0.0), rel=1e-9), part
        assert resizing.get(part, 0.0) < 0.04 * flops, f"interpolation is no longer a small share of {part}"


def _gradient_flops(config: SegEarthR2Config, patterns: tuple[str, ...], tokens: int) -> float:
    """Forward and backward of everything that the losses look at, counted in the jaxpr."""
    abstract, params = _abstract(config)
    trainable, frozen = split_params(params, patterns)
    size, view = config.image_size, config.siglip.image_size
    batch = {
        "image": _shape(BATCH, size, size, 3, dtype=jnp.uint8),
        "image_siglip": _shape(BATCH, view, view, 3, dtype=jnp.uint8),
        "token_ids": _shape(BATCH, tokens, dtype=jnp.int32),
        "attention_mask": _shape(BATCH, tokens, dtype=bool),
        "image_start": _shape(BATCH, dtype=jnp.int32),
        "seg_positions": _shape(BATCH, MASKS, dtype=jnp.int32),
    }

    def loss(trainable, frozen, batch):
        model = bind(abstract, join_params(trainable, frozen))
        output = forward(model, batch, dtype="float32", supervise_attention=True, rng=None)
        return output.mask_logits.sum() + output.attention_rows.sum() + model.phi.logits(output.hidden).sum()

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(trainable, frozen, batch)
    # Without what nobody needs: the backward pass of a kernel knows not which of its gradients do.
    needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return program_flops(needed, platform=DEFINITION)


def _attention_again(config: SegEarthR2Config, tokens: int) -> float:
    """The backward pass of a long attention computes its scores once more, which the analytic count has once."""
    return config.phi.num_layers * 2.0 * BATCH * tokens**2 * config.phi.hidden_size if tokens >= 512 else 0.0


@pytest.mark.parametrize(
    ("name", "patterns", "step_up"),
    [
        # `step_up`: how often the resizing of the stride-8 map runs: 2 where its transpose is part of the backward pass.
        ("tiny", ("",), 2),
        ("micro", ("",), 2),
        ("micro", PUBLISHED, 2),
        ("micro", ("lora_",), 1),
        ("micro", ("^mask_decoder",), 1),
        ("micro", ("^seg_projector",), 1),
        ("micro", ("^projector",), 1),
        ("micro", ("^swin/stages/3",), 2),
        ("micro", ("^siglip/layers", "^swin/norms/0"), 1),
        ("micro", ("^pixel_decoder/level_embed",), 2),
        ("3b", PUBLISHED, 2),
    ],
)
def test_a_training_step_has_the_flops_of_its_gradient_program(name, patterns, step_up):
    config = CONFIGS[name]
    tokens = _tokens(name)
    counted = _gradient_flops(config, patterns, tokens) - step_up * _resizing(config)
    counted -= _recomputed(config) + _attention_again(config, tokens)
    analytic = training_flops(config, patterns, batch=BATCH, tokens=tokens, masks=MASKS)
    assert analytic.total == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize(("platform", "backward", "rows"), [("tpu", 2 + 5, 1), ("cpu", 2 + 4, 0)])
def test_a_fused_attention_counts_with_the_products_of_its_kernels(platform: str, backward: int, rows: int):
    """Forward two products; backward these again, then on TPU scores, gradients of probabilities, values, keys and queries, and per row
    what the result gives with its gradient.
    """
    b, t, n, h = 2, 1024, 3, 80
    x = _shape(b, t, n, h, dtype=jnp.bfloat16)

    def attend(q, k, v):
        return attention(q, k, v, causal=False, scale=0.1)

    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return pull(out)

    product, of_rows = 2.0 * b * n * t * t * h, 2.0 * b * n * t * h
    assert program_flops(jax.make_jaxpr(attend)(x, x, x), platform=platform) == 2 * product
    assert program_flops(jax.make_jaxpr(both)(x, x, x), platform=platform) == (2 + backward) * product + rows * of_rows


def test_attention_rows_count_only_where_they_are_supervised():
    config = CONFIGS["3b"]
    with_rows, without = (
        training_flops(config, PUBLISHED, batch=1, tokens=1024, masks=4, supervise_attention=supervised).parts["phi"]
        for supervised in (True, False)
    )
    # 4 rows against 1024 keys of 32 layers, forward and to both operands.
    assert with_rows - without == 3 * 32 * 2 * 4 * 1024 * 2560


def test_flops_grow_with_the_batch():
    config = CONFIGS["3b"]
    one, eight = (training_flops(config, PUBLISHED, batch=batch, tokens=1024, masks=4).total for batch in (1, 8))
    assert eight == 8 * one


def test_answering_has_the_flops_of_the_generation_loop():
    config, new_tokens, rest = CONFIGS["micro"], 6, 7
    abstract, params = _abstract(config)

    def prefill(params, embeds):
        return bind(abstract, params).phi.prefill(embeds)[1]

    def answer(params, prefix, embeds, lengths):
        phi = bind(abstract, params).phi
        return generate(phi, prefix, embeds, lengths, eos_id=-1, seg_id=1, max_new_tokens=new_tokens, max_segments=4)

    flops = inference_flops(config, batch=BATCH, prefix_tokens=TOKENS, prompt_tokens=rest, new_tokens=new_tokens, masks=MASKS)
    begun, prefix = jax.make_jaxpr(prefill, return_shape=True)(params, _shape(BATCH, TOKENS, 40))
    assert flops["encode"].parts["phi"] == pytest.approx(program_flops(begun, platform="cpu"), rel=1e-9)
    jaxpr = jax.make_jaxpr(answer)(params, prefix, _shape(BATCH, rest, 40), _shape(BATCH, dtype=jnp.int32))
    assert flops["answer"].total == pytest.approx(program_flops(jaxpr, platform="cpu", while_trips=new_tokens - 1), rel=1e-9)
    forward_only = training_flops(config, (), batch=BATCH, tokens=TOKENS, masks=MASKS).parts
    for program, part in (("encode", "siglip"), ("encode", "swin"), ("encode", "pixel_decoder")):
        assert flops[program].parts[part] == forward_only[part]


def test_answering_makes_the_last_prediction_only():
    config = CONFIGS["micro"]
    abstract, params = _abstract(config)
    c, side, d = config.mask_decoder, config.image_size // 4, config.pixel_decoder.conv_dim
    maps = [_shape(BATCH, side >> i, side >> i, d) for i in (3, 2, 1)]

    def final(params, maps, features, queries):
        return bind(abstract, params).mask_decoder.final_masks(maps, features, queries)

    counted = _counted(final, params, maps, _shape(BATCH, side, side, c.mask_dim), _shape(BATCH, MASKS, c.hidden_dim))
    flops = inference_flops(config, batch=BATCH, prefix_tokens=TOKENS, prompt_tokens=7, new_tokens=1, masks=MASKS)
    assert flops["masks"].parts["mask_decoder"] == pytest.approx(counted, rel=1e-9)


def test_the_total_is_the_sum_of_the_parts_and_the_formula_says_what_counts():
    assert FlopCount({"a": 1.0, "b": 2.0}).total == 3.0
    assert "recomputation" in FORMULA
    assert "MFU" in FORMULA
