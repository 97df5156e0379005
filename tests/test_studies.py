"""The studies as values, as commands, and the outcomes that are robust enough to assert."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import types

import pytest
from rich.console import Console
from test_results import result

from bn_keras import cli, figures, report
from bn_keras.config import ConfigError
from bn_keras.registry import STUDIES
from bn_keras.results import DIVERGED, OK, Store
from bn_keras.studies import mnist_cnn_dropout, rates, values_at
from bn_keras.studies.learning_rates import RATES
from bn_keras.verdicts import UNDECIDED

STUDY_NAMES = STUDIES.names()


def study(name):
    return STUDIES.get(name)()


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_a_study_is_the_same_value_each_time_and_says_what_to_expect(name):
    one = study(name)
    assert one.expand({}, range(3)) == study(name).expand({}, range(3))
    for text in (one.question, one.source, one.duration, one.expected):
        assert text.strip() == text and text
    assert one.seeds >= 3 and one.claims and len(one.arms) >= 2


@pytest.mark.parametrize("name", STUDY_NAMES)
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_the_arms_of_a_study_differ_in_what_they_say_and_in_nothing_else(name, quick):
    runs = study(name).expand({}, [0], quick)
    assert len({run.arm for run in runs}) == len(runs) == len({run.fingerprint() for run in runs})
    first = runs[0]
    for run in runs:
        assert (run.batch_size, run.steps, run.dataset, run.seed) == (
            first.batch_size, first.steps, first.dataset, 0)


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_claims_and_reported_figures_are_about_arms_and_metrics_that_there_are(name):
    """What `derive` makes of stored runs is tried in the slow tests below."""
    one = study(name)
    nets = set(one.arms) | {arm.rpartition(" at ")[0] for arm in one.arms}
    nets.add(mnist_cnn_dropout.AS_WRITTEN)  # a second row of figures of the arm `batch`
    for claim in one.claims:
        assert claim.text and claim.source and bool(claim.cause) == bool(claim.otherwise)
        for test in claim.effect + claim.cause:
            assert test.arm in nets and test.relation in ("at least", "at most")
            assert not isinstance(test.than, str) or test.than in nets
    for arm, metric in one.reported:
        assert arm in nets and metric in one.metrics
    assert callable(getattr(figures, one.picture))


def test_flags_take_the_place_of_a_studys_own_settings():
    options = cli.parse_flags(
        ["train.py", "--study=ioffe_mnist", "--steps=700", "--seeds=2", "--first_seed=5"]
    )
    runs = cli.plan_study(study("ioffe_mnist"), options)
    assert {run.steps for run in runs} == {700} and {run.seed for run in runs} == {5, 6}
    assert {run.batch_size for run in runs} == {60}, "a flag that was not given changed a setting"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--study=ioffe"], "unknown study 'ioffe'; known: "),
        (["--quick"], "--quick without --study: expected a study"),
        (["--arms=none"], "--arms without --study: expected a study"),
        (["--study=ioffe_mnist", "--arms=none;bacth"], "received the arm 'bacth'; expected some"),
        (["--study=ioffe_mnist", "--learning_rate=0.1"], "learning_rate: the arms of this"),
        (["--study=ioffe_mnist", "--is_bn"], "--is_bn with --study=ioffe_mnist"),
        (["--study=ioffe_mnist", "--normalizer=layer"], "--normalizer with --study=ioffe_mnist"),
        (["--study=learning_rates", "--learning_rate=0.1"], "learning_rate: the arms of this"),
        (["--study=ioffe_mnist", "--optimizer=adma"], "unknown optimizer 'adma'"),
        (["--study=ioffe_mnist", "--batch_size=0"], "expected a whole number of at least 1"),
    ],
)
def test_what_does_not_go_with_a_study_is_refused(flags, message, capsys):
    assert cli.main(["train.py", *flags]) == 2
    assert message in capsys.readouterr().err


def ladder(net, accuracies, seed=0):
    """Results of a net at RATES."""
    return [
        types.SimpleNamespace(
            config=types.SimpleNamespace(arm=f"{net} at {rate:g}", seed=seed, learning_rate=rate),
            metrics={"test_accuracy": accuracy},
        )
        for rate, accuracy in zip(RATES, accuracies)
    ]


@pytest.mark.parametrize(
    "accuracies, largest",
    [
        ([0.95] * 5 + [0.1] * 4, RATES[4]),
        ([0.95] + [0.5] + [0.95] * 7, RATES[0]),  # what works above a failure is luck
        ([0.5, 0.89, 0.90, 0.95] + [0.1] * 5, RATES[3]),  # the lowest were too low to get there
        ([0.5] * 9, None),
    ],
)
def test_the_largest_workable_rate_is_the_last_before_a_failure(accuracies, largest):
    row, = rates.rows(ladder("batch", accuracies), RATES, "none")
    assert row.arm == "batch" and row.metrics["largest_workable_rate"] == largest
    assert row.metrics["test_accuracy_at_2.4"] == accuracies[RATES.index(2.4)]
    assert row.metrics["times_none"] is None


def test_a_ladder_is_compared_with_that_of_the_same_seed():
    results = [
        run for seed, reached in ((0, 1), (1, 3))
        for run in ladder("none", [0.95] * reached + [0.1] * (9 - reached), seed)
        + ladder("batch", [0.95] * 6 + [0.1] * 3, seed)
    ]
    times = {(row.arm, row.seed): row.metrics["times_none"]
             for row in rates.rows(results, RATES, "none")}
    assert times == {
        ("none", 0): 1, ("none", 1): 1,
        ("batch", 0): pytest.approx(RATES[5] / RATES[0]),
        ("batch", 1): pytest.approx(RATES[5] / RATES[2]),
    }


def test_an_interrupted_ladder_of_rates_gives_no_largest_rate():
    row, = rates.rows(ladder("batch", [0.95] * 3), RATES, "none")
    assert row.metrics == {f"test_accuracy_at_{rate:g}": 0.95 for rate in RATES[:3]}


def test_a_step_without_an_evaluation_counts_against_diverged_runs_only():
    curves = {"accuracy/validation": [[250, 0.5], [500, 0.6]]}

    def found(status, steps):
        run = types.SimpleNamespace(curves=curves, status=status, steps=steps)
        return values_at(run, "accuracy/validation", (250, 400, 500, 750), "accuracy")

    assert found(OK, 800) == {"accuracy_at_250": 0.5, "accuracy_at_500": 0.6}
    assert found(DIVERGED, 700) == {
        "accuracy_at_250": 0.5, "accuracy_at_500": 0.6, "accuracy_at_750": None
    }


def synthetic(config, status):
    """A result of a run, of one that diverged at once, or of one evaluated at other steps."""
    names = ("loss/train", "accuracy/train", "loss/validation", "accuracy/validation", "loss/test",
             "units/median_range", "unit/p15", "unit/p50", "unit/p85")
    curves = {name: [[3, 0.5], [7, 0.625]] for name in names} if status == OK else {}
    lost = 0.5 if status == OK else None
    metrics = {
        "test_loss": lost, "validation_loss": lost, "test_accuracy": 0.5, "penalty": lost,
        "validation_accuracy": 0.5, "validation_accuracy_batch_statistics": None,
        "one_at_a_time_accuracy": 0.5, "best_validation_accuracy": 0.5, "start_no_gradient": 0.0,
        "steps_to_90_percent": None, "pitfall/images": 480.0, "pitfall/correct/whole": 0.5,
    }
    return dataclasses.replace(
        result(), config=config, status=status, steps=7, metrics=metrics, curves=curves
    )


@pytest.mark.parametrize("name", STUDY_NAMES)
@pytest.mark.parametrize("part", ["all arms", "one arm", "last arm"])
@pytest.mark.parametrize("status", [OK, DIVERGED])
def test_a_report_can_be_made_of_whatever_was_left_behind(name, part, status, tmp_path):
    """Of diverged runs without a point in their curves, of steps that no claim is about."""
    runs = study(name).expand({}, range(2))
    if part != "all arms":
        arm = runs[0 if part == "one arm" else -1].arm
        runs = [run for run in runs if run.arm == arm]
    store = Store(tmp_path)
    store.write_study(name, False)
    store.write_plan(runs)
    for run in runs:
        store.add(synthetic(run, status))
    summary, picture = report.write(store)
    assert picture.startswith(b"\x89PNG")
    told = io.StringIO()
    Console(file=told, width=200).print(summary.table(), summary.verdict)
    *_, arms, _ = summary.table().renderables
    known = {metric.replace("_", " ") for row in summary.rows for metric in row.metrics}
    assert {column.header for column in arms.columns} <= {"arm", "seeds", *known}, "an empty column"
    for found in summary.judged:
        assert found.claim.text in told.getvalue().replace("\n", " ")
        assert found.effect.seeds <= 2
        assert found.verdict == UNDECIDED  # two seeds
        arms = {test.arm for test in found.claim.effect}
        assert found.effect.seeds and arms <= {row.arm for row in summary.rows}, "judged, but not run"


def test_some_arms_alone_can_be_asked_for_and_then_be_given_what_they_share():
    options = cli.parse_flags(
        ["train.py", "--study=ioffe_mnist", "--arms=none; batch", "--seeds=1", "--momentum=0.5"]
    )
    runs = cli.plan_study(study("ioffe_mnist"), options)
    assert [(run.arm, run.momentum) for run in runs] == [("none", 0.5), ("batch", 0.5)]


def test_an_arm_may_not_be_overridden():
    with pytest.raises(ConfigError, match="normalizer: the arms of this study differ in it"):
        study("ioffe_mnist").expand({"normalizer": "layer"}, [0])


def test_other_settings_get_another_folder_and_more_seeds_the_same(tmp_path):
    def folder(*flags):
        options = cli.parse_flags(
            ["train.py", "--study=ioffe_mnist", f"--logdir={tmp_path}", *flags]
        )
        return cli.make_work_dir(options, cli.plan_study(study("ioffe_mnist"), options))

    assert folder() == folder("--seeds=7") != folder("--steps=100")
    assert "quick" in folder("--quick").name


def test_the_list_tells_of_every_study_and_loads_no_tensorflow():
    listing = "import sys; from bn_keras.__main__ import main; assert main(['list']) == 0; " \
        "assert not {'tensorflow', 'scipy'} & set(sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    ).stdout
    for name in STUDY_NAMES:
        one = study(name)
        for text in (name, one.question, one.duration, one.expected, next(iter(one.arms))):
            assert text in told
        assert f"({len(one.arms)} in all)" in told or list(one.arms)[-1] in told


def run(*flags, logdir):
    """Runs the command as a user does; returns (status, output, its work directory)."""
    result = subprocess.run(
        [sys.executable, "train.py", *flags, f"--logdir={logdir}"], capture_output=True, text=True
    )
    folders = [path for path in logdir.iterdir() if path.is_dir()]
    return result.returncode, result.stdout + result.stderr, folders[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDY_NAMES)
def test_the_quick_version_runs_reports_and_is_not_repeated(name, tmp_path):
    status, output, folder = run(f"--study={name}", "--quick", logdir=tmp_path)
    assert status == 0 and "WARNING" not in output, output
    one = study(name)
    content = json.loads((folder / "results.json").read_text())
    judged = {claim["claim"] for claim in content["claims"]}
    claims = [claim for claim in one.claims if claim.text in judged]
    assert len(claims) == len(content["claims"]) >= 1
    for claim in claims:
        assert claim.text in output
    metrics = {metric for row in content["rows"] for metric in row["metrics"]}
    wanted = {test.metric for claim in claims for test in claim.effect + claim.cause}
    for metric in {*one.metrics, *wanted} - metrics:  # of later steps, of a whole ladder
        assert re.search(r"_at_[\d.]+$|^largest_workable_rate$|^times_none$", metric), metric
    for claim in claims:
        assert {test.arm for test in claim.effect} <= {row["arm"] for row in content["rows"]}
    assert (folder / "picture.png").stat().st_size > 10_000
    status, output, _ = run(f"--study={name}", "--quick", logdir=tmp_path)
    assert status == 0 and "loading TensorFlow" not in output
    assert Store(folder).study() == {"name": name, "quick": True}


@pytest.mark.slow
def test_the_largest_workable_rate_is_several_times_as_high_with_bn(tmp_path):
    """Ratio at least 3; at 2.4 with BN at least .88, without at most .3: in each of five seeds."""
    status, output, folder = run("--study=learning_rates", "--seeds=5", logdir=tmp_path)
    assert status == 0, output
    verdicts = {c["claim"]: c["verdict"] for c in json.loads(
        (folder / "results.json").read_text())["claims"]}
    assert verdicts["BN allows a learning rate several times as high"] == "holds"


@pytest.mark.slow
def test_bn_is_far_ahead_after_500_steps_of_the_papers_net(tmp_path):
    """At rate .1 and momentum .9: at least .85 against at most .40, in each of three seeds."""
    status, output, folder = run(
        "--study=ioffe_mnist", "--arms=none;batch", "--steps=500", logdir=tmp_path
    )
    assert status == 0, output
    rows = json.loads((folder / "results.json").read_text())["rows"]
    found = {(row["arm"], row["seed"]): row["metrics"]["accuracy_at_500"] for row in rows}
    assert len(found) == 6
    assert all(value >= 0.85 for (arm, _), value in found.items() if arm == "batch"), found
    assert all(value <= 0.40 for (arm, _), value in found.items() if arm == "none"), found


@pytest.mark.slow
def test_the_clipped_loss_on_raw_pixels_is_what_fails_without_bn(tmp_path):
    """200 steps: no BN at most .25, BN at least .6; with a stable loss no BN learns (one seed)."""
    status, output, folder = run(
        "--study=conv_bn_relu", "--arms=none;batch;none, stable loss", "--steps=200", "--seeds=1",
        "--test_size=2000", logdir=tmp_path,
    )
    assert status == 0, output
    rows = json.loads((folder / "results.json").read_text())["rows"]
    found = {row["arm"]: row["metrics"]["test_accuracy"] for row in rows}
    assert found["none"] <= 0.25 and found["batch"] >= 0.6, found
    assert found["none, stable loss"] >= 0.85, found
