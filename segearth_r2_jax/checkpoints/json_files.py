"""Small JSON files beside the weights, local or in a bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from segearth_r2_jax.errors import UserError


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(epath.Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}; expected an object")
    return content


def write_json(path: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Write `content`; the file appears whole or not at all."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.partial"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
