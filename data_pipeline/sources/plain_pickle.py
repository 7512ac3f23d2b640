"""Reads a pickle that holds nothing but plain values, without ever running what a pickle may ask to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import load_pickle


def load_plain_pickle(file: Path) -> Any:
    """The value in the pickle `file`, of any protocol; UserError naming the file, and the byte, where it is damaged or not plain."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    value, _ = load_pickle(data, str(file))
    return value
