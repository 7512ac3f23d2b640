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

# The four dimensions of LaSeRS and what a record may be in each.
DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "granularity": ("semantic", "instance", "part"),
    "multiplicity": ("single", "multi"),
    "reasoning": ("explicit", "implicit"),
    "language": ("short", "long"),
}

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
    "box": ("int64", "x1, y1, x2, y2 in pixels of the image, the upper bounds exclusive: what a question is about; absent if nothing"),
    **{f"tags/{name}": ("bytes", f"{' | '.join(values)}; absent if unknown") for name, values in DIMENSIONS.items()},
    "tags/category": ("bytes", "the class that is asked for, in the words of the source, UTF-8; absent if unknown"),
}


@dataclasses.dataclass(frozen=True)
class Tags:
    """Where a record stands along the four dimensions of LaSeRS, and the class it asks for; None where that is unknown."""

    granularity: str | None = None
    multiplicity: str | None = None
    reasoning: str | None = None
    language: str | None = None
    category: str | None = None

    def __post_init__(self):
        for name, values in DIMENSIONS.items():
            if getattr(self, name) not in (None, *values):
                raise ValueError(f"{name} must be one of {', '.join(values)}, it is {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class Record:
    """One image, one instruction and, unless they are unknown, the answer with its masks.

    `masks` are COCO compressed RLEs `{"size": [height, width], "counts": str}`; None where the source withholds them.
    `box` is (x1, y1, x2, y2) in pixels of the image, x2 and y2 exclusive; only questions about a region have one.
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
    tags: Tags = Tags()
    box: tuple[int, int, int, int] | None = None

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
        if self.box is not None:
            features["box"] = list(self.box)
        for name, value in dataclasses.asdict(self.tags).items():
            if value is not None:
                features[f"tags/{name}"] = [value.encode()]
        return encode_example(features)

    @classmethod
    def from_example(cls, data: bytes, name: str) -> Record:
        """Reads a serialized Example; UserError beginning with `name` if it lacks a feature or is none."""
        try:
            features = decode_example(data)
            texts = {key: features[key][0].decode() for key in ("id", "source", "image/name", "instruction")}
            height, width = features["image/height"][0], features["image/width"][0]
            counts = features.get("masks/counts")
            tags = {key.removeprefix("tags/"): values[0].decode() for key, values in features.items() if key.startswith("tags/")}
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
                tags=Tags(**tags),
                box=tuple(features["box"]) if "box" in features else None,
            )
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            reason = f"lacks the feature {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{name}: not a record of this pipeline ({reason})") from error
