"""Dry runs: what a training step needs and costs on hardware that is not at hand."""
