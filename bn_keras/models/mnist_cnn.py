"""`mnist_cnn`: the two-layer MNIST CNN with dropout of the TensorFlow 1 tutorials."""

import keras

from bn_keras.models.blocks import Blocks
from bn_keras.registry import MODELS


@MODELS.register("mnist_cnn", loss="sigmoid")
def mnist_cnn(spec):
    """5x5x32, pool, 5x5x64, pool, dense 1024, dropout .5, dense classes: 3.3 million weights.

    Normalizers stand behind the second convolution and both dense layers, the logits included.
    Weights start from a truncated normal of .1 and biases at .1 in every arm.
    """
    return _net(spec, "mnist_cnn", dropout=0.5)


@MODELS.register("mnist_cnn_no_dropout", loss="sigmoid")
def mnist_cnn_no_dropout(spec):
    """`mnist_cnn` without its dropout, from the same weights."""
    return _net(spec, "mnist_cnn_no_dropout", dropout=None)


def _net(spec, name, dropout):
    def truncated_normal(seed):
        return keras.initializers.TruncatedNormal(stddev=0.1, seed=seed)

    blocks = Blocks(spec, truncated_normal, keras.initializers.Constant(0.1))
    inputs, x = blocks.inputs()
    x = blocks.conv(x, 32, 5, "conv1", normalize=False, pool=2)
    x = blocks.conv(x, 64, 5, "conv2", pool=2)
    x = blocks.dense(blocks.flatten(x), 1024, "dense1")
    if dropout is not None:
        x = blocks.dropout(x, dropout, "dropout")
    x = blocks.dense(x, spec.classes, "dense2", activate=False)
    return blocks.model(inputs, x, name)
