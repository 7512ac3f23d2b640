"""Layers whose form repeats, compiled once per period; convolutions that are dense layers; dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from segearth_r2_jax.models.layers import Conv, Linear, dropout, gelu, scan_periods


def _layers(n: int, period: int) -> nnx.List:
    """Layers i and i + period are alike, others are not: every second one has no bias."""
    rngs = nnx.Rngs(0)
    return nnx.List([Linear(4, 4, axes=(None, None), rngs=rngs, use_bias=i % period == 0) for i in range(n)])


def _body(x, layer, i, scale):
    y = layer(x) * scale + i
    return jnp.tanh(y), y


@pytest.mark.parametrize(("n", "period"), [(1, 2), (3, 2), (4, 2), (5, 2), (9, 3), (8, 3), (2, 1)])
def test_it_is_the_loop(n: int, period: int):
    layers, scales, x = _layers(n, period), jnp.linspace(0.5, 2, n), jnp.ones((2, 4))
    carry, expected = x, []
    for i, layer in enumerate(layers):
        carry, y = _body(carry, layer, i % period, scales[i])
        expected.append(y)
    last, ys = scan_periods(layers, period, _body, x, scales)
    np.testing.assert_allclose(last, carry, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ys, jnp.stack(expected), rtol=1e-6, atol=1e-6)


def test_a_period_is_compiled_once():
    layers = _layers(8, 2)
    program = jax.make_jaxpr(lambda x: scan_periods(layers, 2, _body, x, jnp.ones(8)))(jnp.ones((2, 4)))
    (scan,) = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert scan.params["length"] == 4
    assert str(program).count("tanh") == 2


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 8e-3)])
def test_the_gelu_is_exact(dtype: str, rtol: float):
    x = np.linspace(-4, 6, 1001)
    expected = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.asarray(jnp.asarray(x, dtype), np.float64)]
    np.testing.assert_allclose(np.asarray(gelu(jnp.asarray(x, dtype)), np.float64), expected, rtol=rtol, atol=3e-7)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "convolves"),
    [
        (1, 1, "VALID", False),
        (4, 4, "VALID", False),
        (3, 3, "VALID", False),
        (3, 1, "VALID", True),
        (3, 1, "SAME", True),
        (2, 2, "SAME", True),
    ],
)
def test_a_convolution_of_patches_that_touch_is_a_dense_layer(size: int, stride: int, padding: str, convolves: bool):
    conv = Conv(5, 7, size, stride=stride, padding=padding, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 14, 5))
    program = jax.make_jaxpr(lambda x: conv(x))(x)
    assert ("conv_general_dilated" in str(program)) == convolves
    kernel = torch.from_numpy(np.array(conv.kernel[...])).permute(3, 2, 0, 1)
    y = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
    if padding == "SAME":
        # Of an odd number of pixels the lesser half in front, as XLA and TensorFlow pad.
        right, below = (max(-(-n // stride) * stride - n + size - stride, 0) for n in (14, 9))
        y = torch.nn.functional.pad(y, [right // 2, right - right // 2, below // 2, below - below // 2])
    expected = torch.nn.functional.conv2d(y, kernel, stride=stride).permute(0, 2, 3, 1)
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize(("tokens", "rate"), [(64, 0.05), (63, 0.5), (1, 0.9)])
def test_dropout_drops_its_share_and_keeps_the_mean(tokens: int, rate: float):
    y = np.asarray(dropout(jnp.ones((50, tokens, 400)), rate, jax.random.key(0)))
    share, n = (y == 0).mean(), y.size
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / n) + 2**-16
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=2e-4)
    # Neither half of a word says anything about the other, nor a token about the next one.
    for shift in {1, -(-tokens // 2)} - {tokens, 0}:
        a, b = y[:, :-shift].ravel() == 0, y[:, shift:].ravel() == 0
        assert abs((a & b).mean() - rate**2) < 5 * rate / math.sqrt(a.size)


def test_dropout_passes_the_gradient_of_what_it_keeps():
    x, key = jnp.full((3, 8, 16), 2.0), jax.random.key(3)
    gradient = jax.grad(lambda x: dropout(x, 0.25, key).sum())(x)
    np.testing.assert_allclose(gradient, dropout(x, 0.25, key) / 2)
