"""The words of the drawn world: nouns, questions, requests and answers.

Every list of wordings has some that only the test set uses (`held_out`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

PLURALS = {
    "aircraft": "aircraft",
    "apron": "aprons",
    "building": "buildings",
    "car": "cars",
    "field": "fields",
    "forest": "forests",
    "lake": "lakes",
    "parking lot": "parking lots",
    "river": "rivers",
    "road": "roads",
    "runway": "runways",
    "taxiway": "taxiways",
    "tree": "trees",
    "truck": "trucks",
}

# Nouns for more than one category.
GROUPS = {"vehicles": ("car", "truck"), "water": ("lake", "river"), "trees": ("forest", "tree")}
SINGULAR_GROUPS = frozenset({"water"})


@dataclasses.dataclass(frozen=True)
class Wordings:
    """Ways to say one thing."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def choose(self, rng: np.random.Generator, held_out: float) -> str:
        """One of them; with probability `held_out` one that the training set does not use."""
        pool = self.held_out if self.held_out and rng.random() < held_out else self.train
        return pool[int(rng.integers(len(pool)))]


@dataclasses.dataclass(frozen=True)
class Concept:
    """A question that names a use instead of a thing: `categories` are all that answer it, `noun` what the answer calls them.

    A `{place}` in a question stands for a part of the picture.
    """

    noun: str
    categories: tuple[str, ...]
    questions: Wordings
    questions_at: Wordings | None = None


CONCEPTS = (
    Concept(
        "aircraft",
        ("aircraft",),
        Wordings(("What can fly?", "Which machines could take off?"), ("What could carry people through the air?",)),
        Wordings(("What {place} can fly?",), ("Which machine {place} could take off?",)),
    ),
    Concept(
        "buildings",
        ("building",),
        Wordings(("Where do people live and work?", "Where can one find shelter from the rain?"), ("Where would people sleep at night?",)),
        Wordings(("Where {place} can one find shelter from the rain?",), ("Where {place} would people sleep at night?",)),
    ),
    Concept(
        "water",
        ("lake", "river"),
        Wordings(("Where can a boat float?", "Where could one swim?"), ("Where would fish be found?",)),
        Wordings(("Where {place} can a boat float?",), ("Where {place} could one swim?",)),
    ),
    Concept(
        "fields",
        ("field",),
        Wordings(("Where is food grown?", "Where does a farmer work?"), ("What land is harvested every year?",)),
        Wordings(("Where {place} is food grown?",), ("Where {place} does a farmer work?",)),
    ),
    Concept(
        "trees",
        ("forest", "tree"),
        Wordings(("Where does timber grow?", "What gives shade with its leaves?"), ("Where could birds nest on branches?",)),
    ),
    Concept(
        "roads",
        ("road",),
        Wordings(("Where do cars drive through?", "Which surface joins one block with the next?"), ("Which way would a bus take?",)),
    ),
    Concept(
        "runway",
        ("runway",),
        Wordings(("Where can a pilot land?", "Where does a plane speed up to take off?"), ("Which strip is meant for landings?",)),
    ),
    Concept(
        "apron",
        ("apron",),
        Wordings(("Where do passengers board a plane?", "Where are planes loaded?"), ("Where do planes stand between two flights?",)),
    ),
    Concept(
        "parking lots",
        ("parking lot",),
        Wordings(
            ("Where can visitors leave their cars?", "Where are stalls painted for cars?"), ("Where could a driver find a free stall?",)
        ),
        Wordings(("Where {place} can visitors leave their cars?",), ("Where {place} could a driver find a free stall?",)),
    ),
    Concept(
        "vehicles",
        ("car", "truck"),
        Wordings(("What drives on wheels along a road?", "What needs a driver and fuel?"), ("What might be caught speeding?",)),
    ),
)

# Questions whose answer is the largest of a category.
LARGEST_QUESTIONS = {
    "building": Wordings(("Which building offers the most space?",), ("Under which roof would the most people fit?",)),
    "field": Wordings(("Which field takes the longest to plough?",), ("Which field yields the largest harvest?",)),
    "lake": Wordings(("Which lake has the most room for boats?",), ("Which lake would take the longest to swim around?",)),
    "forest": Wordings(("Which forest shelters the most animals?",), ("In which forest could one get lost most easily?",)),
    "aircraft": Wordings(("Which aircraft carries the most passengers?",), ("Which aircraft needs the widest hangar?",)),
}

# The parts of an aircraft by name: their numbers in the part map, whether the name is a plural, and a question that means them.
PARTS: dict[str, tuple[tuple[int, ...], Wordings | None]] = {
    "wings": ((2, 3), Wordings(("What gives {owner} its lift?",), ("What keeps {owner} up in the air?",))),
    "engines": ((4, 5), Wordings(("What pushes {owner} forward?",), ("What burns the fuel of {owner}?",))),
    "fuselage": ((1,), Wordings(("Where do the passengers of {owner} sit?",), ("Where is the cargo of {owner}?",))),
    "tail": ((6,), Wordings(("What keeps {owner} steady at the back?",), ("What turns the nose of {owner} from behind?",))),
    "left wing": ((2,), None),
    "right wing": ((3,), None),
    "left engine": ((4,), None),
    "right engine": ((5,), None),
}
PLURAL_PARTS = frozenset({"wings", "engines"})

SHORT_REQUESTS = Wordings(
    ("{phrase}", "Segment {phrase}.", "Find {phrase}.", "Where is {phrase}?"),
    ("Outline {phrase}.", "Show me {phrase}.", "I need {phrase}."),
)
# A question that suits a plural as well as a singular.
PLURAL_QUESTION = "Where are {phrase}?"

CONTEXTS = Wordings(
    ("This aerial image shows {scene}.", "The picture was taken from above and shows {scene}."),
    ("Seen from a plane, this place has {scene}.",),
)
LONG_REQUESTS = Wordings(
    ("Please segment {phrase} and leave out everything else.", "Find {phrase} and mark every visible pixel."),
    ("I am only interested in {phrase}, so please give me the exact outline.",),
)
PLACE_HINTS = Wordings(("It lies {place} of the image.",), ("Look {place} of the image.",))
LONG_QUESTIONS = Wordings(
    ("{question} Please mark the whole area.", "Look at it closely and answer with a mask. {question}"),
    ("{question} Point it out to me, pixel by pixel.",),
)
EMPTY_ANSWER = "There is no {noun} in this image."


def joined(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def joined_questions(questions: list[str]) -> str:
    """Several questions as one sentence."""
    first, *others = (question.rstrip("?") for question in questions)
    return first + "".join(f", and {other[0].lower()}{other[1:]}" for other in others) + "?"


def with_article(noun: str) -> str:
    """ "a lake", "an apron"; nouns without an article are left as they are."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def marked(noun: str) -> str:
    """A noun of the answer with the token of its mask."""
    return f"<p>{noun}</p>[SEG]"


def named_answer(nouns: list[str], plural: bool) -> str:
    """The answer to a question or a short request."""
    return ("These are " if plural else "It is ") + joined([f"the {marked(noun)}" for noun in nouns]) + "."


def full_answer(nouns: list[str], plural: bool, place: str | None) -> str:
    """The answer to a long explicit request; `place` is where the request itself said that the one target lies."""
    things = joined([f"the {marked(noun)}" for noun in nouns])
    if place is not None:
        return f"Sure, {things} {'are' if plural else 'is'} {place}."
    return f"Sure, here {'are' if plural else 'is'} {things}."


def fixed_texts() -> list[str]:
    """Every training wording, for a tokenizer to learn from."""
    pools = [SHORT_REQUESTS, CONTEXTS, LONG_REQUESTS, PLACE_HINTS, LONG_QUESTIONS, *LARGEST_QUESTIONS.values()]
    for concept in CONCEPTS:
        pools += [concept.questions] + ([concept.questions_at] if concept.questions_at else [])
    pools += [questions for _, questions in PARTS.values() if questions]
    return [text for pool in pools for text in pool.train] + [PLURAL_QUESTION, EMPTY_ANSWER]
