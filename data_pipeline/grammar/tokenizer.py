"""The tokenizer of the tiny preset: a small byte-level BPE that knows the words of the simple drawn world and of the prompts.

    python -m data_pipeline.grammar.tokenizer

writes `segearth_r2_jax/inputs/tiny_tokenizer.json` anew. It learns from the wordings alone, not from drawn scenes, so that nothing but
the words decides it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import segearth_r2_jax.inputs
from data_pipeline.grammar import language
from data_pipeline.grammar.facts import PLACES, at_place
from data_pipeline.grammar.lexicon import AIRCRAFT_PART_WORDS, ENTRIES, SIMPLE_WORLD, TREES, VEHICLES, WATER, with_article
from data_pipeline.grammar.questions import CONCEPTS, LARGEST_QUESTIONS, PART_QUESTIONS
from segearth_r2_jax.inputs.conversation import TEMPLATES
from segearth_r2_jax.inputs.tokenizer import save_tokenizer, train_tokenizer

TINY_TOKENIZER = Path(segearth_r2_jax.inputs.__file__).with_name("tiny_tokenizer.json")
# An upper bound: the words run out of pairs to merge before it. [SEG] is added to them.
VOCAB_SIZE = 1023

_COLOURS = {
    "aircraft": ("white", "grey", "yellow", "blue"),
    "building": ("red", "grey", "white", "brown", "blue"),
    "car": ("white", "black", "red", "blue", "yellow"),
    "field": ("green", "yellow", "brown"),
    "truck": ("white", "black", "red", "blue", "yellow"),
}


def corpus() -> list[str]:
    """Every wording of the training set with the names it is used with, and the prompts around them."""
    texts = [part for template in TEMPLATES.values() for part in (template.before_image, template.after_image, template.before_answer)]
    texts += _wordings()
    singular, plural = _phrases()
    for phrase, noun in singular + plural:
        many = (phrase, noun) in plural
        texts += [wording.format(phrase=phrase) for wording in language.SHORT_REQUESTS.train if not (many and "Where is" in wording)]
        texts += [wording.format(phrase=phrase) for wording in language.LONG_REQUESTS.train]
        texts += [language.named_answer([noun], many), language.full_answer([noun], many, None)]
    for row in PLACES:
        for place in row:
            texts += [hint.format(place=at_place(place)) for hint in language.PLACE_HINTS.train]
            texts += [language.full_answer([name], False, at_place(place)) for name in SIMPLE_WORLD]
    for name in SIMPLE_WORLD:
        texts.append(language.EMPTY_ANSWER.format(noun=name))
        scene = language.joined([ENTRIES[name].plural, with_article(ENTRIES[name])])
        texts += [context.format(scene=scene) for context in language.CONTEXTS.train]
    return texts


def _wordings() -> list[str]:
    """Every training wording that the simple world uses."""
    pools = [language.SHORT_REQUESTS, language.CONTEXTS, language.LONG_REQUESTS, language.PLACE_HINTS, language.LONG_QUESTIONS]
    pools += [questions for name, questions in LARGEST_QUESTIONS.items() if name in SIMPLE_WORLD]
    for concept in CONCEPTS:
        if set(concept.categories) & set(SIMPLE_WORLD):
            pools += [concept.questions] + ([concept.questions_at] if concept.questions_at else [])
    pools += [questions for (whole, _), questions in PART_QUESTIONS.items() if whole == "aircraft"]
    return [text for pool in pools for text in pool.train] + [language.PLURAL_QUESTION, language.EMPTY_ANSWER]


def _phrases() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(phrase, noun of the answer) of one thing, and of several."""
    singular, plural = [], [(f"all {group.noun}", group.noun) for group in (VEHICLES, WATER, TREES)]
    for name in SIMPLE_WORLD:
        many = ENTRIES[name].plural
        plural.append((f"all {many}", many))
        singular.append((f"the {name}", name))
        singular += [(f"the {word} {name}", f"{word} {name}") for word in ("largest", "leftmost", "rightmost", "uppermost", "lowest")]
        singular += [(f"the {name} {at_place(place)}", name) for row in PLACES for place in row]
        singular.append((f"the {name} nearest to the {name}", name))
        plural += [(f"each {name} from left to right", name), (f"the two largest {many}, the larger one first", name)]
        for colour in _COLOURS.get(name, ()):
            plural.append((f"all {colour} {many}", f"{colour} {many}"))
            singular.append((f"the {colour} {name}", f"{colour} {name}"))
    for part in AIRCRAFT_PART_WORDS:
        (plural if part.plural else singular).append((f"the {part.noun} of the aircraft", part.noun))
    return singular, plural


def write_tiny_tokenizer(path: Path) -> None:
    """Trains the tokenizer and writes it to `path`: the same file every time."""
    save_tokenizer(train_tokenizer(corpus(), VOCAB_SIZE), path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.grammar.tokenizer", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TINY_TOKENIZER, metavar="FILE", help="default: the one in the package")
    output = parser.parse_args(arguments).output
    write_tiny_tokenizer(output)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
