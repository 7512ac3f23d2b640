"""An image and an instruction -> words and masks on the image's own pixels (reference: `SegEarthR2.inference`).

An image is encoded once, whatever the number of instructions about it, and what is encoded of it goes as far as it can: up to the
language model's keys and values of the part that all prompts about it begin with, the template's words before the image and the image
itself. An instruction adds its own tokens to them. The prompt is answered greedily; every `[SEG]` of the answer gives one mask. Mask
logits live on the letterboxed frame at stride 4 and are brought back by `Letterbox.restore`, then thresholded.

Everything runs in three compiled functions of static shapes: encode one image, answer a batch of prompts of one bucket, decode a
fixed number of masks. A new image size, a new instruction of the same bucket or another number of masks compiles nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.checkpoints.manager import latest_step, load_parameters, read_config, read_model_config
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inference.generate import Generation, generate
from segearth_r2_jax.inputs.conversation import IMAGE_SLOT, encode_prompt, expand, get_template, smallest_bucket
from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, normalize_for_swin, squash
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN, Tokenizer, load_tokenizer
from segearth_r2_jax.models.binding import Params, abstract_module, bind, flatten, module_params, unflatten
from segearth_r2_jax.models.int8 import to_int8
from segearth_r2_jax.models.layers import wide
from segearth_r2_jax.models.phi import KVCache
from segearth_r2_jax.models.pixel_decoder import PixelDecoderOutput
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

# What follows the image in a prompt is padded to a multiple of this many tokens, so that instructions of similar length share a
# compiled function.
BUCKET_STEP = 64
# The published language model was trained with no more positions, prompt and answer together.
MAX_POSITIONS = 2048
# Masks decoded in one pass; an answer with more takes several.
MASKS_PER_PASS = 8
DTYPES = ("float32", "bfloat16")
# The kernels that `int8` is about: nearly all of what a generated word reads.
_INT8 = re.compile(r"phi/(layers/.*|lm_head)/kernel")


@dataclasses.dataclass(frozen=True)
class Target:
    """One `[SEG]` of an answer.

    mask: bool [h, w] on the image's pixels. area: its pixels. box: (left, top, right, bottom) in pixels, right and bottom exclusive,
    None if the mask is empty. phrase: the words of the answer that it belongs to (see `phrases`).
    score, in [0, 1]: the mean probability of the mask's pixels on the model's stride-4 frame (Mask2Former's mask score; 0 for an empty
    mask) times the probability with which the language model chose this `[SEG]`. It ranks targets; it is not a calibrated IoU.
    """

    mask: np.ndarray
    score: float
    phrase: str
    box: tuple[int, int, int, int] | None
    area: int


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """An answer. `finished` is False where the length limit cut it; `frame_logits` float32 [k, m, m] are the masks on the model's frame."""

    answer: str
    targets: list[Target]
    finished: bool
    frame_logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """What is computed of one image: prefix of its prompts and features, batch 1; height, width of the image in pixels.

    At the published sizes the prefix takes 0.26 GB in bfloat16, the features 0.05 GB.
    """

    height: int
    width: int
    prefix: KVCache
    features: PixelDecoderOutput


class InferenceFunctions(NamedTuple):
    """The three functions that answering consists of, jitted; what they take and return is `inference_functions`'s."""

    encode: Callable[..., tuple[KVCache, PixelDecoderOutput]]
    answer: Callable[..., Generation]
    masks: Callable[..., jax.Array]


@functools.lru_cache(maxsize=4)
def inference_functions(config: SegEarthR2Config, dtype: str, eos_id: int, seg_id: int) -> InferenceFunctions:
    """The functions of a network, shared by all Segmenters of its configuration; each compiles at its first call.

    encode: (params, image uint8 [1, s, s, 3], image_siglip uint8 [1, v, v, 3], ids before the image [1, k]) -> prefix and features of one
    image. answer: (params, prefix of every row, `prompt_arrays`, max_new_tokens) -> Generation. masks: (params, features of every row,
    states [b, k, d]) -> mask logits [b, k, m, m].
    """
    abstract = _abstract(config)

    def encode(params: Params, image: jax.Array, image_siglip: jax.Array, before: jax.Array) -> tuple[KVCache, PixelDecoderOutput]:
        exact = wide(dtype)
        pixels, pixels_siglip = normalize_for_swin(image, exact).astype(dtype), normalize_for_siglip(image_siglip, exact).astype(dtype)
        return encode_image(bind(abstract, params), pixels, pixels_siglip, before)

    def answer(params: Params, prefixes: list[KVCache], rows: Mapping[str, jax.Array], max_new_tokens: int) -> Generation:
        prefix = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *prefixes)
        return answer_prompts(bind(abstract, params), prefix, **rows, eos_id=eos_id, seg_id=seg_id, max_new_tokens=max_new_tokens)

    def masks(params: Params, features: list[PixelDecoderOutput], seg_states: jax.Array) -> jax.Array:
        return final_masks(bind(abstract, params), jax.tree.map(lambda *maps: jnp.concatenate(maps), *features), seg_states)

    return InferenceFunctions(jax.jit(encode), jax.jit(answer, static_argnames="max_new_tokens"), jax.jit(masks))


@functools.lru_cache(maxsize=4)
def _abstract(config: SegEarthR2Config) -> SegEarthR2:
    return abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))


class Segmenter:
    """A network with its parameters and its tokenizer, ready to answer."""

    def __init__(
        self,
        config: SegEarthR2Config,
        params: Params,
        tokenizer: Tokenizer,
        *,
        template: str,
        dtype: str = "float32",
        int8: bool = False,
        checkpoint: str = "",
        step: int | None = None,
    ):
        """`params` as in `models.binding`, any float type: they are put on the device in `dtype`, which is also the compute dtype; with
        `int8`, the kernels of the language model's dense layers in 8 bits (see `models.int8`).

        `template` names one of `conversation.TEMPLATES`; it has to be the one that the parameters were trained or published with.
        `checkpoint` and `step` say where the parameters come from, for whoever writes an answer down.
        """
        get_template(template)
        self.config = config
        self.template = template
        self.dtype = dtype
        self.int8 = int8
        self.checkpoint = checkpoint
        self.step = step
        self.tokenizer = tokenizer
        self.seg_id = tokenizer.seg_id
        if len(tokenizer) > config.phi.embed_rows or self.seg_id >= config.phi.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens ({SEG_TOKEN} is {self.seg_id}), the model {config.phi.embed_rows} word "
                f"embeddings and {config.phi.vocab_size} outputs: the tokenizer belongs to another checkpoint"
            )
        self._before = before_image(tokenizer, template)
        placed = {
            path: to_int8(leaf) if int8 and _INT8.fullmatch(path) else jax.device_put(leaf.astype(dtype))
            for path, leaf in flatten(params).items()
        }
        self._params = unflatten(placed)
        self._compiled = inference_functions(config, dtype, tokenizer.end_id, self.seg_id)

    @classmethod
    def load(
        cls, checkpoint: str | os.PathLike[str], *, dtype: str | None = None, int8: bool = False, template: str | None = None
    ) -> Segmenter:
        """The network of a checkpoint folder (of `train` or of `convert`).

        `dtype` is "float32" or "bfloat16", by default float32 on a CPU and bfloat16 elsewhere; `int8` keeps the language model's dense
        kernels in 8 bits. `template` replaces the prompt template that the checkpoint names. Raises UserError where the folder is not a
        checkpoint.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise UserError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
        stated = template or read_config(checkpoint).get("template")
        if not isinstance(stated, str):
            raise UserError(f'{Path(checkpoint) / "config.json"}: names no prompt "template"; give one with --template')
        get_template(stated)
        config = read_model_config(checkpoint)
        tokenizer = load_tokenizer(checkpoint)
        params = load_parameters(checkpoint, module_params(_abstract(config)), dtype)
        step = latest_step(checkpoint)
        return cls(config, params, tokenizer, template=stated, dtype=dtype, int8=int8, checkpoint=str(checkpoint), step=step)

    def encode(self, image: np.ndarray) -> EncodedImage:
        """uint8 [h, w, 3] of any size -> what `segment` needs of it."""
        height, width = image.shape[:2]
        framed = Letterbox(height, width, self.config.image_size).place_image(image)
        squashed = squash(image, self.config.siglip.image_size)
        prefix, features = self._compiled.encode(self._params, framed[None], squashed[None], self._before[None])
        return EncodedImage(height, width, prefix, features)

    def segment(self, image: np.ndarray | EncodedImage, instruction: str, *, max_new_tokens: int = 128) -> Segmentation:
        """Answers one instruction about one image, uint8 [h, w, 3] or encoded before.

        Raises UserError on an empty instruction or one that is too long.
        """
        return self.segment_batch([image], [instruction], max_new_tokens=max_new_tokens)[0]

    def segment_batch(
        self, images: Sequence[np.ndarray | EncodedImage], instructions: Sequence[str], *, max_new_tokens: int = 128
    ) -> list[Segmentation]:
        """Answers `instructions[i]` about `images[i]`, all at once; up to rounding, as if each were alone.

        Batches are filled up to a power of two and prompts to a common bucket: the last, smaller batch of many compiles at most once.
        """
        if not instructions:
            return []
        rests = [self._rest(text, max_new_tokens) for text in instructions]
        encoded = [image if isinstance(image, EncodedImage) else self.encode(image) for image in images]
        size = 1 << (len(rests) - 1).bit_length()
        filled = encoded + encoded[-1:] * (size - len(rests))
        generation = jax.device_get(
            self._compiled.answer(self._params, [e.prefix for e in filled], prompt_arrays(rests, size), max_new_tokens=max_new_tokens)
        )
        logits = self._frame_logits([e.features for e in filled], generation)
        return [self._segmentation(encoded[i], generation, i, logits[i]) for i in range(len(rests))]

    def _rest(self, instruction: str, max_new_tokens: int) -> np.ndarray:
        """The ids of a prompt that follow the image."""
        ids = expand(encode_prompt(self.tokenizer, self.template, instruction), self.config.siglip.num_tokens).token_ids
        if len(ids) + max_new_tokens > MAX_POSITIONS:
            spare = MAX_POSITIONS - max_new_tokens
            raise UserError(f"the instruction is too long: with image and template it takes {len(ids)} tokens, {spare} fit")
        return ids[len(self._before) + self.config.siglip.num_tokens :]

    def _frame_logits(self, features: list[PixelDecoderOutput], generation: Generation) -> list[np.ndarray]:
        """float32 [k, m, m] of each row of the batch, k its number of masks."""
        side = features[0].mask_features.shape[1]
        passes = []
        for first in range(0, int(generation.seg_counts.max()), MASKS_PER_PASS):
            states = generation.seg_states[:, first : first + MASKS_PER_PASS]
            states = np.pad(states, ((0, 0), (0, MASKS_PER_PASS - states.shape[1]), (0, 0)))
            passes.append(np.asarray(self._compiled.masks(self._params, features, states), np.float32))
        empty = np.zeros((len(features), 0, side, side), np.float32)
        logits = np.concatenate([empty, *passes], axis=1)
        return [logits[i, :count] for i, count in enumerate(generation.seg_counts)]

    def _segmentation(self, image: EncodedImage, generation: Generation, i: int, logits: np.ndarray) -> Segmentation:
        ids = generation.ids[i, : generation.lengths[i]].tolist()
        finished = bool(ids) and ids[-1] == self.tokenizer.end_id
        pieces = [[]]
        for token in ids[:-1] if finished else ids:
            pieces.append([]) if token == self.seg_id else pieces[-1].append(token)
        texts = [self.tokenizer.decode(piece) for piece in pieces]
        letterbox = Letterbox(image.height, image.width, self.config.image_size)
        targets = [
            make_target(letterbox, frame, float(chosen), phrase)
            for frame, chosen, phrase in zip(logits, generation.seg_scores[i, : len(logits)], phrases(texts), strict=True)
        ]
        return Segmentation(SEG_TOKEN.join(texts).strip(), targets, finished, logits)


def encode_image(model: SegEarthR2, pixels: jax.Array, pixels_siglip: jax.Array, before: jax.Array) -> tuple[KVCache, PixelDecoderOutput]:
    """Normalised images [b, s, s, 3] and [b, v, v, 3], and the ids before the image in their prompts [b, k] -> the prefix of all prompts
    about them, k + n slots, and the features that all masks share."""
    tokens = model.image_tokens(pixels_siglip)
    embeds = jnp.concatenate([model.phi.embed(before).astype(tokens.dtype), tokens], axis=1)
    return model.phi.prefill(embeds)[1], model.pixel_features(pixels)


def answer_prompts(
    model: SegEarthR2,
    prefix: KVCache,
    *,
    token_ids: jax.Array,
    lengths: jax.Array,
    eos_id: int,
    seg_id: int,
    max_new_tokens: int,
    **options: Any,
) -> Generation:
    """Greedy answers to prompts; token_ids int [b, t], of which the first `lengths` [b] count, are what follows the prefix. Room for as
    many [SEG] states as tokens. `options` go to `generate`."""
    return generate(
        model.phi,
        prefix,
        model.phi.embed(token_ids).astype(prefix.keys.dtype),
        lengths,
        eos_id=eos_id,
        seg_id=seg_id,
        max_new_tokens=max_new_tokens,
        max_segments=max_new_tokens,
        **options,
    )


def final_masks(model: SegEarthR2, features: PixelDecoderOutput, seg_states: jax.Array) -> jax.Array:
    """[SEG] states [b, k, d] -> logits [b, k, m, m] of the decoder's last prediction, on the frame at stride 4."""
    return model.final_masks(features, seg_states)


def make_target(letterbox: Letterbox, frame_logits: np.ndarray, chosen: float, phrase: str) -> Target:
    """The target of one mask's logits [m, m] on the frame; `chosen` is the probability of its [SEG] token."""
    mask = letterbox.restore(frame_logits) > 0
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if columns.size else None
    scale = len(frame_logits) / letterbox.size
    height, width = (max(1, round(side * scale)) for side in letterbox.placed_size)
    inside = frame_logits[:height, :width]
    inside = inside[inside > 0].astype(np.float64)
    quality = float(np.mean(1 / (1 + np.exp(-inside)))) if box and inside.size else 0.0
    return Target(mask, quality * chosen, phrase, box, int(np.count_nonzero(mask)))


# What answers say around a mask without naming it.
_NOTHING_SAID = re.compile(
    r"(sure|ok(ay)?|yes|and|or|both|also|here|there|it|this|that|these|those|they|the|an?|is|are|in|at|as|by|with|my|your"
    r"|segmentation|segmented|segment|result|results|answer|mask|masks|output|follows)",
    re.IGNORECASE,
)


def phrases(texts: Sequence[str]) -> list[str]:
    """The words that belong to each [SEG], from the texts before, between and after them: one phrase fewer than `texts`.

    The last `<p>...</p>` before it; otherwise the words since the last sentence end, comma or [SEG], if they name anything; otherwise
    "target k".
    """
    found = []
    for k, text in enumerate(texts[:-1], 1):
        tagged = re.findall(r"<p>(.*?)</p>", text, re.DOTALL)
        if tagged:
            phrase = " ".join(tagged[-1].split())
        else:
            phrase = re.split(r"[.,;:!?\n]", text)[-1].strip(" -*\"'()")
            phrase = re.sub(r"^(and|or)\s+|\s+(is|are|at|in)$", "", " ".join(phrase.split()), flags=re.IGNORECASE)
            if all(_NOTHING_SAID.fullmatch(word) for word in phrase.split()):
                phrase = ""
        found.append(phrase or f"target {k}")
    return found


def before_image(tokenizer: Tokenizer, template: str) -> np.ndarray:
    """The ids that every prompt of a template begins with, up to the image: int32 [k]."""
    ids = encode_prompt(tokenizer, template, "anything").ids
    return ids[: int(np.argmax(ids == IMAGE_SLOT))]


def prompt_arrays(rests: Sequence[np.ndarray], size: int) -> dict[str, np.ndarray]:
    """What follows the image in prompts, as arrays of their common bucket: token_ids int32 [size, t] and lengths int32 [size]; rows beyond
    theirs have length 0 and generate nothing."""
    buckets = range(BUCKET_STEP, MAX_POSITIONS + BUCKET_STEP, BUCKET_STEP)
    bucket = max(smallest_bucket(len(ids), buckets, "instruction") for ids in rests)
    token_ids, lengths = np.zeros((size, bucket), np.int32), np.zeros(size, np.int32)
    for i, ids in enumerate(rests):
        token_ids[i, : len(ids)], lengths[i] = ids, len(ids)
    return {"token_ids": token_ids, "lengths": lengths}
