"""Greedy generation from an image and a prompt gives the tokens and [SEG] queries of the reference, in float32 and in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_reference import Arrays, Language, load_language

from segearth_r2_jax.inference.generate import generate

IMAGE = -200


@pytest.fixture(scope="module")
def language(fixtures_dir: Path) -> Language:
    return load_language(fixtures_dir)


@pytest.fixture(scope="module")
def max_new(fixtures_dir: Path) -> int:
    return json.loads((fixtures_dir / "config.json").read_text())["max_new"]


# One session per precision, so that each program is compiled once.
@pytest.fixture(scope="module", params=["float32", "float64"])
def run(request: pytest.FixtureRequest, language: Language, max_new: int) -> Iterator[Callable]:
    precision = request.param

    @partial(jax.jit, static_argnames="final_state")
    def compiled(language, pixels, before, after, eos_id, seg_id, final_state):
        before_embeds, after_embeds = (language.phi.embed(ids).astype(pixels.dtype) for ids in (before, after))
        _, prefix = language.phi.prefill(jnp.concatenate([before_embeds, language.projector(language.siglip(pixels))], axis=1))
        b, t = after.shape
        result = generate(
            language.phi,
            prefix,
            after_embeds,
            jnp.full(b, t),
            eos_id=eos_id,
            seg_id=seg_id,
            max_new_tokens=max_new,
            max_segments=t + max_new,
            count_in_prompt=after == seg_id,
            final_state=final_state,
        )
        return result, language.seg_projector(result.seg_states)

    def run(stored: Arrays, image: np.ndarray, eos_id: int, final_state: str = "extra_step"):
        (ids,) = stored["prompt_ids"]
        mark = int(np.argmax(ids == IMAGE))
        before, after = ids[None, :mark], ids[None, mark + 1 :]
        return compiled(language, image.transpose(0, 2, 3, 1), before, after, eos_id, int(stored["seg_token_id"]), final_state)

    run.precision = precision
    with jax.enable_x64(precision == "float64"):
        yield run


def _generated(stored: Arrays) -> np.ndarray:
    return stored["output_ids"][0, stored["prompt_ids"].shape[1] :]


def test_until_the_end_of_text(run: Callable, fixtures_dir: Path, max_new: int):
    stored = Arrays(fixtures_dir / "inference.npz", run.precision)
    eos_id = int(stored["eos_token_id"])
    result, queries = run(stored, stored["image_clip"], eos_id)
    expected = _generated(stored)
    assert result.lengths.tolist() == [len(expected)]
    np.testing.assert_array_equal(result.ids[0], np.pad(expected, (0, max_new - len(expected)), constant_values=eos_id))
    count = len(stored["seg_embedding"])
    assert result.seg_counts.tolist() == [count]
    assert result.seg_total.tolist() == [count]
    stored.check("seg_embedding", np.asarray(queries)[0, :count, None])


def test_without_an_end_of_text(run: Callable, fixtures_dir: Path):
    stored = Arrays(fixtures_dir / "inference.npz", run.precision)
    result, _ = run(stored, stored["image_clip"], -1)
    np.testing.assert_array_equal(result.ids[0], stored["free_run_ids"])


def test_a_seg_as_the_last_token_is_lost_in_reference_mode(run: Callable, fixtures_dir: Path):
    stored = Arrays(fixtures_dir / "inference_last.npz", run.precision)
    image = Arrays(fixtures_dir / "inference.npz", run.precision)["image_clip"]
    result, queries = run(stored, image, -1, "reference")
    np.testing.assert_array_equal(result.ids[0], _generated(stored))
    count = int(stored["n_masks"])
    assert result.seg_counts.tolist() == [count]
    assert result.seg_total.tolist() == [int(stored["n_seg_in_output"])]
    if count:
        stored.check("seg_embedding", np.asarray(queries)[0, :count, None])


def test_a_seg_as_the_last_token_is_kept_by_an_extra_step(run: Callable, fixtures_dir: Path):
    stored = Arrays(fixtures_dir / "inference_last.npz", run.precision)
    image = Arrays(fixtures_dir / "inference.npz", run.precision)["image_clip"]
    result, queries = run(stored, image, -1)
    np.testing.assert_array_equal(result.ids[0], _generated(stored))
    count = int(stored["n_masks"])
    assert result.seg_counts.tolist() == result.seg_total.tolist() == [count + 1]
    if count:
        stored.check("seg_embedding", np.asarray(queries)[0, :count, None])
    assert np.abs(np.asarray(queries)[0, count]).max() > 0
