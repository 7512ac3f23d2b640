"""Record -> row -> batch: everything that happens to one record, and how rows become arrays of static shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data_pipeline.mask_canvas import MaskBoxes, canvas_size, cut_masks
from data_pipeline.order import Slot
from data_pipeline.schema import Record
from data_pipeline.shard_folder import RecordSource
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import (
    IGNORE_LABEL,
    IMAGE_SLOT,
    TokenRow,
    count_masks,
    encode_training,
    expand,
    get_template,
    pad_row,
    smallest_bucket,
)
from segearth_r2_jax.inputs.image_processing import squash_picture
from segearth_r2_jax.inputs.image_reading import decode_picture
from segearth_r2_jax.inputs.letterbox import PADDING_VALUE, Letterbox
from segearth_r2_jax.inputs.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a batch looks like and in which order records come.

    Attributes:
      batch_size: rows of a global batch, over all processes.
      image_size: side of the letterboxed frame for Swin, in pixels.
      siglip_size: side of the squashed image for SigLIP, in pixels.
      num_image_tokens: positions that an image takes in the language model's sequence.
      token_buckets: lengths that token rows may be padded to. With several, the texts are measured before training starts, and all
        rows of a global batch are taken from the records of one bucket.
      max_masks: masks per image, padded with a validity mask.
      mask_canvas: side of the canvas that target masks lie on, in pixels; larger masks are shrunk to it.
      template: prompt template of `inputs.conversation`.
      seed: fixes the order of the records.
      workers: worker processes; 0 makes rows in threads of this process.
      num_epochs: None for an endless stream.
      frame: "letterbox" places targets like the image; "stretch" gives the reference's misplaced targets of non-square images.
      too_many_masks: a record with more than max_masks is an "error", or "skip" leaves it out (`Loader.skipped` counts them).
      on_corrupt: a damaged record is an "error", or "skip" leaves its row of the batch empty (`Loader.corrupt` counts them): no masks,
        no labels, record_index -1. Positions and shapes stay what they were on every process.
    """

    batch_size: int
    image_size: int
    siglip_size: int
    num_image_tokens: int
    token_buckets: tuple[int, ...]
    max_masks: int
    mask_canvas: int = 1024
    template: str = "train_phi_v0"
    seed: int = 0
    workers: int = 0
    num_epochs: int | None = None
    frame: str = "letterbox"
    too_many_masks: str = "error"
    on_corrupt: str = "error"

    def __post_init__(self):
        sizes = ("batch_size", "image_size", "siglip_size", "num_image_tokens", "max_masks", "mask_canvas")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"loader: {name} must be at least 1, it is {getattr(self, name)}")
        if not self.token_buckets or min(self.token_buckets) < 1:
            raise UserError(f"loader: token_buckets must be one or more positive lengths, they are {self.token_buckets}")
        if self.workers < 0 or (self.num_epochs is not None and self.num_epochs < 1):
            raise UserError("loader: workers must be at least 0 and num_epochs at least 1 (or None for an endless stream)")
        if self.frame not in ("letterbox", "stretch"):
            raise UserError(f"loader: frame must be letterbox or stretch, it is {self.frame!r}")
        for name in ("too_many_masks", "on_corrupt"):
            if getattr(self, name) not in ("error", "skip"):
                raise UserError(f"loader: {name} must be error or skip, it is {getattr(self, name)!r}")
        if get_template(self.template).separator is None:
            raise UserError(f"loader: the template {self.template!r} only prompts; train with train_phi_v0")


@dataclasses.dataclass(frozen=True)
class MakeRow(grain.transforms.Map):
    """Slot -> one row, before it is padded to the shapes of a batch."""

    source: RecordSource
    tokenizer: Tokenizer
    config: LoaderConfig

    def map(self, slot: Slot) -> dict[str, Any]:
        """Reads, decodes, letterboxes and tokenizes a record.

        UserError naming the record if it does not fit the configuration or is damaged; with `on_corrupt` = "skip" damage gives an empty
        row whose "damage" says what and where it is.
        """
        config = self.config
        try:
            record = self.source[slot.record]
            name = f"{record.source}: row {record.record_id!r}"
            words = _words(record, self.tokenizer, config, name)
            pictures = _pictures(record, config, name)
        except UserError as error:
            place = self.source.place(slot.record)
            shard = place.rpartition(": ")[0]
            damage = str(error) if shard and shard in str(error) else f"{error} [{place}]"
            if config.on_corrupt == "error":
                raise UserError(damage) from error
            return empty_row(slot, config, damage)
        # A text that is too long is whole: what is wrong is the configuration.
        smallest_bucket(words.length, config.token_buckets, name)
        if len(words.seg_positions) > config.max_masks:
            raise UserError(too_many_masks(name, len(words.seg_positions), config))
        return {
            "tokens": dataclasses.asdict(words),
            **pictures,
            "record_index": np.int64(slot.record),
            "bucket": slot.bucket,
            "damage": "",
        }


def too_many_masks(name: str, count: int, config: LoaderConfig) -> str:
    """What is wrong with the record `name` that has `count` masks."""
    return f"{name}: has {count} masks, max_masks is {config.max_masks}; raise it or set too_many_masks to skip"


def _words(record: Record, tokenizer: Tokenizer, config: LoaderConfig, name: str) -> TokenRow:
    if record.answer is None or record.masks is None:
        raise UserError(f"{name}: has no masks to train on")
    if count_masks(record.answer) != len(record.masks):
        raise UserError(f"{name}: the answer has {count_masks(record.answer)} [SEG], but there are {len(record.masks)} masks")
    return expand(encode_training(tokenizer, config.template, record.instruction, record.answer, name), config.num_image_tokens)


def _pictures(record: Record, config: LoaderConfig, name: str) -> dict[str, Any]:
    picture = decode_picture(record.image_bytes, f"{name}: image {record.image_name}")
    width, height = picture.size
    if (height, width) != (record.height, record.width):
        raise UserError(f"{name}: the image is {height} x {width}, the record says {record.height} x {record.width}")
    canvas = canvas_size(height, width, config.mask_canvas)
    masks = cut_masks(record.masks or (), height, width, config.mask_canvas, name)
    return {
        "image": Letterbox(height, width, config.image_size).place_picture(picture),
        "image_siglip": squash_picture(picture, config.siglip_size),
        "mask_boxes": masks.boxes,
        "mask_pixels": masks.pixels,
        "mask_size": np.array(canvas, np.int32),
        "mask_frame": np.array((max(canvas),) * 2 if config.frame == "letterbox" else canvas, np.int32),
    }


def empty_row(slot: Slot, config: LoaderConfig, damage: str) -> dict[str, Any]:
    """A row from which nothing is learned: a grey image, no words, no masks."""
    positions = config.num_image_tokens
    words = TokenRow(
        token_ids=np.full(positions, IMAGE_SLOT, np.int32),
        labels=np.full(positions, IGNORE_LABEL, np.int32),
        attention_mask=np.ones(positions, bool),
        image_start=0,
        seg_positions=np.zeros(0, np.int32),
    )
    canvas = np.array((config.mask_canvas,) * 2, np.int32)
    return {
        "tokens": dataclasses.asdict(words),
        "image": np.full((config.image_size, config.image_size, 3), PADDING_VALUE, np.uint8),
        "image_siglip": np.full((config.siglip_size, config.siglip_size, 3), PADDING_VALUE, np.uint8),
        "mask_boxes": np.zeros((0, 4), np.int32),
        "mask_pixels": np.zeros(0, np.uint8),
        "mask_size": canvas,
        "mask_frame": canvas,
        "record_index": np.int64(-1),
        "bucket": slot.bucket,
        "damage": damage,
    }


def collate(rows: Sequence[dict[str, Any]], config: LoaderConfig) -> Batch:
    """Rows of `MakeRow` -> a batch of b = len(rows) rows, t tokens (their bucket), m masks.

    image uint8 [b,S,S,3], image_siglip uint8 [b,V,V,3], token_ids and labels int32 [b,t], attention_mask bool [b,t],
    image_start int32 [b], seg_positions int32 [b,m] and mask_valid bool [b,m], masks uint8 [b,m,C,C] (0 or 1, at the top left),
    mask_size int32 [b,2] (height and width of the masks on the canvas), mask_frame int32 [b,2] (what [0,1] spans when points are
    sampled from them), record_index int64 [b] (-1: a damaged record's empty row).
    """
    padded = [pad_row(TokenRow(**row["tokens"]), row["bucket"], config.max_masks) for row in rows]
    batch = {key: np.stack([row[key] for row in padded]) for key in padded[0]}
    for key in ("image", "image_siglip", "mask_size", "mask_frame", "record_index"):
        batch[key] = np.stack([row[key] for row in rows])
    batch["masks"] = np.zeros((len(rows), config.max_masks, config.mask_canvas, config.mask_canvas), np.uint8)
    for canvas, row in zip(batch["masks"], rows, strict=True):
        MaskBoxes(row["mask_boxes"], row["mask_pixels"]).paste(canvas)
    return batch
