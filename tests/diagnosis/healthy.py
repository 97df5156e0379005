"""Models in which nothing is wrong, on which every finding must be silent.

Their weights are random, their gammas and betas too; the statistics are exact.
"""

import functools
from typing import Any, Callable, Optional

import faults
import keras
import numpy as np

from bn_keras.models.blocks import ModelSpec
from bn_keras.registry import MODELS, NORMALIZERS
from bn_keras.surgery import statistics

CLASSES = 4

# Findings that are true of a published net as its authors built it.
NOTES = {
    "mnist_cnn": {"dropout_in_front"},  # between its two dense layers, as in the tutorial
    "ResNet50": {"redundant_bias"},  # every convolution has a bias, as in Caffe's file
}


def registered(name: str, normalizer: str = "batch") -> tuple[keras.Model, Any]:
    """One of this package's models, on small images of noise."""
    shape = (16, 16, 1)
    factory = functools.partial(
        NORMALIZERS.get(normalizer), momentum=0.99, epsilon=1e-3, dtype="float32"
    )
    model = MODELS.get(name)(ModelSpec(shape, CLASSES, factory))
    x = np.random.default_rng(0).normal(size=(96, *shape)).astype("float32")
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    y: Any = np.arange(len(x)) % CLASSES
    if len(model.output_shape) > 2:
        loss, y = "mse", np.zeros((len(x), *model.output_shape[1:]), "float32")
    return finished(model, x, loss), (x, y)


def application(name: str, size: int, **options: Any) -> tuple[keras.Model, Any]:
    """A net of keras.applications, on small images of noise."""
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=CLASSES, **options
    )
    x = np.random.default_rng(0).uniform(0, 255, (32, size, size, 3)).astype("float32")
    return finished(model, x, "sparse_categorical_crossentropy"), (x, np.arange(len(x)) % CLASSES)


def finished(model: keras.Model, x: Any, loss: Any) -> keras.Model:
    """The model with random gammas and betas, variances near 1 and exact statistics, compiled."""
    rng = np.random.default_rng(1)
    for layer in statistics.batch_normalizers(model):
        if layer.gamma is not None:
            layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
        if layer.beta is not None:
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
    take_statistics(model, x)
    scale_kernels(model)
    take_statistics(model, x)
    model.compile("sgd", loss)
    return model


def take_statistics(model: keras.Model, x: Any) -> None:
    """The exact ones: those of the only batch, nothing dropped, and of what was before nothing."""
    settings = [
        (layer, name, getattr(layer, name)) for layer in model._flatten_layers()
        for name in ("momentum", "rate") if hasattr(layer, name)
    ]
    for layer, name, _ in settings:
        setattr(layer, name, 0.0)
    model(x, training=True)
    for layer, name, value in settings:
        setattr(layer, name, value)


def scale_kernels(model: keras.Model) -> None:
    """Scales the kernels in front of normalizers: training leaves no variance near epsilon."""
    for layer in statistics.batch_normalizers(model):
        front = producer(layer)
        if not hasattr(front, "kernel"):
            continue
        scale = float(np.mean(layer.moving_variance)) ** 0.5
        for variable, divisor in (
            (front.kernel, scale), (getattr(front, "bias", None), scale),
            (layer.moving_mean, scale), (layer.moving_variance, scale**2),
        ):
            if variable is not None:
                variable.assign(variable / divisor)


def producer(layer: keras.Layer) -> Optional[keras.Layer]:
    """The layer in front of a layer that is called once."""
    parents = layer._inbound_nodes[-1].parent_nodes
    return parents[0].operation if len(parents) == 1 else None


def small(kind: str, normalizer: Callable[[], keras.Layer]) -> tuple[keras.Model, Any]:
    """A trained net of one of the kinds of the planted faults."""
    data = faults.points(512)
    parts = [
        faults.dense(), normalizer(), keras.layers.ReLU(), faults.dense(), normalizer(),
        keras.layers.ReLU(), keras.layers.Dropout(0.3), faults.head(),
    ]
    return faults.fitted(faults.built(kind, parts, data[0]), data), data


def separable() -> tuple[keras.Model, Any]:
    """A trained net with a separable convolution, as Xception is made of."""
    data = faults.images()
    parts = [
        faults.conv(), faults.KERAS(), keras.layers.ReLU(),
        keras.layers.SeparableConv2D(8, 3, padding="same", use_bias=False), faults.KERAS(),
        keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), faults.head(),
    ]
    return faults.fitted(faults.built("residual", parts, data[0]), data), data


Healthy = dict[str, Callable[[], tuple[keras.Model, Any]]]
KINDS = ("sequential", "functional", "nested", "residual", "subclassed")
SMALL: Healthy = {
    f"{kind}-{name}": functools.partial(small, kind, normalizer)
    for turn, kind in enumerate(KINDS)
    # Each kind with one of the layers, and one of them with both.
    for name, normalizer in (("keras", faults.KERAS), ("ours", faults.BatchNorm))
    if kind == "functional" or (name == "ours") == turn % 2
}
SMALL["separable"] = separable
REGISTERED: Healthy = {name: functools.partial(registered, name) for name in MODELS.names()}
REGISTERED["plain_cnn-activated"] = functools.partial(registered, "plain_cnn", "activated")
APPLICATIONS: Healthy = {
    "MobileNetV2": functools.partial(application, "MobileNetV2", 64, alpha=0.35),
    "ResNet50": functools.partial(application, "ResNet50", 32),
    "DenseNet121": functools.partial(application, "DenseNet121", 32),
    "EfficientNetB0": functools.partial(application, "EfficientNetB0", 64),
}
