"""Peak memory of a step, BatchNorm against Keras's layer: `python benchmarks/memory.py` (8 min).

A step is forward, backward to inputs, gamma and beta, and the update of the moving statistics (or
inference), in a graph. Every figure is that of a process of its own: how far the resident set's
high-water mark rose, in one of a few steps, above what was resident before them. The inputs are in
memory by then and do not count, the gradient that the step hands out does. A row gives the median
over the processes in MB, with the lowest and highest, and how many arrays of the inputs' size that
is.

What would distort the measure is kept out. One step is run first, so that tracing and XLA's
compiler, which take more memory than many a step, are through; the mark is set back thereafter.
oneDNN is off: its allocator keeps what is freed, and rounds up by as much as a third. Arrays of
64 KB and more go back to the system as soon as they are freed (glibc would raise that limit with
every array freed, up to 32 MB, and hold on to what is smaller), and all threads share one heap.
Then what is resident is what is in use. Two threads can be in two places of a graph, one time in
this order, one time in that: this is the spread. `--onednn` gives instead the peak that TensorFlow
says its own allocator had in use, with oneDNN's kernels as they run by default.

"nothing between": four normalizations in a row are no net. XLA then computes Keras's activations
anew from the inputs and keeps none, ours it keeps; with a matrix product between, it keeps both.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import ctypes
import math
import pathlib
import statistics
import subprocess
import sys

PLAIN = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
STEPS = 5
IMAGES, DENSE = (32, 56, 56, 64), (4096, 1024)

DEFAULTS = {
    "shape": IMAGES,
    "layers": 1,
    "between": True,  # a product with a matrix between two layers, as a net has it
    "settings": {},
    "dtype": "float32",
    "training": True,
    "jit_compile": False,
}
ROWS = {
    "rank 4": {},
    "rank 4, 4 layers": {"layers": 4},
    "rank 4, 4, nothing between": {"layers": 4, "between": False},
    "rank 4, axis=1": {"shape": (32, 64, 56, 56), "settings": {"axis": 1}},
    "rank 4, bfloat16": {"dtype": "bfloat16"},
    "rank 4, float16": {"dtype": "float16"},
    "rank 4, float64": {"dtype": "float64"},
    "rank 3": {"shape": (64, 1024, 64)},
    "dense": {"shape": DENSE},
    "dense, 4 layers": {"shape": DENSE, "layers": 4},
    "dense, bfloat16": {"shape": DENSE, "dtype": "bfloat16"},
    "XLA, rank 4": {"jit_compile": True},
    "XLA, rank 4, 4 layers": {"jit_compile": True, "layers": 4},
    "XLA, 4, nothing between": {"jit_compile": True, "layers": 4, "between": False},
    "XLA, dense": {"shape": DENSE, "jit_compile": True},
    "inference, rank 4": {"training": False},
    "inference, dense": {"shape": DENSE, "training": False},
}


def peak(row, kind, onednn):
    """Bytes by which a step raises this process's high-water mark (or that of the allocator)."""
    import keras
    import numpy as np
    import tensorflow as tf

    from bn_keras import BatchNorm

    row = DEFAULTS | ROWS[row]
    shape, dtype, training = row["shape"], row["dtype"], row["training"]
    policy = dtype if dtype in ("float32", "float64") else f"mixed_{dtype}"
    make = {"ours": BatchNorm, "keras": keras.layers.BatchNormalization}[kind]
    layers = [make(dtype=policy, **row["settings"]) for _ in range(row["layers"])]
    for layer in layers:
        layer.build(shape)
    weights = [weight.value for layer in layers for weight in layer.trainable_variables]

    mix = tf.random.stateless_normal([shape[-1]] * 2, [0, 0], stddev=shape[-1]**-0.5)

    def forward(x):
        for layer in layers:
            if row["between"] and layer is not layers[0]:
                x = tf.matmul(x, mix)
            x = layer(x, training=training)
        return x

    @tf.function(jit_compile=row["jit_compile"])
    def step(x):
        if not training:
            return forward(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
            # Of the outputs, so that backward waits for forward, as in training.
            loss = tf.nn.l2_loss(y)
        return tape.gradient(loss, [x, *weights])

    x = tf.constant(np.random.default_rng(0).standard_normal(shape, np.float32))
    x = tf.cast(x, dtype)
    step(x)
    if onednn:
        tf.config.experimental.reset_memory_stats("CPU:0")
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    else:
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # sets the mark back
        before = status("VmRSS")
    for _ in range(STEPS):
        step(x)
    if onednn:
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
    return status("VmHWM") - before


def status(name):
    """A figure of this process in bytes, as Linux has it in /proc."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{name} is not in /proc/self/status")


def measure(row, kind, onednn):
    """`peak` in a process of its own, in MB."""
    root = str(pathlib.Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, __file__, "--one", row, kind, *(["--onednn"] if onednn else [])]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True,
        env=environment if onednn else environment | PLAIN,
    )
    return int(result.stdout.split()[-1]) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3, help="processes behind each figure")
    parser.add_argument("--only", default="", help="run the rows whose name holds this text")
    parser.add_argument("--onednn", action="store_true", help="what the default allocator says")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(peak(*options.one, options.onednn))
        return
    print(f"{'':28s} {'array':>7s} {'Keras':>7s} {'range':>15s} {'arrays':>6s} "
          f"{'ours':>7s} {'range':>15s} {'arrays':>6s} {'ours/Keras':>10s}")
    for row, settings in ROWS.items():
        if options.only not in row:
            continue
        shape, dtype = (DEFAULTS | settings)["shape"], (DEFAULTS | settings)["dtype"]
        size = math.prod(shape) * {"float64": 8, "float32": 4}.get(dtype, 2) / 1e6
        columns, medians = [], []
        for kind in ("keras", "ours"):
            found = [measure(row, kind, options.onednn) for _ in range(options.processes)]
            medians.append(statistics.median(found))
            spread = f"{min(found):.1f}–{max(found):.1f}"
            columns.append(f"{medians[-1]:7.1f} {spread:>15s} {medians[-1] / size:6.2f}")
        print(f"{row:28s} {size:7.1f} {' '.join(columns)} {medians[1] / medians[0]:10.2f}",
              flush=True)


if __name__ == "__main__":
    main()
