"""Layers whose form repeats, compiled once per period."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segearth_r2_jax.models.layers import Linear, gelu, scan_periods


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
