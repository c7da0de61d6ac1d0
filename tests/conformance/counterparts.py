"""Functions of the reference that this project has no counterpart of, and why.

A family that is yet to come says so; whoever writes it replaces its lines here by an adapter.
"""

from tests.conformance.answers import without_counterpart

# not planned
without_counterpart(
    "no copies of images to balance classes: the loss is weighted",
    "datasets/interfaces/dataset_interface.py",
    "balance_classes",
)
