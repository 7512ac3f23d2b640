"""A folder that appears under its name when it is whole, and not before: what `convert` writes into."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from segearth_r2_jax.errors import UserError


def check_target(target: Path, sources: list[Path], *, force: bool) -> None:
    """Whether `target` may be written, before any work is done.

    What a killed process left beside it (a hidden folder with its process number) is deleted; a target that it was about to replace
    gets its place back.

    Raises:
        UserError: it exists and `force` is not given, or it is no checkpoint; it is one of the sources or holds one.
    """
    for source in sources:
        if source.resolve() == target.resolve() or target.resolve() in source.resolve().parents:
            raise UserError(f"{target}: is or holds the source; expected another place")
    _tidy_up(target.absolute())
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise UserError(f"{target}: exists; choose another target or pass --force to replace it")
    if not any((target / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{target}: exists and is no checkpoint folder; it is not replaced")


_REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)


@contextlib.contextmanager
def built_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when it is whole, and vanishes if it never is. `check_target` goes before.

    Raises:
        UserError: the disk is full, or may not be written.
    """
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    except Exception as error:
        if reason := _reason(error):
            raise UserError(f"{target}: cannot be written ({reason}); nothing of it was left") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tidy_up(target: Path) -> None:
    if not target.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(partial|replaced)-(\d+)")
    for path in sorted(target.parent.iterdir(), reverse=True):
        match = pattern.fullmatch(path.name)
        if not match or _runs(int(match[2])):
            continue
        if match[1] == "replaced" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _reason(error: BaseException | None) -> str | None:
    """What the operating system says, if that is why `error` was raised; libraries wrap it in exceptions and texts of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return error.strerror
        said = next((number for number in _REASONS if os.strerror(number) in str(error)), None)
        if said is not None:
            return os.strerror(said)
        error = error.__cause__ or error.__context__
    return None
