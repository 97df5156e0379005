"""BatchNorm against Keras's layer, shape by shape: `python benchmarks/layer.py`.

Both layers run in turn in one process, each looped inside one graph: forward, backward to inputs,
gamma and beta, and the update of the moving statistics (or inference). A time is the median over
the rounds, "times as fast" the median of the ratios of neighbouring rounds, with the lowest and
highest. "floor" is the time in which some five passes over the activation (forward and backward
together; two for inference) take place at this machine's copy bandwidth, which is measured first:
nothing that moves them through memory is faster. Arrays that fit in the cache can beat it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import math
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from bn_keras import BatchNorm

CONV = [(64, 28, 28, 32), (64, 14, 14, 64), (100, 26, 26, 32), (32, 56, 56, 64)]
DENSE = [(64, 1024), (128, 1024), (2048, 16), (60, 100), (64, 10)]
OTHER = [
    ((64, 28, 28, 32), {"axis": 1}),
    ((32, 32, 28, 28), {"axis": 1}),
    ((64, 64, 128), {"axis": 1}),
    ((64, 128, 64), {}),
    ((16, 8, 14, 14, 32), {}),
]
# Few enough values for the closed form to be faster than the fused kernel.
SMALL = [
    ((8, 4, 4, 8), {}),
    ((32, 7, 7, 32), {}),
    ((4, 28, 28, 16), {}),
    ((32, 100, 20), {}),
    ((8, 8, 28, 28), {"axis": 1}),
]


def looped(layer, shape, dtype, training, jit_compile):
    """`(count) -> None` that calls the layer that often in one graph."""
    x = tf.constant(np.random.default_rng(0).normal(1, 2, shape), dtype)
    weights = [weight.value for weight in layer.trainable_variables]

    # The loop is outside of XLA: inside, XLA moves what does not change out of it.
    @tf.function(jit_compile=jit_compile)
    def once(x):
        if not training:
            return layer(x, training=False)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, *weights], output_gradients=x)[0]

    @tf.function
    def many(count):
        result = x
        for _ in tf.range(count):
            # One call after the other, as in a net. Each call's result goes on to the next, so
            # that none is left out; the values stay small in all layers alike.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            result = once(result)
        return tf.reshape(result, [-1])[0]

    return lambda count: many(tf.constant(count)).numpy()


def compare(title, shapes, rounds, dtype="float32", training=True, jit_compile=None, bandwidth=1):
    """Prints a table row for each shape and returns the ratios."""
    ratios = []
    for shape, settings in shapes:
        runs = []
        for kind in (keras.layers.BatchNormalization, BatchNorm):
            policy = dtype if dtype in ("float32", "float64") else f"mixed_{dtype}"
            layer = kind(dtype=policy, **settings)
            layer.build(shape)
            runs.append(looped(layer, shape, dtype, training, jit_compile))
        started = time.perf_counter()
        for run in runs:
            run(2)
        started = time.perf_counter()
        runs[0](3)
        count = max(3, int(0.12 / ((time.perf_counter() - started) / 3)))
        times = []
        for _ in range(rounds):
            row = []
            for run in runs:
                started = time.perf_counter()
                run(count)
                row.append((time.perf_counter() - started) / count * 1e3)
            times.append(row)
        theirs, ours = (statistics.median(column) for column in zip(*times))
        pairs = [one / other for one, other in times]
        ratios.append(statistics.median(pairs))
        passes = 5 if training else 2
        floor = passes * math.prod(shape) * tf.as_dtype(dtype).size / bandwidth * 1e3
        name = f"{shape} {settings or ''}"
        print(f"{title:26s} {name:34s} {theirs:8.3f} {ours:8.3f} {floor:8.3f} "
              f"{ratios[-1]:7.2f}x  {min(pairs):.2f}–{max(pairs):.2f}", flush=True)
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    print(f"{title:26s} {'geometric mean, lowest':34s} {'':26s} {mean:7.2f}x  {min(ratios):.2f}")
    return ratios


def copy_bandwidth():
    """Bytes a second, reads and writes added, of copying arrays larger than any cache."""
    source = np.ones(32_000_000, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="run the settings whose title holds this text")
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} CPUs, "
          f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print(f"{'setting':26s} {'shape':34s} {'Keras ms':>8s} {'ours ms':>8s} {'floor ms':>8s} "
          f"{'faster':>8s}  range")
    conv, dense = [(s, {}) for s in CONV], [(s, {}) for s in DENSE]
    for title, shapes, settings in (
        ("training, rank 4", conv, {}),
        ("training, dense", dense, {}),
        ("training, other", OTHER, {}),
        ("training, small", SMALL, {}),
        ("training, XLA, rank 4", conv[:3], {"jit_compile": True}),
        ("training, XLA, dense", dense, {"jit_compile": True}),
        ("training, XLA, other", OTHER, {"jit_compile": True}),
        ("training, XLA, small", SMALL, {"jit_compile": True}),
        ("training, bfloat16", conv[:2] + dense[:1], {"dtype": "bfloat16"}),
        ("training, float16", conv[:2] + dense[:1], {"dtype": "float16"}),
        ("training, float64", conv[:2] + dense[:1], {"dtype": "float64"}),
        ("inference", conv + dense + OTHER + SMALL, {"training": False}),
        ("inference, XLA", conv[:2] + dense + OTHER, {"training": False, "jit_compile": True}),
        ("inference, bfloat16", conv[:2], {"training": False, "dtype": "bfloat16"}),
    ):
        if options.only in title:
            compare(title, shapes, options.rounds, bandwidth=bandwidth, **settings)


if __name__ == "__main__":
    main()
