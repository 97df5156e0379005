"""Normalizers, one a file.

A normalizer is a function `(name, *, momentum, epsilon, dtype) -> keras layer`,
registered under the name that flags and studies use. One with an argument `activation` gets the
name of the activation that follows, or None where none does, and applies it in that layer.
"""
