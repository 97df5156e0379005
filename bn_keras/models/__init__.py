"""Model factories, one a file: `(ModelSpec) -> keras.Model` from images to logits.

A factory is registered with the loss of its tutorial, gets its normalizer handed in and never
names one, so that the arms of a comparison differ in exactly one thing.
"""
