"""The nouns: one table of the categories that the grammar knows, their plurals, and the words for several categories together.

A category that is not in the table is spoken of all the same (`make_entry`), by its own name and a regular plural; it is never asked for
by a question that needs to know what it is good for.
"""

from __future__ import annotations

import dataclasses

from data_pipeline.grammar.labels import AIRCRAFT_PARTS


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a category is spoken of.

    `form` is "count" (a lake, all lakes), "mass" (the farmland, never two of it) or "definite" (the one of its kind: the sea).
    `instances`: whether one can be told from another; streets run into each other, so a single one is never meant.
    `lone`: most pictures have one at most, so that "all" is said only of several.
    """

    singular: str
    plural: str
    form: str = "count"
    instances: bool = True
    lone: bool = False

    @property
    def counted(self) -> bool:
        """Whether the noun has a plural."""
        return self.form == "count"

    @property
    def every(self) -> str:
        """A noun phrase for all there is of it."""
        return f"all {self.plural}" if self.counted else f"the {self.singular}"

    @property
    def every_noun(self) -> str:
        """What an answer calls all there is of it."""
        return self.plural if self.counted else self.singular


def _table(*entries: Entry) -> dict[str, Entry]:
    return {entry.singular: entry for entry in entries}


def _mass(noun: str) -> Entry:
    return Entry(noun, noun, form="mass", instances=False)


def _region(singular: str, plural: str) -> Entry:
    return Entry(singular, plural, instances=False)


# What the drawn scenes of the tiny preset show. The order decides nothing but the order of a scene's references.
_SIMPLE = _table(
    Entry("aircraft", "aircraft"),
    Entry("apron", "aprons", lone=True),
    Entry("building", "buildings"),
    Entry("car", "cars"),
    Entry("field", "fields"),
    Entry("forest", "forests"),
    Entry("lake", "lakes"),
    Entry("parking lot", "parking lots"),
    Entry("river", "rivers", lone=True),
    _region("road", "roads"),
    Entry("runway", "runways", lone=True),
    Entry("taxiway", "taxiways", lone=True),
    _region("tree", "trees"),
    Entry("truck", "trucks"),
)
# What the full drawn world shows besides.
_FULL = _table(
    Entry("ship", "ships"),
    Entry("sea", "sea", form="definite", instances=False),
    Entry("beach", "beaches", lone=True),
    Entry("pier", "piers"),
    Entry("tennis court", "tennis courts"),
    Entry("football pitch", "football pitches"),
    Entry("running track", "running tracks"),
    Entry("basketball court", "basketball courts"),
    Entry("swimming pool", "swimming pools"),
    Entry("storage tank", "storage tanks"),
    Entry("bus", "buses"),
)
# What public label sets have besides (LoveDA, ISPRS, OpenEarthMap, DOTA and iSAID), under names that read well in a sentence.
_LABEL_SETS = _table(
    _mass("water"),
    _mass("farmland"),
    _mass("woodland"),
    _mass("barren land"),
    _mass("bare land"),
    _mass("rangeland"),
    _mass("grass"),
    _mass("low vegetation"),
    _mass("developed space"),
    _mass("paved ground"),
    Entry("baseball diamond", "baseball diamonds"),
    Entry("boat", "boats"),
    Entry("bridge", "bridges"),
    Entry("greenhouse", "greenhouses"),
    Entry("harbour", "harbours"),
    Entry("helicopter", "helicopters"),
    Entry("house", "houses"),
    Entry("large vehicle", "large vehicles"),
    Entry("plane", "planes"),
    Entry("pond", "ponds"),
    Entry("railway", "railways", instances=False),
    Entry("roundabout", "roundabouts"),
    Entry("small vehicle", "small vehicles"),
    Entry("van", "vans"),
    Entry("vehicle", "vehicles"),
)
ENTRIES: dict[str, Entry] = {**_SIMPLE, **_FULL, **_LABEL_SETS}
SIMPLE_WORLD = tuple(_SIMPLE)
DRAWN_CATEGORIES = {"simple": SIMPLE_WORLD, "full": (*_SIMPLE, *_FULL)}
PLURALS = {name: entry.plural for name, entry in ENTRIES.items()}

# Names in published label sets -> the table's name.
ALIASES = {
    "agricultural": "farmland",
    "agriculture": "farmland",
    "agriculture land": "farmland",
    "airplane": "plane",
    "bareland": "bare land",
    "barren": "barren land",
    "ground track field": "running track",
    "harbor": "harbour",
    "impervious surface": "paved ground",
    "impervious surfaces": "paved ground",
    "soccer ball field": "football pitch",
    "soccer field": "football pitch",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """A noun for several categories. It is said only where one of `covers` is labelled: then no member can have been left out.

    `unless`: categories that some would count in and others would not; where one is seen, the noun is not used.
    """

    noun: str
    members: tuple[str, ...]
    covers: tuple[tuple[str, ...], ...]
    plural: bool = True
    unless: tuple[str, ...] = ()


VEHICLES = Group(
    "vehicles",
    ("car", "truck", "bus", "van", "small vehicle", "large vehicle", "vehicle"),
    (("car", "truck"), ("small vehicle", "large vehicle"), ("vehicle",)),
)
WATER = Group("water", ("lake", "river", "sea", "pond", "water"), (("lake", "river"), ("water",)), plural=False, unless=("swimming pool",))
TREES = Group("trees", ("forest", "tree", "woodland"), (("forest", "tree"), ("woodland", "tree")))
AIRCRAFT = Group("aircraft", ("aircraft", "plane", "helicopter"), (("plane", "helicopter"), ("aircraft",)))
SPORTS_GROUNDS = Group(
    "sports grounds",
    ("tennis court", "football pitch", "running track", "basketball court", "baseball diamond"),
    (("tennis court", "football pitch", "running track", "basketball court"),),
    unless=("swimming pool",),
)
GROUPS = (VEHICLES, WATER, TREES, AIRCRAFT, SPORTS_GROUNDS)

# A category -> categories of which each one is one of it as well. Where both are seen, neither is spoken of: the labels of one may hold
# things of the other.
GENERAL = {
    "vehicle": ("car", "truck", "bus", "van", "small vehicle", "large vehicle"),
    "small vehicle": ("car", "van"),
    "large vehicle": ("truck", "bus"),
    "water": ("lake", "river", "sea", "pond", "swimming pool"),
    "lake": ("pond",),
    "aircraft": ("plane", "helicopter"),
    "farmland": ("field",),
    "building": ("house", "greenhouse"),
    "ship": ("boat",),
    "harbour": ("pier",),
}
# A category -> categories that are often called by its name: where one of them is seen, it is not named.
NAMESAKES = {"field": ("football pitch", "baseball diamond")}
# Categories that some would call by another's name: "there is no field" is not said beside a football pitch.
LOOKALIKES = {"building": ("storage tank",), "field": ("football pitch", "baseball diamond"), "lake": ("sea",), "river": ("sea",)}


@dataclasses.dataclass(frozen=True)
class PartWord:
    """A noun for some numbers of a part map. `side`: left or right, said of a thing whose heading is known."""

    noun: str
    numbers: tuple[int, ...]
    plural: bool = False
    side: str | None = None


def _aircraft_part(noun: str, *names: str, plural: bool = False, side: str | None = None) -> PartWord:
    return PartWord(noun, tuple(AIRCRAFT_PARTS.index(name) + 1 for name in names), plural, side)


AIRCRAFT_PART_WORDS = (
    _aircraft_part("wings", "left wing", "right wing", plural=True),
    _aircraft_part("engines", "left engine", "right engine", plural=True),
    _aircraft_part("fuselage", "fuselage"),
    _aircraft_part("tail", "tail"),
    _aircraft_part("left wing", "left wing", side="left"),
    _aircraft_part("right wing", "right wing", side="right"),
    _aircraft_part("left engine", "left engine", side="left"),
    _aircraft_part("right engine", "right engine", side="right"),
)


def entries_of(names: tuple[str, ...] | list[str]) -> dict[str, Entry]:
    """The entries of categories, in the table's order and then in their own."""
    known = [name for name in ENTRIES if name in set(names)]
    return {name: ENTRIES.get(name) or make_entry(name) for name in [*known, *dict.fromkeys(n for n in names if n not in ENTRIES)]}


def make_entry(name: str, plural: str | None = None, *, thing: bool = True) -> Entry:
    """An entry for a name that the table lacks. Of a `thing` the name is a singular noun; of anything else it may be any word.

    "all asphalt areas" is right for whatever name a region has, so that is how regions are asked for.
    """
    if plural is not None:
        return Entry(name, plural, instances=thing)
    if thing:
        return Entry(name, regular_plural(name))
    noun = name if name.rsplit(" ", 1)[-1] in ("area", "zone", "land") else f"{name} area"
    return Entry(noun, regular_plural(noun), instances=False)


def regular_plural(noun: str) -> str:
    """ "house" -> "houses", "box" -> "boxes", "ferry" -> "ferries"."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u"):
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(entry: Entry) -> str:
    """ "a lake", "an apron", "the sea", "farmland"."""
    if entry.form == "mass":
        return entry.singular
    if entry.form == "definite":
        return f"the {entry.singular}"
    vowel = entry.singular[0].lower() in "aeiou" and not entry.singular.lower().startswith(("uni", "use", "euro", "one"))
    return f"{'an' if vowel else 'a'} {entry.singular}"
