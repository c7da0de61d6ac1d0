"""The DVC stages: one thin command-line entry for each."""
