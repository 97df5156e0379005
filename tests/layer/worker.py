"""One of two workers of `tf.distribute.MultiWorkerMirroredStrategy`: `worker.py FOLDER`.

Run by `test_multi_worker.py` in a process for each worker, which TF_CONFIG numbers. A worker runs
all scenarios, one after the other, since starting it takes longer than all of them. What it saw of
one goes to FOLDER: SCENARIO-INDEX.npz of named arrays, or SCENARIO-INDEX.error if it was raised.
Whoever reads a moving statistic asks all workers for theirs, so all have to read the same things
in the same order.
"""

import functools
import json
import os
import pathlib
import sys
import traceback

import keras
import numpy as np
import tensorflow as tf

from bn_keras import BatchNorm

SAMPLES = 12
FIRST = 4  # samples of the first worker; the second has the others
STEPS = 4
FIT_LAYERS = {
    "fit_ours": [BatchNorm],
    "fit_keras": [keras.layers.BatchNormalization],
    "fit_none": [],
}


def batches():
    """Images and targets of each step, the whole batch of all workers."""
    rng = np.random.default_rng(0)
    images = rng.normal(1.0, 2.0, (STEPS, SAMPLES, 6, 6, 2)).astype("float32")
    return images, images.mean((2, 3)).sum(-1, keepdims=True)


def make_net(**settings):
    """A small net with normalization of images and of a dense layer, always of equal weights."""

    def start(seed):
        return keras.initializers.GlorotUniform(seed=seed)

    return keras.Sequential([
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(3, 3, kernel_initializer=start(1)),
        BatchNorm(momentum=0.5, **settings),
        keras.layers.Activation("tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(5, kernel_initializer=start(2)),
        BatchNorm(momentum=0.5, **settings),
        keras.layers.Dense(1, kernel_initializer=start(3)),
    ])


def make_step(model, optimizer):
    """`(images, targets) -> loss` of this worker's share of the batch; trains the model.

    The loss is a sum over the worker's samples, divided by the number of all: summed over the
    workers, as the optimizer sums gradients, it is the loss of the whole batch, however unequal
    the shares.
    """

    def step(images, targets):
        with tf.GradientTape() as tape:
            errors = model(images, training=True) - targets
            loss = tf.reduce_sum(tf.square(errors)) / SAMPLES
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply_gradients(zip(gradients, weights))
        return loss

    return step


def train(strategy, share, synchronized):
    """Losses of the whole batch, weights and moving statistics after some steps."""
    with strategy.scope():
        model = make_net(synchronized=synchronized)
        optimizer = keras.optimizers.SGD(0.05)
        optimizer.build(model.trainable_variables)
    step = make_step(model, optimizer)

    @tf.function
    def run(images, targets):
        return strategy.reduce("SUM", strategy.run(step, [images, targets]), axis=None)

    losses = [run(images[share], targets[share]) for images, targets in zip(*batches())]
    found = {"losses": losses}
    for number, weight in enumerate(model.weights):
        found[f"read_{number}"] = weight.numpy()
        # Reading takes the mean over the workers; this is the worker's own copy.
        found[f"own_{number}"] = strategy.experimental_local_results(weight.value)[0].numpy()
    return found


def unsynchronized(strategy, share):
    """A layer alone, after one step: a worker's own statistics, and what is read."""
    with strategy.scope():
        layer = BatchNorm(momentum=0.0)
        layer.build((None, 6, 6, 2))
    images, _ = batches()
    strategy.run(tf.function(lambda x: layer(x, training=True)), [images[0][share]])
    own = strategy.experimental_local_results(layer.moving_mean.value)[0]
    return {"own": own.numpy(), "read": layer.moving_mean.numpy()}


def skipped(strategy, share):
    """`skipped_batches` after a batch that is not finite in the first worker only."""
    found = {}
    for name, synchronized in (("alone", False), ("synchronized", True)):
        with strategy.scope():
            layer = BatchNorm(synchronized=synchronized)
            layer.build((None, 6, 6, 2))
        images, _ = batches()
        images[0][0] = np.nan  # a sample of the first worker
        call = tf.function(lambda x: layer(x, training=True))
        for batch in images:
            strategy.run(call, [batch[share]])
        found[name] = layer.skipped_batches
        found[f"{name}_mean"] = layer.moving_mean.numpy()
    return found


def fit(strategy, layers):
    """Keras's own loop."""
    images, targets = batches()
    with strategy.scope():
        model = keras.Sequential([
            keras.Input((6, 6, 2)),
            *(layer() for layer in layers),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ])
        model.compile("sgd", "mse")
    return {"loss": model.fit(images[0], targets[0], verbose=0).history["loss"]}


SCENARIOS = {
    "train": functools.partial(train, synchronized=True),
    "unsynchronized": unsynchronized,
    "skipped": skipped,
    **{
        name: lambda strategy, share, layers=layers: fit(strategy, layers)
        for name, layers in FIT_LAYERS.items()
    },
}


def main(folder):
    # Before anything else of TensorFlow: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    share = slice(0, FIRST) if index == 0 else slice(FIRST, SAMPLES)
    for name, scenario in SCENARIOS.items():
        path = pathlib.Path(folder, f"{name}-{index}")
        try:
            np.savez(path.with_suffix(".npz"), **scenario(strategy, share))
        except Exception:
            path.with_suffix(".error").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(*sys.argv[1:])
