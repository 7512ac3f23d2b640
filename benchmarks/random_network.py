"""Networks of random weights whose answers hold as many [SEG] as a measurement asks for."""

from __future__ import annotations

import numpy as np

from segearth_r2_jax.inference.segment import Segmenter
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN, Tokenizer
from segearth_r2_jax.models.binding import Params, abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

TEMPLATE = "train_phi_v0"
_WORDS = " the lake and roof river"
# The advantage of the words that answers are made of over all others; [SEG] has less or more of it.
_LEAD = 1 / 8


def random_parameters(config: SegEarthR2Config, seed: int) -> Params:
    """Normal numbers of the variance 1 / inputs, as a network has them before training; the offset of the last normalisation is large."""
    rng = np.random.default_rng(seed)
    shapes = flatten(module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))
    flat = {}
    for path, leaf in shapes.items():
        fan_in = int(np.prod(leaf.shape[:-1][-3:])) if "kernel" in path else leaf.shape[-1]
        scale = 0.02 if path.endswith("/bias") else fan_in**-0.5
        flat[path] = np.ones(leaf.shape, np.float32) if path.endswith("/scale") else rng.normal(0, scale, leaf.shape).astype(np.float32)
    flat["phi/final_layernorm/bias"] = rng.normal(size=config.phi.hidden_size).astype(np.float32)
    return unflatten(flat)


def steered(params: Params, tokenizer: Tokenizer, seg_lead: float) -> Params:
    """`params` whose answers are made of a few words and [SEG] and never end; the larger `seg_lead`, the more [SEG].

    The head of each of these tokens points along the offset of the last normalisation: the rest of the vocabulary never wins, while the
    hidden state decides between them.
    """
    flat = dict(flatten(params))
    offset, head = flat["phi/final_layernorm/bias"], flat["phi/lm_head/kernel"].copy()
    (seg,) = tokenizer.encode(SEG_TOKEN)
    for token in tokenizer.encode(_WORDS):
        head[:, token] += offset * _LEAD
    head[:, seg] += offset * (_LEAD + seg_lead)
    flat["phi/lm_head/kernel"] = head
    return unflatten(flat)


def by_masks(
    config: SegEarthR2Config, params: Params, tokenizer: Tokenizer, image: np.ndarray, instruction: str, new_tokens: int
) -> dict[int, tuple[Segmenter, Params]]:
    """Segmenters, and their parameters, by the masks that their answers of `new_tokens` tokens have: of the numbers that a search finds,
    which halves every interval of leads at whose ends they differ."""
    found: dict[int, tuple[Segmenter, Params]] = {}

    def masks(lead: float) -> int:
        given = steered(params, tokenizer, lead)
        segmenter = Segmenter(config, given, tokenizer, template=TEMPLATE)
        number = len(segmenter.segment(image, instruction, max_new_tokens=new_tokens).targets)
        found.setdefault(number, (segmenter, given))
        return number

    intervals = [(-0.1, masks(-0.1), 0.1, masks(0.1))]
    for _ in range(10):
        halves = []
        for low, at_low, high, at_high in intervals:
            middle = (low + high) / 2
            at_middle = masks(middle)
            halves += [(low, at_low, middle, at_middle), (middle, at_middle, high, at_high)]
        intervals = [interval for interval in halves if interval[1] != interval[3]]
    return found
