"""Expressions for derived figures, and the rows that stored results become."""

import dataclasses
import types

import pytest

from bn_keras.config import ConfigError, RunConfig
from bn_keras.expressions import ExpressionError, NotMeasured, evaluate, names_in
from bn_keras.results import DIVERGED, OK
from bn_keras.study import (
    Claim,
    Comparison,
    Ladder,
    Row,
    Study,
    StudyError,
    View,
    check,
    ladder_arms,
    largest_workable_rate,
    rows,
)

ROW = Row(
    "batch", 0, OK,
    {"penalty": 1.5, "lost": None, "zero": 0, "pitfall/as_written/whole": 0.25},
    {"loss/train": [[10, 2.0], [20, 0.5]], "broken": [[10, None]]}, "batch", 20,
)
GONE = dataclasses.replace(ROW, status=DIVERGED, steps=15, curves={"loss/train": [[10, 2.0]]})


def result(arm="batch", seed=0, status=OK, metrics=None, curves=None, steps=20, **settings):
    """A RunResult, as far as rows are made of it."""
    return types.SimpleNamespace(
        config=RunConfig(arm=arm, seed=seed, **settings), status=status, steps=steps,
        metrics=metrics or {}, curves=curves or {},
    )


def study(**parts):
    needed = {"question": "q", "source": "s", "duration": "d", "expected": "e", "base": {},
              "arms": {"none": {}, "batch": {}}, "columns": ()}
    return Study(**{**needed, **parts})


@pytest.mark.parametrize(
    "expression, value",
    [
        ("penalty", 1.5),
        ("2 * (penalty - 0.5) / 4 + 1", 1.5),
        ("-penalty - -1", -0.5),
        ("8 / 4 / 2", 1.0),
        ("metric('pitfall/as_written/whole') * 4", 1.0),
        ("penalty / (penalty + last('loss/train'))", 0.75),
        ("at('loss/train', 10)", 2.0),
        ("  penalty\n", 1.5),
        ("lost", None),
        ("1 - lost * 2", None),
        ("at('broken', 10) + 1", None),
        ("penalty / zero", None),
        ("1e300 * 1e300", None),
    ],
)
def test_an_expression_has_the_value_worked_out_by_hand(expression, value):
    assert evaluate(expression, ROW) == value


@pytest.mark.parametrize(
    "expression, row",
    [
        ("gradient", ROW), ("metric('gradient')", ROW), ("lost + gradient", ROW),
        ("at('loss/train', 15)", ROW), ("at('loss/test', 10)", ROW), ("last('loss/test')", ROW),
        ("at('loss/train', 12)", GONE),
    ],
)
def test_a_figure_that_was_not_measured_is_neither_good_nor_bad(expression, row):
    with pytest.raises(NotMeasured):
        evaluate(expression, row)


def test_a_diverged_run_has_the_values_from_before_and_none_from_then_on():
    assert evaluate("at('loss/train', 10)", GONE) == 2.0
    assert evaluate("at('loss/train', 15)", GONE) is None
    assert evaluate("at('loss/train', 20)", GONE) is None
    assert evaluate("last('loss/train')", GONE) is None, "a last value from the middle of the run"


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "penalty penalty", "2 ** 9", "9 ** 9 ** 9 ** 9", "penalty % 2", "7 // 2",
        "penalty.real", "().__class__.__bases__[0]", "__import__('os').system('true')",
        "eval('1')", "open('x')", "metric()", "metric(penalty)", "metric('a', 'b')",
        "metric(name='a')",
        "metric('a', b='c')", "metric(*'a')", "metric(**{})", "at('loss/train')",
        "at('loss/train', 1.5)", "at('loss/train', True)", "at('loss/train', penalty)",
        "at(10, 'loss/train')", "last('loss/train', 10)", "(lambda: 1)()", "[1][0]", "{1}",
        "'penalty'", "b'1'", "None", "True", "1j", "1e999", "penalty if penalty else 1",
        "penalty > 1", "penalty and 1", "not penalty", "+penalty", "x := 1", "f'{penalty}'",
        "1; 2", "import os", "yield", "(" * 99 + "1" + ")" * 99 + ")", "1 + " * 100 + "1",
        "\x00",
    ],
)
def test_a_wrong_or_hostile_expression_is_refused_by_name(expression):
    with pytest.raises(ExpressionError) as refused:
        evaluate(expression, ROW)
    assert repr(expression) in str(refused.value)
    with pytest.raises(ConfigError):
        names_in(expression)


def test_the_deepest_expression_that_is_short_enough_is_evaluated():
    assert evaluate("-" * 198 + "1", ROW) == 1
    assert evaluate("(" * 90 + "penalty" + ")" * 90, ROW) == 1.5


def test_an_expression_tells_which_metrics_and_curves_it_reads():
    found = names_in("a / (a_b - last('c/d')) + metric('e/f') * at('g', 3)")
    assert [sorted(names) for names in found] == [["a", "a_b", "e/f"], ["c/d", "g"]]


def test_every_run_is_a_row_with_its_status_and_its_derived_figures():
    one = study(derived={"share": "penalty / 2", "early": "at('loss/train', 10)"})
    found = rows(one, [
        result("none", 3, metrics={"penalty": 4.0}, normalizer="none"),
        result("batch", 4, DIVERGED, {"penalty": None}, {"loss/train": [[5, 1.0]]}, 7),
    ])
    assert found == [
        Row("none", 3, OK, {"penalty": 4.0, "share": 2.0}, {}, "none", 20),
        Row("batch", 4, DIVERGED, {"penalty": None, "share": None, "early": None},
            {"loss/train": [[5, 1.0]]}, "batch", 7),
    ]


def test_a_view_is_a_second_row_of_the_same_run():
    curves = {"loss/train": [[10, 1.0]]}
    one = study(
        derived={"half": "loss / 2"},
        views={"as written": View("batch", {"loss": "metric('bug') + half", "other": "missing"}),
               "unmeasured": View("batch", {"loss": "missing"})},
    )
    found = rows(one, [result("none", metrics={"loss": 1.0, "bug": 2.0}, normalizer="none"),
                       result("batch", 1, DIVERGED, {"loss": 4.0, "bug": 8.0}, curves, 12)])
    assert [row.arm for row in found] == ["none", "batch", "as written"]
    assert found[-1] == Row("as written", 1, DIVERGED, {"loss": 10.0}, {}, "batch", 12)


RATES = (0.1, 0.2, 0.4)


def climb(net, accuracies, seed=0, rates=RATES, normalizer="batch"):
    """Results of a net at RATES; None for a run that diverged."""
    return [
        result(f"{net} at {rate:g}", seed, OK if accuracy is not None else DIVERGED,
               {"test_accuracy": accuracy}, learning_rate=rate, normalizer=normalizer)
        for rate, accuracy in zip(rates, accuracies)
    ]


def ladder(**parts):
    nets = {"none": {"normalizer": "none"}, "batch": {"normalizer": "batch"}}
    return study(arms=ladder_arms(nets, RATES), ladder=Ladder(RATES, "none", 0.9), **parts)


def test_the_arms_of_a_ladder_are_every_net_at_every_rate():
    assert ladder().arms["batch at 0.2"] == {"normalizer": "batch", "learning_rate": 0.2}
    assert len(ladder().arms) == 6


@pytest.mark.parametrize(
    "accuracies, largest",
    [
        ([0.95, 0.95, 0.1], 0.2),
        ([0.95, 0.5, 0.95], 0.1),  # what works above a failure is luck
        ([0.5, 0.89, 0.90], 0.4),  # the lowest were too low to get there
        ([0.95, None, 0.95], 0.1),  # a diverged run fails
        ([0.5, 0.5, 0.5], None),
        ([None, None, None], None),
    ],
)
def test_the_largest_workable_rate_is_the_last_before_a_failure(accuracies, largest):
    assert largest_workable_rate(dict(zip(RATES, accuracies)), 0.9) == largest
    row, = rows(ladder(), climb("batch", accuracies))
    assert row.metrics == {
        "test_accuracy_at_0.1": accuracies[0], "test_accuracy_at_0.2": accuracies[1],
        "test_accuracy_at_0.4": accuracies[2], "largest_workable_rate": largest,
    }
    assert (row.arm, row.normalizer, row.curves) == ("batch", "batch", {})
    assert row.status == (DIVERGED if accuracies == [None] * 3 else OK)


def test_a_ladder_is_compared_with_that_of_the_same_seed():
    found = rows(ladder(derived={"gap": "metric('test_accuracy_at_0.1') - 0.5"}), [
        *climb("batch", [0.95, 0.95, 0.95], 0), *climb("none", [0.95, 0.1, 0.1], 0),
        *climb("none", [0.95, 0.95, 0.1], 1), *climb("batch", [0.95, 0.95, 0.95], 1),
        *climb("none", [0.1, 0.1, 0.1], 2), *climb("batch", [0.95, 0.95, 0.95], 2),
    ])
    times = {(row.arm, row.seed): row.metrics["times_none"] for row in found}
    assert times == {
        ("none", 0): 1, ("none", 1): 1, ("none", 2): None,
        ("batch", 0): pytest.approx(4), ("batch", 1): pytest.approx(2), ("batch", 2): None,
    }
    assert found[0].metrics["gap"] == pytest.approx(0.45)


def test_a_ladder_that_misses_a_rate_gives_accuracies_only():
    row, = rows(ladder(), climb("batch", [0.95, 0.95]))
    assert row.metrics == {"test_accuracy_at_0.1": 0.95, "test_accuracy_at_0.2": 0.95}


def claim(**parts):
    effect = Comparison("test_accuracy", "batch", "at least", 0.5)
    return Claim(**{"text": "it learns", "source": "s", "effect": (effect,), **parts})


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"quick_arms": ("bacth",)}, "arm: received 'bacth'; expected one of none; batch"),
        ({"baseline": "nnoe"}, "baseline: received 'nnoe'"),
        ({"views": {"v": View("bacth", {})}}, "arm of a view: received 'bacth'"),
        ({"reported": {("bacth", "loss"): "1"}}, "arm of a reported figure: received 'bacth'"),
        ({"animations": {"a": ("none", "bacth")}}, "arm: received 'bacth'"),
        ({"ladder": Ladder(RATES, "nnoe")}, "baseline of the ladder: received 'nnoe'"),
        ({"claims": (claim(effect=()),)}, "claim 'it learns': 0 effects"),
        ({"claims": (claim(otherwise="why"),)}, "0 causes, otherwise='why'; expected"),
        ({"claims": (claim(effect=(Comparison("m", "bacth", "at most", 1),)),)},
         "arm of the claim 'it learns': received 'bacth'"),
        ({"claims": (claim(effect=(Comparison("m", "none", "at most", "bacth"),)),)},
         "arm of the claim 'it learns': received 'bacth'"),
        ({"claims": (claim(effect=(Comparison("m", "none", "below", 1),)),)},
         "relation 'below' of the claim 'it learns'; expected one of at least, at most"),
    ],
)
def test_a_study_whose_parts_do_not_fit_is_refused_by_the_part(parts, message):
    with pytest.raises(StudyError, match=message):
        check(study(**parts))


def test_a_wrong_expression_is_found_before_anything_is_trained():
    check(study(derived={"x": "a + b"}, views={"v": View("none", {"y": "x / 2"})},
                claims=(claim(),)))
    with pytest.raises(ExpressionError, match=r"expression 'a \+': invalid syntax"):
        check(study(derived={"x": "a +"}))
    with pytest.raises(ExpressionError, match="expression 'a.b': 'a.b' is not allowed"):
        check(study(views={"v": View("none", {"y": "a.b"})}))
