"""Dense nets of the tutorials: thin, deep, badly initialized; all of them can be stacked."""

import keras

from bn_keras.models.blocks import Blocks
from bn_keras.registry import MODELS


def _normal(stddev):
    return lambda seed: keras.initializers.RandomNormal(stddev=stddev, seed=seed)


def _hidden(blocks, x, layers, units):
    for number in range(1, layers + 1):
        x = blocks.dense(x, units, f"dense{number}")
    return x


@MODELS.register("ioffe_mlp", loss="softmax", stacks=True)
def ioffe_mlp(spec):
    """3 x 100, weights N(0, .1²), logits not normalized: Ioffe & Szegedy (2015), section 4.1."""
    blocks = Blocks(spec, _normal(0.1))
    inputs, x = blocks.inputs()
    x = _hidden(blocks, blocks.flatten(x), 3, 100)
    x = blocks.dense(x, spec.classes, "logits_dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "ioffe_mlp")


def _deep(spec, name, normalize_logits):
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    inputs, x = blocks.inputs()
    x = _hidden(blocks, blocks.flatten(x), 5, 100)
    x = blocks.dense(x, spec.classes, "logits_dense", normalize=normalize_logits, activate=False)
    return blocks.model(inputs, x, name)


@MODELS.register("deep_mlp", loss="softmax", stacks=True)
def deep_mlp(spec):
    """5 x 100 with He's initialization; the logits are not normalized."""
    return _deep(spec, "deep_mlp", normalize_logits=False)


@MODELS.register("deep_mlp_logits", loss="softmax", stacks=True)
def deep_mlp_logits(spec):
    """`deep_mlp` whose logits are normalized as well."""
    return _deep(spec, "deep_mlp_logits", normalize_logits=True)


# tf.nn.l2_loss, which the question takes .001 of, is half the sum of squares.
NOT_MNIST_L2 = 0.0005


def _standard_normal(seed):
    return keras.initializers.TruncatedNormal(stddev=1.0, seed=seed)


def _not_mnist(spec, name, l2):
    blocks = Blocks(spec, _standard_normal, l2=l2)
    inputs, x = blocks.inputs()
    x = blocks.normalize(blocks.flatten(x), "input")
    x = blocks.dense(x, 1024, "dense1", normalize=False)
    x = blocks.normalize(x, "hidden")
    x = blocks.dense(x, spec.classes, "dense2", normalize=False, activate=False)
    return blocks.model(inputs, x, name)


@MODELS.register("not_mnist_mlp", loss="softmax", stacks=True)
def not_mnist_mlp(spec):
    """normalizer, dense 1024, relu, normalizer, dense classes; weights N(0, 1), L2 of .001."""
    return _not_mnist(spec, "not_mnist_mlp", NOT_MNIST_L2)


@MODELS.register("not_mnist_mlp_no_penalty", loss="softmax", stacks=True)
def not_mnist_mlp_no_penalty(spec):
    """`not_mnist_mlp` without its L2 penalty: is it what the moving averages cannot follow?"""
    return _not_mnist(spec, "not_mnist_mlp_no_penalty", None)


@MODELS.register("not_mnist_mlp_dense_bn", loss="softmax", stacks=True)
def not_mnist_mlp_dense_bn(spec):
    """dense 1024, normalizer, relu, dense classes: where the question's own layer stands."""
    blocks = Blocks(spec, _standard_normal, l2=NOT_MNIST_L2)
    inputs, x = blocks.inputs()
    x = blocks.dense(blocks.flatten(x), 1024, "dense1")
    x = blocks.dense(x, spec.classes, "dense2", normalize=False, activate=False)
    return blocks.model(inputs, x, "not_mnist_mlp_dense_bn")


def _thin(spec, name, kernel_initializer, bias):
    blocks = Blocks(spec, kernel_initializer, keras.initializers.Constant(bias))
    inputs, x = blocks.inputs()
    x = blocks.normalize(blocks.flatten(x), "input")
    x = _hidden(blocks, x, 8, 10)
    x = blocks.dense(x, spec.classes, "output", normalize=False, activate=False)
    return blocks.model(inputs, x, name)


@MODELS.register("bad_init_mlp", loss="squared", stacks=True)
def bad_init_mlp(spec):
    """8 x 10 with weights N(0, .1²) and biases of -.2, the input normalized as well."""
    return _thin(spec, "bad_init_mlp", _normal(0.1), -0.2)


# The next two are the same net from other weights: runs of all three can stand in one stack.
@MODELS.register(
    "bad_init_mlp_zero_bias", loss="squared", stacks=True, same_graph="bad_init_mlp"
)
def bad_init_mlp_zero_bias(spec):
    """`bad_init_mlp` with biases of 0: is it the bias that kills the net?"""
    return _thin(spec, "bad_init_mlp_zero_bias", _normal(0.1), 0.0)


@MODELS.register("bad_init_mlp_he", loss="squared", stacks=True, same_graph="bad_init_mlp")
def bad_init_mlp_he(spec):
    """`bad_init_mlp` with He's initialization and biases of 0: a good one."""
    return _thin(
        spec, "bad_init_mlp_he", lambda seed: keras.initializers.HeNormal(seed=seed), 0.0
    )
