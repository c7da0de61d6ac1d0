"""The data sets, one module each; ``registry.open_dataset`` finds them by the name used in params.yaml."""
