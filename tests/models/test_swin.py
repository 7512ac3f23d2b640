"""Swin takes an image of any size, attends within windows, and drops whole residual branches when it trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import random_module

from segearth_r2_jax.models import swin as swin_module
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params
from segearth_r2_jax.models.swin import Swin, SwinConfig, stochastic_depth

TINY = SwinConfig(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window=4, drop_path=0.5)


@pytest.fixture(scope="module")
def swin() -> Swin:
    return random_module(lambda rngs: Swin(TINY, rngs=rngs))


# One compiled pass per image size, shared by the tests.
_forward = jax.jit(lambda swin, pixels, rng=None: swin(pixels, rng=rng))


def _pixels(h: int, w: int) -> jax.Array:
    return jax.random.normal(jax.random.key(h + w), (2, h, w, 3))


@pytest.mark.parametrize(("h", "w"), [(64, 48), (37, 50)])
def test_any_size_gives_maps_rounded_up(swin: Swin, h: int, w: int):
    outputs = _forward(swin, _pixels(h, w))
    assert [x.shape for x in outputs] == [(2, -(-h // 4), -(-w // 4), 8), (2, -(-h // 8), -(-w // 8), 16)]
    assert all(np.isfinite(x).all() for x in outputs)


def test_unshifted_windows_do_not_see_each_other(swin: Swin):
    """The first stage has one block: a changed pixel changes the 16 x 16 pixels of its window, all of them, and nothing else."""
    pixels = _pixels(64, 48)
    before = _forward(swin, pixels)[0]
    after = _forward(swin, pixels.at[:, 17, 20].add(5.0))[0]
    changed = np.abs(after - before).max(axis=(0, 3)) > 0
    expected = np.zeros((16, 12), bool)
    expected[4:8, 4:8] = True
    np.testing.assert_array_equal(changed, expected)


def test_shifted_windows_reach_their_neighbours_but_not_around_the_border(swin: Swin):
    """The second stage has an unshifted and a shifted block, so a change spreads by a window and a half at most."""
    pixels = _pixels(128, 128)
    before = _forward(swin, pixels)[1]
    after = _forward(swin, pixels.at[:, 0, 0].add(5.0))[1]
    difference = np.abs(after - before).max(axis=(0, 3))
    assert difference.shape == (16, 16)
    # Its window is 4 x 4; the shifted windows that overlap it end at 2 and at 6.
    assert (difference[:6, :6] > 0).all()
    # What was rolled from the border to the other side is blocked by -100, whose softmax is zero in float32.
    np.testing.assert_array_equal(difference[6:], 0)
    np.testing.assert_array_equal(difference[:, 6:], 0)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    kept = stochastic_depth(jnp.ones((4000, 2, 3)), 0.25, jax.random.key(0))
    assert set(np.unique(kept).tolist()) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(kept.min((1, 2)), kept.max((1, 2)))
    assert abs(float(kept.mean()) - 1) < 0.03


def test_stochastic_depth_needs_a_key(swin: Swin):
    pixels = _pixels(64, 48)
    evaluated, one, other = (_forward(swin, pixels, rng)[1] for rng in (None, jax.random.key(1), jax.random.key(2)))
    assert np.abs(one - evaluated).max() > 0
    assert np.abs(one - other).max() > 0
    np.testing.assert_array_equal(one, _forward(swin, pixels, jax.random.key(1))[1])


def test_the_rate_rises_with_depth_from_zero(monkeypatch):
    seen = []
    monkeypatch.setattr(swin_module, "stochastic_depth", lambda x, rate, rng: (jax.debug.callback(seen.append, rate, ordered=True), x)[1])
    config = SwinConfig(embed_dim=8, depths=(1, 4), num_heads=(1, 2), window=4, drop_path=0.5)
    Swin(config, rngs=nnx.Rngs(0))(_pixels(16, 16), rng=jax.random.key(0))
    jax.effects_barrier()
    # Twice in each block: its attention, its MLP.
    np.testing.assert_allclose(seen, np.repeat([0, 0.125, 0.25, 0.375, 0.5], 2))


def test_bfloat16_stays_bfloat16(swin: Swin):
    pixels = _pixels(64, 48)
    for low, full in zip(_forward(swin, pixels.astype(jnp.bfloat16)), _forward(swin, pixels), strict=True):
        assert low.dtype == jnp.bfloat16
        np.testing.assert_allclose(low.astype(jnp.float32), full, atol=0.15)


def test_every_parameter_has_a_gradient(swin: Swin):
    grads = jax.jit(jax.grad(lambda swin, x: sum(jnp.square(y + 1).mean() for y in swin(x))))(swin, _pixels(64, 48))
    flat = flatten(module_params(grads))
    assert [path for path, gradient in flat.items() if not np.abs(gradient).max() > 0] == []


@pytest.mark.parametrize("change", [{"depths": (1,)}, {"num_heads": (3, 3)}])
def test_sizes_that_do_not_fit_are_refused(change: dict):
    with pytest.raises(ValueError, match=r"stages|heads"):
        SwinConfig(**{"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 4} | change)


def test_swin_b_has_the_published_sizes():
    shapes = {
        path: leaf.shape for path, leaf in flatten(module_params(abstract_module(lambda rngs: Swin(SwinConfig.base(), rngs=rngs)))).items()
    }
    assert round(sum(map(np.prod, shapes.values())) / 1e6, 2) == 86.88

    def norm(path: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{path}/scale": (channels,), f"{path}/bias": (channels,)}

    def dense(path: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{path}/kernel": (inputs, outputs), f"{path}/bias": (outputs,)}

    expected = {"patch_embed/proj/kernel": (4, 4, 3, 128), "patch_embed/proj/bias": (128,)} | norm("patch_embed/norm", 128)
    for s, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), strict=True)):
        c = 128 * 2**s
        for i in range(depth):
            block = f"stages/{s}/blocks/{i}"
            expected |= norm(f"{block}/norm1", c) | norm(f"{block}/norm2", c)
            expected |= dense(f"{block}/attn/qkv", c, 3 * c) | dense(f"{block}/attn/proj", c, c)
            expected |= {f"{block}/attn/relative_position_bias_table": (529, heads)}
            expected |= dense(f"{block}/mlp/fc1", c, 4 * c) | dense(f"{block}/mlp/fc2", 4 * c, c)
        if s < 3:
            expected |= norm(f"stages/{s}/downsample/norm", 4 * c) | {f"stages/{s}/downsample/reduction/kernel": (4 * c, 2 * c)}
        expected |= norm(f"norms/{s}", c)
    assert shapes == expected
