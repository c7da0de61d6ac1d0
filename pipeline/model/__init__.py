"""The networks and their losses: tensors in, tensors out."""
