"""Saliency: how much each pixel of an image matters to one prototype."""
