"""The pictures in a run's log: an image, what it should give and what it gives now."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw, ImageFont

from segearth_r2_jax.inputs.conversation import IMAGE_SLOT
from segearth_r2_jax.inputs.tokenizer import Tokenizer
from segearth_r2_jax.raster.overlay import paint_masks
from segearth_r2_jax.sharding.rules import replicated

# Pixels: of the letters, from line to line, and what a letter takes of a line at the most, on average.
_LETTERS, _LINE, _LETTER_WIDTH = 12, 15, 7

_SHOWN = ("image", "masks", "mask_valid", "mask_frame", "token_ids")


class SamplePictures:
    """Draws the first rows of global batches, whichever process has given them."""

    def __init__(self, tokenizer: Tokenizer, mesh: Mesh):
        self._tokenizer = tokenizer
        self._first = jax.jit(_first_rows, static_argnums=1, out_shardings=replicated(mesh))

    def rows(self, batch: Mapping[str, jax.Array], mask_logits: jax.Array, count: int) -> dict[str, jax.Array]:
        """What `draw` needs of the first `count` rows, on every process: all processes call it. mask_logits: [>= count, m, h, w]."""
        return self._first({**{key: batch[key] for key in _SHOWN}, "mask_logits": mask_logits}, count)

    def draw(self, rows: Mapping[str, jax.Array]) -> list[np.ndarray]:
        """One picture per row, uint8 [h, w, 3]."""
        host = jax.device_get(dict(rows))
        return [self._draw({key: value[i] for key, value in host.items()}) for i in range(len(host["image"]))]

    def _draw(self, row: Mapping[str, np.ndarray]) -> np.ndarray:
        words, valid = row["token_ids"], row["mask_valid"]
        # What stands before the image is the same in every row.
        words = words[np.flatnonzero(words == IMAGE_SLOT).max(initial=-1) + 1 :]
        text = self._tokenizer.decode(words[words >= 0])
        return sample_picture(row["image"], row["masks"][valid], tuple(row["mask_frame"]), row["mask_logits"][valid], text)


def _first_rows(batch: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    return {key: value[:count] for key, value in batch.items()}


def sample_picture(image: np.ndarray, masks: np.ndarray, frame: tuple[int, int], mask_logits: np.ndarray, text: str) -> np.ndarray:
    """The image alone, with its targets, and with the predicted masks, side by side above the text.

    Args:
        image: uint8 [s, s, 3], letterboxed.
        masks: [m, c, c] targets; the top-left `frame` (h, w) of the canvas spans the image.
        mask_logits: [m, h, w] over the whole image.
        text: instruction and answer as the model reads them; all of it is shown, on as many lines as it takes.

    Returns:
        uint8 [s + caption, 3 s, 3].
    """
    size = image.shape[0]
    lines = textwrap.wrap(" ".join(text.split()), 3 * size // _LETTER_WIDTH)
    page = Image.new("RGB", (3 * size, size + (len(lines) + 1) * _LINE + 4), "white")
    for column, shown in enumerate(((), masks[:, : frame[0], : frame[1]] > 0, mask_logits > 0)):
        page.paste(paint_masks(Image.fromarray(image), shown, _LETTERS), (column * size, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_LETTERS)
    for number, line in enumerate(("image | target | prediction", *lines)):
        draw.text((4, size + 2 + number * _LINE), line, fill="black" if number else "gray", font=font)
    return np.asarray(page)
