"""A folder that is written once: whole, or seen not to be.

Orbax writes into "<name>.orbax-checkpoint-tmp", marks it when all is written, and renames it, so that what a killed process leaves is
never taken for a whole folder. What happens to it afterwards (a disk's error, a copy that was cut off, a file deleted by hand) Orbax
does not see: it checks its own tables, not the arrays. So the folder is sealed before it is marked: `files.json` in it lists every file
with its size and its CRC-32C, and whoever reads the folder compares them first.

Process 0 reads the files once more to seal them, in the background, unless their writer has summed them; to verify them every process
reads its part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from segearth_r2_jax.checkpoints.checksums import file_checksum
from segearth_r2_jax.checkpoints.json_files import write_json

TEMPORARY = ".orbax-checkpoint-tmp"
_MARK = "commit_success.txt"
_SEAL = "files.json"
_DAMAGED = ".damaged"
# Orbax writes these after the folder was sealed; nothing is read from them.
_AFTER_SEALING = {_MARK, "_CHECKPOINT_METADATA", _SEAL}
_READERS = 8


def is_whole(folder: epath.Path) -> bool:
    """Whether the folder was written to its end. Says nothing about what happened to it since."""
    return (folder / _MARK).exists()


def seal(folder: epath.Path, known: Mapping[str, tuple[int, int]] | None = None) -> None:
    """Lists the files of a folder that is about to be marked.

    known: (bytes, CRC-32C) of files whose writer summed them, by their names in the folder; the others are read.
    """
    known = known or {}
    if not folder.exists():
        folder = folder.parent / f"{folder.name}{TEMPORARY}"
    names = sorted(_files(folder))
    with ThreadPoolExecutor(_READERS) as pool:
        sums = list(pool.map(lambda name: known.get(name) or file_checksum(folder / name), names))
    files = {name: {"bytes": size, "crc32c": f"{crc:08x}"} for name, (size, crc) in zip(names, sums, strict=True)}
    write_json(folder / _SEAL, {"files": files, "crc32c": _sum_of_seal(files)})


def find_damage(folder: epath.Path, part: str = "", known: Mapping[str, tuple[int, int]] | None = None) -> str | None:
    """What is wrong with the files of a whole folder, None if nothing is; `part` limits it to one of its subfolders.

    `known`: as `seal` takes it, of files that have been read already. All processes call it, and all get the same answer.
    """
    sealed, unreadable = _read_seal(folder)
    known = known or {}
    names = sorted(name for name in sealed if name.startswith(part))
    mine = range(jax.process_index(), len(names), jax.process_count())
    with ThreadPoolExecutor(_READERS) as pool:
        compared = pool.map(lambda name: _compare(folder / name, sealed[name], known.get(name)), (names[number] for number in mine))
        damages = dict(zip(mine, compared, strict=True))
    first = 0 if unreadable else min((number + 1 for number, damage in damages.items() if damage), default=len(names) + 1)
    if jax.process_count() > 1:
        first = int(multihost_utils.process_allgather(np.int32(first)).min())
    if first == 0:
        return f"{_SEAL} {unreadable or 'cannot be read by another process'}"
    if first > len(names):
        return None
    name = names[first - 1]
    return f"{name} {damages.get(first - 1) or _compare(folder / name, sealed[name]) or 'cannot be read by another process'}"


def set_aside(folder: epath.Path, damage: str) -> None:
    """Renames a damaged folder, so that nobody reads it and nothing is lost, and says so in one line. All processes call it."""
    wait_for_all(f"{folder.name} is known to be damaged")
    if jax.process_index() == 0:
        _rename(folder, damage)
    wait_for_all(f"{folder.name} is set aside")


def clean(parent: epath.Path) -> None:
    """Deletes what killed processes left unfinished in `parent`, in one line each. One process calls it.

    A numbered folder that has no mark but is sealed was whole once: that is damage.
    """
    for path in sorted(parent.iterdir()):
        if TEMPORARY not in path.name and (not path.name.isdigit() or is_whole(path)):
            continue
        if TEMPORARY not in path.name and (path / _SEAL).exists():
            _rename(path, f"{_MARK} is missing")
            continue
        path.rmtree()
        say(f"{path} was not written to its end; deleted")


def delete(folder: epath.Path) -> None:
    """Deletes a whole folder; cut off in between, what is left is not whole."""
    for name in (_MARK, _SEAL):
        (folder / name).unlink(missing_ok=True)
    folder.rmtree()


def say(line: str) -> None:
    """A line for the user, of one process."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def wait_for_all(what: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _rename(folder: epath.Path, damage: str) -> None:
    aside, number = folder.parent / f"{folder.name}{_DAMAGED}", 1
    while aside.exists():
        number += 1
        aside = folder.parent / f"{folder.name}{_DAMAGED}-{number}"
    folder.rename(aside)
    say(f"{folder} is damaged: {damage}; it is now {aside.name}")


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
    """Paths relative to the folder."""
    found = []
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        if path.is_dir():
            found += _files(path, f"{name}/")
        elif name not in _AFTER_SEALING:
            found.append(name)
    return found


def _compare(path: epath.Path, sealed: dict[str, object], known: tuple[int, int] | None = None) -> str | None:
    try:
        size, crc = known or file_checksum(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if size != sealed["bytes"]:
        return f"has {size} bytes instead of {sealed['bytes']}"
    return None if f"{crc:08x}" == sealed["crc32c"] else "has other bytes than were written"


def _sum_of_seal(files: dict[str, dict[str, object]]) -> str:
    return f"{google_crc32c.value(json.dumps(files, sort_keys=True).encode()):08x}"


def _read_seal(folder: epath.Path) -> tuple[dict[str, dict[str, object]], str | None]:
    """(files, None) or ({}, what is wrong)."""
    try:
        content = json.loads((folder / _SEAL).read_text())
        if content["crc32c"] == _sum_of_seal(content["files"]):
            return content["files"], None
    except FileNotFoundError:
        return {}, "is missing"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}, "has other bytes than were written"
