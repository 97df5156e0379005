"""Our training step against Keras's defaults, on both nets: `python benchmarks/training_step.py`.

"keras fit" is the net as one writes it with Keras: biases everywhere, relu in front of the pooling,
`keras.layers.BatchNormalization`, `keras.optimizers.Adam`, `compile` and `fit` on arrays in memory.
"ours" is `bn_keras`: its models, BatchNorm, Adam and loop. All variants are run in turn in one
process, several rounds; the table shows the median time of a step, its spread, and how many times
as fast as `fit` in float32 each variant is. A step is the same work in all: one batch, forward,
backward and update, with loss and accuracy.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from bn_keras import data, loop
from bn_keras.config import RunConfig
from bn_keras.nets import build
from bn_keras.optimizers import FusedAdam
from bn_keras.registry import LOSSES, MODELS

BATCH_SIZES = {"mnist_cnn": 64, "conv_bn_relu": 100}


def keras_mnist_cnn():
    """`mnist_cnn` in plain Keras, and its loss."""
    normal = keras.initializers.TruncatedNormal(stddev=0.1)
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 5, padding="same", activation="relu", kernel_initializer=normal),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 5, padding="same", kernel_initializer=normal),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(1024, kernel_initializer=normal),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Dropout(0.5),
        layers.Dense(10, kernel_initializer=normal),
        layers.BatchNormalization(),
        layers.Activation("linear", dtype="float32"),
    ]), keras.losses.BinaryCrossentropy(from_logits=True)


def keras_conv_bn_relu():
    """`conv_bn_relu` in plain Keras, and its loss."""
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 3),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10),
        layers.Activation("linear", dtype="float32"),
    ]), keras.losses.CategoricalCrossentropy(from_logits=True)


def fit(build, dtype, splits, batch_size):
    """`(steps) -> seconds a step` of training with compile and fit."""
    keras.config.set_dtype_policy(dtype)
    model, loss = build()
    keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    images = (splits.train.images / 255).astype("float32")
    labels = np.eye(10, dtype="float32")[splits.train.labels]
    ends = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )

    def run(steps):
        count = (steps + 1) * batch_size
        ends.clear()
        model.fit(
            images[:count], labels[:count], batch_size=batch_size, verbose=0, callbacks=[clock]
        )
        # From the end of the first step on: what fit needs to get going, .06 to 1.4 s a call
        # here, is not held against it.
        return (ends[-1] - ends[0]) / steps

    return run


def ours(model, dtype, splits, batch_size, normalizer="batch"):
    """`(steps) -> seconds a step` of training with this package."""
    built = build(RunConfig(model=model, dtype_policy=dtype, normalizer=normalizer), splits)
    task = loop.Task(LOSSES.get(MODELS.properties(model)["loss"]))
    trainer = loop.Trainer(
        built, task, FusedAdam(1e-3), splits.train.images, splits.train.labels
    )
    rng = np.random.default_rng(0)

    def run(steps):
        started = time.perf_counter()
        indices = loop.batch_indices(len(splits.train), batch_size, steps, rng)
        trainer.train(indices[:, :, np.newaxis])
        return (time.perf_counter() - started) / steps

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    splits = data.load("mnist", train_size=20_000)
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} CPUs")
    print(f"{'net':14s} {'variant':30s} {'ms/step':>8s} {'spread':>15s} {'times as fast':>14s}")
    for name, plain in (("mnist_cnn", keras_mnist_cnn), ("conv_bn_relu", keras_conv_bn_relu)):
        size = BATCH_SIZES[name]
        variants = {
            "keras fit float32": fit(plain, "float32", splits, size),
            "keras fit mixed_bfloat16": fit(plain, "mixed_bfloat16", splits, size),
            "ours float32": ours(name, "float32", splits, size),
            "ours mixed_bfloat16": ours(name, "mixed_bfloat16", splits, size),
            "ours float32, no BN (a limit)": ours(name, "float32", splits, size, "none"),
        }
        for run in variants.values():
            run(10)
        times = {variant: [] for variant in variants}
        for _ in range(options.rounds):
            for variant, run in variants.items():
                times[variant].append(run(options.steps) * 1e3)
        base = times["keras fit float32"]
        for variant, values in times.items():
            # Paired by round: what slows the machine down slows both.
            ratio = statistics.median(one / other for one, other in zip(base, values))
            print(f"{name:14s} {variant:30s} {statistics.median(values):8.2f} "
                  f"{min(values):7.2f}–{max(values):.2f} {ratio:13.2f}x")


if __name__ == "__main__":
    main()
