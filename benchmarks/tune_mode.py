"""Does it pay to fold a frozen batch normalization while training goes on? `python \
benchmarks/tune_mode.py` (4 min).

A batch normalization whose statistics are frozen is an affine map, which a convolution in front of
it can take into its kernel: one pass over the activations less in each direction, and one
activation less to keep. Gradients reach kernel, gamma and beta all the same (the "tune mode" of You
et al. 2024, arXiv:2305.11624). Here a small ResNet trains with `FrozenBatchNorm` behind each
convolution, and with one layer that computes both. Steps of the nets take turns in one process;
times are CPU seconds of all threads, which other programs disturb least, and ratios are medians
over the rounds, with the lowest and highest. Peak memory is how far a step raises the resident
set's high-water mark, in processes of their own (oneDNN off and freed arrays given back, as
`benchmarks/memory.py` explains): the median of three.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

PLAIN = {
    "TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536",
}
BATCH, SIZE, WIDTHS = 64, 32, (16, 32, 64)
KINDS = ("frozen", "folded", "trainable=False", "none")


def net(kind):
    """A ResNet of three stages with two blocks each."""
    import keras
    from keras import layers, ops

    from bn_keras import FrozenBatchNorm

    class Folded(layers.Conv2D):
        """A convolution and the frozen batch normalization behind it, as one convolution."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, use_bias=False, **kwargs)

        def build(self, shape):
            super().build(shape)
            for name, start in (("gamma", "ones"), ("beta", "zeros")):
                setattr(self, name, self.add_weight(
                    shape=(self.filters,), initializer=start, name=name))
            self.mean, self.variance = (
                self.add_weight(shape=(self.filters,), initializer=start, trainable=False, name=n)
                for n, start in (("mean", "zeros"), ("variance", "ones"))
            )

        def call(self, x):
            scale = self.gamma * ops.rsqrt(self.variance + 1e-3)
            outputs = ops.conv(x, self.kernel * scale, self.strides, self.padding)
            return outputs + (self.beta - self.mean * scale)

    def conv(x, filters, size, stride=1):
        settings = {"padding": "same", "strides": stride}
        if kind == "folded":
            return Folded(filters, size, **settings)(x)
        x = layers.Conv2D(filters, size, use_bias=False, **settings)(x)
        if kind == "frozen":
            return FrozenBatchNorm(freeze="statistics")(x)
        return x if kind == "none" else layers.BatchNormalization(trainable=False)(x)

    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.ReLU()(conv(inputs, WIDTHS[0], 3))
    for number, width in enumerate(WIDTHS):
        for block in range(2):
            stride = 2 if number and not block else 1
            y = conv(layers.ReLU()(conv(x, width, 3, stride)), width, 3)
            x = conv(x, width, 1, stride) if stride > 1 else x
            x = layers.ReLU()(x + y)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def step_of(kind, jit):
    """A training step of a net, compiled and run once."""
    import keras
    import numpy as np

    model = net(kind)
    model.compile(
        keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype("float32")
    y = rng.integers(0, 10, BATCH)
    model.train_on_batch(x, y)
    return lambda: model.train_on_batch(x, y)


def seconds(steps, rounds, repeats):
    """CPU seconds a step: name → a list with one value for each round, in which all take turns."""
    found = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(repeats):
                step()
            found[name].append((time.process_time() - started) / repeats)
    return found


def peak(kind, jit):
    """MB by which a step raises the high-water mark of the resident set over what was there.

    What the first steps take for tracing and compiling does not count.
    """
    step = step_of(kind, jit)
    step()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the mark goes back to what is resident

    def read(name):
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) / 1024

    before = read("VmRSS")
    for _ in range(3):
        step()
    return read("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--peak", choices=KINDS)
    parser.add_argument("--jit", action="store_true")
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options.jit))
        return
    print(f"a step with {BATCH} images of {SIZE}x{SIZE}, {os.cpu_count()} CPUs")
    print(f"{'':24s}{'CPU ms':>8s}{'of frozen':>11s}   lowest–highest{'peak MB':>10s}")
    for jit in (False, True):
        found = seconds({kind: step_of(kind, jit) for kind in KINDS}, options.rounds,
                        options.repeats)
        for kind in KINDS:
            ratios = [one / base for one, base in zip(found[kind], found["frozen"])]
            command = [sys.executable, __file__, f"--peak={kind}", *(["--jit"] if jit else [])]
            memory = [
                float(subprocess.run(
                    command, capture_output=True, text=True, check=True,
                    env={**os.environ, **PLAIN},
                ).stdout) for _ in range(options.processes)
            ]
            print(f"{kind + (', XLA' if jit else ''):24s}"
                  f"{1000 * statistics.median(found[kind]):8.1f}{statistics.median(ratios):11.2f}"
                  f"   {min(ratios):.2f}–{max(ratios):.2f}{statistics.median(memory):15.0f}")


if __name__ == "__main__":
    main()
