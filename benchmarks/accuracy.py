"""How exact BatchNorm and Keras's layer are far from zero: `python benchmarks/accuracy.py`.

The largest error of an output against float64, in units of a standard deviation, over inputs with
a mean and a deviation of 1: the median over seeds, and the worst of them. In training the layers
normalize with the batch, in inference with its statistics, rounded to float32.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse

import keras
import numpy as np
import tensorflow as tf

from bn_keras import BatchNorm

SHAPES = {"dense": (256, 64), "images": (64, 28, 28, 8)}
MEANS = (0, 3, 30, 1013, 1e4, 1e6)
MODES = {
    "eager": lambda call: call,
    "graph": tf.function,
    "XLA": lambda call: tf.function(call, jit_compile=True),
}
EPSILON = 1e-3


def errors(kind, shape, mode, mean, seeds):
    """Largest errors in training and in inference, an array (seeds, 2)."""
    layer = kind(epsilon=EPSILON, momentum=0.0)
    layer.build(shape)
    axes = tuple(range(len(shape) - 1))
    calls = [
        MODES[mode](lambda x, training=training: layer(x, training=training))
        for training in (True, False)
    ]
    found = []
    for seed in range(seeds):
        x = np.random.default_rng(seed).normal(mean, 1.0, shape).astype("float32")
        wide = x.astype("float64")
        statistics = wide.mean(axes), wide.var(axes)
        rounded = [value.astype("float32").astype("float64") for value in statistics]
        row = []
        for call, (center, variance) in zip(calls, (statistics, rounded)):
            layer.moving_mean.assign(rounded[0])
            layer.moving_variance.assign(rounded[1])
            right = (wide - center) / np.sqrt(variance + EPSILON)
            row.append(np.abs(call(tf.constant(x)).numpy() - right).max())
        found.append(row)
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {options.seeds} seeds; "
          "median (worst)")
    print(f"{'inputs':8s} {'mode':6s} {'mean':>8s}   {'training: Keras':19s} {'ours':19s}   "
          f"{'inference: Keras':19s} {'ours':19s}")
    for name, shape in SHAPES.items():
        for mode in MODES:
            for mean in MEANS:
                theirs, ours = (
                    errors(kind, shape, mode, mean, options.seeds)
                    for kind in (keras.layers.BatchNormalization, BatchNorm)
                )
                cells = [
                    f"{np.median(one[:, column]):.1e} ({one[:, column].max():.1e})"
                    for column in (0, 1) for one in (theirs, ours)
                ]
                print(f"{name:8s} {mode:6s} {mean:8g}   {cells[0]:19s} {cells[1]:19s}   "
                      f"{cells[2]:19s} {cells[3]:19s}", flush=True)


if __name__ == "__main__":
    main()
