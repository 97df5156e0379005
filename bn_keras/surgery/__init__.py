"""Surgeries, one a file: they return a new model and leave the given one as it was."""
