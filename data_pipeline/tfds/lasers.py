"""The TensorFlow Datasets builder `lasers`: any data set of `data_pipeline.sources` in array_record files. TensorFlow is not needed.

    import tensorflow_datasets as tfds
    import data_pipeline.tfds

    builder = tfds.builder("lasers", data_dir="tfds")           # "lasers/rrsis_d" and so on for the other sources
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="LaSeRS"))
    train = builder.as_data_source("train")                     # or tfds.data_source("lasers", split="train", data_dir="tfds")

Rows are checked as `data_pipeline.build_shards` checks them; those that cannot be used are left out and logged.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from PIL import Image

from data_pipeline.schema import DIMENSIONS, Record
from data_pipeline.sources.registry import SOURCES, get_source
from data_pipeline.validation import CheckedRow, validate
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image

_NO_BOX = (-1, -1, -1, -1)


@dataclasses.dataclass(eq=False, kw_only=True)
class SourceConfig(tfds.core.BuilderConfig):
    """One data set; `source` is a name of `data_pipeline.sources.registry`."""

    source: str


class Lasers(tfds.core.GeneratorBasedBuilder):
    """Images, instructions, answers with one [SEG] per mask, and the masks as COCO compressed RLEs.

    A mask is `segearth_r2_jax.raster.rle.decode({"size": [row["height"], row["width"]], "counts": counts.decode()})`. What is unknown is
    an empty text; `masks_known` tells an answer without masks from one whose masks are withheld; `box` is all -1 where there is none.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Found by tensorflow_datasets itself only with a package (importlib_resources) that it does not ask for.
    code_path = epath.Path(__file__)
    BUILDER_CONFIGS = tuple(
        SourceConfig(name=source.name, source=source.name, description=f"{source.title} ({source.home}; licence: {source.licence})")
        for source in SOURCES.values()
    )
    DEFAULT_CONFIG_NAME = "lasers"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the folder of the data set, in its published layout, as manual_dir (see docs/datasets.md)."

    def __init__(self, *, file_format: Any = "array_record", **options: Any):
        """As every builder; array_record is the only format that can be written without TensorFlow."""
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "id": text(),
            "source": text(),
            "image_name": text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "height": np.int32,
            "width": np.int32,
            "instruction": text(),
            "answer": text(),
            "masks": tfds.features.Sequence(text()),
            "masks_known": np.bool_,
            "box": tfds.features.Tensor(shape=(4,), dtype=np.int32),
            "tags": {name: text() for name in (*DIMENSIONS, "category")},
        }
        source = get_source(self.builder_config.source)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.title}, language-guided segmentation of aerial and satellite images. Licence: {source.licence}.",
            features=tfds.features.FeaturesDict(features),
            homepage=source.home,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        folder = Path(dl_manager.manual_dir)
        source = get_source(self.builder_config.source)
        validated = validate(source, folder, source.present(folder), map)
        for entry in validated.rejected:
            logging.warning("rejected: %s", entry.rejection)
        for split, rows in validated.rows.items():
            if not rows:
                raise UserError(f"{folder}: no row of the split {split!r} can be used; python -m data_pipeline.build_shards says why")
        return {split: self._generate_examples(rows) for split, rows in validated.rows.items()}

    def _generate_examples(self, rows: Sequence[CheckedRow]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            annotation, check = row.annotation, row.check
            record = annotation.record(annotation.read_image_bytes(), check.height, check.width)
            yield f"{annotation.source}: {annotation.record_id}", _example(record, annotation.name)


def _example(record: Record, name: str) -> dict[str, Any]:
    return {
        "id": record.record_id,
        "source": record.source,
        "image_name": record.image_name,
        "image": _plain_image(record.image_bytes, name),
        "height": record.height,
        "width": record.width,
        "instruction": record.instruction,
        "answer": record.answer or "",
        "masks": [mask["counts"] for mask in record.masks or ()],
        "masks_known": record.masks is not None,
        "box": np.array(record.box or _NO_BOX, np.int32),
        "tags": {key: value or "" for key, value in dataclasses.asdict(record.tags).items()},
    }


def _plain_image(content: bytes, name: str) -> bytes:
    """The file's own bytes where every decoder makes the same of them: a PNG or JPEG of 8-bit RGB; a PNG of its pixels otherwise."""
    pixels = decode_image(content, name)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format in ("PNG", "JPEG") and picture.mode == "RGB" and np.array_equal(np.asarray(picture), pixels):
                return content
    except (OSError, ValueError):
        pass  # Pillow cannot read it, rasterio could.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
