"""Folders of pages appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segearth_r2_jax.errors import UserError


def check_new_folder(output: Path) -> None:
    """UserError unless `output` is an empty folder or does not exist."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; expected a new or empty folder")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; expected a new or empty folder")


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when all is written and disappears otherwise."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        partial.chmod(0o755)
        yield partial
        if output.is_dir():
            output.rmdir()
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
