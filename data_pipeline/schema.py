"""What one training example is, and how it lies in a shard: declared once.

A shard holds `tf.train.Example` messages with the features of `FEATURES`. The image stays in the bytes of its original file and
masks stay run-length encoded, so a shard is no larger than its source and nothing has been resampled before training decides how.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipeline.tf_example import decode_example, encode_example
from segearth_r2_jax.errors import UserError

# What a finished folder of shards holds; `build_shards` writes it last.
MANIFEST = "manifest.json"

# name -> (kind, meaning); `build_shards` copies it into the manifest for readers that do not know this code.
FEATURES: Mapping[str, tuple[str, str]] = {
    "id": ("bytes", "the record's name in its source, UTF-8"),
    "source": ("bytes", "the annotation file it comes from, UTF-8"),
    "image/name": ("bytes", "path of the image file in its source, UTF-8"),
    "image/encoded": ("bytes", "the image file, untouched"),
    "image/height": ("int64", "rows of the decoded image"),
    "image/width": ("int64", "columns of the decoded image"),
    "instruction": ("bytes", "what to find, UTF-8"),
    "answer": ("bytes", "the words to answer, with one [SEG] per mask, UTF-8; absent if unknown"),
    "masks/counts": ("bytes", "one COCO compressed RLE per [SEG], in order, each of image/height x image/width; absent if unknown"),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """One image, one instruction and, unless they are unknown, the answer with its masks.

    `masks` are COCO compressed RLEs `{"size": [height, width], "counts": str}`; None where the source withholds them.
    """

    record_id: str
    source: str
    image_name: str
    image_bytes: bytes
    height: int
    width: int
    instruction: str
    answer: str | None
    masks: tuple[dict[str, Any], ...] | None

    def to_example(self) -> bytes:
        """The serialized `tf.train.Example`."""
        features: dict[str, list[bytes] | list[int]] = {
            "id": [self.record_id.encode()],
            "source": [self.source.encode()],
            "image/name": [self.image_name.encode()],
            "image/encoded": [self.image_bytes],
            "image/height": [self.height],
            "image/width": [self.width],
            "instruction": [self.instruction.encode()],
        }
        if self.answer is not None:
            features["answer"] = [self.answer.encode()]
        if self.masks is not None:
            features["masks/counts"] = [mask["counts"].encode() for mask in self.masks]
        return encode_example(features)

    @classmethod
    def from_example(cls, data: bytes, name: str) -> Record:
        """Reads a serialized Example; UserError beginning with `name` if it lacks a feature or is none."""
        try:
            features = decode_example(data)
            texts = {key: features[key][0].decode() for key in ("id", "source", "image/name", "instruction")}
            height, width = features["image/height"][0], features["image/width"][0]
            counts = features.get("masks/counts")
            return cls(
                record_id=texts["id"],
                source=texts["source"],
                image_name=texts["image/name"],
                image_bytes=features["image/encoded"][0],
                height=height,
                width=width,
                instruction=texts["instruction"],
                answer=features["answer"][0].decode() if "answer" in features else None,
                masks=None if counts is None else tuple({"size": [height, width], "counts": c.decode()} for c in counts),
            )
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            reason = f"lacks the feature {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{name}: not a record of this pipeline ({reason})") from error
