"""LaSeRS: nine test files, each a way to ask; the same question may stand in several and is answered once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.evaluation.metrics import OFFICIAL, ORIGINAL, RULES, Score, stretch_truth
from segearth_r2_jax.inference.segment import EncodedImage, Segmentation, Segmenter
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.raster import rle

# The published files in the order of the report ("sematic" is how the data set spells it).
FILES = (
    "test_short_query",
    "test_long_query",
    "test_explicit",
    "test_implicit",
    "test_single_cate",
    "test_multi_cate",
    "test_instance_level",
    "test_part_level",
    "test_sematic_level",
)


class Example(Protocol):
    """A record to evaluate: `image` uint8 [h, w, 3]; `masks` [k, h, w] (not zero: foreground), None where they are withheld."""

    record_id: str
    image_name: str
    image: np.ndarray
    instruction: str
    masks: np.ndarray | None


@dataclasses.dataclass
class Scores:
    """Per file: the model's score and that of the answer "every pixel", which a reader needs as a floor."""

    files: dict[str, Score]
    baselines: dict[str, Score]


def in_order(names: Iterable[str]) -> list[str]:
    """File names in the order of `FILES`, others after them."""
    return sorted(names, key=lambda name: (FILES.index(name) if name in FILES else len(FILES), name))


def evaluate(
    segmenter: Segmenter,
    files: Mapping[str, Iterable[Example]],
    *,
    rule: str = ORIGINAL,
    batch_size: int = 1,
    max_new_tokens: int = 128,
    progress: Callable[[int], None] = lambda records: None,
) -> Scores:
    """Answers the records of every file and scores the answers; `progress` is told how many more records are done.

    Raises UserError on an unknown rule, or on a mask that does not have the size of its image.
    """
    if rule not in RULES:
        raise UserError(f"no rule is called {rule!r}; there are {', '.join(RULES)}")
    scores = Scores({name: Score() for name in files}, {name: Score() for name in files})
    # Masks as RLE: a whole test set of answers fits in memory.
    answers: dict[tuple[str, str], list[dict]] = {}
    waiting: list[tuple[str, Example]] = []
    features: dict[str, EncodedImage] = {}

    def finish(name: str, example: Example) -> None:
        predicted = [rle.decode(mask) != 0 for mask in answers[_key(example)]]
        truth = _truth(example, rule, segmenter.config.image_size)
        scores.files[name].add(predicted, truth)
        scores.baselines[name].add([np.ones(truth[0].shape, bool)] if truth else [], truth)
        progress(1)

    def flush() -> None:
        asked = {_key(example): example for _, example in waiting}
        for image_name in features.keys() - {example.image_name for example in asked.values()}:
            del features[image_name]
        for example in asked.values():
            if example.image_name not in features:
                features[example.image_name] = segmenter.encode(example.image)
        images = [features[example.image_name] for example in asked.values()]
        instructions = [example.instruction for example in asked.values()]
        answered = segmenter.segment_batch(images, instructions, max_new_tokens=max_new_tokens)
        for key, segmentation in zip(asked, answered, strict=True):
            answers[key] = [rle.encode(mask) for mask in _predicted(segmentation, rule, segmenter.config.image_size)]
        for name, example in waiting:
            finish(name, example)
        waiting.clear()

    for name, examples in files.items():
        for example in examples:
            if _key(example) in answers:
                finish(name, example)
                continue
            waiting.append((name, example))
            if len({_key(other) for _, other in waiting}) == batch_size:
                flush()
    if waiting:
        flush()
    return scores


def _key(example: Example) -> tuple[str, str]:
    return example.image_name, example.instruction


def _predicted(segmentation: Segmentation, rule: str, frame: int) -> Sequence[np.ndarray]:
    if rule == OFFICIAL:
        return [Letterbox(frame, frame, frame).restore(logits) > 0 for logits in segmentation.frame_logits]
    return [target.mask for target in segmentation.targets]


def _truth(example: Example, rule: str, frame: int) -> list[np.ndarray]:
    masks = [] if example.masks is None else [mask != 0 for mask in example.masks]
    for mask in masks:
        if mask.shape != example.image.shape[:2]:
            raise UserError(f"{example.record_id}: a mask is {mask.shape}, its image {example.image.shape[:2]} (height, width)")
    return [stretch_truth(mask, frame) for mask in masks] if rule == OFFICIAL else masks
