"""BatchNorm against Keras's layer on PyTorch or JAX, shape by shape.

    KERAS_BACKEND=torch python benchmarks/layer_backends.py
    KERAS_BACKEND=jax python benchmarks/layer_backends.py

The columns are those of `layer.py`, and so is the measurement: both layers run in turn in one
process, "times as fast" is the median of the ratios of neighbouring rounds. PyTorch runs op by op,
JAX a jitted step that takes and returns the layer's weights (`stateless_call`). On busy cores
OMP_NUM_THREADS=1 makes PyTorch's times steadier by far.
"""

import argparse
import math
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from bn_keras import BatchNorm

CONV = [(64, 28, 28, 32), (64, 14, 14, 64), (100, 26, 26, 32), (32, 56, 56, 64)]
DENSE = [(64, 1024), (128, 1024), (60, 100), (64, 10)]
OTHER = [
    ((64, 28, 28, 32), {"axis": 1}),
    ((64, 128, 64), {}),
    ((16, 8, 14, 14, 32), {}),
]


def torch_loop(layer, x, training):
    """`(count) -> None` that calls the layer that often, training also backward."""
    import torch

    x = keras.ops.convert_to_tensor(x)
    weights = [weight.value for weight in layer.trainable_variables]

    def once():
        if not training:
            with torch.no_grad():
                return layer(x, training=False)
        inputs = x.detach().requires_grad_()
        return torch.autograd.grad(layer(inputs, training=True), [inputs, *weights], x)

    def many(count):
        for _ in range(count):
            once()

    return many


def jax_loop(layer, x, training):
    """`(count) -> None` that calls one jitted step that often."""
    import jax

    x = keras.ops.convert_to_tensor(x)
    state = [
        [variable.value for variable in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    ]

    @jax.jit
    def once(x, trainable, others):
        def outputs(x, trainable):
            return layer.stateless_call(trainable, others, x, training=training)

        if not training:
            return outputs(x, trainable)[0], others
        y, gradients, others = jax.vjp(outputs, x, trainable, has_aux=True)
        return gradients(y), others

    def many(count):
        for _ in range(count):
            result = once(x, *state)
        jax.block_until_ready(result)

    return many


LOOPS = {"torch": torch_loop, "jax": jax_loop}


def timed(run, count):
    """Milliseconds a call."""
    started = time.perf_counter()
    run(count)
    return (time.perf_counter() - started) / count * 1e3


def compare(title, shapes, rounds, dtype="float32", training=True, bandwidth=1.0):
    """Prints a table row for each shape and returns the ratios."""
    ratios = []
    for shape, settings in shapes:
        values = np.random.default_rng(0).normal(1, 2, shape).astype("float32")
        runs = []
        for kind in (keras.layers.BatchNormalization, BatchNorm):
            layer = kind(dtype=dtype if dtype == "float32" else f"mixed_{dtype}", **settings)
            layer.build(shape)
            x = keras.ops.cast(values, dtype)
            runs.append(LOOPS[keras.backend.backend()](layer, x, training))
        for run in runs:
            run(2)
        count = max(3, int(100 / timed(runs[0], 3)))
        times = [[timed(run, count) for run in runs] for _ in range(rounds)]
        theirs, ours = (statistics.median(column) for column in zip(*times))
        pairs = [one / other for one, other in times]
        ratios.append(statistics.median(pairs))
        itemsize = 4 if dtype == "float32" else 2
        floor = (5 if training else 2) * math.prod(shape) * itemsize / bandwidth * 1e3
        print(f"{title:26s} {f'{shape} {settings or str()}':34s} {theirs:8.3f} {ours:8.3f} "
              f"{floor:8.3f} {ratios[-1]:7.2f}x  {min(pairs):.2f}–{max(pairs):.2f}", flush=True)
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
    backend = keras.backend.backend()
    if backend not in LOOPS:
        parser.error(f"KERAS_BACKEND={backend}; expected {' or '.join(LOOPS)} (TensorFlow has "
                     "layer.py)")
    bandwidth = copy_bandwidth()
    print(f"{backend} {__import__(backend).__version__}, Keras {keras.__version__}, "
          f"{os.cpu_count()} CPUs, copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print(f"{'setting':26s} {'shape':34s} {'Keras ms':>8s} {'ours ms':>8s} {'floor ms':>8s} "
          f"{'faster':>8s}  range")
    conv, dense = [(s, {}) for s in CONV], [(s, {}) for s in DENSE]
    for title, shapes, settings in (
        ("training, rank 4", conv, {}),
        ("training, dense", dense, {}),
        ("training, other", OTHER, {}),
        ("training, bfloat16", conv[:2] + dense[:1], {"dtype": "bfloat16"}),
        ("inference", conv + dense + OTHER, {"training": False}),
    ):
        if options.only in title:
            compare(title, shapes, options.rounds, bandwidth=bandwidth, **settings)


if __name__ == "__main__":
    main()
