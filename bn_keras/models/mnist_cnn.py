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
    return _net(spec, "mnist_cnn")


@MODELS.register("mnist_cnn_no_dropout", loss="sigmoid")
def mnist_cnn_no_dropout(spec):
    """`mnist_cnn` without its dropout, from the same weights."""
    return _net(spec, "mnist_cnn_no_dropout", dropout=None)


@MODELS.register("mnist_cnn_glorot", loss="sigmoid")
def mnist_cnn_glorot(spec):
    """`mnist_cnn` whose dense layers start from Glorot's weights, as the blog has it without BN."""
    return _net(spec, "mnist_cnn_glorot", dense_initializer=_glorot)


def _truncated_normal(seed):
    return keras.initializers.TruncatedNormal(stddev=0.1, seed=seed)


def _glorot(seed):
    return keras.initializers.GlorotUniform(seed=seed)


def _net(spec, name, dropout=0.5, dense_initializer=_truncated_normal):
    bias = keras.initializers.Constant(0.1)
    blocks = Blocks(spec, _truncated_normal, bias)
    inputs, x = blocks.inputs()
    x = blocks.conv(x, 32, 5, "conv1", normalize=False, pool=2)
    x = blocks.conv(x, 64, 5, "conv2", pool=2)
    x = blocks.flatten(x)
    blocks = Blocks(spec, dense_initializer, bias)
    x = blocks.dense(x, 1024, "dense1")
    if dropout is not None:
        x = blocks.dropout(x, dropout, "dropout")
    x = blocks.dense(x, spec.classes, "dense2", activate=False)
    return blocks.model(inputs, x, name)
