"""`plain_cnn`: a stack of 3x3 convolutions, as deep as one likes."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS

STAGES = (32, 64, 128)


@MODELS.register("plain_cnn", loss="softmax")
def plain_cnn(spec: ModelSpec) -> keras.Model:
    """6 convolutions 3x3 in stages of 32, 64, 128 filters, mean, dense classes: 287,722 weights.

    Simonyan & Zisserman (2015), with the global mean of later nets in place of their dense layers.
    `depth` counts the convolutions; the stages share them as evenly as they can. Between two stages
    images are pooled to half their size. No shortcuts: depth alone makes this net hard to train
    without a normalizer. Weights start as in He et al. (2015). Expected on MNIST, 100 steps at a
    learning rate of .1: a validation accuracy of .93 with `batch`, .26 with `none` (one seed).
    """
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    depth = blocks.depth(6, least=len(STAGES))
    inputs, x = blocks.inputs(least=4)
    stages = [number * len(STAGES) // depth for number in range(depth)]
    for number, stage in enumerate(stages, start=1):
        ends = stages[number:number + 1] == [stage + 1]
        x = blocks.conv(x, STAGES[stage], 3, f"conv{number}", pool=2 if ends else None)
    x = blocks.dense(blocks.average(x), spec.classes, "dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "plain_cnn")
