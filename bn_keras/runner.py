"""One RunConfig to one RunResult: joins data, model, loop, writers and probes."""

import dataclasses
import functools
import hashlib
import math
import platform
import shutil
import time

import keras
import numpy as np
import tensorflow as tf

import bn_keras
from bn_keras import loop, results, stats, summaries
from bn_keras.config import ConfigError
from bn_keras.diagnostics import pitfalls
from bn_keras.diagnostics.activations import NormalizerProbe
from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.models.blocks import ModelSpec
from bn_keras.registry import LOSSES, MODELS, NORMALIZERS, OPTIMIZERS
from bn_keras.surgery.statistics import (
    batch_normalizers,
    reset_skipped_batches,
    skipped_batches,
)

PROBE_IMAGES = 100
ONE_AT_A_TIME = 100
PITFALL_IMAGES = 480  # whole batches of 16; more take their time one by one


class Runner:
    """Trains and evaluates runs over one dataset; runs that share a graph share its trace.

    Args:
        splits: `bn_keras.data.Splits`.
        store: `bn_keras.results.Store` to write TensorBoard events beside; results are returned.
        terminal: `summaries.Terminal`, or None to show nothing.
        stop: `threading.Event`; once set, a run in progress returns None.
    """

    def __init__(self, splits, store, terminal=None, stop=None):
        self._splits = splits
        self._store = store
        self._terminal = terminal
        self._stop = stop
        self._graphs = {}

    def __call__(self, config):
        """Trains one run and returns its RunResult, or None if it was stopped."""
        name = self._store.run_name(config)
        total = config.total_steps(len(self._splits.train))
        logdir = self._store.work_dir / "tensorboard" / name
        shutil.rmtree(logdir, ignore_errors=True)  # of an earlier try that did not finish
        memory = summaries.Memory()
        writers = [memory, summaries.TensorBoard(logdir, name)]
        if self._terminal is not None:
            writers.append(self._terminal.run(name, total))
        writer = summaries.FanOut(writers)
        try:
            return self._run(config, total, writer, memory.curves)
        finally:
            writer.close()

    def _run(self, config, total, writer, curves):
        started = time.perf_counter()
        graph = self._graph(config)
        start = graph.reset(config)
        batches = batch_indices(config, len(self._splits.train), total)
        curve_set = self._splits.validation.first(config.curve_size)
        no_gradient = graph.no_gradient_share(self._splits.train.take(batches[0]))

        diverged_at = None
        for end, indices in loop.chunks(batches, config.log_interval, config.eval_interval):
            if self._stop is not None and self._stop.is_set():
                return None
            steps = graph.trainer.train(indices)
            bad = steps.first_non_finite()
            if bad is not None:
                diverged_at = end - len(indices) + bad + 1
                break
            if end % config.log_interval == 0 or end == total:
                writer.scalars(end, {
                    "loss/train": finite(steps.loss[-1]),
                    "accuracy/train": finite(steps.accuracy[-1]),
                    "gradient/norm": finite(steps.gradient_norm),
                    "statistics/skipped_batches": float(graph.skipped_batches()),
                })
            if end % config.eval_interval == 0 or end == total:
                loss, accuracy = graph.evaluate(curve_set)
                shown = {"loss/validation": finite(loss), "accuracy/validation": accuracy}
                if config.pitfall_curve is not None:
                    shown[f"accuracy/validation_{config.pitfall_curve}"] = graph.evaluate_pitfall(
                        config.pitfall_curve, curve_set
                    )
                writer.scalars(end, shown)
                writer.histograms(end, graph.probe(curve_set.images[:PROBE_IMAGES]))

        result = results.RunResult(
            config=config,
            status=results.OK if diverged_at is None else results.DIVERGED,
            steps=total if diverged_at is None else diverged_at,
            seconds=0.0,
            metrics={
                **self._metrics(config, graph, curves, curve_set),
                "start_no_gradient": no_gradient,
            },
            curves=curves,
            start=start,
            versions=versions(),
        )
        result = dataclasses.replace(result, seconds=round(time.perf_counter() - started, 3))
        writer.finish(result)
        return result

    def _metrics(self, config, graph, curves, curve_set):
        splits = self._splits
        validation, test = graph.evaluate(splits.validation), graph.evaluate(splits.test)
        _, single = graph.evaluate(splits.test.first(ONE_AT_A_TIME), batch_size=1)
        bugs = {}
        if config.pitfalls is not None:
            bugs = graph.pitfalls(config.pitfalls, splits.test.first(PITFALL_IMAGES))
        return {
            **end_metrics(validation, test, curves, splits),
            "validation_accuracy_batch_statistics": graph.evaluate_batch_statistics(curve_set),
            "one_at_a_time_accuracy": single,
            "penalty": finite(graph.penalty()),
            "predicted_classes": graph.predicted_classes(curve_set),
            **{name: finite(value) for name, value in bugs.items()},
        }

    def _graph(self, config):
        key = config.graph_key()
        if key not in self._graphs:
            self._graphs[key] = _Graph(config, self._splits)
        return self._graphs[key]


class _Graph:
    """The model and the traced functions that all seeds and rates of one arm use."""

    def __init__(self, config, splits):
        loss = loss_of(config, splits)
        if splits.train.labels.dtype.kind == "f":
            raise ConfigError(
                f"dataset={config.dataset!r}, whose labels are numbers, with model="
                f"{config.model!r} and normalizer={config.normalizer!r}: expected ones that can "
                "stand in a stack, such as bad_init_mlp and batch"
            )
        self._splits, self._loss = splits, loss
        self._model = build_model(config, splits)
        optimizer = OPTIMIZERS.get(config.optimizer)(learning_rate=config.learning_rate)
        if config.dtype_policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.trainer = loop.Trainer(
            self._model, loss, optimizer, splits.train.images, splits.train.labels
        )
        example = splits.train.images
        self._evaluator = functools.partial(
            loop.Evaluator, loss=loss, inputs_shape=example.shape[1:], inputs_dtype=example.dtype
        )
        self._inference = self._evaluator(functools.partial(self._model, training=False))
        self._copies, self._evaluators = {}, {}
        self.probe = NormalizerProbe(self._model)

    def reset(self, config):
        """Starts over with the seed's weights; returns the digest of the initial kernels."""
        fresh = build_model(config, self._splits)
        values = [variable.numpy() for variable in fresh.variables]
        self.trainer.reset(values, config.learning_rate)
        reset_skipped_batches(self._model)
        return kernel_digest(fresh)

    def no_gradient_share(self, split):
        """Share of examples in a training batch whose loss says nothing: no gradient at all."""
        if batch_normalizers(self._model):
            logits = self._copy(BatchStatisticsModel)(split.images)
        else:
            logits = self._model(split.images, training=False)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = self._loss(split.labels, logits)
        gradients = tape.gradient(loss, logits)
        return float(tf.reduce_mean(tf.cast(tf.reduce_all(gradients == 0, -1), tf.float32)))

    def penalty(self):
        """What the model's regularizers add to the loss."""
        return float(sum(self._model.losses))

    def predicted_classes(self, split):
        """How many classes the model gives to at least one of these examples."""
        logits = [
            self._model(split.images[start:start + 200], training=False).numpy()
            for start in range(0, len(split), 200)
        ]
        return len(np.unique(np.concatenate(logits).argmax(-1)))

    def skipped_batches(self):
        """Training batches that the normalizers did not take into their statistics."""
        return skipped_batches(self._model)

    def evaluate(self, split, batch_size=200):
        """(loss, accuracy) of a split in inference mode."""
        return self._inference(split.images, split.labels, batch_size)

    def evaluate_batch_statistics(self, split):
        """Accuracy of a split with batch statistics; None for a model that has none."""
        if not batch_normalizers(self._model):
            return None
        return self._evaluate_copy(BatchStatisticsModel, split)[1]

    def evaluate_pitfall(self, name, split):
        """Accuracy of a split, in one batch, evaluated with a bug of `diagnostics.pitfalls`."""
        return self._evaluate_copy(pitfalls.evaluation(name), split, len(split))[1]

    def _evaluate_copy(self, maker, split, batch_size=200):
        copy = self._copy(maker)
        if maker not in self._evaluators:
            self._evaluators[maker] = self._evaluator(copy)
        return self._evaluators[maker](split.images, split.labels, batch_size)

    def _copy(self, maker):
        """The model's copy of one kind, with its present weights."""
        if maker in self._copies:
            self._copies[maker].refresh()
        else:
            self._copies[maker] = maker(self._model)
        return self._copies[maker]

    def pitfalls(self, names, split):
        """What `diagnostics.pitfalls` measures of the model as it is now."""
        names = None if names == "all" else [name.strip() for name in names.split(",")]
        return pitfalls.measure(self._model, split.images, split.labels, self._loss, names)


def build_model(config, splits, runs=None):
    """A new model for a run, with the initial weights that its seed gives.

    Args:
        config: RunConfig.
        splits: the data, for the shape of its examples.
        runs: None, or how many runs stand side by side in the model.

    Raises:
        ConfigError: the model cannot take the images, such as one that shrinks them to nothing.
    """
    factory = NORMALIZERS.get(config.normalizer)
    spec = ModelSpec(
        input_shape=splits.train.images.shape[1:],
        classes=splits.classes,
        normalizer=functools.partial(
            factory,
            momentum=config.momentum,
            epsilon=config.epsilon,
            dtype=config.dtype_policy,
        ),
        activation=config.activation,
        **pixel_scale(config, splits),
        dtype=config.dtype_policy,
        seed=config.seed,
        runs=runs,
    )
    try:
        return MODELS.get(config.model)(spec)
    except ValueError as error:
        raise ConfigError(
            f"model={config.model!r} cannot be built for images of shape {spec.input_shape}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def loss_of(config, splits):
    """The loss function of a run: the one asked for, or the model's own.

    Raises:
        ConfigError: it is for classes where the labels are numbers, or the other way round.
    """
    name = config.loss or MODELS.get(config.model).loss
    numbers = splits.train.labels.dtype.kind == "f"
    if numbers != (name == "squared"):
        raise ConfigError(
            f"loss={name!r} of model={config.model!r} with dataset={config.dataset!r}, whose "
            f"labels are {'numbers' if numbers else 'classes'}; expected "
            + ("a model for numbers, such as bad_init_mlp, or loss='squared'." if numbers else
               "another loss, such as softmax, or a dataset of numbers, such as quadratic.")
        )
    return LOSSES.get(name)


def pixel_scale(config, splits):
    """scale and offset of a ModelSpec, for pixels as the run wants them."""
    offset = -0.5 if config.pixels == "centered" else 0.0
    return {"scale": 1.0 if config.pixels == "raw" else splits.scale, "offset": offset}


def batch_indices(config, examples, steps):
    """The examples of every step of a run, as `loop.batch_indices`."""
    rng = None if config.batch_order == "fixed" else np.random.default_rng(config.seed)
    if config.drawn_batches is not None:
        examples = min(examples, config.drawn_batches * config.batch_size)
    keep_last = config.last_batch == "keep"
    return loop.batch_indices(examples, config.batch_size, steps, rng, keep_last)


def end_metrics(validation, test, curves, splits):
    """What every run ends with.

    Args:
        validation, test: (loss, accuracy) over these splits; accuracy NaN for a regression.
        curves: the run's.
        splits: the data.
    """
    curve = curves.get("accuracy/validation", [])
    accuracy = finite(validation[1])
    known = [value for value in (accuracy, *(value for _, value in curve)) if value is not None]
    steps_to = {
        f"steps_to_{percent}_percent": stats.steps_to_target(curve, percent / 100)
        for percent in (90, 95, 97, 98)
    }
    return {
        "validation_loss": finite(validation[0]),
        "validation_accuracy": accuracy,
        "test_loss": finite(test[0]),
        "test_accuracy": finite(test[1]),
        "best_validation_accuracy": max(known, default=None),
        "chance": 1 / splits.classes,
        **steps_to,
    }


def kernel_digest(model):
    """Twelve hexadecimal digits over all kernels, by which arms prove that they started alike."""
    digest = hashlib.sha256()
    for weight in sorted(model.weights, key=lambda weight: weight.path):
        if weight.name == "kernel":
            digest.update(weight.path.encode())
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:12]


def start_devices():
    """Makes TensorFlow look for its devices now, and not in the middle of the first run."""
    tf.config.list_logical_devices()


def versions():
    """Versions of what computes a result."""
    return {
        "bn_keras": bn_keras.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def finite(value):
    """A number as results hold it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
