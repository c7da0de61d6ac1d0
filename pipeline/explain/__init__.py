"""Explaining single images: which views look like which prototypes, and what that adds to the score of a class.

``explain`` and ``Explainer`` take pictures that were never in the data set; ``explain_outputs`` is what they share with
the report, which explains the test images.
"""

from pipeline.explain.pictures import ExplainedPicture, Explainer, explain
from pipeline.reasons import ClassScore, Explanation, Reason, explain_outputs

__all__ = [
    "ClassScore",
    "ExplainedPicture",
    "Explainer",
    "Explanation",
    "Reason",
    "explain",
    "explain_outputs",
]
