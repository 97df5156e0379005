"""When a claim holds, and what is said of it."""

import dataclasses

import pytest

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Row
from bn_keras.verdicts import FAILS, HOLDS, OTHER_REASON, UNDECIDED, judge


def rows(metric="accuracy", **arms):
    """`arm=[value, ...]`: one metric, a seed a value."""
    return [
        Row(arm, seed, "ok", {metric: value})
        for arm, values in arms.items() for seed, value in enumerate(values)
    ]


def seen(count, total):
    """Rows of the arm `batch` in which ABOVE passes in so many seeds."""
    return rows(batch=[0.9] * count + [0.5] * (total - count), none=[0.5] * total)


ABOVE = Comparison("accuracy", "batch", "at least", "none", margin=0.1)
CONTROL = Comparison("accuracy", "control", "at most", 0.5)
CLAIM = Claim("BN is better", "someone", effect=(ABOVE,))
CAUSED = dataclasses.replace(CLAIM, cause=(CONTROL,), otherwise="something else")


@pytest.mark.parametrize(
    "count, total, verdict",
    [
        (5, 5, HOLDS), (7, 8, HOLDS), (9, 10, HOLDS), (24, 25, HOLDS), (18, 25, HOLDS),
        (1, 1, UNDECIDED), (3, 3, UNDECIDED), (4, 4, UNDECIDED), (8, 10, UNDECIDED),
        (17, 25, UNDECIDED), (2, 10, UNDECIDED), (0, 4, UNDECIDED),
        (0, 5, FAILS), (1, 8, FAILS), (1, 10, FAILS), (7, 25, FAILS),
    ],
)
def test_a_claim_holds_if_most_of_all_seeds_must_show_it(count, total, verdict):
    found = judge(CLAIM, seen(count, total))
    assert found.verdict == verdict and found.cause is None
    assert (found.effect.seen, found.effect.refuted) == (count, total - count)
    assert found.effect.seeds == total and not found.effect.missing


@pytest.mark.parametrize(
    "count, total, more, reason",
    [
        (5, 5, 0, "effect seen in 5 of 5 seeds"),
        (1, 8, 0, "effect seen in 1 of 8 seeds"),
        (3, 3, 2, "effect seen in 3 of 3 seeds; 2 more at the same rate would decide the effect"),
        (0, 1, 4, "effect seen in 0 of 1 seed; 4 more at the same rate would decide the effect"),
        (8, 10, 3, "effect seen in 8 of 10 seeds; 3 more at the same rate would decide the effect"),
        (5, 10, None,
         "effect seen in 5 of 10 seeds; more seeds at the same rate would not decide the effect"),
    ],
)
def test_the_reason_says_what_would_decide(count, total, more, reason):
    found = judge(CLAIM, seen(count, total))
    assert (found.effect.more_seeds, found.reason) == (more, reason)


def test_only_seeds_that_both_arms_have_are_compared():
    found = judge(CLAIM, rows(batch=[0.9] * 7, none=[0.5] * 5))
    assert (found.verdict, found.effect.seeds) == (HOLDS, 5)


@pytest.mark.parametrize(
    "control, verdict, reason",
    [
        ([0.1] * 5, HOLDS, "effect seen in 5 of 5 seeds. Cause seen in 5 of 5 seeds"),
        ([0.9] * 5, OTHER_REASON, "effect seen in 5 of 5 seeds. Cause seen in 0 of 5 seeds"),
        ([0.1, 0.9, 0.1, 0.1], UNDECIDED, "effect seen in 5 of 5 seeds. Cause seen in 3 of 4 "
         "seeds; 12 more at the same rate would decide the cause"),
        ([], UNDECIDED, "effect seen in 5 of 5 seeds. Cause not measured: control missing; the "
         "claim cannot be decided without it"),
    ],
)
def test_the_control_arms_decide_the_cause(control, verdict, reason):
    found = judge(CAUSED, rows(batch=[0.9] * 5, none=[0.5] * 5, control=control))
    assert (found.verdict, found.reason) == (verdict, reason)


def test_the_cause_does_not_decide_for_an_undecided_effect():
    for control in (0.1, 0.9):
        found = judge(CAUSED, seen(4, 4) + rows(control=[control] * 5))
        assert found.verdict == UNDECIDED and found.cause.outcome in (HOLDS, FAILS)


def test_the_cause_of_an_effect_that_is_not_there_is_not_judged():
    found = judge(CAUSED, rows(batch=[0.5] * 5, none=[0.5] * 5, control=[0.1] * 5))
    assert found.verdict == FAILS and found.cause is None and len(found.figures) == 1


def test_what_was_not_measured_is_named():
    found = judge(CLAIM, rows(batch=[0.9] * 5))
    assert (found.effect.missing, found.verdict) == (("none",), UNDECIDED)
    found = judge(CLAIM, rows(batch=[0.9] * 5) + rows(metric="loss", none=[0.9] * 5))
    assert found.reason == (
        "effect not measured: accuracy of none missing; the claim cannot be decided without it"
    )
    assert found.effect.more_seeds is None and found.effect.seeds == 0


@pytest.mark.parametrize(
    "test, batch, none, passes",
    [
        (Comparison("accuracy", "batch", "at least", "none", factor=3.0), 0.9, 0.3, True),
        (Comparison("accuracy", "batch", "at least", "none", factor=3.0), 0.9, 0.31, False),
        (Comparison("accuracy", "batch", "at most", 0.5), 0.5, 0.0, True),
        (Comparison("accuracy", "batch", "at most", "none", margin=-0.2), 0.5, 0.6, False),
    ],
    ids=["factor, passes", "factor, fails", "number", "margin"],
)
def test_factor_margin_and_relation(test, batch, none, passes):
    claim = Claim("", "", effect=(test,))
    # .9 >= 3 * .3 is false in floating point by the last digit alone: compare with a bit less.
    found = judge(claim, rows(batch=[batch] * 5, none=[none - 1e-12] * 5))
    assert found.verdict == (HOLDS if passes else FAILS)


@pytest.mark.parametrize(
    "metric, relation, batch, none, verdict",
    [
        ("steps_to_90_percent", "at most", 500, None, HOLDS),
        ("steps_to_90_percent", "at most", None, 500, FAILS),
        ("largest_workable_rate", "at least", 2.4, None, HOLDS),
        ("largest_workable_rate", "at least", None, 2.4, FAILS),
        # A run that diverged has no loss and may have no accuracy: that is no success.
        ("test_loss", "at most", None, 3.0, FAILS),
        ("accuracy_at_500", "at least", None, 0.1, FAILS),
        # Neither got there, or the metric has no worse end: nothing is shown.
        ("steps_to_90_percent", "at most", None, None, UNDECIDED),
        ("gradient/norm", "at most", None, 0.5, UNDECIDED),
    ],
)
def test_a_run_without_a_value_stands_at_the_worse_end(metric, relation, batch, none, verdict):
    claim = Claim("", "", effect=(Comparison(metric, "batch", relation, "none"),))
    found = judge(claim, rows(metric, batch=[batch] * 5, none=[none] * 5))
    assert (found.verdict, found.effect.seeds) == (verdict, 5)


@pytest.mark.parametrize(
    "metric, relation, than",
    [("start_saturated_units", "at least", 0.1), ("test_loss", "at least", "none"),
     ("test_accuracy", "at most", 0.25), ("test_accuracy", "at most", "none")],
)
def test_a_diverged_run_never_shows_what_a_claim_says_of_it(metric, relation, than):
    """Its metrics are gone: "saturates at the start" once held in 5 of 5 runs without a value."""
    claim = Claim("", "", effect=(Comparison(metric, "batch", relation, than),))
    found = judge(claim, [
        Row(arm, seed, status, {metric: value})
        for arm, status, value in (("batch", "diverged", None), ("none", "ok", 0.5))
        for seed in range(5)
    ])
    assert (found.verdict, found.effect.seen, found.effect.seeds) == (UNDECIDED, 0, 5)
    assert found.figures[0].endswith(": 0 of 5")


@pytest.mark.parametrize("arm, than, verdict", [
    ("batch", "none", HOLDS), ("none", "batch", FAILS),
])
def test_a_diverged_run_loses_to_one_with_a_value(arm, than, verdict):
    claim = Claim("", "", effect=(Comparison("test_accuracy", arm, "at least", than),))
    found = judge(claim, [
        Row(name, seed, status, {"test_accuracy": value})
        for name, status, value in (("none", "diverged", None), ("batch", "ok", 0.9))
        for seed in range(5)
    ])
    assert found.verdict == verdict


def test_a_target_that_a_whole_run_never_reached_is_measured():
    claim = Claim("", "", effect=(Comparison("steps_to_90_percent", "none", "at least", 1000),))
    assert judge(claim, rows("steps_to_90_percent", none=[None] * 5)).verdict == HOLDS


def test_seeds_that_show_nothing_speak_against_either_decision():
    claim = Claim("", "", effect=(Comparison("steps_to_90_percent", "batch", "at most", "none"),))

    def found(*pairs):
        batch, none = zip(*pairs)
        return judge(claim, rows("steps_to_90_percent", batch=batch, none=none))

    won, lost, neither = (1, 2), (2, 1), (None, None)
    one = found(*[won] * 5, *[neither] * 3)
    assert (one.verdict, one.effect.seen, one.effect.refuted) == (UNDECIDED, 5, 0)
    assert one.reason.startswith("effect seen in 5 of 8 seeds, 3 without a result; ")
    assert found(*[won] * 7, neither).verdict == HOLDS
    assert found(*[lost] * 5, *[neither] * 3).verdict == UNDECIDED
    assert found(*[lost] * 7, neither).verdict == FAILS
    # Two of six are seen and one is refuted: no rate of these becomes a majority.
    assert found(won, won, lost, *[neither] * 3).effect.more_seeds is None


@pytest.mark.parametrize("normalized, plain, verdict", [
    (0.98, 0.979, HOLDS), (0.979, 0.875, FAILS), (0.875, 0.979, FAILS),
])
def test_equal_accuracy_is_equal_on_both_sides(normalized, plain, verdict):
    claim, = (claim for claim in STUDIES.get("pitfalls")().claims if "equal acc" in claim.text)
    found = judge(claim, [
        Row(arm, seed, "ok", {"test_loss": loss, "test_accuracy": accuracy})
        for arm, loss, accuracy in (("CNN", 0.14, normalized), ("CNN, no BN", 0.01, plain))
        for seed in range(5)
    ])
    assert found.verdict == verdict


def test_all_comparisons_must_pass_in_the_same_seed():
    claim = Claim("", "", effect=(ABOVE, Comparison("accuracy", "none", "at most", 0.5)))
    found = judge(claim, rows(batch=[0.9, 0.9, 0.4], none=[0.4, 0.6, 0.5]))
    assert (found.effect.seen, found.effect.refuted, found.effect.seeds) == (1, 2, 3)


def test_the_figures_name_metric_arms_values_and_seeds():
    found = judge(
        CAUSED,
        rows(batch=[0.9, 0.91, 0.95] * 2, none=[0.5] * 6, control=[0.1, 0.2, 0.2]),
    )
    assert found.figures == (
        "accuracy: batch .910 [.900, .950] at least none .500 + .1: 6 of 6",
        "accuracy: control .200 [.100, .200] at most .5: 3 of 3",
    )
