"""Readers of file formats, for the datasets. Each refuses what it cannot read."""
