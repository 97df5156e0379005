"""Diagnoses, one a file: they measure a model and leave it as it was."""
