"""Where a run's numbers go while it runs: TensorBoard, the terminal, memory."""

import shutil
import sys
import time

import numpy as np
import tensorflow as tf
from rich import progress
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram import summary_v2 as histogram
from tensorboard.plugins.hparams import api as hp

# The HParams table opens with five columns: these.
HPARAMS = ("learning_rate", "model", "normalizer", "optimizer", "seed")
METRICS = {
    "summary/final_validation_accuracy": "final validation accuracy",
    "summary/final_test_accuracy": "final test accuracy",
    "summary/best_validation_accuracy": "best validation accuracy",
    "summary/steps_to_90_percent": "steps to 90 % validation accuracy",
}
CHARTS = {
    "accuracy": {
        "training batches (batch statistics)": r"accuracy/train$",
        "validation (population statistics)": r"accuracy/validation$",
    },
    "loss": {
        "training batches (batch statistics)": r"loss/train$",
        "validation (population statistics)": r"loss/validation$",
    },
    "gradient": {"Euclidean norm over all weights": r"gradient/norm$"},
    "statistics": {"training batches left out by the guards": r"statistics/skipped_batches$"},
}


class Writer:
    """The narrow interface that a run writes to; a writer overrides what it can show.

    Values are floats (scalars) or arrays of any shape (histograms), by tag; steps are counted from
    the start of training.
    """

    def scalars(self, step, values):
        """Takes a dict of tag to float."""

    def histograms(self, step, values):
        """Takes a dict of tag to array."""

    def finish(self, result):
        """Takes the RunResult at the end of the run; the writer is not used again."""

    def close(self):
        """Releases files, whether or not the run came to its end."""


class FanOut(Writer):
    """Passes everything on to several writers."""

    def __init__(self, writers):
        self._writers = list(writers)

    def scalars(self, step, values):
        for writer in self._writers:
            writer.scalars(step, values)

    def histograms(self, step, values):
        for writer in self._writers:
            writer.histograms(step, values)

    def finish(self, result):
        for writer in self._writers:
            writer.finish(result)

    def close(self):
        for writer in self._writers:
            writer.close()


class Memory(Writer):
    """Keeps scalars as curves: dict of tag to list of [step, value]."""

    def __init__(self):
        self.curves = {}

    def scalars(self, step, values):
        for tag, value in values.items():
            self.curves.setdefault(tag, []).append([step, value])


class TensorBoard(Writer):
    """Writes one run's folder of TensorBoard events.

    Args:
        logdir: the run's folder.
        name: the run's name in the HParams table.
    """

    def __init__(self, logdir, name):
        self._name = name
        self._writer = tf.summary.create_file_writer(str(logdir))

    def scalars(self, step, values):
        with self._writer.as_default(step):
            for tag, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag, value)

    def histograms(self, step, values):
        with self._writer.as_default(step):
            for tag, value in values.items():
                # In NumPy: TensorFlow's op takes ten times as long for a small histogram.
                found = histogram.histogram_pb(tag, np.asarray(value))
                tf.summary.experimental.write_raw_pb(found.SerializeToString(), step)

    def finish(self, result):
        with self._writer.as_default(result.steps):
            hp.hparams({name: getattr(result.config, name) for name in HPARAMS}, self._name)
            values = {
                "summary/final_validation_accuracy": result.metrics["validation_accuracy"],
                "summary/final_test_accuracy": result.metrics["test_accuracy"],
                "summary/best_validation_accuracy": result.metrics["best_validation_accuracy"],
                "summary/steps_to_90_percent": result.metrics["steps_to_90_percent"],
            }
            self.scalars(result.steps, values)

    def close(self):
        self._writer.close()


class Terminal:
    """A progress bar for every run on a terminal, a line for every finished run elsewhere.

    A context manager; `run` gives the Writer of one run.
    """

    def __init__(self, console):
        self._console = console
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.completed:>4.0f}/{task.total:.0f} steps"),
            progress.TextColumn("{task.fields[rate]:>6} steps/s"),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TextColumn("accuracy {task.fields[accuracy]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *error):
        self._bars.stop()

    def run(self, name, total):
        """The writer that shows the run of that name, of `total` steps."""
        task = self._bars.add_task(name, total=total, rate="", loss="", accuracy="")
        return _Bar(self._bars, task, self._console, name)


class _Bar(Writer):
    def __init__(self, bars, task, console, name):
        self._bars, self._task, self._console, self._name = bars, task, console, name
        self._started = time.perf_counter()

    def scalars(self, step, values):
        if "loss/train" in values:
            rate = step / (time.perf_counter() - self._started)
            self._bars.update(
                self._task,
                completed=step,
                rate=f"{rate:.1f}",
                loss=_short(values["loss/train"]),
                accuracy=_short(values["accuracy/train"]),
            )

    def finish(self, result):
        if self._console.is_terminal:
            return
        rate = result.steps / result.seconds
        self._console.print(
            f"{self._name}: {result.status} after {result.steps} steps, {rate:.1f} steps/s, "
            f"{_outcome(result.metrics)}",
            highlight=False,
        )
        sys.stdout.flush()


def write_curves(logdir, name, result, frames=None):
    """Writes a finished run's curves as one folder of TensorBoard events.

    Args:
        logdir: the run's folder; what is in it is replaced.
        name: the run's name in the HParams table.
        result: RunResult.
        frames: what its layers saw, as `LayerRecorder.frames` gives it, to write as histograms.
    """
    shutil.rmtree(logdir, ignore_errors=True)
    writer = TensorBoard(logdir, name)
    for frame, step in enumerate([] if frames is None else frames["steps"]):
        writer.histograms(int(step), {
            f"{layer}/{what}": frames[f"{layer}/{end}"][frame]
            for layer in frames["layers"]
            for end, what in (("output", "pre-activation"), ("input", "input"))
        })
    for tag, points in result.curves.items():
        for step, value in points:
            writer.scalars(step, {tag: value})
    writer.finish(result)
    writer.close()


def write_comparison(logdir, figure, verdict):
    """Adds what is about all runs at once: layout of the overlaid charts, HParams, figure, verdict.

    Args:
        logdir: a folder beside the runs' folders; what is in it is replaced.
        figure: bytes of a PNG.
        verdict: Markdown.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=f"{title}: {name}",
                    multiline=layout_pb2.MultilineChartContent(tag=[tag]),
                )
                for name, tag in charts.items()
            ],
        )
        for title, charts in CHARTS.items()
    ]
    layout = custom_scalar.pb(layout_pb2.Layout(category=categories))
    shutil.rmtree(logdir, ignore_errors=True)  # of an earlier command in this work directory
    writer = tf.summary.create_file_writer(str(logdir))
    with writer.as_default(0):
        tf.summary.experimental.write_raw_pb(layout.SerializeToString(), step=0)
        hp.hparams_config(
            hparams=[hp.HParam(name) for name in HPARAMS],
            metrics=[hp.Metric(tag, display_name=title) for tag, title in METRICS.items()],
        )
        tf.summary.image("comparison", tf.image.decode_png(figure, channels=3)[tf.newaxis])
        tf.summary.text("verdict", verdict)
    writer.close()


def _outcome(metrics):
    if metrics["validation_accuracy"] is None:  # a regression
        return f"validation loss {_short(metrics['validation_loss'])}"
    return f"validation accuracy {_short(metrics['validation_accuracy'])}"


def _short(value):
    return "–" if value is None else f"{value:.3f}"
