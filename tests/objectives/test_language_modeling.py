import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.objectives.language_modeling import next_token_loss


def same(logits):
    return logits


def test_counts_only_labels_that_are_not_ignored():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
    labels = jnp.asarray([[9, -100, 2, -100], [-100, 1, -100, 3]]).at[0, 0].set(0)
    log_probs = np.asarray(jax.nn.log_softmax(logits, -1))
    # Position t predicts the label at t + 1; the label at position 0 is never predicted.
    expected = -(log_probs[0, 1, 2] + log_probs[1, 0, 1] + log_probs[1, 2, 3]) / 3
    assert next_token_loss(logits, labels, same) == pytest.approx(expected, rel=1e-6)


def test_without_a_counted_label_it_is_zero_with_a_finite_gradient():
    logits, labels = jnp.ones((1, 3, 4)), jnp.full((1, 3), -100)
    value, gradient = jax.value_and_grad(next_token_loss)(logits, labels, same)
    assert value == 0
    assert not np.any(gradient)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 2, 1000), jnp.bfloat16)
    assert next_token_loss(logits, jnp.ones((1, 2), jnp.int32), same) == pytest.approx(np.log(1000), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_chunks_change_neither_the_value_nor_the_gradients(chunk):
    rng = np.random.default_rng(1)
    hidden, head = jnp.asarray(rng.normal(size=(2, 12, 6))), jnp.asarray(rng.normal(size=(6, 9)))
    labels = jnp.asarray(np.where(rng.random((2, 12)) < 0.4, -100, rng.integers(0, 9, (2, 12))))

    def loss(hidden, head, chunk):
        return next_token_loss(hidden, labels, lambda states: states @ head, chunk=chunk)

    expected, expected_gradients = jax.value_and_grad(loss, (0, 1))(hidden, head, None)
    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, head, chunk)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_chunks_keep_the_logits_of_all_positions_out_of_memory():
    hidden, head, labels = jnp.zeros((2, 512, 16)), jnp.zeros((16, 4096)), jnp.ones((2, 512), jnp.int32)

    def temporary_bytes(chunk):
        def loss(hidden, head):
            return next_token_loss(hidden, labels, lambda states: states @ head, chunk=chunk)

        return jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None) > 2 * 512 * 4096 * 4
    assert temporary_bytes(64) < temporary_bytes(None) / 4
