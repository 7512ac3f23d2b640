"""Whether other words still mean the same masks: what a rewriting must keep and must not add.

The check is strict and knows only words: it would rather lose a good rewriting than keep one that changed what is asked for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.grammar.lexicon import ENTRIES, GROUPS, Entry, make_entry

MARKED = re.compile(r"<p>(.*?)</p>\s*\[SEG\]")
# Words that decide which of several things is meant, each with what may stand in its place.
_DECISIVE = {
    "all": ("every", "each"),
    "leftmost": (),
    "rightmost": (),
    "uppermost": ("topmost",),
    "lowest": ("lowermost", "bottommost"),
    "largest": ("biggest",),
    "smallest": ("tiniest",),
    "larger": ("bigger",),
    "smaller": (),
    "nearest": ("closest",),
    "farthest": ("furthest",),
    "first": (),
    "last": (),
    "left": (),
    "right": (),
    "upper": (),
    "lower": (),
    "top": (),
    "bottom": (),
    "centre": ("center", "middle"),
    "north": ("northern",),
    "south": ("southern",),
    "east": ("eastern",),
    "west": ("western",),
    "no": ("not", "none", "without", "never", "isn't", "aren't", "doesn't", "don't"),
    "except": ("excluding", "but"),
    "only": (),
    **dict.fromkeys(("two", "three", "four", "five", "several", "some", "few", "half"), ()),
    **dict.fromkeys(("red", "green", "blue", "white", "yellow", "brown", "black", "orange", "purple", "pink"), ()),
    "grey": ("gray",),
    **dict.fromkeys(("damaged", "intact", "flooded", "moving", "moored", "empty", "full"), ()),
}
_CANONICAL = {other: word for word, others in _DECISIVE.items() for other in (word, *others)}
_LONGEST = {"short": 320, "long": 900}  # characters
_MOST_WORDS_SHORT, _FEWEST_WORDS_LONG = 40, 14


def fault(row: Mapping[str, Any], instruction: Any, answer: Any, names: Iterable[str] = ()) -> str | None:
    """Why the new words may not stand in place of the row's own, in a few words that can be counted; None where they may.

    names: category names of the data set that the lexicon may lack.
    """
    if not isinstance(instruction, str) or not isinstance(answer, str):
        return "no instruction or no answer"
    for text in (instruction, answer):
        if not text.strip() or not text.isprintable() or len(text) > _LONGEST[row["tags"]["language"]]:
            return "empty, too long or not plain text"
    if re.search(r"[<>\[\]{}]", instruction):
        return "marks in the instruction"
    if answer.count("[SEG]") != row["answer"].count("[SEG]"):
        return "number of [SEG]"
    if [m.lower() for m in MARKED.findall(answer)] != [m.lower() for m in MARKED.findall(row["answer"])]:
        return "nouns of the answer or their order"
    if re.search(r"[<>\[\]{}]", MARKED.sub("", answer)):
        return "marks in the answer"
    if _nouns(instruction, names) != _nouns(row["description"], names):
        return "categories of the instruction"
    if not _nouns(MARKED.sub(r"\1", answer), names) <= _nouns(MARKED.sub(r"\1", row["answer"]), names):
        return "categories of the answer"
    if _decisive(instruction) != _decisive(row["description"]):
        return "places, sizes, colours or counts of the instruction"
    if _decisive(MARKED.sub(r"\1", answer)) != _decisive(MARKED.sub(r"\1", row["answer"])):
        return "places, sizes, colours or counts of the answer"
    return _length_fault(row, instruction)


def _length_fault(row: Mapping[str, Any], instruction: str) -> str | None:
    words, sentences = len(instruction.split()), len(re.findall(r"[.?!](?:\s|$)", instruction.strip().rstrip(".?!") + "."))
    if row["tags"]["language"] == "short":
        return "length" if sentences > 1 or words > max(_MOST_WORDS_SHORT, len(row["description"].split())) else None
    return "length" if words < _FEWEST_WORDS_LONG else None


def _decisive(text: str) -> set[str]:
    words = re.findall(r"[a-z']+|\d+", text.lower())
    return {_CANONICAL[word] for word in words if word in _CANONICAL} | {word for word in words if word.isdigit()}


@functools.lru_cache(maxsize=4)
def _noun_table(names: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, tuple[str, bool]]]:
    """A pattern of every noun, and of each the category or group and whether it is a plural."""
    found: dict[str, tuple[str, bool]] = {}
    entries: list[Entry] = [*ENTRIES.values(), *(make_entry(name) for name in names if name not in ENTRIES)]
    for entry in entries:
        found[entry.plural] = (entry.singular, entry.counted)
        found[entry.singular] = (entry.singular, False)
    for group in GROUPS:
        found.setdefault(group.noun, (group.noun, group.plural))
    # A longer name hides the shorter one within it.
    return re.compile(rf"\b({'|'.join(re.escape(noun) for noun in sorted(found, key=len, reverse=True))})\b"), found


def _nouns(text: str, names: Iterable[str]) -> set[tuple[str, bool]]:
    """The categories that a text names, each with whether it names several of it."""
    pattern, found = _noun_table(tuple(names))
    return {found[noun] for noun in pattern.findall(text.lower())}
