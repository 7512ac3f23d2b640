"""Requests and answers: the sentences around the nouns, and how they are put together."""

from __future__ import annotations

from data_pipeline.grammar.wordings import Wordings

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
# Where nothing of the picture is large enough to be named.
PLAIN_CONTEXT = "The picture was taken from above."
EMPTY_ANSWER = "There is no {noun} in this image."


def joined(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def joined_questions(questions: list[str]) -> str:
    """Several questions as one sentence."""
    first, *others = (question.rstrip("?") for question in questions)
    return first + "".join(f", and {other[0].lower()}{other[1:]}" for other in others) + "?"


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
