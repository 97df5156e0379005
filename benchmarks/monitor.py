"""What `BatchNormMonitor` costs a fit: `python benchmarks/monitor.py`.

Three nets of different weight are trained with and without it, in turn, in one process. The table
shows the median CPU time of an epoch and its spread (other work on the machine does not count);
the median of the ratios of neighbouring rounds, all epochs together; what the monitor says of
itself, by the clock; and how many epochs and batches it looked at to stay within its 10 %. The
first epoch, which traces the graph and makes the monitor's copy, counts.

    python benchmarks/monitor.py              two minutes on two cores
    python benchmarks/monitor.py --epochs=10
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

from bn_keras import data
from bn_keras.callbacks import BatchNormMonitor


def mlp():
    """784-3×100-10."""
    hidden = [layer for _ in range(3) for layer in (
        layers.Dense(100, use_bias=False), layers.BatchNormalization(), layers.ReLU())]
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10)])


def cnn():
    """Two convolutions of 32 and 64 channels."""
    blocks = [layer for channels in (32, 64) for layer in (
        layers.Conv2D(channels, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU(),
        layers.MaxPooling2D())]
    return keras.Sequential([
        keras.Input((28, 28, 1)), *blocks, layers.Flatten(), layers.Dense(10)])


def resnet():
    """ResNet-20 for small images: 3 stages of 3 blocks, 16 to 64 channels, 21 normalizers."""
    inputs = keras.Input((28, 28, 1))

    def norm_of_conv(x, channels, size=3, strides=1):
        x = layers.Conv2D(channels, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    x = layers.ReLU()(norm_of_conv(inputs, 16))
    for channels in (16, 32, 64):
        for block in range(3):
            strides = 2 if channels > 16 and block == 0 else 1
            y = layers.ReLU()(norm_of_conv(x, channels, strides=strides))
            y = norm_of_conv(y, channels)
            short = x if strides == 1 else norm_of_conv(x, channels, 1, strides)
            x = layers.ReLU()(layers.add([y, short]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


class Epochs(keras.callbacks.Callback):
    """CPU seconds from the beginning of each epoch to that of the next, callbacks included."""

    def __init__(self):
        super().__init__()
        self.starts = []

    def on_epoch_begin(self, epoch, logs=None):
        self.starts.append(time.process_time())

    def on_train_end(self, logs=None):
        self.starts.append(time.process_time())

    @property
    def seconds(self):
        """One number an epoch."""
        return np.diff(self.starts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="epochs a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    splits = data.load("mnist", train_size=20_000)
    images = (splits.train.images / 255).astype("float32").reshape(-1, 28, 28, 1)
    labels = splits.train.labels.astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} CPUs; "
          f"{options.rounds} rounds of {options.epochs} epochs")
    print(f"{'net':8s} {'monitor':8s} {'s/epoch':>8s} {'spread':>13s} {'ratio':>6s} "
          f"{'its own share':>14s} {'epochs':>7s} {'batches':>8s}")
    # Short epochs, of a second or two: the hardest case, for a look costs the same in a long one.
    for make, examples in ((mlp, 12_800), (cnn, 2_560), (resnet, 1_280)):
        x, y = images[:examples], labels[:examples]
        times = {"without": [], "with": []}
        shares, epochs, batches, ratios = [], [], [], []
        for _ in range(options.rounds):
            totals = {}
            for variant in times:
                keras.utils.set_random_seed(0)
                model = make()
                model.compile(keras.optimizers.SGD(0.05), loss)
                clock, callbacks = Epochs(), []
                if variant == "with":
                    monitor = BatchNormMonitor((x, y), batch_size=64, tell=lambda text: None)
                    callbacks = [monitor]
                model.fit(x, y, batch_size=64, epochs=options.epochs, verbose=0,
                          callbacks=[clock, *callbacks])
                times[variant] += list(clock.seconds)
                totals[variant] = clock.seconds.sum()
            ratios.append(totals["with"] / totals["without"])
            last = {row["quantity"]: row["value"] for row in monitor.history}
            shares.append(last["seconds"] / last["seconds_of_training"])
            looks = monitor.values("batches")[None]
            epochs.append(len(looks))
            batches.append(statistics.mean(number for _, number in looks))
        for variant, values in times.items():
            own = "" if variant == "without" else (
                f"{statistics.median(ratios):6.2f} {statistics.median(shares):13.1%} "
                f"{statistics.median(epochs):5.0f}/{options.epochs} "
                f"{statistics.median(batches):8.1f}"
            )
            print(f"{make.__name__:8s} {variant:8s} {statistics.median(values):8.2f} "
                  f"{min(values):6.2f}–{max(values):.2f} {own}", flush=True)


if __name__ == "__main__":
    main()
