"""The folder that a build writes: whose it is while it is unfinished, and the manifest that says what it holds in the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic import make_folder, write_json
from data_pipeline.check_cache import AnnotationFiles
from data_pipeline.manifest import seal
from data_pipeline.schema import FEATURES, MANIFEST
from data_pipeline.shard_folder import decode_mask_counts
from data_pipeline.sources.source import Source
from data_pipeline.tfrecord import index_path
from data_pipeline.validation import Validated
from segearth_r2_jax.errors import UserError

# What an unfinished build keeps beside its shards: the digest of each shard's input, and what the validation pass found.
PLAN = "plan.json"
CHECKS = "checks.json"
_FORMAT = "tf.train.Example in TFRecord"


def claim(output: Path, inputs: Mapping[str, str]) -> None:
    """Notes what is being built, and removes what an unfinished build made of another input, so that the two never mix.

    `inputs`: the name of each shard -> the digest of its input. Raises UserError if the folder holds anything else.
    """
    make_folder(output)
    found = sorted(entry.name for entry in output.iterdir())
    if MANIFEST in found:
        if _read_json(output / MANIFEST).get("inputs") != inputs:
            raise UserError(f"{output}: holds the finished shards of another input; choose a new folder")
        return
    if PLAN in found:
        for name, digest in _read_json(output / PLAN).items():
            if name in found and inputs.get(name) != digest:
                (output / name).unlink(missing_ok=True)
                index_path(output / name).unlink(missing_ok=True)
        for leftover in output.glob("*.partial"):
            leftover.unlink(missing_ok=True)
    elif found:
        raise UserError(f"{output}: is not empty (it holds {found[0]}); choose a new folder")
    write_json(output / PLAN, inputs)


def make_manifest(
    reader: Source,
    command: str,
    validated: Validated,
    entries: Mapping[str, Sequence[Mapping[str, Any]]],
    inputs: Mapping[str, str],
    files: AnnotationFiles,
) -> dict[str, Any]:
    """The manifest; `entries` are those of the shards, by split, `inputs` the digests of `claim`."""
    sources = {row.annotation.source for rows in validated.rows.values() for row in rows}
    content = {
        "format": _FORMAT,
        "source": reader.name,
        "title": reader.title,
        "home": reader.home,
        "licence": reader.licence,
        "command": command,
        "features": {name: {"kind": kind, "meaning": meaning} for name, (kind, meaning) in FEATURES.items()},
        "annotations": {name: files.digest(name) for name in sorted(sources)},
        "inputs": dict(inputs),
        "splits": {
            split: {
                "records": len(rows),
                "rejected": validated.rejected_in(split),
                "images": len({row.check.image_sha256 for row in rows}),
                "masks": sum(int(decode_mask_counts(entry["mask_counts"]).clip(0).sum()) for entry in entries[split]),
                "shards": list(entries[split]),
            }
            for split, rows in validated.rows.items()
        },
    }
    return seal(content)


def finish(output: Path, manifest: Mapping[str, Any]) -> None:
    """Declares the folder whole."""
    write_json(output / MANIFEST, manifest)
    for name in (PLAN, CHECKS):
        (output / name).unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged; choose a new folder")
    return content
