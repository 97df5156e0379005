"""Seconds for 1, 5 and 20 seeds of a small dense net: `python benchmarks/stack.py`.

Both arms of the paper's net (3 x 100 sigmoids, batches of 60) are trained for some steps: with
Keras's `fit`, one seed; and by the runner, one seed alone and several side by side in one graph.
Times hold building, compiling and evaluation, as a user waits for them; each is the median of the
rounds.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import pathlib
import statistics
import tempfile
import time

import keras

from bn_keras import data, losses
from bn_keras.config import RunConfig
from bn_keras.nets import build
from bn_keras.results import Store
from bn_keras.runner import Runner


def runs(arm, seeds, steps):
    """The RunConfigs of one arm."""
    return [
        RunConfig(
            model="ioffe_mlp", normalizer=arm, activation="sigmoid", optimizer="sgd",
            learning_rate=0.1, batch_size=60, steps=steps, log_interval=250, eval_interval=250,
            curve_size=1000, seed=seed, measure=(),
        )
        for seed in range(seeds)
    ]


def fit(splits, config):
    """Trains one run with compile and fit."""
    model = build(config, splits)
    model.compile(keras.optimizers.SGD(config.learning_rate), losses.softmax)
    images, labels = splits.train.images, splits.train.labels
    per_epoch = len(images) // config.batch_size
    model.fit(
        images, labels, batch_size=config.batch_size, epochs=max(1, config.steps // per_epoch),
        steps_per_epoch=min(config.steps, per_epoch), verbose=0,
    )
    model.evaluate(splits.test.images, splits.test.labels, batch_size=1000, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    splits = data.load("mnist")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(pathlib.Path(folder))
        settings = {"fit, 1 seed": lambda arm: fit(splits, runs(arm, 1, options.steps)[0])}
        for seeds in (1, 5, 20):
            settings[f"side by side, {seeds} seed{'s' if seeds > 1 else ''}"] = (
                lambda arm, seeds=seeds: Runner(lambda config: splits, store)(
                    runs(arm, seeds, options.steps))
            )
        times = {(name, arm): [] for name in settings for arm in ("none", "batch")}
        for _ in range(options.rounds):
            for (name, arm), found in times.items():
                started = time.perf_counter()
                settings[name](arm)
                found.append(time.perf_counter() - started)
    print(f"{options.steps} steps, {options.rounds} rounds, {os.cpu_count()} CPUs")
    print(f"{'':24s}{'none s':>9s}{'batch s':>9s}{'s a seed':>10s}   lowest–highest, batch")
    for name in settings:
        none, batch = times[name, "none"], times[name, "batch"]
        both = statistics.median(none) + statistics.median(batch)
        seeds = int(name.split()[-2])
        print(f"{name:24s}{statistics.median(none):9.1f}{statistics.median(batch):9.1f}"
              f"{both / 2 / seeds:10.2f}   {min(batch):.1f}–{max(batch):.1f}")


if __name__ == "__main__":
    main()
