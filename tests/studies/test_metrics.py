"""The dictionary of metrics: patterns, declarations of probes and studies, unknown names."""

import math
import subprocess
import sys

import pytest

from bn_keras import metrics
from bn_keras.expressions import ExpressionError
from bn_keras.metrics import Metric, describe
from bn_keras.registry import PROBES, STUDIES, UnknownName
from bn_keras.study import Claim, Comparison, Study, View


@pytest.mark.parametrize(
    "name, title, unit, worse",
    [
        ("loss/train", "loss of the training batch", "", "high"),
        ("accuracy/validation_as_written", "validation accuracy, evaluated as written", "", "low"),
        ("test_accuracy_at_0.05", "test accuracy at rate 0.05", "", "low"),
        ("accuracy_at_500", "validation accuracy after 500 steps", "", "low"),
        ("times_none", "largest workable rate over that of none", "times", "low"),
        ("times_exact_loss", "test loss over that with exact statistics", "times", None),
        ("unit/p15", "15th percentile of one unit's input", "", None),
    ],
)
def test_a_metric_is_described_by_its_name_or_its_pattern(name, title, unit, worse):
    assert describe(name) == Metric(name, title, unit, worse)


@pytest.mark.parametrize("name", ["losss/train", "", "test_accuracy_at_", "x/loss/train"])
def test_an_unknown_metric_is_refused_in_a_study_and_titled_by_its_words_elsewhere(name):
    with pytest.raises(UnknownName, match=f"unknown metric {name!r}"):
        metrics.check(study(columns=(name,)))
    words = name.replace("_", " ").replace("/", " ")
    assert describe(name) == Metric(name, words, "", None)


def test_the_nearest_metric_is_named():
    with pytest.raises(UnknownName, match="did you mean 'loss/train'?"):
        metrics.check(study(columns=("losss/train",)))


@pytest.mark.parametrize("name, worst", [
    ("test_accuracy", -math.inf), ("largest_workable_rate", -math.inf),
    ("steps_to_90_percent", math.inf), ("test_loss", math.inf), ("gradient/norm", math.nan),
])
def test_a_run_without_a_value_stands_at_the_worse_end(name, worst):
    assert describe(name).worst == pytest.approx(worst, nan_ok=True)


def test_every_declaration_is_complete():
    assert len(metrics.declared()) > 30
    for name, (title, unit, worse) in metrics.declared().items():
        assert title and title == title.strip() and isinstance(unit, str), name
        assert worse in ("low", "high", None), name
        assert title.count("{}") == name.count("{}"), name


@pytest.fixture
def outside():
    """A probe and a study from outside the package, unregistered again afterwards."""

    @PROBES.register("weather", metrics={
        "weather/{}": ("weather of {}", "", None),
        "weather/{}/rain": ("rain in {}", "mm", "high"),
    })
    def weather():
        """Never measured."""

    yield
    del PROBES._registered["weather"]


def test_a_probe_from_outside_the_package_declares_its_metrics(outside):
    assert describe("weather/new_york/rain") == Metric(
        "weather/new_york/rain", "rain in new york", "mm", "high"
    ), "the pattern that says less about the name"
    assert describe("weather/rome").title == "weather of rome"


def study(**parts):
    needed = {"question": "q", "source": "s", "duration": "d", "expected": "e", "base": {},
              "arms": {"none": {}, "batch": {}}, "columns": ("test_accuracy",)}
    return Study(**{**needed, **parts})


@pytest.mark.parametrize(
    "parts",
    [
        {"columns": ("test_acuracy",)},
        {"compared": "test_acuracy"},
        {"derived": {"test_acuracy": "1"}},
        {"views": {"v": View("none", {"test_acuracy": "1"})}},
        {"reported": {("none", "test_acuracy"): ".9"}},
        {"claims": (Claim("c", "s", (Comparison("test_acuracy", "none", "at most", 1),)),)},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_a_study_may_name_declared_metrics_only(parts):
    metrics.check(study())
    with pytest.raises(UnknownName, match="'test_acuracy' .did you mean 'test_accuracy'?"):
        metrics.check(study(**parts))


@pytest.mark.parametrize("expression", ["1 - test_acuracy", "last('acuracy/train')"])
def test_an_expression_may_read_declared_metrics_and_curves_only(expression):
    with pytest.raises(ExpressionError) as refused:
        metrics.check(study(derived={"accuracy_at_500": expression}))
    assert repr(expression) in str(refused.value) and "did you mean" in str(refused.value)


@pytest.mark.slow
def test_the_dictionary_imports_no_probe_and_no_study():
    told = "import sys; from bn_keras import metrics; metrics.describe('times_exact_loss'); " \
        "print([name for name in sys.modules if name == 'tensorflow' or name == 'scipy' " \
        "or name.startswith(('bn_keras.studies.', 'bn_keras.diagnostics'))])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert "ioffe_mnist" in STUDIES.names()
