"""A report's parts for TensorBoard: bands over seeds, pictures, columns of the HParams table."""

import dataclasses
import math
from typing import Any, Sequence

import numpy as np

from bn_keras import study as studies
from bn_keras.config import RUN_FIELDS
from bn_keras.metrics import LOW, describe
from bn_keras.report import figures
from bn_keras.report.figures.drawing import by_arm, finite_points, median_curve
from bn_keras.report.report import Report, panels
from bn_keras.results import DIVERGED
from bn_keras.study import Row, Study
from bn_keras.texts import plain

FLOAT32 = float(np.finfo(np.float32).max)
FINAL = ("validation_accuracy", "test_accuracy", "validation_loss", "test_loss")


def comparison(report: Report) -> dict[str, Any]:
    """The arguments of `writers.tensorboard.write_comparison` beside its folder."""
    study = report.plan.study
    return {
        "pictures": pictures(report.rows, panels(report.plan)),
        "verdict": report.verdict,
        "bands": bands(study, report.results),
        "settings": settings(report),
        "metrics": metrics(report),
    }


def pictures(rows: Sequence[Row], names: Sequence[str]) -> dict[str, bytes]:
    """Panel to a PNG of it alone: all side by side are too small on TensorBoard's cards."""
    return {name: figures.picture(rows, [name], "") for name in names}


def bands(study: Study, results: Sequence[Any]) -> dict[str, dict[str, np.ndarray]]:
    """Arm to curve to an array (points, 4) of step, median, lowest and highest value over seeds.

    From where a run diverged, it counts as the worst value that any run of any arm has in this
    curve. A band ends where the pictures' median does: where half of the runs have diverged.

    Args:
        study: Study.
        results: RunResults, in any order.
    """
    # A ladder's rows and those of views have no curves.
    rows = studies.rows(dataclasses.replace(study, ladder=None, views={}), results)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.curves):
        for arm, band in _of_curve(name, rows).items():
            # What TensorBoard's files can hold: float32, and names in UTF-8.
            found.setdefault(arm, {})[plain(name)] = np.clip(band, -FLOAT32, FLOAT32)
    return found


def settings(report: Report) -> list[str]:
    """The columns of the HParams table: settings in which planned runs differ, arm and seed."""
    runs = report.plan.runs
    same = {"arm", "seed"}
    if all(run.arm_name == run.normalizer for run in runs):
        same.add("normalizer")
    differ = [name for name in RUN_FIELDS
              if name not in same and len({getattr(run, name) for run in runs}) > 1]
    return ["arm", "seed", *differ]


def metrics(report: Report) -> dict[str, str]:
    """Name to title of the metrics in the HParams table: the study's, and final figures."""
    study = report.plan.study
    names = dict.fromkeys((study.compared, *study.columns, *FINAL))
    return {name: describe(name).title for name in names
            if any(result.metrics.get(name) is not None for result in report.results)}


def _of_curve(name: str, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Arm to its band; none for an arm that has not a single point."""
    known = describe(name)
    arms = by_arm(rows)
    points = {arm: [finite_points(row.curves.get(name, [])) for row in runs]
              for arm, runs in arms.items()}
    values = np.concatenate([curve[:, 1] for curves in points.values() for curve in curves])
    if not len(values):
        return {}
    worst = values.min() if known.worse == LOW else values.max()
    found = {}
    for arm, runs in arms.items():
        steps, median = median_curve(runs, points[arm], known.worst)
        # A run that went on but was not measured at a step has no part in it.
        others = [worst if row.status == DIVERGED else math.nan for row in runs]
        curves = [dict(curve.tolist()) for curve in points[arm]]
        here = [[curve.get(step, other) for curve, other in zip(curves, others)] for step in steps]
        if here:
            found[arm] = np.column_stack(
                [steps, median, np.nanmin(here, axis=1), np.nanmax(here, axis=1)]
            )
    return found
