"""`conv_bn_relu`: two convolutions and a softmax, with the normalizer in front of every relu."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS


@MODELS.register("conv_bn_relu", loss="softmax")
def conv_bn_relu(spec: ModelSpec) -> keras.Model:
    """3x3x32, pool, 3x3x64, pool, dense classes, without padding; the logits are not normalized."""
    blocks = Blocks(spec)
    inputs, x = blocks.inputs(least=10)
    x = blocks.conv(x, 32, 3, "conv1", padding="valid", pool=2)
    x = blocks.conv(x, 64, 3, "conv2", padding="valid", pool=2)
    x = blocks.dense(blocks.flatten(x), spec.classes, "dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "conv_bn_relu")
