"""Damage that a format cannot show by itself: the CRCs of a PNG, and a `SHA256SUMS` file for a whole data set.

A letter that changed in a sentence, a run of a mask that grew by what its neighbour lost, a bit in a JPEG: what is left is well-formed, and
nothing in it says that it is wrong. If the folder of a data set holds `SHA256SUMS`, in the form that `sha256sum` writes, every file that is
used has to be the one that is listed there:

    cd DATA && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from pathlib import Path, PurePosixPath

from segearth_r2_jax.errors import UserError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
# These are compared when a row uses them, everything else before the first row is read.
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2"})
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Length and kind before the data of a chunk, CRC behind it.
_CHUNK_HEAD, _CHUNK_CRC = 8, 4


def check_png(content: bytes, name: str) -> None:
    """UserError beginning with `name` if `content` is a PNG with a chunk that is cut short or whose CRC does not fit.

    Decoders pass over the CRCs of the image data.
    """
    if not content.startswith(_PNG_MAGIC):
        return
    view, start, kind = memoryview(content), len(_PNG_MAGIC), b""
    while kind != b"IEND":
        body = start + _CHUNK_HEAD
        end = body + int.from_bytes(view[start : start + 4], "big")
        if end + _CHUNK_CRC > len(view):
            raise UserError(f"{name}: is damaged or cut short (the PNG chunk at byte {start} ends behind the file)")
        kind = bytes(view[start + 4 : body])
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + _CHUNK_CRC], "big"):
            raise UserError(f"{name}: is damaged (the CRC of the PNG chunk at byte {start} does not fit)")
        start = end + _CHUNK_CRC


class Checksums:
    """The `SHA256SUMS` of a folder, which need not have one: then everything is as it should be."""

    def __init__(self, folder: Path):
        """Reads the list and compares every listed file that is no picture; UserError naming the file, or the line that is wrong."""
        self._folder = folder
        self._compared: dict[Path, str | None] = {}
        self._sums: dict[str, str] | None = None
        path = folder / SUMS
        if not path.exists():
            return
        self._sums = _read(path)
        for name in self._sums:
            if PurePosixPath(name).suffix.lower() not in _PICTURES and (reason := self.wrong(folder / name)) is not None:
                raise UserError(f"{folder / name}: {reason}")

    def wrong(self, path: Path, sha256: str | None = None) -> str | None:
        """What is wrong with a file of the folder, whose SHA-256 may be known already; None if nothing is."""
        if self._sums is None:
            return None
        if path not in self._compared:
            self._compared[path] = self._compare(self._sums, path, sha256)
        return self._compared[path]

    def _compare(self, sums: dict[str, str], path: Path, sha256: str | None) -> str | None:
        expected = sums.get(os.path.relpath(path, self._folder).replace(os.sep, "/"))
        if expected is None:
            return f"is not listed in {SUMS}"
        try:
            if sha256 is None:
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"cannot be read ({error.strerror}), but {SUMS} lists it"
        return None if sha256 == expected else f"is damaged or was changed (its SHA-256 is not the one in {SUMS})"


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no text ({error})") from None
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise UserError(f"{path}: line {number}: expected a SHA-256, two spaces and the name of a file, as sha256sum writes them")
        name = found[2]
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{path}: line {number}: {name!r:.80} leads out of the folder")
        if sums.setdefault(name, found[1].lower()) != found[1].lower():
            raise UserError(f"{path}: line {number}: {name} is listed twice with different sums")
    if not sums:
        raise UserError(f"{path}: lists no file")
    return sums
