"""The pages of test images: a list of all of them, and for each one why the network decided as it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.gallery import Card, in_data, page_data
from pipeline.report.shown import ShownPrototype, ShownScore, ranked_lines, shown_scores
from pipeline.report.site import Site
from pipeline.report.test_outputs import TestOutputs
from pipeline.report.test_pictures import TestPictures

RIGHT, WRONG = "right", "wrong"

_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a test image.

    Attributes:
        bag_idx: position among the test images.
        label: the true class.
        predicted: the predicted class.
        confidence: probability of the predicted class, 0..1.
    """

    bag_idx: int
    label: int
    predicted: int
    confidence: float

    @property
    def name(self) -> str:
        """``right`` or ``wrong``."""
        return RIGHT if self.label == self.predicted else WRONG


def image_page(image_key: str) -> str:
    """Say where the page of an image lies in the site."""
    return f"images/{image_key}.html"


def add_image_pages(site: Site, cards: Sequence[Card], *, test: TestOutputs, pictures: Sequence[TestPictures]) -> None:
    """Write ``images.html`` and a page for every test image.

    Args:
        site: gets the pages.
        cards: all prototypes; none of a black box.
        test: what the network says of the test images.
        pictures: of the test images.
    """
    rankings = test.rankings()
    outcomes = in_order(test, rankings)
    for asset in ("gallery.js", "gallery.css"):
        site.add_asset(asset)
    num_wrong = sum(outcome.name == WRONG for outcome in outcomes)
    site.add_page(
        "images.html",
        "images.html.j2",
        num_images=len(outcomes),
        num_wrong=num_wrong,
        true_classes=_classes(test, [outcome.label for outcome in outcomes]),
        predicted_classes=_classes(test, [outcome.predicted for outcome in outcomes]),
        data=page_data([_item(outcome, test, pictures[outcome.bag_idx]) for outcome in outcomes]),
    )
    shown = [card.shown for card in cards]
    of_outcome = {name: [outcome for outcome in outcomes if outcome.name == name] for name in (RIGHT, WRONG)}
    for group in of_outcome.values():
        keys = [pictures[outcome.bag_idx].image_key for outcome in group]
        for position, outcome in enumerate(group):
            _add_page(
                site,
                outcome,
                test,
                pictures[outcome.bag_idx],
                rankings[outcome.bag_idx],
                shown,
                position=position,
                num=len(group),
                previous=keys[position - 1] if position else None,
                following=keys[position + 1] if position + 1 < len(keys) else None,
            )


def in_order(test: TestOutputs, rankings: Sequence[Sequence[tuple[int, float]]]) -> list[Outcome]:
    """List what became of the test images: mistakes first, and within each kind the most confident ones."""
    outcomes = [
        Outcome(bag_idx, label, *ranking[0])
        for bag_idx, (label, ranking) in enumerate(zip(test.reader.labels, rankings, strict=True))
    ]
    return sorted(outcomes, key=lambda outcome: (outcome.name == RIGHT, -outcome.confidence, outcome.bag_idx))


def _classes(test: TestOutputs, labels: Sequence[int]) -> list[tuple[int, str]]:
    return [(label, test.class_names[label]) for label in sorted(set(labels))]


def _item(outcome: Outcome, test: TestOutputs, pictures: TestPictures) -> dict[str, Any]:
    is_wrong = outcome.name == WRONG
    return {
        "id": pictures.image_key,
        "outcome": outcome.name,
        "label": outcome.label,
        "predicted": outcome.predicted,
        "predicted_class": test.class_names[outcome.predicted],
        "true_class": test.class_names[outcome.label] if is_wrong else None,
        "confidence": round(outcome.confidence, _DECIMALS),
        "percent": round(100 * outcome.confidence, 1),
        "picture": in_data(pictures.small),
    }


def _add_page(
    site: Site,
    outcome: Outcome,
    test: TestOutputs,
    pictures: TestPictures,
    ranking: Sequence[tuple[int, float]],
    prototypes: Sequence[ShownPrototype],
    **neighbours: Any,
) -> None:
    scores: tuple[ShownScore, ...] = ()
    if pictures.explanation is not None:
        scores = shown_scores(
            pictures.explanation,
            class_names=test.class_names,
            elements=pictures.elements,
            prototypes=prototypes,
            is_true_known=True,
        )
    site.add_page(
        image_page(pictures.image_key),
        "image.html.j2",
        image_key=pictures.image_key,
        outcome=outcome.name,
        predicted_class=test.class_names[outcome.predicted],
        true_class=test.class_names[outcome.label],
        confidence=outcome.confidence,
        photograph=pictures.photograph,
        elements=sorted(pictures.elements.values(), key=lambda element: element.number),
        ranking=ranked_lines(ranking, test.class_names, outcome.predicted, outcome.label),
        scores=scores,
        head=test.network.head,
        **neighbours,
    )
