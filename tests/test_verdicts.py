"""When a claim holds, and what is said of it."""

import dataclasses

import pytest

from bn_keras import stats
from bn_keras.studies import Claim, Row, Test
from bn_keras.verdicts import FAILS, HOLDS, OTHER_REASON, UNDECIDED, judge


def rows(**arms):
    """`arm=[value, ...]`: one metric, a seed a value."""
    return [
        Row(arm, seed, {"accuracy": value})
        for arm, values in arms.items() for seed, value in enumerate(values)
    ]


ABOVE = Test("accuracy", "batch", "at least", "none", margin=0.1)
CONTROL = Test("accuracy", "control", "at most", 0.5)
CLAIM = Claim("BN is better", "someone", effect=(ABOVE,))
CAUSED = dataclasses.replace(CLAIM, cause=(CONTROL,), otherwise="something else")


@pytest.mark.parametrize(
    "batch, none, verdict, seen",
    [
        ([0.9, 0.9, 0.9], [0.5, 0.6, 0.7], HOLDS, (3, 3)),
        ([0.6, 0.6, 0.6], [0.55, 0.6, 0.7], FAILS, (0, 3)),
        ([0.9, 0.9, 0.6], [0.5, 0.6, 0.7], UNDECIDED, (2, 3)),
        ([0.9, 0.9], [0.5, 0.6], UNDECIDED, (2, 2)),  # two seeds decide nothing
        ([0.9, 0.9, 0.9, 0.9], [0.5, 0.6, 0.7], HOLDS, (3, 3)),  # only pairs count
    ],
)
def test_an_effect_must_be_seen_in_every_pair_of_at_least_three(batch, none, verdict, seen):
    found = judge(CLAIM, rows(batch=batch, none=none))
    assert (found.verdict, (found.seen, found.seeds)) == (verdict, seen)


@pytest.mark.parametrize(
    "control, verdict",
    [
        ([0.1, 0.2, 0.3], HOLDS),
        ([0.9, 0.8, 0.7], OTHER_REASON),
        ([0.1, 0.9, 0.1], UNDECIDED),
        ([], UNDECIDED),  # the control arm was not trained
    ],
)
def test_the_control_arms_decide_the_reason(control, verdict):
    found = judge(CAUSED, rows(batch=[0.9] * 3, none=[0.5] * 3, control=control))
    assert found.verdict == verdict


def test_the_reason_of_what_is_not_seen_is_not_asked_for():
    found = judge(CAUSED, rows(batch=[0.5] * 3, none=[0.5] * 3, control=[0.1] * 3))
    assert found.verdict == FAILS and len(found.figures) == 1


@pytest.mark.parametrize(
    "test, batch, none, passes",
    [
        (Test("accuracy", "batch", "at least", "none", factor=3.0), 0.9, 0.3, True),
        (Test("accuracy", "batch", "at least", "none", factor=3.0), 0.9, 0.31, False),
        (Test("accuracy", "batch", "at most", 0.5), 0.5, 0.0, True),
        (Test("accuracy", "batch", "at most", "none", margin=-0.2), 0.5, 0.6, False),
    ],
)
def test_factor_margin_and_relation(test, batch, none, passes):
    claim = Claim("", "", effect=(test,))
    found = judge(claim, rows(batch=[batch] * 3, none=[none] * 3))
    assert found.verdict == (HOLDS if passes else FAILS)


def test_what_a_run_never_reached_is_the_worst_there_is():
    def found(metric, relation, batch, none):
        test = Test(metric, "batch", relation, "none")
        table = [Row(arm, seed, {metric: value}) for seed in range(3)
                 for arm, value in (("batch", batch), ("none", none))]
        return judge(Claim("", "", effect=(test,)), table).verdict

    assert found("steps_to_90_percent", "at most", 500, None) == HOLDS
    assert found("steps_to_90_percent", "at most", None, 500) == FAILS
    assert found("largest_workable_rate", "at least", 2.4, None) == HOLDS
    assert found("largest_workable_rate", "at least", None, 2.4) == FAILS
    assert found("steps_to_90_percent", "at most", None, None) == FAILS
    # A run that diverged has no loss and may have no accuracy: that is no success.
    assert found("test_loss", "at most", None, 3.0) == FAILS
    assert found("accuracy_at_500", "at least", None, 0.1) == FAILS
    assert found("median_range", "at most", None, 0.5) == UNDECIDED


def test_all_tests_of_an_effect_must_pass_in_the_same_seed():
    claim = Claim("", "", effect=(ABOVE, Test("accuracy", "none", "at most", 0.5)))
    found = judge(claim, rows(batch=[0.9, 0.9, 0.9], none=[0.4, 0.5, 0.6]))
    assert (found.verdict, found.seen) == (UNDECIDED, 2)


def test_the_figures_name_metric_arms_values_and_seeds():
    found = judge(CAUSED, rows(batch=[0.9, 0.91, 0.95], none=[0.5] * 3, control=[0.1, 0.2, 0.2]))
    assert found.figures == (
        "accuracy: batch .910 [.900, .950] at least none .500 + 0.1: 3 of 3",
        "accuracy: control .200 [.100, .200] at most 0.5: 3 of 3",
    )


@pytest.mark.parametrize(
    "values, text",
    [
        ([0.5], ".500"), ([1, 3, 2], "2 [1, 3]"), ([None, None], "never"),
        ([500, None, 250], "250 to never"), ([500, None], "500, or never"),
        ([12750.0, 4250, 9000], "9,000 [4,250, 12,750]"), ([2.4, 2.4], "2.4"),
    ],
)
def test_a_figure_is_median_and_range(values, text):
    assert stats.figure(values) == text
