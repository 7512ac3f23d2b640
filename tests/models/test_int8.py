"""Dense kernels in 8 bits: how far a value, a product and a whole network are from the floating-point ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import random_params

from segearth_r2_jax.models.binding import abstract_module, bind, flatten, module_params, unflatten
from segearth_r2_jax.models.int8 import Int8Kernel, to_int8
from segearth_r2_jax.models.layers import Linear, LoraConfig
from segearth_r2_jax.models.phi import Phi, PhiConfig

RNG = np.random.default_rng(0)


def floating(kernel: Int8Kernel) -> np.ndarray:
    return np.asarray(kernel.values, np.float32) * np.asarray(kernel.scale)[..., None, :]


@pytest.mark.parametrize("shape", [(40, 30), (3, 40, 30)])
def test_no_value_is_off_by_more_than_half_a_step(shape):
    kernel = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-3, 3, shape[-1])).astype(np.float32)
    made = to_int8(kernel)
    assert made.values.dtype == jnp.int8
    assert made.scale.shape == (*shape[:-2], shape[-1])
    np.testing.assert_allclose(made.scale, np.abs(kernel).max(-2) / 127, rtol=1e-6)
    assert (np.abs(floating(made) - kernel) <= np.asarray(made.scale)[..., None, :] * 0.5001).all()


def test_a_feature_without_weights_stays_zero():
    assert not floating(to_int8(np.zeros((4, 2), np.float32))).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_a_layer_multiplies_by_the_rounded_kernel(dtype, lora):
    layer = Linear(64, 48, axes=("embed", "mlp"), rngs=nnx.Rngs(0), lora=lora)
    params = flatten(module_params(layer))
    if lora:
        params["lora_b"] = RNG.normal(size=params["lora_b"].shape).astype(np.float32)
    abstract = abstract_module(lambda rngs: Linear(64, 48, axes=("embed", "mlp"), rngs=rngs, lora=lora))
    kernel = to_int8(params["kernel"])
    x = jnp.asarray(RNG.normal(size=(2, 5, 64)), dtype)
    ours = bind(abstract, unflatten({**params, "kernel": kernel}))(x)
    rounded = bind(abstract, unflatten({**params, "kernel": jnp.asarray(floating(kernel))}))(x.astype(jnp.float32))
    assert ours.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(ours, np.float32), rounded, atol=1e-5 if dtype == "float32" else 0.1)


def test_a_language_model_answers_nearly_the_same():
    """All passes, with the layers stacked: whole rows, and a prefix that is decoded from."""
    config = PhiConfig.tiny(vocab_size=64)

    def make(rngs: nnx.Rngs) -> Phi:
        return Phi(config, rngs=rngs)

    abstract, params = abstract_module(make), flatten(random_params(make))
    kernels = [path for path in params if path.startswith(("layers", "lm_head")) and path.endswith("kernel")]
    assert len(kernels) == 7
    quantized = bind(abstract, unflatten({**params, **{path: to_int8(params[path]) for path in kernels}}))
    exact = bind(abstract, unflatten(params))
    embeds = jnp.asarray(RNG.normal(size=(2, 12, config.hidden_size)), jnp.float32)

    def logits(phi: Phi) -> jax.Array:
        return phi.logits(phi(embeds, jnp.ones((2, 12), bool)).hidden)

    np.testing.assert_allclose(logits(quantized), logits(exact), atol=0.05 * float(jnp.abs(logits(exact)).max()))
    assert float(jnp.abs(logits(quantized) - logits(exact)).max()) > 0
    cache = quantized.prefill(embeds[:, :8])[1].with_room(4)
    hidden, _ = quantized.decode(embeds[:, 8:], cache, jnp.array([8, 8]))
    np.testing.assert_allclose(quantized.logits(hidden), logits(quantized)[:, 8:], atol=1e-4)
