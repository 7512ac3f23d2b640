"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segearth_r2_jax.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` under a temporary name and renames it to `path`; UserError naming `path` if that cannot be done."""
    partial = partial_path(path)
    with cannot_write(path, partial):
        partial.write_bytes(content)
        os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that people can read, in UTF-8, as `write_bytes` does."""
    # A name that is no UTF-8 (on a command line, say) is kept as an escape that JSON has, too.
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def make_folder(folder: Path) -> None:
    """The folder and those above it; UserError naming it if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror})") from None


def partial_path(path: Path) -> Path:
    """The temporary name: beside `path`, and of this process alone."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def cannot_write(path: Path, *partials: Path) -> Iterator[None]:
    """Turns an OSError (a full disk, a folder that may not be written) into a UserError, and leaves none of the `partials`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink()


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
