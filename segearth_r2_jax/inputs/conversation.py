"""From an instruction and an answer to the token rows that the language model is trained on and prompted with.

Mirrors `preprocess_llama2` / `LaSeRSDataset.__getitem__` (text and labels), the collator, and the text half of
`prepare_inputs_labels_for_multimodal` of the official SegEarth-R2.

A conversation has two forms. In the *reference form* the image and the instruction are one mark each (`IMAGE_SLOT`, `REFER_SLOT`)
among text ids: this is what upstream calls `input_ids`. In the *expanded form* every position of the language model's sequence is
there: the image's positions hold `IMAGE_SLOT`, the instruction's its ids, the rest of a padded row `PADDING`.

Templates differ between upstream's training and its evaluation, in words and in where the instruction goes; a template is therefore
named by whoever prompts or trains, never guessed.
"""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import END_OF_TEXT, SEG_TOKEN, Tokenizer

IMAGE_SLOT = -200  # Reference form: one mark. Expanded form: every position of the image.
REFER_SLOT = -204  # Reference form only: the place of the instruction.
PADDING = -1  # Expanded form: positions after the end of a row.
IGNORE_LABEL = -100


class LabelMismatch(UserWarning):
    """An answer whose labels cannot be told from its prompt: it is not trained on as text (its masks still are)."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The words around an image, an instruction and an answer.

    `{before_image}<image>{after_image}{instruction}{before_answer}`, and in training `{separator}{answer}<|endoftext|>` after it.
    With `refer`, the instruction stands as `REFER_SLOT` and is expanded to its own ids and a closing [SEG], which is no mask query.
    """

    before_image: str
    after_image: str
    before_answer: str
    refer: bool
    # What joins the prompt to the answer; None where upstream never trains with this template.
    separator: str | None = None
    # Upstream's label arithmetic leaves this many of the prompt's last ids supervised: the ":" and the space of " ASSISTANT: ".
    supervised_prompt_ids: int = 2


_TRAIN_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
_EVAL_SYSTEM = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
)
_REASONING = ", please doing Reasoning Segmentation according to the following instruction:\n"
_TRAIN_PHI_V0 = Template(
    before_image=_TRAIN_SYSTEM + "This is an image \n",
    after_image="\n" + _REASONING,
    before_answer=" <|assistant|> ASSISTANT:",
    refer=True,
    separator=" \n",
)

TEMPLATES: Mapping[str, Template] = types.MappingProxyType(
    {
        # What upstream trains with, and the default for every model trained here.
        "train_phi_v0": _TRAIN_PHI_V0,
        # The same with the prefix of upstream's first release.
        "train_phi_v0_vision_tags": dataclasses.replace(
            _TRAIN_PHI_V0,
            before_image=_TRAIN_SYSTEM + "This is an image <|vision_bos|> ",
            after_image=" <|vision_eos|> <|sep|> <|user|>" + _REASONING,
        ),
        # What upstream's eval.py prompts with.
        "eval_llama2": Template(
            before_image=_EVAL_SYSTEM + "This is an image \n",
            after_image=(
                "\n. If the instruction is a question, provide segmentation result + explanation; "
                "if it's a declarative phrase, provide only the segmentation result\n. "
                "Please doing Referring or Reasoning Segmentation according to the following instruction:\n"
            ),
            before_answer=" [/INST]",
            refer=False,
        ),
        # The evaluation's frame around the training prefix, as a published fork of upstream prompts.
        "eval_llama2_train_prefix": Template(
            before_image=_EVAL_SYSTEM + "This is an image \n",
            after_image="\n" + _REASONING,
            before_answer=" [/INST]",
            refer=False,
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The reference form of one conversation: int32 `ids`, `labels` and bool `attention_mask` [l], int32 `refer_ids` [r]."""

    ids: np.ndarray
    labels: np.ndarray
    attention_mask: np.ndarray
    refer_ids: np.ndarray
    # Which ids are the [SEG] tokens of the answer: the mask queries, in order.
    seg_indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """The expanded form of one conversation, not padded: int32 `token_ids`, `labels`, bool `attention_mask` [length].

    `image_start` is the first position of the image, int32 `seg_positions` [k] those of the answer's [SEG] tokens.
    """

    token_ids: np.ndarray
    labels: np.ndarray
    attention_mask: np.ndarray
    image_start: int
    seg_positions: np.ndarray

    @property
    def length(self) -> int:
        return len(self.token_ids)


def get_template(name: str) -> Template:
    """The template of that name; UserError if there is none."""
    if name not in TEMPLATES:
        raise UserError(f"no prompt template is called {name!r}; there are {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def encode_prompt(tokenizer: Tokenizer, template: str, instruction: str, name: str = "instruction") -> Conversation:
    """The reference form of a prompt that asks for an answer; nothing in it is supervised.

    The training templates end in "ASSISTANT:" here: the space and the newline that follow were supervised in training, so a
    model produces them itself. `name` begins the message of the UserError that an empty instruction gives.
    """
    words = get_template(template)
    instruction = _stripped(instruction, name)
    before, refer_ids, after = _prompt_ids(tokenizer, words, instruction, words.before_answer)
    ids = np.array([*before, *after], np.int32)
    return Conversation(
        ids=ids,
        labels=np.full(len(ids), IGNORE_LABEL, np.int32),
        attention_mask=np.ones(len(ids), bool),
        refer_ids=np.array(refer_ids, np.int32),
        seg_indices=np.zeros(0, np.int32),
    )


def encode_training(tokenizer: Tokenizer, template: str, instruction: str, answer: str, name: str = "record") -> Conversation:
    """The reference form of an instruction and the answer to learn.

    Labels equal the ids from two ids before the end of the prompt on (see `Template.supervised_prompt_ids`) and are
    `IGNORE_LABEL` before. Where the answer holds the words that end a prompt or a text, prompt and answer cannot be told apart:
    all labels are then ignored and a `LabelMismatch` warning names the record, as upstream does.
    Raises UserError, beginning with `name`, on an empty instruction or a template that is not for training.
    """
    words = get_template(template)
    if words.separator is None:
        raise UserError(f"{name}: the template {template!r} only prompts; train with train_phi_v0")
    instruction = _stripped(instruction, name)
    before, refer_ids, after = _prompt_ids(tokenizer, words, instruction, words.before_answer + words.separator + answer + END_OF_TEXT)
    ids = np.array([*before, *after], np.int32)
    labels = ids.copy()
    turn = words.before_answer + " "
    prompt_length = len(before) + len(_encode(tokenizer, turn))
    labels[: prompt_length - words.supervised_prompt_ids] = IGNORE_LABEL
    speaker = turn[turn.rindex(" ", 0, -1) :]
    if END_OF_TEXT in answer or speaker in answer:
        warnings.warn(
            f"{name}: the answer contains {speaker!r} or {END_OF_TEXT!r}; its text is not trained on",
            LabelMismatch,
            stacklevel=2,
        )
        labels[:] = IGNORE_LABEL
    attention_mask = np.ones(len(ids), bool)
    attention_mask[-1] = False  # Upstream masks keys by `id != padding`, and padding is the end of text. Nothing comes after it.
    seg_indices = len(before) + np.flatnonzero(np.asarray(after) == tokenizer.seg_id)
    return Conversation(ids, labels, attention_mask, np.array(refer_ids, np.int32), seg_indices.astype(np.int32))


def expand(conversation: Conversation, num_image_tokens: int) -> TokenRow:
    """Gives every position of the language model's sequence its place: `num_image_tokens` for the image, the instruction's own."""
    ids = conversation.ids
    widths = np.where(ids == IMAGE_SLOT, num_image_tokens, np.where(ids == REFER_SLOT, len(conversation.refer_ids), 1))
    starts = np.cumsum(widths) - widths
    marked = ids < 0
    token_ids = np.repeat(ids, widths).astype(np.int32)
    for slot in np.flatnonzero(ids == REFER_SLOT):
        token_ids[starts[slot] : starts[slot] + widths[slot]] = conversation.refer_ids
    images = np.flatnonzero(ids == IMAGE_SLOT)
    if len(images) != 1:
        raise ValueError(f"a conversation is about exactly one image, this one has {len(images)} marks")
    return TokenRow(
        token_ids=token_ids,
        labels=np.repeat(np.where(marked, IGNORE_LABEL, conversation.labels), widths).astype(np.int32),
        attention_mask=np.repeat(marked | conversation.attention_mask, widths),
        image_start=int(starts[images[0]]),
        seg_positions=starts[conversation.seg_indices].astype(np.int32),
    )


def training_lengths(tokenizer: Tokenizer, template: str, texts: Sequence[tuple[str, str]], num_image_tokens: int) -> np.ndarray:
    """Positions that each (instruction, answer) takes, int64 [n]: the lengths of `expand(encode_training(...))`.

    All texts are encoded in one call, which the tokenizer spreads over the processors.
    """
    words = get_template(template)
    if words.separator is None or not texts:
        return np.zeros(len(texts), np.int64)
    ends = [words.before_answer + words.separator + answer + END_OF_TEXT for _, answer in texts]
    asked = [instruction.strip() for instruction, _ in texts]
    if not words.refer:
        joined = [words.after_image + instruction + end for instruction, end in zip(asked, ends, strict=True)]
        return len(_encode(tokenizer, words.before_image)) + num_image_tokens + _lengths(tokenizer, joined)
    around = len(_encode(tokenizer, words.before_image)) + num_image_tokens + len(_encode(tokenizer, words.after_image))
    return around + _lengths(tokenizer, asked) + 1 + _lengths(tokenizer, ends)  # 1: the [SEG] that closes the instruction.


def smallest_bucket(length: int, buckets: Sequence[int], name: str) -> int:
    """The smallest of `buckets` that holds `length` positions; UserError naming the record if none does."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise UserError(f"{name}: needs {length} token positions, at most {max(buckets)} fit; shorten its text or raise token_buckets")
    return min(fitting)


def pad_row(row: TokenRow, length: int, max_masks: int, name: str = "record") -> dict[str, np.ndarray]:
    """One row of a batch with static shapes.

    token_ids, labels int32 [length]; attention_mask bool [length]; image_start int32 []; seg_positions int32 [max_masks] (0 where
    there is none); mask_valid bool [max_masks]. Raises UserError naming the record if it has more positions or more masks.
    """
    smallest_bucket(row.length, (length,), name)
    masks = len(row.seg_positions)
    if masks > max_masks:
        raise UserError(f"{name}: has {masks} masks, at most {max_masks} fit; raise max_masks")
    missing = length - row.length
    return {
        "token_ids": np.pad(row.token_ids, (0, missing), constant_values=PADDING),
        "labels": np.pad(row.labels, (0, missing), constant_values=IGNORE_LABEL),
        "attention_mask": np.pad(row.attention_mask, (0, missing)),
        "image_start": np.int32(row.image_start),
        "seg_positions": np.pad(row.seg_positions, (0, max_masks - masks)),
        "mask_valid": np.arange(max_masks) < masks,
    }


def count_masks(answer: str) -> int:
    """How many masks an answer speaks of."""
    return answer.count(SEG_TOKEN)


def _stripped(instruction: str, name: str) -> str:
    instruction = instruction.strip()
    if not instruction:
        raise UserError(f"{name}: the instruction is empty; say what to find")
    return instruction


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) if text else []


def _lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    return np.array([len(ids) for ids in tokenizer.encode_all(texts)], np.int64)


def _prompt_ids(tokenizer: Tokenizer, words: Template, instruction: str, rest: str) -> tuple[list[int], list[int], list[int]]:
    """Ids up to the last mark, ids of the instruction where it stands apart, ids after the last mark.

    Each stretch of text between marks is encoded by itself. The user's words are never searched for marks.
    """
    before = [*_encode(tokenizer, words.before_image), IMAGE_SLOT]
    if not words.refer:
        return before, [], _encode(tokenizer, words.after_image + instruction + rest)
    before += [*_encode(tokenizer, words.after_image), REFER_SLOT]
    return before, [*_encode(tokenizer, instruction), tokenizer.seg_id], _encode(tokenizer, rest)
