"""LaSeRS: nine test files, each a way to ask; the same question may stand in several and is answered once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.evaluation.metrics import OFFICIAL, ORIGINAL, RULES, Comparison, Score, compare, stretch_truth
from segearth_r2_jax.evaluation.processes import agree
from segearth_r2_jax.inference.segment import EncodedImage, Segmentation, Segmenter
from segearth_r2_jax.inputs.letterbox import Letterbox

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
_BATCHES_BETWEEN_MEETINGS = 16


class Example(Protocol):
    """A record to evaluate; read when its turn comes."""

    record_id: str
    image_name: str
    instruction: str

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The image uint8 [h, w, 3] and the masks [k, h, w] (not zero: foreground), None where they are withheld."""


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
    files: Mapping[str, Sequence[Example]],
    *,
    rule: str = ORIGINAL,
    batch_size: int = 1,
    max_new_tokens: int = 128,
    progress: Callable[[int], None] = lambda records: None,
) -> Scores:
    """Answers the records of every file and scores the answers; `progress` is told how many more records are done.

    Several processes share the work and all return the same scores, bit for bit those of one process: process i of n takes every n-th
    batch from the i-th on, of the batches that one process would make (a number may depend on what else is in a batch), and what was
    counted is summed in the order of the records.

    Raises UserError on an unknown rule, on a mask that does not have the size of its image, or if the processes see different records.
    """
    if rule not in RULES:
        raise UserError(f"no rule is called {rule!r}; there are {', '.join(RULES)}")
    asked = _questions(files)
    _require_same(asked)
    batches = [asked[first : first + batch_size] for first in range(0, len(asked), batch_size)]
    processes = jax.process_count()
    own = batches[jax.process_index() :: processes]
    answerer = _Answerer(segmenter, rule, max_new_tokens)
    counted: dict[tuple[str, int], tuple[Comparison, Comparison]] = {}
    # Between two meetings nobody waits for a slower one; at the next one an error ends all.
    pace = _BATCHES_BETWEEN_MEETINGS if processes > 1 else 1
    for first in range(0, -(-len(batches) // processes), pace):
        here = own[first : first + pace]
        for answers in agree(lambda here=here: [outcome for batch in here for outcome in answerer.outcomes(batch)]):
            counted.update({(name, number): (Comparison(*answer), Comparison(*floor)) for name, number, answer, floor in answers})
            progress(len(answers))
    scores = Scores({name: Score() for name in files}, {name: Score() for name in files})
    for name, examples in files.items():
        for number in range(len(examples)):
            answer, floor = counted[name, number]
            scores.files[name].add(answer)
            scores.baselines[name].add(floor)
    return scores


class _Question(NamedTuple):
    """A question and the records that ask it: (file, number of the record in it, the record)."""

    key: tuple[str, str]
    records: list[tuple[str, int, Example]]


def _questions(files: Mapping[str, Sequence[Example]]) -> list[_Question]:
    """Every question once, those about one image together, otherwise in the order in which they come up."""
    questions: dict[tuple[str, str], _Question] = {}
    images: dict[str, int] = {}
    for name, examples in files.items():
        for number, example in enumerate(examples):
            key = (example.image_name, example.instruction)
            images.setdefault(example.image_name, len(images))
            questions.setdefault(key, _Question(key, [])).records.append((name, number, example))
    return sorted(questions.values(), key=lambda question: images[question.key[0]])


def _require_same(asked: Sequence[_Question]) -> None:
    text = json.dumps([[question.key, [record[:2] for record in question.records]] for question in asked])
    digests = agree(lambda: hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise UserError("the processes see different records; the data has to be the same on every host")


class _Answerer:
    """Answers questions and compares, on the devices of this process."""

    def __init__(self, segmenter: Segmenter, rule: str, max_new_tokens: int):
        self._segmenter, self._rule, self._max_new_tokens = segmenter, rule, max_new_tokens
        # Images of the batch before: questions about one image stand together.
        self._features: dict[str, EncodedImage] = {}

    def outcomes(self, batch: Sequence[_Question]) -> Iterator[tuple[str, int, Comparison, Comparison]]:
        """For every record of the questions: its file, its number, the comparison of its answer and of the answer "every pixel"."""
        frame = self._segmenter.config.image_size
        loaded = [question.records[0][2].load() for question in batch]
        self._features = {name: image for name, image in self._features.items() if name in {question.key[0] for question in batch}}
        for question, (image, _) in zip(batch, loaded, strict=True):
            if question.key[0] not in self._features:
                self._features[question.key[0]] = self._segmenter.encode(image)
        images = [self._features[question.key[0]] for question in batch]
        instructions = [question.key[1] for question in batch]
        answered = self._segmenter.segment_batch(images, instructions, max_new_tokens=self._max_new_tokens)
        for question, first, segmentation in zip(batch, loaded, answered, strict=True):
            predicted = _predicted(segmentation, self._rule, frame)
            for place, (name, number, example) in enumerate(question.records):
                image, masks = first if place == 0 else example.load()
                truth = _truth(example.record_id, image, masks, self._rule, frame)
                everything = [np.ones(truth[0].shape, bool)] if truth else []
                yield name, number, compare(predicted, truth), compare(everything, truth)


def _predicted(segmentation: Segmentation, rule: str, frame: int) -> Sequence[np.ndarray]:
    if rule == OFFICIAL:
        return [Letterbox(frame, frame, frame).restore(logits) > 0 for logits in segmentation.frame_logits]
    return [target.mask for target in segmentation.targets]


def _truth(record_id: str, image: np.ndarray, masks: np.ndarray | None, rule: str, frame: int) -> list[np.ndarray]:
    truth = [] if masks is None else [mask != 0 for mask in masks]
    for mask in truth:
        if mask.shape != image.shape[:2]:
            raise UserError(f"{record_id}: a mask is {mask.shape}, its image {image.shape[:2]} (height, width)")
    return [stretch_truth(mask, frame) for mask in truth] if rule == OFFICIAL else truth
