"""Many runs of one dense net side by side in one graph: seeds and learning rates as one more axis.

A step of a small net is all overhead; twenty nets in one step cost little more than one. Each run
has its own weights, batches and learning rate, and ends up where it would have ended alone.
"""

import dataclasses
import time

import keras
import numpy as np
import tensorflow as tf

from bn_keras import loop, results
from bn_keras.config import ConfigError
from bn_keras.diagnostics.layers import LayerRecorder, side_by_side
from bn_keras.models.blocks import normalizers
from bn_keras.registry import MODELS, OPTIMIZERS
from bn_keras.runner import (
    Runner,
    batch_indices,
    build_model,
    end_metrics,
    finite,
    kernel_digest,
    loss_of,
    versions,
)
from bn_keras.summaries import Memory, write_curves
from bn_keras.surgery.recalibrate import recalibrate
from bn_keras.surgery.statistics import batch_normalizers

# Normalizers that take every channel by itself, so that they cannot mix up the runs.
CHANNELWISE = (
    "none", "batch", "keras_batch", "renorm", "activated", "conditional", "frozen_affine",
    "frozen_statistics",
)
MOST_RUNS = 32  # at once: the indices of all steps and the activations must fit in memory
EVALUATION_BATCH = 1000
PERCENTILES = (15, 50, 85)


def stacks(config):
    """Whether runs of this configuration can stand in a stack."""
    if config.pitfalls is not None or config.pitfall_curve is not None:
        return False  # these are measured on a model of one run
    return getattr(MODELS.get(config.model), "stacks", False) and config.normalizer in CHANNELWISE


def graph_key(config):
    """As RunConfig.graph_key, but equal also for models that differ in initial weights only."""
    model = getattr(MODELS.get(config.model), "same_graph", config.model)
    return dataclasses.replace(config, model=model).graph_key()


def stack_key(config):
    """Equal for runs that can stand in one stack."""
    # Only plain SGD takes each run's own rate; lengths and points of the curves are shared.
    rate = None if config.optimizer == "sgd" else config.learning_rate
    return (graph_key(config), rate, config.steps, config.epochs, config.last_batch,
            config.drawn_batches, config.log_interval, config.eval_interval, config.curve_size)


def groups(configs):
    """Runs as a Dispatcher wants them: a list of lists of lists of runs.

    Runs of one inner list are trained side by side in one stack. The lists of one group share a
    graph and come one after another; groups can run at the same time.
    """
    graphs = {}
    for config in configs:
        key = stack_key(config) if stacks(config) else config.fingerprint()
        graphs.setdefault(graph_key(config), {}).setdefault(key, []).append(config)
    return [
        [runs[start:start + MOST_RUNS]
         for runs in items.values() for start in range(0, len(runs), MOST_RUNS)]
        for items in graphs.values()
    ]


class Dispatcher:
    """Trains lists of runs: stacks side by side, a run that cannot stand in a stack alone.

    Args:
        *args: as for StackRunner and Runner.
    """

    def __init__(self, *args):
        self._alone, self._stacked = Runner(*args), StackRunner(*args)

    def __call__(self, configs):
        """Returns the list of RunResults, or None if stopped."""
        if stacks(configs[0]):
            return self._stacked(configs)
        if configs[0].capture:
            raise ConfigError(
                f"capture=True with model={configs[0].model!r} and normalizer="
                f"{configs[0].normalizer!r}: expected ones that can stand in a stack"
            )
        result = self._alone(configs[0])
        return None if result is None else [result]


class StackTrainer:
    """Trains a stacked model over one resident set of examples.

    Args:
        model: maps (batch, runs, ...) inputs to (batch, runs, outputs).
        loss: `(labels, outputs) -> one loss an example`.
        optimizer: a Keras optimizer.
        inputs, labels: arrays (n, ...), (n,).
        runs: how many.
    """

    def __init__(self, model, loss, optimizer, inputs, labels, runs):
        self.model, self.optimizer, self._loss, self._runs = model, optimizer, loss, runs
        self._inputs, self._labels = tf.constant(inputs), tf.constant(labels)
        self._per_run_rates = type(optimizer) is keras.optimizers.SGD and not optimizer.momentum
        self._rates = tf.Variable(tf.ones(runs), trainable=False)
        optimizer.build(model.trainable_variables)
        self._train = tf.function(self._steps, jit_compile=True)

    def set_rates(self, rates):
        """Takes a learning rate for every run; all equal unless the optimizer is plain SGD."""
        if self._per_run_rates:
            self._rates.assign(rates)
            self.optimizer.learning_rate = 1.0
        else:
            self.optimizer.learning_rate = rates[0]

    def train(self, indices):
        """Runs k steps in one graph call.

        Args:
            indices: integer array (k, batch, runs) of examples.

        Returns:
            Loss and accuracy before each update, arrays (k, runs).
        """
        # By the concrete function of its shape, for the same reason as in loop.Trainer.train.
        train = self._train.get_concrete_function(tf.TensorSpec(indices.shape, tf.int32))
        loss, accuracy = train(tf.constant(indices, tf.int32))
        return loss.numpy(), accuracy.numpy()

    def _steps(self, indices):
        steps = indices.shape[0]  # known: XLA compiles anew for every number of steps
        losses = tf.TensorArray(tf.float32, steps)
        accuracies = tf.TensorArray(tf.float32, steps)
        for step in tf.range(steps):
            inputs = tf.gather(self._inputs, indices[step])
            labels = tf.gather(self._labels, indices[step])
            loss, outputs = self._step(inputs, labels)
            losses = losses.write(step, tf.cast(loss, tf.float32))
            accuracies = accuracies.write(step, per_run_accuracy(labels, outputs))
        return losses.stack(), accuracies.stack()

    def _step(self, inputs, labels):
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(inputs, training=True)
            loss = tf.reduce_mean(per_run_losses(self._loss, labels, outputs), 0)
            # No run's weights are in another's loss: the gradient of the sum is that of each.
            total = tf.add_n([tf.reduce_sum(loss), *self.model.losses])
        gradients = tape.gradient(total, [weight.value for weight in weights])
        if self._per_run_rates:
            gradients = [self._times_rates(gradient) for gradient in gradients]
        self.optimizer.apply(gradients, weights)
        return loss, outputs

    def _times_rates(self, gradient):
        rows = tf.reshape(gradient, [self._runs, -1])
        rates = tf.cast(self._rates, gradient.dtype)[:, None]
        return tf.reshape(rows * rates, gradient.shape)


def per_run_losses(loss, labels, outputs):
    """(batch, runs) losses of (batch, runs) labels and (batch, runs, outputs)."""
    flat = loss(tf.reshape(labels, [-1]), tf.reshape(outputs, [-1, outputs.shape[-1]]))
    return tf.reshape(flat, tf.shape(labels))


def per_run_accuracy(labels, outputs):
    """(runs,) shares of right answers; NaN for a regression, which has none."""
    if not labels.dtype.is_integer:
        return tf.fill([outputs.shape[1]], float("nan"))
    right = tf.equal(tf.argmax(outputs, -1, output_type=tf.int32), tf.cast(labels, tf.int32))
    finite = tf.reduce_all(tf.math.is_finite(outputs), -1)
    return tf.reduce_mean(tf.cast(right & finite, "float32"), 0)


class StackRunner:
    """Trains and evaluates stacks of runs over one dataset.

    Args:
        splits: `bn_keras.data.Splits`.
        store: `bn_keras.results.Store` to write curves for TensorBoard beside.
        terminal: `summaries.Terminal`, or None to show nothing.
        stop: `threading.Event`; once set, a stack in progress returns None.
    """

    def __init__(self, splits, store, terminal=None, stop=None):
        self._splits, self._store, self._terminal, self._stop = splits, store, terminal, stop

    def __call__(self, configs):
        """Trains runs with equal `stack_key`; returns a RunResult each, or None if stopped.

        If they are captured, the store gets the frames of the first run of every arm.
        """
        started = time.perf_counter()
        first, splits, runs = configs[0], self._splits, len(configs)
        total = first.total_steps(len(splits.train))
        model, starts = build_stack(configs, splits)
        loss = loss_of(first, splits)
        optimizer = OPTIMIZERS.get(first.optimizer)(learning_rate=first.learning_rate)
        trainer = StackTrainer(
            model, loss, optimizer, splits.train.images, splits.train.labels, runs
        )
        trainer.set_rates([config.learning_rate for config in configs])
        evaluate = _StackEvaluator(model, loss, runs)
        batches = np.stack(
            [batch_indices(config, len(splits.train), total) for config in configs], -1
        )
        memories = [Memory() for _ in configs]
        diverged_at = np.full(runs, -1)
        curve_set = splits.validation.first(first.curve_size)
        low, high = np.inf, -np.inf  # of each unit's median so far
        capture, bar = None, None
        if first.capture:
            capture = _Capture(model, configs, splits, evaluate, memories)
            capture.record(0, diverged_at)
        if self._terminal is not None:
            bar = self._terminal.run(f"{first.arm_name} and {runs - 1} more" if runs > 1
                                     else first.arm_name, total)

        for end, indices in loop.chunks(batches, first.log_interval, first.eval_interval):
            if self._stop is not None and self._stop.is_set():
                return None
            losses, accuracies = trainer.train(indices)
            bad = ~np.isfinite(losses)
            new = bad.any(0) & (diverged_at < 0)
            diverged_at[new] = end - len(indices) + bad.argmax(0)[new] + 1
            shown = {}
            if end % first.log_interval == 0 or end == total:
                shown |= {"loss/train": losses[-1], "accuracy/train": accuracies[-1]}
            if end % first.eval_interval == 0 or end == total:
                loss_now, accuracy_now, units = evaluate(curve_set, units=True)
                shown |= {"loss/validation": loss_now, "accuracy/validation": accuracy_now}
                found = np.percentile(units, PERCENTILES, axis=0)
                shown |= {f"unit/p{p}": of[:, 0] for p, of in zip(PERCENTILES, found)}
                now = found[PERCENTILES.index(50)]
                low, high = np.minimum(low, now), np.maximum(high, now)
                shown["units/median_range"] = (high - low).mean(-1)
                if capture is not None:
                    capture.record(end, diverged_at)
            for run, memory in enumerate(memories):
                if diverged_at[run] < 0:
                    memory.scalars(end, {k: finite(v[run]) for k, v in shown.items()})
            if bar is not None:
                bar.scalars(end, {"loss/train": finite(losses[-1].mean()),
                                  "accuracy/train": finite(accuracies[-1].mean())})

        validation = np.array(evaluate(splits.validation))
        test = np.array(evaluate(splits.test))
        captured = [{} for _ in configs] if capture is None else capture.metrics(loss)
        frames = {} if capture is None else capture.store_frames(self._store)
        seconds = round((time.perf_counter() - started) / runs, 3)
        found = [
            results.RunResult(
                config=config,
                status=results.OK if diverged_at[run] < 0 else results.DIVERGED,
                steps=total if diverged_at[run] < 0 else int(diverged_at[run]),
                seconds=seconds,
                metrics={
                    **end_metrics(
                        validation[:, run], test[:, run], memories[run].curves, splits
                    ),
                    **captured[run],
                },
                curves=memories[run].curves,
                start=starts[run],
                versions=versions(),
            )
            for run, config in enumerate(configs)
        ]
        for run, result in enumerate(found):
            name = self._store.run_name(result.config)
            write_curves(
                self._store.work_dir / "tensorboard" / name, name, result, frames.get(run)
            )
        if bar is not None:
            bar.finish(dataclasses.replace(found[0], seconds=seconds * runs))
        return found


def build_stack(configs, splits):
    """A stacked model with each run's initial weights, and the digests of those."""
    alone = {(config.model, config.seed): build_model(config, splits) for config in configs}
    starts = {key: kernel_digest(model) for key, model in alone.items()}
    model = build_model(configs[0], splits, runs=len(configs))
    columns = [alone[config.model, config.seed].variables for config in configs]
    for variable, *values in zip(model.variables, *columns, strict=True):
        variable.assign(np.stack([value.numpy() for value in values]).reshape(variable.shape))
    return model, [starts[config.model, config.seed] for config in configs]


class _Capture:
    """What runs with `capture` leave behind beside the rest: frames, a test curve, measures."""

    def __init__(self, model, configs, splits, evaluate, memories):
        first, runs = configs[0], len(configs)
        self._model, self._configs, self._splits = model, configs, splits
        self._evaluate, self._memories = evaluate, memories
        self._seen = splits.test.first(first.curve_size)
        self._recorder = LayerRecorder(
            model, runs, self._seen.images, self._seen.labels,
            steps_per_epoch=first.steps_per_epoch(len(splits.train)),
        )
        self._start = self._measure("start")

    def _measure(self, when):
        images = self._splits.train.images
        return self._recorder.measure(images, self._configs[0].activation, when)

    def record(self, step, diverged_at):
        """Takes a frame, and a point of the test curve of every run that has not diverged."""
        self._recorder.record(step)
        loss, _ = self._evaluate(self._seen)
        for run, memory in enumerate(self._memories):
            if diverged_at[run] < 0:
                memory.scalars(step, {"loss/test": finite(loss[run])})

    def store_frames(self, store):
        """Stores the frames of the first run of every arm; returns them by the run's place."""
        places = {}
        for run, config in enumerate(self._configs):
            places.setdefault(config.arm_name, run)
        frames = {run: self._recorder.frames(run) for run in places.values()}
        for run, arrays in frames.items():
            store.add_frames(self._configs[run], arrays)
        return frames

    def metrics(self, loss):
        """The measures of every run at its start and now, a list of dicts."""
        found = {**self._start, **self._measure("end")}
        if batch_normalizers(self._model):
            runs, test = len(self._configs), self._splits.test
            exact = recalibrate(self._model, side_by_side(self._splits.train.images, runs))
            outputs = exact(side_by_side(test.images, runs), training=False)
            losses = per_run_losses(loss, side_by_side(test.labels, runs), outputs)
            found["test_loss_population_statistics"] = np.mean(losses, 0)
        return [
            {name: finite(values[run]) for name, values in found.items()}
            for run in range(len(self._configs))
        ]


class _StackEvaluator:
    """Loss and accuracy of every run over the same examples, in inference mode."""

    def __init__(self, model, loss, runs):
        self._loss, self._runs = loss, runs
        place = normalizers(model)[-1].output
        self._model = keras.Model(model.input, [model.output, place])
        self._evaluate = tf.function(self._batch, reduce_retracing=True)

    def __call__(self, split, units=False):
        """(loss, accuracy) of the runs; with units also what goes into the last activation.

        That is an array (examples, runs, units).
        """
        losses, shares, places = [], [], []
        for start in range(0, len(split), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            loss, share, place = self._evaluate(
                tf.constant(split.images[part]), tf.constant(split.labels[part])
            )
            size = len(split.labels[part])
            losses.append(loss.numpy() * size)
            shares.append(share.numpy() * size)
            places.append(place.numpy() if units else None)
        loss, share = (np.sum(values, 0) / len(split) for values in (losses, shares))
        return (loss, share, np.concatenate(places)) if units else (loss, share)

    def _batch(self, images, labels):
        images = tf.repeat(images[:, None], self._runs, axis=1)
        labels = tf.repeat(labels[:, None], self._runs, axis=1)
        outputs, place = self._model(images, training=False)
        loss = tf.reduce_mean(tf.cast(per_run_losses(self._loss, labels, outputs), "float32"), 0)
        place = tf.reshape(place, [tf.shape(place)[0], self._runs, -1])
        return loss, per_run_accuracy(labels, outputs), tf.cast(place, "float32")
