"""From an image and a prompt to final masks, through the functions of `inference.segment`: the numbers of the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from language_reference import TOLERANCE, Arrays
from reference import fixture_model, fixture_parameters

from segearth_r2_jax.inference.generate import Generation
from segearth_r2_jax.inference.segment import answer_prompts, encode_image, final_masks
from segearth_r2_jax.inputs.conversation import IMAGE_SLOT
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.models.binding import bind


class Result(NamedTuple):
    stored: Arrays
    generation: Generation
    logits: np.ndarray


@pytest.fixture(scope="module", params=["float32", "float64"])
def result(request: pytest.FixtureRequest, fixtures_dir: Path) -> Iterator[Result]:
    precision = request.param
    with jax.enable_x64(precision == "float64"):
        stored = Arrays(fixtures_dir / "inference.npz", precision)
        abstract = fixture_model(fixtures_dir)
        marks = stored["prompt_ids"][0]
        mark = int((marks == IMAGE_SLOT).argmax())
        before, after = (ids[None].astype(np.int32) for ids in (marks[:mark], marks[mark + 1 :]))
        max_new_tokens = json.loads((fixtures_dir / "config.json").read_text())["max_new"]

        @jax.jit
        def run(params, image, image_clip):
            model = bind(abstract, params)
            prefix, features = encode_image(model, image, image_clip, before)
            generation = answer_prompts(
                model,
                prefix,
                token_ids=after,
                lengths=np.array([after.shape[1]]),
                eos_id=int(stored["eos_token_id"]),
                seg_id=int(stored["seg_token_id"]),
                max_new_tokens=max_new_tokens,
                final_state="reference",
            )
            return generation, final_masks(model, features, generation.seg_states)

        images = (stored[name].transpose(0, 2, 3, 1) for name in ("image", "image_clip"))
        generation, logits = run(fixture_parameters(fixtures_dir, precision), *images)
        yield Result(stored, jax.device_get(generation), np.asarray(logits[0, : int(generation.seg_counts[0])]))


def test_answer(result: Result):
    expected = result.stored["output_ids"][0, result.stored["prompt_ids"].shape[1] :]
    np.testing.assert_array_equal(result.generation.ids[0, : result.generation.lengths[0]], expected)


def test_mask_logits(result: Result):
    result.stored.check("pred_masks_lowres", result.logits[:, None])


def test_masks_on_the_frame(result: Result):
    """As the reference returns them: enlarged to the square frame and thresholded; no pixel that is not undecided may differ."""
    count, _, height, width = result.stored["masks_shape"]
    expected = np.unpackbits(result.stored["masks"], axis=-1)[:, 0, :, :width].astype(bool)
    assert len(result.logits) == count
    letterbox = Letterbox(height, width, height)
    for logits, mask in zip(result.logits, expected, strict=True):
        restored = letterbox.restore(logits)
        decided = np.abs(restored) > TOLERANCE["float32"] * np.abs(restored).max()
        assert decided.mean() > 0.999
        np.testing.assert_array_equal((restored > 0)[decided], mask[decided])
