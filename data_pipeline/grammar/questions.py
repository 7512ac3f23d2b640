"""Questions that mean a thing by what it is good for, by its size or by what happened to it, without naming it."""

from __future__ import annotations

import dataclasses

from data_pipeline.grammar import lexicon
from data_pipeline.grammar.wordings import Wordings


@dataclasses.dataclass(frozen=True)
class Concept:
    """A question that names a use instead of a thing: `categories` are all that answer it, `noun` what the answer calls several of them.

    A `{place}` in a question stands for a part of the picture. The question is asked only where all categories of one of `covers` (by
    default: all of `categories`) are labelled, and not where one of `unless` is seen or something is in a state of `unless_states`:
    those might answer it too, or no longer. `merged`: the things run into each other, so one object is not one thing.
    """

    noun: str
    categories: tuple[str, ...]
    questions: Wordings
    questions_at: Wordings | None = None
    covers: tuple[tuple[str, ...], ...] = ()
    unless: tuple[str, ...] = ()
    unless_states: tuple[str, ...] = ()
    merged: bool = False
    counted: bool = True  # whether `noun` is a plural


def _of_group(group: lexicon.Group, questions: Wordings, questions_at: Wordings | None = None, merged: bool = False) -> Concept:
    return Concept(group.noun, group.members, questions, questions_at, group.covers, group.unless, merged=merged, counted=group.plural)


CONCEPTS = (
    _of_group(
        lexicon.AIRCRAFT,
        Wordings(("What can fly?", "Which machines could take off?"), ("What could carry people through the air?",)),
        Wordings(("What {place} can fly?",), ("Which machine {place} could take off?",)),
    ),
    Concept(
        "buildings",
        ("building", "house"),
        Wordings(("Where do people live and work?", "Where can one find shelter from the rain?"), ("Where would people sleep at night?",)),
        Wordings(("Where {place} can one find shelter from the rain?",), ("Where {place} would people sleep at night?",)),
        covers=(("building",),),
        unless=("greenhouse",),
        unless_states=("damaged",),
    ),
    _of_group(
        lexicon.WATER,
        Wordings(("Where can a boat float?", "Where could one swim?"), ("Where would fish be found?",)),
        Wordings(("Where {place} can a boat float?",), ("Where {place} could one swim?",)),
    ),
    Concept(
        "fields",
        ("field",),
        Wordings(("Where is food grown?", "Where does a farmer work?"), ("What land is harvested every year?",)),
        Wordings(("Where {place} is food grown?",), ("Where {place} does a farmer work?",)),
        unless=("greenhouse",),
        unless_states=("flooded",),
    ),
    Concept(
        "trees",
        ("forest", "tree"),
        Wordings(("Where does timber grow?", "What gives shade with its leaves?"), ("Where could birds nest on branches?",)),
        covers=(("tree",),),
        merged=True,
    ),
    Concept(
        "roads",
        ("road",),
        Wordings(("Where do cars drive through?", "Which surface joins one block with the next?"), ("Which way would a bus take?",)),
        merged=True,
    ),
    Concept(
        "runways",
        ("runway",),
        Wordings(("Where can a pilot land?", "Where does a plane speed up to take off?"), ("Which strip is meant for landings?",)),
    ),
    Concept(
        "aprons",
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
    _of_group(
        lexicon.VEHICLES,
        Wordings(("What drives on wheels along a road?", "What needs a driver and fuel?"), ("What might be caught speeding?",)),
    ),
    Concept(
        "ships",
        ("ship", "boat"),
        Wordings(("What floats and carries people or cargo?", "What needs a captain and a crew?"), ("What could sail to another coast?",)),
        Wordings(("What {place} floats and carries people or cargo?",), ("What {place} could sail to another coast?",)),
        covers=(("ship",),),
    ),
    Concept("sea", ("sea",), Wordings(("Where do tides rise and fall?",), ("Where is the salt water?",))),
    Concept(
        "beaches",
        ("beach",),
        Wordings(
            ("Where could children build castles of sand?", "Where can one sunbathe by the water?"), ("Where would one dig in the sand?",)
        ),
    ),
    Concept(
        "piers",
        ("pier",),
        Wordings(("What reaches out over the water so that boats can tie up?",), ("What lets one walk out over the water to a boat?",)),
        Wordings(("Where {place} could a boat tie up?",), ("Where {place} can one walk out over the water?",)),
    ),
    Concept(
        "tennis courts",
        ("tennis court",),
        Wordings(("Where is a ball hit over a net with a racket?",), ("Where would two players need rackets?",)),
        Wordings(("Where {place} is a ball hit with a racket?",), ("Where {place} would two players need rackets?",)),
    ),
    Concept(
        "football pitches",
        ("football pitch",),
        Wordings(("Where do two teams of eleven play?",), ("Where would a goalkeeper stand between two posts?",)),
        Wordings(("Where {place} do two teams of eleven play?",), ("Where {place} would a goalkeeper stand?",)),
    ),
    Concept("running tracks", ("running track",), Wordings(("Where do athletes race in lanes?",), ("Where could a sprinter train?",))),
    Concept(
        "basketball courts",
        ("basketball court",),
        Wordings(("Where is a ball thrown through a hoop?",), ("Where could one practise a slam dunk?",)),
        Wordings(("Where {place} is a ball thrown through a hoop?",), ("Where {place} could one practise a slam dunk?",)),
    ),
    Concept(
        "swimming pools",
        ("swimming pool",),
        Wordings(("Where does one swim in chlorinated water?",), ("Where could one dive into a tiled basin?",)),
        Wordings(("Where {place} does one swim in chlorinated water?",), ("Where {place} could one dive into a tiled basin?",)),
    ),
    _of_group(lexicon.SPORTS_GROUNDS, Wordings(("Where do people play sports?",), ("Where could a team train outdoors?",))),
    Concept(
        "storage tanks",
        ("storage tank",),
        Wordings(("What is filled with oil or fuel?",), ("Where would a refinery keep its oil?",)),
        Wordings(("What {place} is filled with oil or fuel?",), ("Where {place} would a refinery keep its oil?",)),
    ),
    Concept(
        "buses",
        ("bus",),
        Wordings(("What carries many passengers along the road?",), ("What stops along its route to let passengers on?",)),
    ),
    Concept(
        "farmland",
        ("farmland",),
        Wordings(("Where is food grown?", "Where does a farmer work?"), ("What land is harvested every year?",)),
        unless=("field", "greenhouse"),
    ),
    Concept("woodland", ("woodland",), Wordings(("Where does timber grow?",), ("Where could one walk in the shade of many trees?",))),
    Concept("barren land", ("barren land",), Wordings(("Which open ground bears hardly any plants?",), ("Which soil lies bare?",))),
    Concept("bare land", ("bare land",), Wordings(("Which open ground bears hardly any plants?",), ("Which soil lies open to the wind?",))),
    Concept("rangeland", ("rangeland",), Wordings(("Where could animals graze in the open?",), ("Which open country could feed a herd?",))),
    Concept(
        "low vegetation",
        ("low vegetation",),
        Wordings(("What is green but gives no shade to walk in?",), ("Which plants stay close to the ground?",)),
        unless=("grass",),
    ),
    Concept(
        "paved ground",
        ("paved ground",),
        Wordings(("Which sealed surface could a car be driven over?",), ("Where on the ground does rain run off instead of soaking in?",)),
        unless=("road", "parking lot", "runway", "bridge"),
    ),
    Concept("bridges", ("bridge",), Wordings(("Where does a road or a railway pass over what lies below?",), ("What spans a gap?",))),
    Concept("roundabouts", ("roundabout",), Wordings(("Where does traffic go round in a circle?",), ("Where do drivers turn in a ring?",))),
    Concept("helicopters", ("helicopter",), Wordings(("What takes off straight up?",), ("What is lifted by a rotor?",))),
    Concept(
        "baseball diamonds",
        ("baseball diamond",),
        Wordings(("Where does a batter run from base to base?",), ("Where would a pitcher stand?",)),
    ),
)

# Questions whose answer is the largest of a category.
LARGEST_QUESTIONS = {
    "building": Wordings(("Which building offers the most space?",), ("Under which roof would the most people fit?",)),
    "field": Wordings(("Which field takes the longest to plough?",), ("Which field yields the largest harvest?",)),
    "lake": Wordings(("Which lake has the most room for boats?",), ("Which lake would take the longest to swim around?",)),
    "forest": Wordings(("Which forest shelters the most animals?",), ("In which forest could one get lost most easily?",)),
    "aircraft": Wordings(("Which aircraft carries the most passengers?",), ("Which aircraft needs the widest hangar?",)),
    "ship": Wordings(("Which ship can load the most cargo?",), ("Which ship needs the longest berth?",)),
    "storage tank": Wordings(("Which tank covers the most ground?",), ("Which tank would take the longest to walk around?",)),
}

# (category, state) -> questions that mean all of the category in that state.
STATE_QUESTIONS = {
    ("building", "damaged"): Wordings(
        ("What has to be repaired or torn down?", "Where did the disaster leave ruins?"), ("Where might rescuers search the rubble?",)
    ),
    ("field", "flooded"): Wordings(("Where is the harvest lost to the water?",), ("Which crops have drowned?",)),
    ("ship", "moving"): Wordings(("What leaves a wake behind it?",), ("Which vessels are sailing right now?",)),
    ("ship", "moored"): Wordings(("Which vessels are tied up?",), ("Which vessels lie still?",)),
}

# (category of the whole, noun of the part) -> questions that mean the part.
PART_QUESTIONS = {
    ("aircraft", "wings"): Wordings(("What gives {owner} its lift?",), ("What keeps {owner} up in the air?",)),
    ("aircraft", "engines"): Wordings(("What pushes {owner} forward?",), ("What burns the fuel of {owner}?",)),
    ("aircraft", "fuselage"): Wordings(("Where do the passengers of {owner} sit?",), ("Where is the cargo of {owner}?",)),
    ("aircraft", "tail"): Wordings(("What keeps {owner} steady at the back?",), ("What turns the nose of {owner} from behind?",)),
    ("building", "roof"): Wordings(("What keeps {owner} dry?",), ("What covers {owner} from above?",)),
    ("building", "chimney"): Wordings(("Where does the smoke of {owner} come out?",), ("What lets the fumes out of {owner}?",)),
}
