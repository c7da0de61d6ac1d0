"""Explaining single images: which views look like which prototypes, and what that adds to the score of a class."""

from pipeline.explain.reasons import ClassScore, Explanation, Reason, explain_outputs

__all__ = ["ClassScore", "Explanation", "Reason", "explain_outputs"]
