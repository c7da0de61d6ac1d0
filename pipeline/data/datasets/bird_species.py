"""The species of the synthetic birds: one body plan, and for each species one variant of every part.

Neighbours in the table differ in one or two parts, so what tells them apart is known. A difference of eyes or legs
alone is never all that separates two species: they are too small to be seen in every pose.
"""

from dataclasses import dataclass
from typing import Literal

PART_NAMES = ("beak", "crown", "eye", "wing", "breast", "tail", "leg")
"""In ``part_idx`` order. The body without these parts belongs to the object, but is no part."""

Beak = Literal["cone", "long", "hooked"]
Crown = Literal["plain", "cap", "crest"]
Eye = Literal["plain", "ring", "mask"]
Wing = Literal["plain", "bars", "blue"]
Breast = Literal["cream", "red", "yellow", "spots", "band"]
Tail = Literal["short", "forked", "long"]
Leg = Literal["dark", "orange"]


@dataclass(frozen=True, slots=True)
class Species:
    """A class of birds: its name, and one variant of each part, named as in ``PART_NAMES``."""

    name: str
    beak: Beak = "cone"
    crown: Crown = "plain"
    eye: Eye = "plain"
    wing: Wing = "plain"
    breast: Breast = "cream"
    tail: Tail = "short"
    leg: Leg = "dark"


SPECIES = (
    Species("Common Fieldling"),
    Species("Red-breasted Fieldling", breast="red"),
    Species("Black-capped Fieldling", crown="cap"),
    Species("Bar-winged Fieldling", wing="bars"),
    Species("Common Forktail", tail="forked"),
    Species("Long-billed Fieldling", beak="long"),
    Species("Red-breasted Longtail", breast="red", tail="long"),
    Species("Crested Fieldling", crown="crest"),
    Species("Yellow-breasted Forktail", breast="yellow", tail="forked"),
    Species("Bar-winged Hookbill", beak="hooked", wing="bars"),
    Species("Orange-legged Bluewing", wing="blue", leg="orange"),
    Species("Black-capped Longtail", crown="cap", tail="long"),
    Species("Spot-breasted Longbill", beak="long", breast="spots"),
    Species("Masked Barwing", eye="mask", wing="bars", tail="forked"),
    Species("Crested Bluewing", crown="crest", wing="blue"),
    Species("Spectacled Yellowbreast", eye="ring", breast="yellow"),
    Species("Orange-legged Hookbill", beak="hooked", leg="orange"),
    Species("Banded Longtail", breast="band", tail="long"),
    Species("Crested Redbreast", crown="crest", breast="red"),
    Species("Bar-winged Longbill", beak="long", wing="bars"),
)
"""In label order; a data set of fewer classes takes the first ones."""


def differing_parts(one: Species, other: Species) -> tuple[str, ...]:
    """Name the parts in which two species differ, in the order of ``PART_NAMES``; everything else looks the same."""
    return tuple(part for part in PART_NAMES if getattr(one, part) != getattr(other, part))
