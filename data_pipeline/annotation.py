"""One annotation of a data set, before its image is opened: what every reader of `sources` yields.

A reader checks what it can see in the annotation files; `Annotation.load` checks the rest against the image. An annotation that is
wrong becomes a `Rejection` with its reason: it is reported, never dropped in silence. Damage to a whole file is a UserError.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.schema import DIMENSIONS, Record, Tags
from data_pipeline.targets import ImageFile, Target
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import count_masks
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import encode


@dataclasses.dataclass(frozen=True)
class Box:
    """A region (x1, y1, x2, y2); in pixels of the image, or of the image shrunk so that its longer side is `long_side` pixels."""

    corners: tuple[float, float, float, float]
    long_side: int | None = None

    def in_pixels(self, height: int, width: int, name: str) -> tuple[int, int, int, int]:
        """The smallest box of whole pixels of an image of `height` x `width` around it; UserError if it leaves the image or is empty."""
        scale = 1.0 if self.long_side is None else max(height, width) / self.long_side
        x1, y1, x2, y2 = (corner * scale for corner in self.corners)
        if not (0 <= x1 < x2 <= width + scale and 0 <= y1 < y2 <= height + scale):
            raise UserError(f"{name}: the box {self.corners} does not lie in its image of {width} x {height} pixels")
        left, top = min(int(x1), width - 1), min(int(y1), height - 1)
        right, bottom = min(int(-(-x2 // 1)), width), min(int(-(-y2 // 1)), height)
        return left, top, max(right, left + 1), max(bottom, top + 1)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One annotation, checked as far as it can be without opening the image.

    `name` ("FILE: row 'ID'") begins every message about it. `source` is the annotation file and `image_name` the image, as the data set
    names them. `targets` are in the order of the answer's [SEG]; None where the source withholds them. `also_from` are further files that
    this annotation was made from, other than those that its targets name as their `path`.
    """

    name: str
    record_id: str
    source: str
    image_name: str
    image_path: Path
    instruction: str
    answer: str | None
    targets: tuple[Target, ...] | None
    tags: Tags = Tags()
    box: Box | None = None
    also_from: tuple[Path, ...] = ()

    def load(self) -> Record:
        """Reads and decodes the image and makes the masks; UserError naming the row or the image if something is wrong."""
        image_bytes = self.read_image_bytes()
        height, width = decode_image(image_bytes, f"{self.name}: image {self.image_path}").shape[:2]
        return self.record(image_bytes, height, width)

    def read_image_bytes(self) -> bytes:
        """The image file's content."""
        try:
            return self.image_path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.name}: image {self.image_path} cannot be read ({error.strerror})") from None

    def record(self, image_bytes: bytes, height: int, width: int) -> Record:
        """The record, for an image whose size is known already; UserError naming the row if a target does not fit."""
        image = ImageFile(self.image_path, height, width)
        masks = None
        if self.targets is not None:
            masks = tuple(encode(target.rasterize(image, f"{self.name}: mask {number}")) for number, target in enumerate(self.targets))
        return Record(
            record_id=self.record_id,
            source=self.source,
            image_name=self.image_name,
            image_bytes=image_bytes,
            height=height,
            width=width,
            instruction=self.instruction,
            answer=self.answer,
            masks=masks,
            tags=self.tags,
            box=None if self.box is None else self.box.in_pixels(height, width, self.name),
        )


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An annotation that cannot be used: `name` says which, `reason` why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    @classmethod
    def from_error(cls, name: str, error: UserError) -> Rejection:
        """The rejection of the annotation `name` for an error whose message may begin with that name."""
        message = str(error)
        if message.startswith(f"{name}: "):
            return cls(name, message.removeprefix(f"{name}: "))
        return cls(name, message)


def checked(rows: Iterable[Any], file: Path, check: Callable[[Mapping[str, Any], str], Annotation]) -> Iterator[Annotation | Rejection]:
    """Each of `rows`, JSON objects of `file`, through `check(row, name)`, whose UserError rejects the row.

    `name` is "FILE: row 'ID'", or "FILE: entry NUMBER" for a row without an id.
    """
    for number, row in enumerate(rows):
        name = f"{file}: entry {number}"
        try:
            if not isinstance(row, Mapping):
                raise UserError(f"{name}: expected an object of named fields, it is {type(row).__name__}")
            if "id" in row:
                name = f"{file}: row {row_id(row, number, name)!r}"
            yield check(row, name)
        except UserError as error:
            yield Rejection.from_error(name, error)


def attempt(name: str, make: Callable[[], Annotation]) -> Annotation | Rejection:
    """What `make()` returns; the rejection of the annotation `name` where that raises a UserError."""
    try:
        return make()
    except UserError as error:
        return Rejection.from_error(name, error)


def accepted(annotations: Iterable[Annotation | Rejection]) -> Iterator[Annotation]:
    """The annotations; UserError at the first that is rejected."""
    for annotation in annotations:
        if isinstance(annotation, Rejection):
            raise UserError(str(annotation))
        yield annotation


def read_json(file: Path, kind: type, what: str) -> Any:
    """The content of a JSON file, which has to be a `kind` ("what" says in words what is expected); UserError naming the file."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(content, kind):
        raise UserError(f"{file}: expected {what}")
    return content


def read_json_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | Rejection]]:
    """The objects of a JSONL file, each with the name that messages call it by; a Rejection in place of a line that is none.

    The name is "FILE: line NUMBER", counted from 1. Blank lines are passed over. UserError naming the file if it cannot be read.
    """
    for name, line in read_lines(file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield name, Rejection(name, f"not JSON ({error})")
            continue
        yield name, row if isinstance(row, Mapping) else Rejection(name, f"expected an object of named fields, it is {type(row).__name__}")


def read_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with its name "FILE: line NUMBER"; UserError naming the file if it cannot be read."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield f"{file}: line {number}", line.strip()


def row_id(row: Mapping[str, Any], number: int, name: str) -> str:
    """The row's `id`, a text or a whole number; its `number` where it has none."""
    value = row.get("id", number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{name}: id must be a text or a whole number")
    if isinstance(value, str):
        check_text(value, "id", name)
    return str(value)


def text_field(row: Mapping[str, Any], key: str, name: str, *, empty: bool = True) -> str:
    """The text `row[key]`; UserError if it is missing, no text, or blank where `empty` forbids that."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{name}: {key} must be a text, it is {'missing' if value is None else type(value).__name__}")
    check_text(value, key, name)
    if not empty and not value.strip():
        raise UserError(f"{name}: {key} is empty")
    return value


def shown(value: Any) -> str:
    """A value of a data set as a message shows it: short texts and numbers as they are, of anything else its kind."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"


def check_text(value: str, key: str, name: str) -> None:
    """UserError if `value` cannot be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {key} holds characters that are no text (lone surrogates)") from None


def file_inside(folder: Path, relative: str, name: str, key: str = "image_name", what: str = "image") -> Path:
    """The file `relative` of `folder`, which has to lie in it: a data set from elsewhere must not make this machine read other files."""
    path = folder / relative
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # e.g. a zero byte, a loop of links
        inside = False
    if not inside:
        raise UserError(f"{name}: {key} {relative!r} leaves the folder {folder}")
    try:
        exists = path.is_file()
    except OSError:  # e.g. a name that is too long
        exists = False
    if not exists:
        raise UserError(f"{name}: {what} {path} does not exist")
    return path


def check_count(answer: str, targets: tuple[Target, ...], name: str) -> None:
    """UserError unless the answer has one [SEG] per target."""
    if len(targets) != count_masks(answer):
        raise UserError(f"{name}: the answer has {count_masks(answer)} [SEG], but there are {len(targets)} masks")


def tags_field(row: Mapping[str, Any], name: str, known: Tags = Tags()) -> Tags:
    """`row["tags"]`, which may be absent, over what is `known` anyway; UserError for a value that a dimension does not have."""
    content = row.get("tags", {})
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: tags must be an object, it is {type(content).__name__}")
    values = {key: text_field(content, key, name) for key in (*DIMENSIONS, "category") if content.get(key) is not None}
    try:
        return dataclasses.replace(known, **values)
    except ValueError as error:
        raise UserError(f"{name}: tags: {error}") from None
