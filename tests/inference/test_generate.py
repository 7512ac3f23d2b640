"""Greedy generation: when a row ends, which [SEG] states come back, and what the length limit and the slots cut off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_module

from segearth_r2_jax.inference.generate import Generation, generate
from segearth_r2_jax.models.phi import Phi, PhiConfig

CONFIG = PhiConfig(vocab_size=24, embed_rows=24, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2)
PREFIX, T, NEW, SLOTS = 2, 7, 5, 5
LENGTHS = np.array([7, 4])  # the prefix included
NOTHING = -1
SEED = 1


def build(config: PhiConfig, seed: int = SEED) -> Phi:
    """A token weighs as much as a layer, so that the text varies."""
    return random_module(lambda rngs: Phi(config, rngs=rngs), seed)


@pytest.fixture(scope="module")
def phi() -> Phi:
    return build(CONFIG)


@pytest.fixture(scope="module")
def embeds() -> np.ndarray:
    """Two prompts, padded on the right with something that may not be seen."""
    embeds = np.random.default_rng(0).normal(size=(2, T, CONFIG.hidden_size)).astype(np.float32)
    embeds[1, LENGTHS[1] :] = 50
    return embeds


@partial(jax.jit, static_argnames=("new", "slots", "final_state", "shared"))
def _generate(phi, embeds, lengths, eos_id, seg_id, counted, new, slots, final_state, shared=PREFIX) -> Generation:
    _, prefix = phi.prefill(embeds[:, :shared])
    return generate(
        phi,
        prefix,
        embeds[:, shared:],
        jnp.maximum(lengths - shared, 0),
        eos_id=eos_id,
        seg_id=seg_id,
        max_new_tokens=new,
        max_segments=slots,
        count_in_prompt=counted[:, shared:],
        final_state=final_state,
    )


def run(
    phi: Phi,
    embeds: np.ndarray,
    *,
    eos_id: int = NOTHING,
    seg_id: int = NOTHING,
    lengths: np.ndarray = LENGTHS,
    counted: np.ndarray | None = None,
    new: int = NEW,
    slots: int = SLOTS,
    final_state: str = "extra_step",
    shared: int = PREFIX,
) -> Generation:
    counted = np.zeros((len(embeds), T), bool) if counted is None else counted
    return jax.device_get(_generate(phi, embeds, lengths, eos_id, seg_id, counted, new, slots, final_state, shared))


class Expected:
    """One row, generated without a cache: `ids` [NEW + 1], `hidden` [prompt + NEW + 1, d], `probability` [NEW + 1] of each id."""

    def __init__(self, whole: Callable, phi: Phi, prompt: np.ndarray):
        length = len(prompt)
        sequence = np.zeros((length + NEW + 1, CONFIG.hidden_size), np.float32)
        sequence[:length] = prompt
        self.ids, self.probability = [], []
        for i in range(NEW + 1):
            self.hidden, logits = whole(phi, sequence[None])
            probabilities = np.asarray(jax.nn.softmax(logits[0, length + i - 1]))
            self.ids.append(int(probabilities.argmax()))
            self.probability.append(float(probabilities.max()))
            sequence[length + i] = phi.embed_tokens.table[...][self.ids[-1]]
        self.hidden = np.asarray(whole(phi, sequence[None])[0][0])
        self.length = length

    def state_of(self, i: int) -> np.ndarray:
        """The hidden state where the i-th generated token is the input."""
        return self.hidden[self.length + i]


@pytest.fixture(scope="module")
def expected(phi: Phi, embeds: np.ndarray) -> list[Expected]:
    @jax.jit
    def whole(phi, sequence):
        hidden = phi(sequence, jnp.ones(sequence.shape[:2], bool)).hidden
        return hidden, phi.logits(hidden)

    rows = [Expected(whole, phi, embeds[i, :n]) for i, n in enumerate(LENGTHS)]
    assert all(len(set(row.ids[:NEW])) > 1 for row in rows), "the tests below need text that varies"
    return rows


def test_each_row_gets_the_likeliest_tokens_after_its_own_prompt(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    result = run(phi, embeds)
    np.testing.assert_array_equal(result.ids, [row.ids[:NEW] for row in expected])
    assert result.lengths.tolist() == [NEW, NEW]
    assert result.seg_counts.tolist() == result.seg_total.tolist() == [0, 0]
    assert (result.seg_states == 0).all()


@pytest.mark.parametrize("shared", [1, 3])
def test_how_much_of_the_prompts_was_a_prefix_changes_nothing(phi: Phi, embeds: np.ndarray, expected: list[Expected], shared: int):
    seg = expected[0].ids[0]
    one, other = run(phi, embeds, seg_id=seg), run(phi, embeds, seg_id=seg, shared=shared)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.seg_counts, other.seg_counts)
    np.testing.assert_allclose(one.seg_states, other.seg_states, atol=1e-4)


def test_a_row_ends_with_the_end_of_text_and_the_others_go_on(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    first, second = (row.ids[:NEW] for row in expected)
    eos = next(token for token in first[1:-1] if token not in second)
    end = first.index(eos)
    result = run(phi, embeds, eos_id=eos)
    assert result.lengths.tolist() == [end + 1, NEW]
    np.testing.assert_array_equal(result.ids, [first[: end + 1] + [eos] * (NEW - end - 1), second])


def test_the_state_is_the_one_where_seg_is_the_input(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    for row in range(2):
        ids = expected[row].ids[:NEW]
        seg = ids[0]
        places = [i for i, token in enumerate(ids) if token == seg]
        result = run(phi, embeds, seg_id=seg)
        assert result.seg_counts[row] == result.seg_total[row] == len(places)
        for slot, i in enumerate(places):
            np.testing.assert_allclose(result.seg_states[row, slot], expected[row].state_of(i), atol=2e-4)
            np.testing.assert_allclose(result.seg_scores[row, slot], expected[row].probability[i], rtol=1e-4)
        assert (result.seg_states[row, len(places) :] == 0).all()
        assert (result.seg_scores[row, len(places) :] == 0).all()


def test_a_seg_right_before_the_end_of_text_has_a_state(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    ids = expected[0].ids[:NEW]
    i = next(i for i in range(NEW - 1) if ids[i] != ids[i + 1] and ids[i + 1] not in ids[: i + 1] and ids[i] not in ids[:i])
    for final_state in ("extra_step", "reference"):
        result = run(phi, embeds, eos_id=ids[i + 1], seg_id=ids[i], final_state=final_state)
        assert result.lengths[0] == i + 2
        assert result.seg_counts[0] == 1
        np.testing.assert_allclose(result.seg_states[0, 0], expected[0].state_of(i), atol=2e-4)


@pytest.mark.parametrize("new", [1, NEW])
def test_a_seg_at_the_length_limit(phi: Phi, embeds: np.ndarray, expected: list[Expected], new: int):
    """The reference loses it, since generation ends before it is an input; one more step keeps it and changes no token."""
    seg = expected[0].ids[new - 1]
    places = [i for i, token in enumerate(expected[0].ids[:new]) if token == seg]
    lost = run(phi, embeds, seg_id=seg, new=new, final_state="reference")
    kept = run(phi, embeds, seg_id=seg, new=new)
    np.testing.assert_array_equal(lost.ids, kept.ids)
    np.testing.assert_array_equal(lost.lengths, kept.lengths)
    np.testing.assert_array_equal(kept.lengths, [new, new])
    np.testing.assert_array_equal(lost.seg_total, kept.seg_total)
    assert lost.seg_total[0] == len(places)
    assert lost.seg_counts[0] == len(places) - 1
    assert kept.seg_counts[0] == len(places)
    np.testing.assert_allclose(kept.seg_states[0, len(places) - 1], expected[0].state_of(new - 1), atol=2e-4)
    assert (kept.seg_states[0, len(places) :] == 0).all()


def test_more_segs_than_slots_are_counted_and_the_first_kept(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    ids = expected[0].ids[:NEW]
    seg = max(set(ids), key=ids.count)
    counted = np.zeros((2, T), bool)
    counted[0, 2] = True
    places = [i for i, token in enumerate(ids) if token == seg]
    result = run(phi, embeds, seg_id=seg, counted=counted, slots=1)
    assert result.seg_counts[0] == 1
    assert result.seg_total[0] == 1 + len(places)
    np.testing.assert_allclose(result.seg_states[0, 0], expected[0].hidden[2], atol=2e-4)


def test_segs_of_the_prompt_come_first_where_they_count(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    counted = np.zeros((2, T), bool)
    counted[0, [3, 5]] = True
    seg = expected[0].ids[0]
    result = run(phi, embeds, seg_id=seg, counted=counted)
    states = [expected[0].hidden[3], expected[0].hidden[5], expected[0].state_of(0)]
    np.testing.assert_allclose(result.seg_states[0, :3], states, atol=2e-4)
    np.testing.assert_array_equal(result.seg_scores[0, :2], 1)
    assert result.seg_scores[0, 2] < 1


def test_an_empty_row_generates_nothing(phi: Phi, embeds: np.ndarray, expected: list[Expected]):
    eos = expected[0].ids[1]
    result = run(phi, embeds, lengths=np.array([7, 0]), eos_id=eos, seg_id=expected[0].ids[0])
    assert result.lengths[1] == 0
    assert (result.ids[1] == eos).all()
    assert result.seg_total[1] == 0
    assert np.isfinite(result.seg_states).all()
    np.testing.assert_array_equal(result.ids[0, : result.lengths[0]], expected[0].ids[: result.lengths[0]])


def test_a_token_without_a_row_in_the_input_table_is_never_chosen(embeds: np.ndarray):
    result = run(build(dataclasses.replace(CONFIG, embed_rows=5)), embeds)
    assert result.ids.max() < 5
    assert np.isfinite(result.seg_states).all()


def test_states_in_the_compute_dtype_and_scores_in_float32(phi: Phi, embeds: np.ndarray):
    arguments = (jnp.asarray(embeds, jnp.bfloat16), LENGTHS, NOTHING, NOTHING, np.zeros((2, T), bool))
    result = jax.eval_shape(lambda phi: _generate(phi, *arguments, NEW, SLOTS, "extra_step"), phi)
    assert result.seg_states.dtype == jnp.bfloat16
    assert result.seg_scores.dtype == np.float32
    assert result.ids.dtype == np.int32


@pytest.mark.parametrize(
    ("wrong", "message"), [({"new": 0}, "max_new_tokens"), ({"slots": 0}, "max_segments"), ({"final_state": "x"}, "x")]
)
def test_wrong_arguments_are_refused(phi: Phi, embeds: np.ndarray, wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        run(phi, embeds, **wrong)
