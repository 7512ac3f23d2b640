import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.objectives.language_modeling import next_token_loss


def test_counts_only_labels_that_are_not_ignored():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
    labels = jnp.asarray([[9, -100, 2, -100], [-100, 1, -100, 3]]).at[0, 0].set(0)
    log_probs = np.asarray(jax.nn.log_softmax(logits, -1))
    # Position t predicts the label at t + 1; the label at position 0 is never predicted.
    expected = -(log_probs[0, 1, 2] + log_probs[1, 0, 1] + log_probs[1, 2, 3]) / 3
    assert next_token_loss(logits, labels) == pytest.approx(expected, rel=1e-6)


def test_without_a_counted_label_it_is_zero_with_a_finite_gradient():
    logits, labels = jnp.ones((1, 3, 4)), jnp.full((1, 3), -100)
    value, gradient = jax.value_and_grad(next_token_loss)(logits, labels)
    assert value == 0
    assert not np.any(gradient)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 2, 1000), jnp.bfloat16)
    assert next_token_loss(logits, jnp.ones((1, 2), jnp.int32)) == pytest.approx(np.log(1000), rel=1e-6)
