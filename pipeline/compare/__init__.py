"""What changed between two revisions: params, metrics, classes, test images, prototypes."""
