"""`splice` puts each row's image tokens at their place and leaves no word where there is none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.models.multimodal_prompt import splice

B, T, N, D = 2, 9, 3, 4
TEXT = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
IMAGE = 10 + jnp.asarray(np.random.default_rng(1).normal(size=(B, N, D)), jnp.float32)


def test_image_tokens_stand_from_their_start_on_and_words_elsewhere():
    start = jnp.array([1, 4])
    ids = jnp.array([[5, -200, -200, -200, 6, 7, 8, 9, 3], [1, 2, 3, 4, -200, -200, -200, 5, 6]])
    out = splice(TEXT, ids, IMAGE, start)
    for row in range(B):
        i = int(start[row])
        np.testing.assert_array_equal(out[row, i : i + N], IMAGE[row])
        np.testing.assert_array_equal(jnp.delete(out[row], slice(i, i + N), axis=0), jnp.delete(TEXT[row], slice(i, i + N), axis=0))


def test_padding_is_zero():
    ids = jnp.array([[-200] * N + [4, 5, -1, -1, -1, -1], [-200] * N + [1, 2, 3, 4, 5, 6]])
    out = splice(TEXT, ids, IMAGE, jnp.array([0, 0]))
    assert (out[0, 5:] == 0).all()
    np.testing.assert_array_equal(out[0, 3:5], TEXT[0, 3:5])
    np.testing.assert_array_equal(out[1, 3:], TEXT[1, 3:])


def test_an_image_at_the_end_fits_and_one_beyond_is_cut_not_shifted():
    ids = jnp.ones((B, T), jnp.int32)
    out = splice(TEXT, ids, IMAGE, jnp.array([T - N, T - 1]))
    np.testing.assert_array_equal(out[0, T - N :], IMAGE[0])
    np.testing.assert_array_equal(out[1, : T - 1], TEXT[1, : T - 1])
    np.testing.assert_array_equal(out[1, T - 1], IMAGE[1, 0])


def test_the_dtype_of_the_text_is_kept():
    assert splice(TEXT.astype(jnp.bfloat16), jnp.ones((B, T), jnp.int32), IMAGE, jnp.array([0, 1])).dtype == jnp.bfloat16


def test_what_is_overwritten_gets_no_gradient():
    ids = jnp.array([[-200] * N + [4, 5, -1, -1, -1, -1]] * B)
    text, image = jax.grad(lambda a, b: splice(a, ids, b, jnp.array([0, 0])).sum(), argnums=(0, 1))(TEXT, IMAGE)
    assert (image == 1).all()
    np.testing.assert_array_equal(text[0, :, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0])
