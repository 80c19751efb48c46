"""The life of a run: loop, checkpoints, metrics, result, what it begins with, and what is made of its weights."""
