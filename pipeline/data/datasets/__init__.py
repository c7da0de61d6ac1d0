"""The data sets, one module each; ``DATASETS`` finds them by the name used in params.yaml."""
