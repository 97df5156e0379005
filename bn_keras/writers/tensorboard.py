"""TensorBoard events: one folder for each run, and one for their comparison."""

import contextlib
import shutil
from typing import Any, Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram import summary_v2 as histogram
from tensorboard.plugins.hparams import api as hp

from bn_keras.writers import Writer

# The HParams table opens with five columns: these.
HPARAMS = ("learning_rate", "model", "normalizer", "optimizer", "seed")
METRICS = {
    "validation_accuracy": "final validation accuracy",
    "test_accuracy": "final test accuracy",
    "steps_to_90_percent": "steps to 90 % validation accuracy",
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


@contextlib.contextmanager
def _failing_as_files_do() -> Iterator[None]:
    """Turns TensorFlow's error for a full disk, or for a path that is taken, into an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(" ".join(error.message.rpartition("}} ")[-1].split())) from error


class TensorBoard(Writer):
    """Writes one run's folder of TensorBoard events.

    Args:
        logdir: the run's folder.
        name: the run's name in the HParams table.
    """

    @_failing_as_files_do()
    def __init__(self, logdir: Any, name: str):
        self._name = name
        self._writer = tf.summary.create_file_writer(str(logdir))

    @_failing_as_files_do()
    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        with self._writer.as_default(step):
            for tag, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag, value)

    @_failing_as_files_do()
    def histograms(self, step: int, values: Mapping[str, Any]) -> None:
        with self._writer.as_default(step):
            for tag, value in values.items():
                value = np.asarray(value)
                # inf and NaN have no place on a histogram's axis.
                value = value[np.isfinite(value)]
                # In NumPy: TensorFlow's op takes ten times as long for a small histogram.
                found = histogram.histogram_pb(tag, value)
                tf.summary.experimental.write_raw_pb(found.SerializeToString(), step)

    @_failing_as_files_do()
    def finish(self, result: Any) -> None:
        with self._writer.as_default(result.steps):
            hp.hparams({name: getattr(result.config, name) for name in HPARAMS}, self._name)
            self.scalars(
                result.steps, {f"summary/{name}": result.metrics.get(name) for name in METRICS}
            )

    @_failing_as_files_do()
    def close(self) -> None:
        self._writer.close()


@_failing_as_files_do()
def write_comparison(logdir: Any, figure: bytes, verdict: str) -> None:
    """Writes the comparison of all runs: layout of overlaid charts, HParams, figure, verdict.

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
            metrics=[
                hp.Metric(f"summary/{name}", display_name=title)
                for name, title in METRICS.items()
            ],
        )
        tf.summary.image("comparison", tf.image.decode_png(figure, channels=3)[tf.newaxis])
        tf.summary.text("verdict", verdict)
    writer.close()
