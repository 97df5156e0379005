"""`mnist_cnn`: the two-layer MNIST CNN with dropout of the TensorFlow 1 tutorials."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS


@MODELS.register("mnist_cnn", loss="sigmoid")
def mnist_cnn(spec: ModelSpec) -> keras.Model:
    """5x5x32, pool, 5x5x64, pool, dense 1024, dropout .5, dense classes: 3.3 million weights.

    Normalizers stand behind the second convolution and both dense layers, the logits included.
    Weights start from a truncated normal of .1 and biases at .1 in every arm.
    """
    blocks = Blocks(spec, _truncated_normal, bias=0.1)
    inputs, x = blocks.inputs(least=4)
    x = blocks.conv(x, 32, 5, "conv1", normalize=False, pool=2)
    x = blocks.conv(x, 64, 5, "conv2", pool=2)
    x = blocks.dense(blocks.flatten(x), 1024, "dense1")
    x = blocks.dropout(x, 0.5, "dropout")
    x = blocks.dense(x, spec.classes, "dense2", activate=False)
    return blocks.model(inputs, x, "mnist_cnn")


def _truncated_normal(seed: int) -> keras.Initializer:
    return keras.initializers.TruncatedNormal(stddev=0.1, seed=seed)
