"""Dense nets of the tutorials: thin, deep, badly initialized; all of them can be stacked."""

from typing import Any, Callable

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS


def _normal(stddev: float) -> Callable[[int], keras.Initializer]:
    return lambda seed: keras.initializers.RandomNormal(stddev=stddev, seed=seed)


def _hidden(blocks: Blocks, x: Any, layers: int, units: int) -> Any:
    for number in range(1, layers + 1):
        x = blocks.dense(x, units, f"dense{number}")
    return x


@MODELS.register("ioffe_mlp", loss="softmax", stacks=True, xla=True)
def ioffe_mlp(spec: ModelSpec) -> keras.Model:
    """3 x 100, weights N(0, .1²), logits not normalized: Ioffe & Szegedy (2015), section 4.1."""
    blocks = Blocks(spec, _normal(0.1))
    inputs, x = blocks.inputs()
    x = _hidden(blocks, blocks.flatten(x), 3, 100)
    x = blocks.dense(x, spec.classes, "logits_dense", normalize=False, activate=False)
    return blocks.model(inputs, x, "ioffe_mlp")


def _deep(spec: ModelSpec, name: str, normalize_logits: bool) -> keras.Model:
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    inputs, x = blocks.inputs()
    x = _hidden(blocks, blocks.flatten(x), blocks.depth(5), 100)
    x = blocks.dense(x, spec.classes, "logits_dense", normalize=normalize_logits, activate=False)
    return blocks.model(inputs, x, name)


@MODELS.register("deep_mlp", loss="softmax", stacks=True, xla=True)
def deep_mlp(spec: ModelSpec) -> keras.Model:
    """5 x 100 with He's initialization (`depth` x 100); the logits are not normalized."""
    return _deep(spec, "deep_mlp", normalize_logits=False)


@MODELS.register("deep_mlp_logits", loss="softmax", stacks=True, xla=True)
def deep_mlp_logits(spec: ModelSpec) -> keras.Model:
    """`deep_mlp` whose logits are normalized as well."""
    return _deep(spec, "deep_mlp_logits", normalize_logits=True)


# tf.nn.l2_loss, which the question takes .001 of, is half the sum of squares.
NOT_MNIST_L2 = 0.0005


def _standard_normal(seed: int) -> keras.Initializer:
    return keras.initializers.TruncatedNormal(stddev=1.0, seed=seed)


@MODELS.register("not_mnist_mlp", loss="softmax", stacks=True, xla=True)
def not_mnist_mlp(spec: ModelSpec) -> keras.Model:
    """normalizer, dense 1024, relu, normalizer, dense classes; weights N(0, 1), L2 of .001."""
    blocks = Blocks(spec, _standard_normal, l2=NOT_MNIST_L2)
    inputs, x = blocks.inputs()
    x = blocks.normalize(blocks.flatten(x), "input")
    x = blocks.dense(x, 1024, "dense1", normalize=False)
    x = blocks.normalize(x, "hidden")
    x = blocks.dense(x, spec.classes, "dense2", normalize=False, activate=False)
    return blocks.model(inputs, x, "not_mnist_mlp")


@MODELS.register("not_mnist_mlp_dense_bn", loss="softmax", stacks=True, xla=True)
def not_mnist_mlp_dense_bn(spec: ModelSpec) -> keras.Model:
    """dense 1024, normalizer, relu, dense classes: where the question's own layer stands."""
    blocks = Blocks(spec, _standard_normal, l2=NOT_MNIST_L2)
    inputs, x = blocks.inputs()
    x = blocks.dense(blocks.flatten(x), 1024, "dense1")
    x = blocks.dense(x, spec.classes, "dense2", normalize=False, activate=False)
    return blocks.model(inputs, x, "not_mnist_mlp_dense_bn")


@MODELS.register("bad_init_mlp", loss="squared", stacks=True, xla=True)
def bad_init_mlp(spec: ModelSpec) -> keras.Model:
    """8 x 10 with weights N(0, .1²) and biases of -.2, the input normalized as well."""
    blocks = Blocks(spec, _normal(0.1), bias=-0.2)
    inputs, x = blocks.inputs()
    x = blocks.normalize(blocks.flatten(x), "input")
    x = _hidden(blocks, x, 8, 10)
    x = blocks.dense(x, spec.classes, "output", normalize=False, activate=False)
    return blocks.model(inputs, x, "bad_init_mlp")
