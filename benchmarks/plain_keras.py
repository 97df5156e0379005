"""The default comparison as one would write it in Keras: `python benchmarks/plain_keras.py`.

Both arms, some seeds each: `compile`, `fit` with the TensorBoard callback and a validation every 20
steps, `evaluate` on validation and test images, 100 test images one by one.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import tempfile

import keras
import numpy as np
from keras import layers

from bn_keras import data

BATCH, EVERY = 64, 20


def build(normalized, seed):
    """The MNIST CNN of `bn_keras.models.mnist_cnn`."""
    keras.utils.set_random_seed(seed)
    settings = {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.1),
        "bias_initializer": keras.initializers.Constant(0.1),
    }

    def norm():
        return [layers.BatchNormalization(momentum=0.9)] if normalized else []

    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(32, 5, padding="same", activation="relu", **settings),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 5, padding="same", **settings), *norm(), layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(1024, **settings), *norm(), layers.ReLU(),
        layers.Dropout(0.5),
        layers.Dense(10, **settings), *norm(),
    ])


def train(splits, normalized, seed, steps, logdir):
    """One run; returns its validation accuracy."""
    train, validation, test = (
        (split.images, np.eye(10, dtype="float32")[split.labels])
        for split in (splits.train, splits.validation, splits.test)
    )
    model = build(normalized, seed)
    model.compile(
        keras.optimizers.SGD(3.0), keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
    )
    order = np.random.default_rng(seed).permutation(len(train[0]))[:steps * BATCH]
    model.fit(
        train[0][order], train[1][order], batch_size=BATCH, steps_per_epoch=EVERY,
        epochs=steps // EVERY, shuffle=False, verbose=0,
        validation_data=(validation[0][:500], validation[1][:500]),
        callbacks=[keras.callbacks.TensorBoard(logdir, histogram_freq=1)],
    )
    _, accuracy = model.evaluate(*validation, verbose=0)
    model.evaluate(*test, verbose=0)
    model.predict(test[0][:100], batch_size=1, verbose=0)
    return accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    splits = data.load("mnist")
    with tempfile.TemporaryDirectory() as logdir:
        for normalized in (False, True):
            for seed in range(options.seeds):
                accuracy = train(
                    splits, normalized, seed, options.steps, f"{logdir}/{normalized}/{seed}"
                )
                print(f"batch normalization {normalized}, seed {seed}: {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
