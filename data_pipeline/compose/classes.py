"""What the values of a label raster mean: a preset, or a JSON file.

    {"classes": [{"id": 1, "name": "building", "kind": "thing", "colour": [255, 0, 0], "plural": "buildings"}, ...],
     "ignore": [0, 255],
     "ignore_colours": [[0, 0, 0]],
     "parts": [{"id": 1, "name": "roof"}, ...]}

`kind` is "thing" (single ones can be told apart), "stuff" (only all of it is spoken of) or "other" (known to be none of what is spoken of:
background, clutter). Pixels of an ignored value may show anything. Only `id` (or `colour`) and `name` are required.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.grammar.lexicon import ALIASES, ENTRIES, Entry, PartWord, make_entry, regular_plural
from segearth_r2_jax.errors import UserError

KINDS = ("thing", "stuff", "other")
_OTHER_NAMES = ("background", "clutter", "other")
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ClassInfo:
    """One class: its value in a raster, its colour in a coloured one (each None if it has none), and how it is spoken of.

    `entry` is None for what is not spoken of; its `instances` says whether it is a thing.
    """

    name: str
    value: int | None
    colour: Colour | None
    entry: Entry | None

    @property
    def category(self) -> str:
        """The name under which the grammar knows it."""
        return "" if self.entry is None else self.entry.singular


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, the values and colours of pixels that may show anything, and the values of a part raster.

    `ignore_strip`: pixels; a narrower strip of ignored pixels is an edge between two things and could hide neither.
    """

    classes: tuple[ClassInfo, ...]
    ignore: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    parts: tuple[PartWord, ...] = ()
    ignore_strip: int = 8

    @property
    def entries(self) -> dict[str, Entry]:
        """Every category that is spoken of, in the order of the lexicon and then of the table."""
        known = {info.category: info.entry for info in self.classes if info.entry is not None}
        return {name: known[name] for name in [*(name for name in ENTRIES if name in known), *(n for n in known if n not in ENTRIES)]}


def spoken_entry(name: str, kind: str | None, where: str, plural: str | None = None, unknown_kind: str = "stuff") -> Entry | None:
    """How a class called `name` is spoken of, None for one that is not. Raises UserError, beginning with `where`, if it cannot be.

    kind: None for that of the lexicon's entry, and `unknown_kind` for a name that the lexicon lacks.
    """
    plain = " ".join(name.replace("_", " ").replace("-", " ").lower().split())
    if not plain or not all(c.isalnum() or c in " '" for c in plain) or len(plain) > 60:
        raise UserError(f"{where}: the name {name!r:.80} cannot be said in a sentence; expected a few words of letters and digits")
    if kind == "other" or (kind is None and plain in _OTHER_NAMES):
        return None
    plain = ALIASES.get(plain, plain)
    plain = next((entry.singular for entry in ENTRIES.values() if entry.counted and entry.plural == plain), plain)
    entry = ENTRIES.get(plain)
    if entry is None:
        return make_entry(plain, plural, thing=(kind or unknown_kind) == "thing")
    thing = entry.instances if kind is None else kind == "thing"
    if thing and not entry.counted:
        raise UserError(f'{where}: there is no single "{plain}" to be told from another; its kind must be "stuff"')
    return dataclasses.replace(entry, instances=thing, lone=entry.lone and thing, plural=plural or entry.plural)


def part_words(parts: list[tuple[str, int, bool]], where: str) -> tuple[PartWord, ...]:
    """The words for parts (name, number in the part raster, whether the name is a plural), and for pairs of a left and a right one."""
    words = []
    plain = {" ".join(name.replace("_", " ").replace("-", " ").lower().split()): (number, plural) for name, number, plural in parts}
    if len(plain) != len(parts):
        raise UserError(f"{where}: two parts have the same name")
    for name, (number, plural) in plain.items():
        side, _, rest = name.partition(" ")
        other = plain.get(f"right {rest}")
        if side == "left" and other is not None and not plural and regular_plural(rest) not in plain:
            words.append(PartWord(regular_plural(rest), (number, other[0]), plural=True))
        words.append(PartWord(name, (number,), plural, side if side in ("left", "right") and rest else None))
    return tuple(words)


def load_classes(source: str) -> ClassTable:
    """The table of a preset's name or of a JSON file. Raises UserError naming the file and what is wrong."""
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"--classes {source}: neither a file nor a preset; presets are {', '.join(PRESETS)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error!s:.120})") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list) or not content["classes"]:
        raise UserError(f'{path}: expected an object with "classes", a list of {{"id": 1, "name": "building", "kind": "thing"}}')
    unknown = content.keys() - {"classes", "ignore", "ignore_colours", "parts", "ignore_strip"}
    if unknown:
        raise UserError(f"{path}: {', '.join(sorted(map(str, unknown)))} is not known here")
    classes = tuple(_class(item, f"{path}: class {number}") for number, item in enumerate(content["classes"]))
    for kind, values in (("id", [c.value for c in classes]), ("colour", [c.colour for c in classes])):
        given = [value for value in values if value is not None]
        if len(set(given)) != len(given):
            raise UserError(f"{path}: two classes have the same {kind}")
    if not any(info.entry for info in classes):
        raise UserError(f"{path}: no class is a thing or stuff, so there is nothing to ask for")
    strip = content.get("ignore_strip", ClassTable.ignore_strip)
    if not _whole(strip):
        raise UserError(f"{path}: ignore_strip must be a number of pixels, it is {strip!r:.40}")
    return ClassTable(
        classes,
        tuple(_value(value, f"{path}: ignore") for value in _list(content, "ignore", path)),
        tuple(_colour(value, f"{path}: ignore_colours") for value in _list(content, "ignore_colours", path)),
        part_words([_part(item, f"{path}: part {n}") for n, item in enumerate(_list(content, "parts", path))], f"{path}: parts"),
        strip,
    )


def _list(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} must be a list")
    return value


def _class(item: Any, where: str) -> ClassInfo:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UserError(f'{where}: expected an object such as {{"id": 1, "name": "building", "kind": "thing"}}')
    where = f"{where} ({item['name']:.40})"
    unknown = item.keys() - {"id", "name", "kind", "colour", "plural"}
    if unknown:
        raise UserError(f"{where}: {', '.join(sorted(map(str, unknown)))} is not known here; a class has id, name, kind, colour and plural")
    kind, plural = item.get("kind"), item.get("plural")
    if kind is not None and kind not in KINDS:
        raise UserError(f"{where}: kind must be {', '.join(KINDS)}; it is {kind!r:.40}")
    if plural is not None and not (isinstance(plural, str) and plural.strip()):
        raise UserError(f"{where}: plural must be a word")
    value = _value(item["id"], where) if "id" in item else None
    colour = _colour(item["colour"], where) if "colour" in item else None
    if value is None and colour is None:
        raise UserError(f"{where}: expected an id or a colour")
    return ClassInfo(item["name"], value, colour, spoken_entry(item["name"], kind, where, plural))


def _part(item: Any, where: str) -> tuple[str, int, bool]:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or not isinstance(item.get("plural", False), bool):
        raise UserError(f'{where}: expected an object such as {{"id": 1, "name": "roof"}} or {{"id": 2, "name": "wheels", "plural": true}}')
    number = _value(item.get("id"), where)
    if number == 0:
        raise UserError(f"{where}: 0 stands for no part; expected another id")
    return item["name"], number, item.get("plural", False)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _value(value: Any, where: str) -> int:
    if not _whole(value):
        raise UserError(f"{where}: expected a whole number, zero or more, it is {value!r:.40}")
    return value


def _colour(value: Any, where: str) -> Colour:
    if not (isinstance(value, list | tuple) and len(value) == 3 and all(_whole(channel) and channel <= 255 for channel in value)):
        raise UserError(f"{where}: a colour is three numbers from 0 to 255, it is {value!r:.40}")
    return tuple(value)


def _preset(*rows: tuple[int, str, str, Colour | None], ignore_colours: tuple[Colour, ...] = (), ignore_strip: int = 8) -> ClassTable:
    classes = tuple(ClassInfo(name, value, colour, spoken_entry(name, kind, name)) for value, name, kind, colour in rows)
    return ClassTable(classes, (0,), ignore_colours, ignore_strip=ignore_strip)


# The six classes that ISPRS Potsdam and Vaihingen share, by colour as published and by number as most tools convert them. Black is the
# eroded boundary of the "no boundary" references, up to 10 pixels (0.9 m) wide where two of them meet: nothing of these classes fits in.
_ISPRS = (
    (1, "impervious surfaces", "stuff", (255, 255, 255)),
    (2, "building", "thing", (0, 0, 255)),
    (3, "low vegetation", "stuff", (0, 255, 255)),
    (4, "tree", "stuff", (0, 255, 0)),
    (5, "car", "thing", (255, 255, 0)),
    (6, "clutter", "other", (255, 0, 0)),
)
PRESETS = {
    "loveda": _preset(
        (1, "background", "other", None),
        (2, "building", "thing", None),
        (3, "road", "stuff", None),
        (4, "water", "stuff", None),
        (5, "barren land", "stuff", None),
        (6, "woodland", "stuff", None),
        (7, "farmland", "stuff", None),
    ),
    "potsdam": _preset(*_ISPRS, ignore_colours=((0, 0, 0),), ignore_strip=12),
    "vaihingen": _preset(*_ISPRS, ignore_colours=((0, 0, 0),), ignore_strip=12),
    "openearthmap": _preset(
        (1, "bare land", "stuff", None),
        (2, "rangeland", "stuff", None),
        (3, "developed space", "stuff", None),
        (4, "road", "stuff", None),
        (5, "tree", "stuff", None),
        (6, "water", "stuff", None),
        (7, "farmland", "stuff", None),
        (8, "building", "thing", None),
    ),
}
