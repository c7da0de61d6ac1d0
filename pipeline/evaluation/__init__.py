"""The run of the metrics over the test images: what is looked at, and what is written."""
