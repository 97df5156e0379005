"""Normalizers, one a file.

A normalizer is a function `(name, *, momentum, epsilon, dtype) -> keras layer`,
registered under the name that flags and studies use. One with an argument `activation` gets the
name of the activation that follows, or None where none does, and applies it in that layer.

Properties: `channelwise` (it takes every channel by itself, so that nets can stand side by side),
`standardizes_kernels` and `scales_branches` (more than a layer at one place: `models.blocks` builds
the rest into the net, and nobody else can).
"""
