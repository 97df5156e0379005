"""Sweeps: axes of a plan, the best setting of each net, what is compared and drawn."""

import dataclasses
import json

import pytest
from reports import result

from bn_keras.config import ConfigError
from bn_keras.plan import Plan, make_plan
from bn_keras.report import figures, findings, sentences
from bn_keras.report.page_command import command
from bn_keras.report.report import make_report
from bn_keras.results import DIVERGED, OK
from bn_keras.study import Row

RATES = (0.01, 0.1, 1.0)
# Net to rate to the accuracy of each seed; None for a run that diverged. The first net has its
# highest single run at .1, and its best median at .01.
FOUND = {
    "none": {0.01: [0.80, 0.81, 0.82], 0.1: [0.95, 0.30, 0.20], 1.0: [None, None, 0.1]},
    "batch": {0.01: [0.70, 0.71, 0.72], 0.1: [0.90, 0.91, 0.92], 1.0: [0.93, 0.94, 0.95]},
}


def plan(**settings):
    settings = {"seeds": 3, "axes": {"learning_rate": RATES}, "normalizers": ["none", "batch"],
                **settings}
    return make_plan("comparison", {}, **settings)


def report(found=FOUND, of=None):
    of = of or plan()
    results = []
    for run in of.runs:
        value = found[run.normalizer][run.learning_rate][run.seed]
        results.append(result(
            run, value, DIVERGED if value is None else OK, f"start {run.seed}",
            {"test_accuracy": value if value is None else value + 0.001},
        ))
    return make_report(of, results)


def test_every_net_is_tried_at_every_combination():
    of = plan(axes={"learning_rate": [0.1, 1.0], "batch_size": [8, 16]}, seeds=2)
    assert list(of.study.arms) == [
        f"{net} at {rate}, batch_size {size}"
        for net in ("none", "batch") for rate in ("0.1", "1") for size in (8, 16)
    ]
    assert len(of.runs) == 16 and of.study.compared == "test_accuracy"
    for run in of.runs:
        assert f"{run.normalizer} at {run.learning_rate:g}, batch_size {run.batch_size}" == run.arm


def test_a_plan_is_read_back_and_grows_by_further_values_in_the_same_folder():
    of = plan()
    assert Plan.from_json(of.to_json()) == of
    more = plan(axes={"learning_rate": [3.0, 0.1]}, normalizers=["none", "layer"])
    assert more.folder_name() == of.folder_name() != plan(axes={"batch_size": [8]}).folder_name()
    merged = more.merged(of)
    assert merged.study.axes["learning_rate"] == (0.01, 0.1, 1.0, 3.0)
    assert {run.arm for run in merged.runs} == set(of.study.arms) | set(more.study.arms)


@pytest.mark.parametrize("axes, message", [
    ({"learning_rat": [1.0]}, "did you mean 'learning_rate'"),
    ({"seed": [1, 2]}, "seed: received several values"),
    ({"normalizer": ["batch"]}, "normalizer: received several values"),
    ({"learning_rate": 0.1}, "learning_rate=0.1: expected a list of values"),
    ({"learning_rate": []}, "expected a list of values"),
    ({"batch_size": [8, 0.5]}, "batch_size=0.5: expected a whole number"),
])
def test_axes_that_cannot_be_are_refused(axes, message):
    with pytest.raises(ConfigError, match=message):
        plan(axes=axes)


def test_an_axis_with_a_study_or_beside_one_value_is_refused():
    with pytest.raises(ConfigError, match="several values with the study 'learning_rates'"):
        make_plan("learning_rates", {}, axes={"batch_size": [8, 16]})
    with pytest.raises(ConfigError, match="expected one value, or several, not both"):
        make_plan("comparison", {"steps": 3}, normalizers=["none"], axes={"steps": [3, 4]})


def test_axes_in_a_damaged_plan_are_refused():
    content = json.loads(plan().to_json())
    for axes in ({"learning_rate": "x"}, {"learning_rate": [-1]}, {"x": [1]}, {"learning_rate": []},
                 {"learning_rate": [{}]}, {}):
        with pytest.raises(ValueError):
            Plan.from_json(json.dumps({**content, "axes": axes}))


def test_the_best_setting_has_the_best_median_in_validation():
    best = findings.best_settings(report().plan.study, report().rows)
    assert {net: found.arm for net, found in best.items()} == {
        "none": "none at 0.01", "batch": "batch at 1",
    }
    assert best["none"].median == pytest.approx(0.81)
    assert best["batch"].settings == {"learning_rate": 1.0}


def test_nets_are_compared_at_their_best_in_a_test_metric():
    compared, = report().comparisons
    assert (compared.arm, compared.baseline, compared.metric) == ("batch", "none", "test_accuracy")
    assert compared.pairs.count == 3 and compared.pairs.median == pytest.approx(0.13)
    assert compared.alike and compared.same_data


def test_the_report_names_the_best_settings_and_an_edge_of_what_was_tried():
    told = report().verdict.splitlines()
    none, batch = (line for line in told if "is best at" in line)
    assert none.startswith("none is best at learning_rate=0.01 (chosen on validation): test accura")
    assert "it is the end of what was tried of learning_rate" in none
    assert batch.startswith("batch is best at learning_rate=1 ")
    assert any("no part in the choice" in note for note in report().notes)


def test_the_largest_workable_rate_is_relative_to_the_best_median():
    """A tenth below .94 is .846: in one seed alone a rate works for the net without."""
    rates = findings.workable_rates(report().plan.study, report().rows)
    assert rates == {"none": [0.1, None, None], "batch": [1.0, 1.0, 1.0]}
    headings, cells = sentences.table_of_sweep(report())
    assert headings[-1] == "largest workable learning rate" and len(cells) == 2
    stuck = {net: {rate: [0.11] * 3 for rate in RATES} for net in FOUND}
    assert findings.workable_rates(report().plan.study, report(stuck).rows) == {}
    assert "0 of 3 seeds learned" in report(stuck).verdict
    two = plan(axes={"learning_rate": RATES, "batch_size": [64]})
    assert findings.workable_rates(two.study, report(of=two).rows) == {}


def test_equal_medians_take_the_first_setting_and_losses_the_lowest():
    rows = [
        Row(f"none at {rate:g}", seed, OK, {"validation_loss": value}, normalizer="none",
            settings={"learning_rate": rate})
        for rate, value in ((0.01, 0.5), (0.1, 0.2), (1.0, 0.2)) for seed in range(2)
    ]
    study = dataclasses.replace(plan().study, compared="test_loss")
    assert findings.best_settings(study, rows)["none"].arm == "none at 0.1"


def test_the_figure_over_an_axis_shows_every_seed_and_marks_what_diverged():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    figures.draw("over:learning_rate", report().rows, ax)
    shown = [line for line in ax.lines if len(line.get_xdata())]
    assert len([line for line in shown if line.get_marker() == "x"]) == 2  # seeds 0 and 1 of none
    medians = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert [list(line.get_ydata()) for line in medians] == [[0.81, 0.3], [0.71, 0.91, 0.94]]
    assert ax.get_xscale() == "log"


def test_the_command_that_repeats_a_sweep_plans_it():
    from bn_keras.commands import flags, train

    of = plan(axes={"learning_rate": RATES, "batch_size": [8, 16]})
    words = command(of).split()
    assert words[:2] == ["bn-keras", "train"] and "--learning_rate=0.01,0.1,1" in words
    assert train._plan(flags.parse(["train", *words[2:]])) == of


def test_moving_averages_that_lag_are_named_with_what_batch_statistics_give():
    def told(gap):
        of = plan(axes={}, seeds=2)
        results = [
            result(run, 0.1, OK, f"{run.seed}", {
                "validation_accuracy_batch_statistics": 0.1 + gap * (run.normalizer == "batch"),
            }) for run in of.runs
        ]
        return [line for line in make_report(of, results).verdict.splitlines() if "lag" in line]

    line, = told(0.8)
    assert line.startswith("The moving averages of batch (.100, with batch statistics .900) lag")
    assert told(0.04) == []


@pytest.mark.parametrize("given, values", [
    ("--sweep=learning_rate=1e-4:1:5log", {"learning_rate": (0.0001, 0.001, 0.01, 0.1, 1.0)}),
    ("--sweep=batch_size=16:64:4lin", {"batch_size": (16, 32, 48, 64)}),
    ("--sweep=batch_size=16:17:4lin", {"batch_size": (16, 17)}),
    ("--sweep=learning_rate=0.1:1:2log;batch_size=8:16:2lin",
     {"learning_rate": (0.1, 1.0), "batch_size": (8, 16)}),
    ("--learning_rate=0.1,3", {"learning_rate": (0.1, 3.0)}),
])
def test_flags_give_axes(given, values):
    from bn_keras.commands import flags

    assert flags.axes(flags.parse(["train", given])) == values


@pytest.mark.parametrize("given", [
    "--sweep=learning_rate", "--sweep=learning_rat=1:2:3log", "--sweep=learning_rate=0:1:3log",
    "--sweep=learning_rate=1:0.1:3log", "--sweep=learning_rate=1:2:1log",
    "--sweep=learning_rate=a:b:3lin", "--learning_rate=0.1,x",
    "--learning_rate=0.1,1 --sweep=learning_rate=0.1:1:3log", "--sweep=steps=1:9999999999:3lin",
])
def test_sweeps_that_cannot_be_read_are_refused(given):
    from bn_keras.commands import flags, train

    with pytest.raises((ConfigError, flags.flags.Error)):
        train._plan(flags.parse(["train", *given.split()]))
