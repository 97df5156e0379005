"""`resnet`: the residual net for small images."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS

STAGES = (16, 32, 64)


@MODELS.register("resnet", loss="softmax", branches=True)
def resnet(spec: ModelSpec) -> keras.Model:
    """ResNet-20: 3x3x16, three stages of 16, 32, 64 filters, mean, dense: 268,746 weights.

    He, Zhang, Ren & Sun (2016), section 4.2. `depth` counts convolutions and the dense layer and is
    6n + 2 (8, 14, 20, 32, 56, 110) for stages of n blocks of two convolutions. Where a stage
    begins, the shortcut takes every second pixel and appends channels of zeros: option A, without
    weights, so that no normalizer stands in a shortcut. Weights start as in He et al. (2015).
    Expected on MNIST, 100 steps at a learning rate of .1: a validation accuracy of .87 with
    `batch`, divergence with `none`. `skipinit` needs longer: with depth 8 and momentum, .05, 500
    steps, it has .95 and `none` .94 (one seed each).
    """
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    depth = blocks.depth(20, least=8, step=6)
    inputs, x = blocks.inputs()
    x = blocks.conv(x, STAGES[0], 3, "conv1")
    for stage, filters in enumerate(STAGES, start=1):
        for number in range(1, (depth - 2) // 6 + 1):
            name = f"stage{stage}_block{number}"
            strides = 2 if stage > 1 and number == 1 else 1
            branch = blocks.conv(x, filters, 3, f"{name}_conv1", strides=strides)
            branch = blocks.conv(branch, filters, 3, f"{name}_conv2", activate=False)
            x = blocks.residual(x, branch, name)
    x = blocks.dense(blocks.average(x), spec.classes, "dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "resnet")
