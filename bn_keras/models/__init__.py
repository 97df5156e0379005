"""Model factories, one a file: `(ModelSpec) -> keras.Model` from images to logits.

A factory is registered with the loss of its tutorial, gets its normalizer handed in and never
names one, so that the arms of a comparison differ in exactly one thing.

Further properties: `stacks` (several nets can stand side by side in it), `xla` (it is faster with
it), `branches` (it has residual ones), `images_out` (labels and outputs are images of numbers).
"""
