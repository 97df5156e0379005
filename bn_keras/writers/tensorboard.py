"""TensorBoard events: a folder for each run, one for each arm, and one for their comparison."""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram import summary_v2 as histogram
from tensorboard.plugins.hparams import api as hp
from tensorboard.plugins.scalar import summary_v2 as scalar

from bn_keras.writers import Writer


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
            # All of them: the comparison names those that the table shows.
            settings = {**dataclasses.asdict(result.config), "arm": result.config.arm_name}
            shown = {name: _in_table(name, value) for name, value in settings.items()}
            hp.hparams(shown, self._name)
            self.scalars(
                result.steps, {f"summary/{name}": value for name, value in result.metrics.items()}
            )

    @_failing_as_files_do()
    def close(self) -> None:
        self._writer.close()


@_failing_as_files_do()
def write_comparison(
    logdir: Any, pictures: Mapping[str, bytes], verdict: str,
    bands: Mapping[str, Mapping[str, np.ndarray]], settings: Sequence[str],
    metrics: Mapping[str, str],
) -> None:
    """Writes the comparison of all runs: bands over the seeds, HParams, pictures, verdict.

    The bands of an arm go into a folder of the arm's, for TensorBoard gives each folder a colour.

    Args:
        logdir: the folder of the arms' folders; what an earlier call wrote is replaced.
        pictures: name to the bytes of a PNG.
        verdict: Markdown.
        bands: arm to curve to an array (points, 4) of step, median, lowest and highest value.
        settings: names of the columns of the HParams table, in front of the metrics.
        metrics: name to title of its metrics.
    """
    with _replaced(pathlib.Path(logdir) / "comparison"):
        curves = dict.fromkeys(curve for of_arm in bands.values() for curve in of_arm)
        tf.summary.experimental.write_raw_pb(_layout(curves).SerializeToString(), step=0)
        hp.hparams_config(
            hparams=[hp.HParam(name) for name in settings],
            metrics=[
                hp.Metric(f"summary/{name}", display_name=title) for name, title in metrics.items()
            ],
        )
        for name, picture in pictures.items():
            image = tf.image.decode_png(picture, channels=3)
            tf.summary.image(f"comparison/{name}", image[tf.newaxis])
        tf.summary.text("verdict", verdict)
    for arm, of_arm in bands.items():
        with _replaced(pathlib.Path(logdir) / arm / "over_seeds"):
            _write_bands(of_arm)


@contextlib.contextmanager
def _replaced(folder: pathlib.Path) -> Iterator[None]:
    """Events at step 0 go into the folder, whose earlier ones are deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(0):
        yield
    writer.close()


def _layout(curves: Iterable[str]) -> Summary:
    """A margin chart for each curve."""
    categories: dict[str, layout_pb2.Category] = {}
    for curve in curves:
        median, lowest, highest = _tags(curve)
        content = layout_pb2.MarginChartContent()
        content.series.add(value=median, lower=lowest, upper=highest)
        title = curve.partition("/")[0]
        category = categories.setdefault(title, layout_pb2.Category(title=title))
        category.chart.add(
            title=f"{curve}: median, lowest, highest of the seeds (diverged: worst of all arms)",
            margin=content,
        )
    return custom_scalar.pb(layout_pb2.Layout(category=categories.values()))


def _write_bands(bands: Mapping[str, np.ndarray]) -> None:
    at_step: dict[int, Summary] = {}
    for curve, band in bands.items():
        for step, *values in band.tolist():
            for tag, value in zip(_tags(curve), values):
                at_step.setdefault(int(step), Summary()).MergeFrom(scalar.scalar_pb(tag, value))
    for step, summary in sorted(at_step.items()):
        # One event a step: an op for every point would take a hundred times as long.
        tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def _tags(curve: str) -> list[str]:
    return [f"over seeds/{curve}/{part}" for part in ("median", "lowest", "highest")]


def _in_table(name: str, value: Any) -> Any:
    """A setting as the HParams table shows it; a number there has four decimals, a seed none."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) and name != "seed" else str(value)
