"""The manifest of a folder of shards: JSON that vouches for itself, since shards that it does not name are never missed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from data_pipeline.random_access import cannot_read
from data_pipeline.schema import MANIFEST
from segearth_r2_jax.errors import UserError

_SEAL = "checksum"


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of its content (as JSON without spaces, keys sorted, without the checksum itself)."""
    content = {key: value for key, value in manifest.items() if key != _SEAL}
    return {**content, _SEAL: hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()}


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a folder, here or in cloud storage; UserError naming the folder if there is none, or the file if it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: holds no {MANIFEST}; expected a folder that data_pipeline.build_shards has finished") from None
    except (OSError, ImportError) as error:
        raise cannot_read(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a manifest of data_pipeline.build_shards ({error}); build the shards again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise UserError(f"{path}: not a manifest of data_pipeline.build_shards; build the shards again")
    if manifest != seal(manifest):
        raise UserError(f"{path}: is damaged or was changed (its checksum does not fit); build the shards again")
    return manifest
