"""`cnn1d`: a convolutional net for series."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS


@MODELS.register("cnn1d", loss="softmax")
def cnn1d(spec: ModelSpec) -> keras.Model:
    """8x128, 5x256, 3x128 over time, mean, dense classes: 292,618 weights on MNIST.

    The fully convolutional net of Wang, Yan & Oates (2017), "Time Series Classification from
    Scratch with Deep Neural Networks". It takes (length, channels); of an image the rows are the
    series, and plain features are a series of one channel. Expected on MNIST's rows, 100 steps at a
    learning rate of .1: a validation accuracy of .87 with `batch`, .55 with `none` (one seed).
    """
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    inputs, x = blocks.inputs()
    x = blocks.series(x)
    x = blocks.conv(x, 128, 8, "conv1")
    x = blocks.conv(x, 256, 5, "conv2")
    x = blocks.conv(x, 128, 3, "conv3")
    x = blocks.dense(blocks.average(x), spec.classes, "dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "cnn1d")
