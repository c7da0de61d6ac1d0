"""Explanations as pages show them: which prototype a view looks like, and a sum that is right to the digits shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.reasons import ClassScore, Explanation, Reason
from pipeline.report.site import Picture
from pipeline.report.thumbnails import NUMBER_RGB

DIGITS = 3
"""After the point, of everything in a sum."""

_UNIT = 10**DIGITS
_MINUS = "−"

Element = tuple[int, int]
"""What is compared with prototypes, within an image: position of the view in its bag; and place_idx, or -1."""


@dataclass(frozen=True, slots=True)
class ShownElement:
    """A view of the image, or a place of it.

    Attributes:
        number: on the photograph, from 1.
        picture: what the network compares.
        name: in words, such as ``mask 3`` or ``place 12``.
        x_frac: where the number stands on the photograph, 0..1 of its width.
        y_frac: likewise, of its height.
    """

    number: int
    picture: Picture
    name: str
    x_frac: float
    y_frac: float

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour of its outline on the photograph."""
        return NUMBER_RGB[(self.number - 1) % len(NUMBER_RGB)]


@dataclass(frozen=True, slots=True)
class ShownPrototype:
    """A prototype.

    Attributes:
        prototype_idx: the prototype.
        class_name: the class that owns it, or for which it counts most.
        view: the training view, or the place, that it is shown by; None where there is no picture.
        photograph: the training image that this is from; None where there is no picture.
        image_key: of the training image; None where no training image shows it.
    """

    prototype_idx: int
    class_name: str
    view: Picture | None
    photograph: Picture | None
    image_key: str | None


@dataclass(frozen=True, slots=True)
class ShownReason:
    """A line: this view looks like that prototype.

    Attributes:
        element: of the image.
        prototype: what it looks like.
        similarity: rendered.
        weight: rendered.
        contribution: rendered.
        bar: length of its bar, 0..1.
        is_negative: whether it speaks against the class.
    """

    element: ShownElement
    prototype: ShownPrototype
    similarity: str
    weight: str
    contribution: str
    bar: float
    is_negative: bool


@dataclass(frozen=True, slots=True)
class ShownScore:
    """A class and what speaks for it.

    Attributes:
        class_name: the class.
        role: ``predicted``, ``true``, or ``predicted and true``; ``predicted`` where the true class is not known.
        probability: 0..1.
        lines: the prototypes that contribute most.
        num_others: prototypes that have no line.
        rest: what these contribute together, rendered.
        rest_bar: length of its bar, 0..1.
        rest_is_negative: whether they speak against the class.
        total: rendered; the contributions and the rest as they are rendered add up to it.
    """

    class_name: str
    role: str
    probability: float
    lines: tuple[ShownReason, ...]
    num_others: int
    rest: str
    rest_bar: float
    rest_is_negative: bool
    total: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A class in a ranking.

    Attributes:
        class_name: the class.
        probability: 0..1.
        role: ``predicted``, ``true``, ``predicted and true``, or empty.
    """

    class_name: str
    probability: float
    role: str


def element_of(reason: Reason) -> Element:
    """Say which view or place of the image a reason is about."""
    return reason.view_idx, -1 if reason.place_idx is None else reason.place_idx


def name_of_element(mask_idx: int, place_idx: int | None) -> str:
    """Name a view by its mask, or a place of it, in words."""
    if place_idx is not None:
        return f"place {place_idx}"
    return "whole image" if mask_idx == WHOLE_IMAGE else f"mask {mask_idx}"


def numbered_elements(explanation: Explanation) -> dict[Element, int]:
    """Number the views or places that the reasons are about, from 1, in the order in which they are shown."""
    elements = (element_of(reason) for score in explanation.class_scores for reason in score.reasons)
    return {element: number for number, element in enumerate(dict.fromkeys(elements), start=1)}


def shown_scores(
    explanation: Explanation,
    *,
    class_names: Sequence[str],
    elements: Mapping[Element, ShownElement],
    prototypes: Sequence[ShownPrototype],
    is_true_known: bool,
) -> tuple[ShownScore, ...]:
    """Render the reasons for the predicted class and, where it is known and another one, for the true class.

    Args:
        explanation: of the image.
        class_names: in label order.
        elements: all of :func:`numbered_elements`.
        prototypes: all of the network, by prototype_idx.
        is_true_known: whether the prediction was compared with a true class.
    """
    both = is_true_known and explanation.true is None
    roles = ("predicted and true" if both else "predicted", "true")
    return tuple(
        _shown_score(score, role, class_names[score.label], elements, prototypes)
        for score, role in zip(explanation.class_scores, roles, strict=False)
    )


def ranked_lines(
    ranking: Sequence[tuple[int, float]], class_names: Sequence[str], predicted: int, label: int | None
) -> list[Ranked]:
    """Put names to a ranking of classes.

    Args:
        ranking: classes with their probabilities, 0..1.
        class_names: in label order.
        predicted: the predicted class.
        label: the true class; None where it is not known.
    """
    roles: Mapping[int | None, str] = (
        {predicted: "predicted and true"} if label == predicted else {predicted: "predicted", label: "true"}
    )
    return [Ranked(class_names[idx], probability, roles.get(idx, "")) for idx, probability in ranking]


def _shown_score(
    score: ClassScore,
    role: str,
    class_name: str,
    elements: Mapping[Element, ShownElement],
    prototypes: Sequence[ShownPrototype],
) -> ShownScore:
    units = [round(_UNIT * reason.contribution) for reason in score.reasons]
    num_others = len(prototypes) - len(units)
    total = round(_UNIT * score.total) if num_others else sum(units)
    rest = total - sum(units)  # of what is shown, so that the sum is right; at most a few units from the exact rest
    longest = max(map(abs, [*units, rest])) or 1
    return ShownScore(
        class_name=class_name,
        role=role,
        probability=score.probability,
        lines=tuple(
            ShownReason(
                element=elements[element_of(reason)],
                prototype=prototypes[reason.prototype_idx],
                similarity=rendered(reason.similarity),
                weight=rendered(reason.weight),
                contribution=_in_digits(unit),
                bar=abs(unit) / longest,
                is_negative=unit < 0,
            )
            for reason, unit in zip(score.reasons, units, strict=True)
        ),
        num_others=num_others,
        rest=_in_digits(rest),
        rest_bar=abs(rest) / longest,
        rest_is_negative=rest < 0,
        total=_in_digits(total),
    )


def rendered(value: float) -> str:
    """Round VALUE to the digits of a sum."""
    return _in_digits(round(_UNIT * value))


def _in_digits(units: int) -> str:
    whole, part = divmod(abs(units), _UNIT)
    return f"{_MINUS if units < 0 else ''}{whole}.{part:0{DIGITS}d}"
