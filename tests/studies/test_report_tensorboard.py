"""The parts of a report that TensorBoard shows: bands over seeds, columns of the HParams table."""

import numpy as np
import pytest
from reports import compared, result

from bn_keras.plan import make_plan
from bn_keras.report import tensorboard
from bn_keras.report.report import make_report
from bn_keras.results import DIVERGED

NAME = "loss/validation"


def bands(curves, lost=(), name=NAME):
    """Bands of `batch` from a curve a seed; `none` has one point, the worst loss of all."""
    plan = make_plan("comparison", {}, seeds=len(curves))
    results = [
        result(run, 0.5, DIVERGED if run.seed in lost else "ok",
               curves={name: curves[run.seed]} if run.normalizer == "batch" else {})
        for run in plan.runs
    ]
    results[0].curves[name] = [[10, 9.0 if "loss" in name else 0.125]]
    found = tensorboard.bands(plan.study, results)
    return {arm: of_arm[name] for arm, of_arm in found.items()}


def test_a_band_is_the_median_the_lowest_and_the_highest_of_the_seeds():
    found = bands([[[10, 1.0], [20, 5.0]], [[10, 2.0], [20, 4.0]], [[10, 7.0], [20, 3.0]]])
    assert found["batch"].tolist() == [[10, 2, 1, 7], [20, 4, 3, 5]]
    assert found["none"].tolist() == [[10, 9, 9, 9]]


@pytest.mark.parametrize("name, expected", [
    (NAME, [[10, 0.5, 0.25, 0.75], [20, 0.5, 0.25, 9]]),
    ("accuracy/validation", [[10, 0.5, 0.25, 0.75], [20, 0.25, 0.125, 0.5]]),
])
def test_a_diverged_run_counts_as_the_worst_value_of_all_arms(name, expected):
    curves = [[[10, 0.25], [20, 0.25]], [[10, 0.5], [20, 0.5]], [[10, 0.75], [20, None]]]
    assert bands(curves, lost=[2], name=name)["batch"].tolist() == expected


def test_a_band_ends_where_half_of_the_runs_have_diverged():
    curves = [[[10, 1.0], [20, 1.0]], [[10, 2.0]], [[10, 3.0]]]
    assert bands(curves, lost=[1, 2])["batch"].tolist() == [[10, 2, 1, 3]]


def test_a_run_that_went_on_without_a_measurement_has_no_part_in_a_point():
    found = bands([[[10, 1.0], [20, 1.0]], [[20, 2.0]]])
    np.testing.assert_array_equal(found["batch"], [[10, 1, 1, 1], [20, 1.5, 1, 2]])


def test_a_curve_that_nobody_has_a_point_of_has_no_band():
    plan = make_plan("comparison", {}, seeds=1)
    results = [result(run, 0.5, curves={NAME: [[0, None]]}) for run in plan.runs]
    assert tensorboard.bands(plan.study, results) == {}


def test_the_columns_are_arm_seed_and_the_settings_that_differ():
    report = make_report(*compared({"none": [0.1, 0.2], "batch": [0.9, 0.8]}))
    assert tensorboard.settings(report) == ["arm", "seed"]
    plan = make_plan("comparison", {}, seeds=1, axes={"learning_rate": [0.1, 1.0]})
    report = make_report(plan, [result(run, 0.5) for run in plan.runs])
    assert tensorboard.settings(report) == ["arm", "seed", "normalizer", "learning_rate"]


def test_the_metrics_are_the_study_s_and_the_final_ones_that_there_are():
    report = make_report(*compared({"none": [None], "batch": [0.95]}))
    found = tensorboard.metrics(report)
    assert list(found)[0] == "validation_accuracy" and "test_accuracy" in found
    assert found["test_accuracy"] == "test accuracy" and "test_loss" not in found


def test_a_regression_s_metrics_are_losses():
    plan = make_plan("comparison", {}, seeds=1).of_numbers()
    losses = {"validation_loss": 2.0, "test_loss": 3.0, "validation_accuracy": None}
    report = make_report(plan, [result(run, None, "ok", metrics=losses) for run in plan.runs])
    assert list(tensorboard.metrics(report)) == ["validation_loss", "test_loss"]


@pytest.mark.slow
def test_every_panel_is_a_picture_of_its_own():
    report = make_report(*compared({"none": [0.1], "batch": [0.9]}))
    found = tensorboard.comparison(report)["pictures"]
    assert len(found) == len(report.plan.study.figures) > 1
    assert all(picture.startswith(b"\x89PNG") for picture in found.values())
