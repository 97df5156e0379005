"""Normalizers, one a file.

A normalizer is a function `(channels, name, *, momentum, epsilon, dtype) -> keras layer`,
registered under the name that flags and studies use.
"""
