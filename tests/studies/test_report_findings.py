"""What a report says of a plan's results, in sentences, tables and files."""

import csv
import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from reports import compared, frames, result
from rich.console import Console

from bn_keras.plan import make_plan
from bn_keras.report import report, sentences
from bn_keras.report.findings import LEARNED, STUCK, outcome
from bn_keras.results import DIVERGED, OK, Store

UP, DOWN = [0.96, 0.965, 0.961, 0.963, 0.966, 0.959], [0.1, 0.101, 0.098, 0.103, 0.099, 0.102]


def made(accuracies, **changes):
    return report.make_report(*compared(accuracies, **changes))


def printed(found, width=100, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width).print(found)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_six_unanimous_pairs_are_a_finding_with_its_size_and_the_smallest_difference_that_counts():
    lines = made({"none": DOWN, "batch": UP}).verdict.splitlines()
    assert (
        "At learning rate 3 (sgd, 100 steps), none learned in 0 of 6 seeds [0, .46] and batch in "
        "6 of 6 [.54, 1]." in lines
    )
    assert lines[-1] == (
        "batch is higher than none in 6 of 6 pairs (exact sign test p = .031; differences in "
        "validation accuracy up to .010 count as ties), in the median by +.861 (95 % interval "
        "+.857 to +.867)."
    )
    assert (
        "Validation accuracy of those that learned, median [lowest, highest]: "
        "batch .962 [.959, .966]." in lines
    )


def test_the_other_direction_is_told_in_the_other_direction():
    verdict = made({"none": UP, "batch": [value - 0.05 for value in UP]}).verdict
    assert "batch is lower than none in 6 of 6 pairs (exact sign test p = .031" in verdict
    assert "in the median by −.050 (95 % interval −.050 to −.050)." in verdict


def test_differences_below_the_evaluations_own_error_are_ties():
    """Three differences of +.001 on 5,000 images were once called "better [+.001, +.001]"."""
    found = made({"none": UP, "batch": [value + 0.001 for value in UP]})
    assert (found.comparisons[0].pairs.won, found.comparisons[0].pairs.tied) == (0, 6)
    assert "No difference between batch and none is shown" in found.verdict
    assert "tied in 6 (exact sign test p = 1;" in found.verdict


def test_fewer_than_six_pairs_are_counted_and_not_tested():
    found = made({"none": DOWN[:3], "batch": UP[:3]})
    assert found.comparisons[0].pairs.p_value is None
    assert found.verdict.endswith(
        "batch is higher than none in 3 of 3 pairs (differences in validation accuracy up to .010 "
        "count as ties): too few for a two-sided test (6 pairs at least); 3 more pairs, all won by "
        "the same arm, would decide."
    )
    for word in ("better", "sign test", "by +"):
        assert word not in found.verdict


def test_one_seed_gives_its_numbers_alone():
    found = made({"none": DOWN[:1], "batch": UP[:1]})
    assert (
        "At learning rate 3 (sgd, 100 steps), validation accuracy of one seed: none .100 (stuck), "
        "batch .960 (learned)." in found.verdict
    )
    assert "too few to tell them apart; 5 more pairs" in found.verdict
    assert "[" not in found.verdict.replace("[0, 1]", "").split("\n", 1)[1]


def test_a_lucky_run_of_the_weaker_arm_does_not_hide_what_the_pairs_show():
    """One run of six gets off the ground; the other arm still wins every pair."""
    found = made({"none": [*DOWN[:5], 0.81], "batch": UP})
    assert "batch is higher than none in 6 of 6 pairs (exact sign test p = .031" in found.verdict
    assert "none learned in 1 of 6 seeds [.00, .64]" in found.verdict
    table = printed(found.table())
    assert "learned: .810" in table and "all: .10" in table


def test_a_diverged_run_loses_its_pair_and_is_seen_everywhere():
    found = made({"none": [None, *DOWN[1:]], "batch": UP})
    pairs = found.comparisons[0].pairs
    assert (pairs.won, pairs.lost, pairs.mean) == (6, 0, None)
    assert "(1 diverged)" in found.verdict and "1 diverged" in printed(found.table())
    assert found.arms[0].metrics["validation_accuracy"]["known"] == 5
    content = json.loads(found.to_json())
    assert content["rows"][0]["status"] == content["rows"][0]["outcome"] == "diverged"
    assert content["rows"][0]["metrics"]["validation_accuracy"] is None
    assert ["none", "0", "diverged", "validation_accuracy", ""] in list(
        csv.reader(io.StringIO(found.to_csv()))
    )


@pytest.mark.slow
def test_several_comparisons_are_adjusted_by_holm_and_say_which():
    none, up = [*DOWN, 0.1], [*UP, 0.96]
    found = made({"none": none, "batch": up, "layer": up, "group": [0.05, *up[1:]]})
    assert [one.arm for one in found.comparisons] == ["batch", "layer", "group"]
    p_values = [(one.pairs.p_value, one.adjusted_p) for one in found.comparisons]
    alone, one_lost = 2 / 2**7, 2 * 8 / 2**7
    assert p_values == [(alone, pytest.approx(3 * alone))] * 2 + [(one_lost, one_lost)]
    assert found.verdict.count("No difference between") == 1
    assert "p = .016, = .047 after Holm over the 3 comparisons with none" in found.verdict


def test_pairs_that_cannot_carry_all_comparisons_of_the_table_are_counted_and_not_tested():
    """Six unanimous pairs of three arms were once "no difference is shown", with no remedy."""
    found = made({"none": DOWN, "batch": UP, "layer": UP, "group": [0.05, *UP[1:]]})
    assert {one.adjusted_p for one in found.comparisons} == {None}
    assert "No difference" not in found.verdict
    told = "too few for two-sided tests of 3 comparisons (7 pairs at least); {}, all won by the"
    assert found.verdict.count(told.format("1 more pair")) == 2
    assert found.verdict.count(told.format("5 more pairs")) == 1


def test_pairs_that_did_not_start_alike_are_named():
    accuracies = {"none": DOWN, "batch": UP}
    assert "DIFFER" not in made(accuracies).verdict
    apart = made(accuracies, start={"none": "a", "batch": "b"})
    assert apart.verdict.endswith("The initial weights of its pairs DIFFER.")
    plan, results = compared(accuracies)
    results = [dataclasses.replace(run, data=run.config.normalizer) for run in results]
    assert report.make_report(plan, results).verdict.endswith("The data of its pairs DIFFER.")


def with_metrics(metrics, measure, accuracies={"none": DOWN[:2], "batch": UP[:2]}):
    plan, results = compared(accuracies, measure=measure)
    return report.make_report(plan, [
        dataclasses.replace(run, metrics={**run.metrics, **metrics}) for run in results
    ])


def test_the_metrics_of_a_probe_that_was_asked_for_are_in_the_table():
    found = with_metrics({"penalty": 0.25, "start_dead_units": 0.5}, ("penalty",))
    headings, cells = sentences.table_of_arms(found)
    assert headings[-2:] == ["penalty in the loss", "seconds per run"]
    assert [line[-2] for line in cells] == [".250", ".250"]
    assert "results.csv" not in " ".join(found.notes)
    usual = with_metrics({"penalty": 0.25}, ("histograms",))
    assert "penalty in the loss" not in sentences.table_of_arms(usual)[0]


def test_where_such_metrics_are_many_the_report_says_how_many_and_where():
    many = {f"pitfall/{name}/{batch}": 0.5
            for name in ("correct", "as_written") for batch in ("whole", "16", "2", "1")}
    found = with_metrics(many, ("histograms", "pitfalls:correct", "pitfalls:as_written"))
    assert sentences.table_of_arms(found)[0] == sentences.table_of_arms(
        with_metrics({}, ("histograms",)))[0]
    assert ("8 more metrics of the probes that were asked for stand in results.csv."
            in found.notes)


def test_missing_runs_are_named():
    found = made({"none": DOWN, "batch": UP[:4]})
    assert ("2 of 12 runs are missing: batch, seed 4 (not finished); batch, seed 5 (not finished)"
            in found.verdict)
    assert list(found.missing) == ["batch, seed 4", "batch, seed 5"]
    nothing = made({"none": DOWN[:1], "batch": []})
    assert "To compare, train a normalizer too." in nothing.verdict


def test_one_arm_alone_asks_for_the_other():
    assert made({"batch": UP}).verdict.endswith("To compare, train none too.")
    assert made({"none": DOWN}).verdict.endswith("To compare, train a normalizer too.")


def test_stuck_is_no_better_than_naming_the_commonest_class():
    """Of two classes an accuracy of 1 is twice chance, and yet learned."""
    plan, results = compared({"batch": [1.0, 0.52]})
    two = {"validation_commonest": 0.5, "validation_images": 5000}
    results = [dataclasses.replace(run, metrics={**run.metrics, **two}) for run in results]
    found = report.make_report(plan, results)
    assert [outcome(row) for row in found.rows] == [LEARNED, STUCK]
    assert (found.arms[0].learned, found.arms[0].stuck) == (1, 1)


def test_steps_to_a_target_count_the_runs_that_never_get_there():
    found = made({"batch": [0.95, 0.95, 0.5, 0.5, 0.5]})
    told = found.arms[0].metrics["steps_to_90_percent"]
    assert told == {"median": np.inf, "lowest": 20, "highest": 20, "known": 2}
    assert "never [20, 20]" in printed(found.table()) and "2 of 5" in printed(found.table())
    assert json.loads(found.to_json())["arms"][0]["metrics"]["steps_to_90_percent"] == {
        "median": None, "lowest": 20, "highest": 20, "known": 2
    }


def test_a_report_says_what_the_seeds_vary_and_that_their_number_was_fixed():
    notes = " ".join(made({"none": DOWN, "batch": UP}).notes)
    assert "initial weights, the order of the batches and the dropout" in notes
    assert "split and test images are the same" in notes and "fixed in advance" in notes


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_all_of_a_report_can_be_read_in_any_terminal(width, encoding):
    found = made({"none": [None, *DOWN[1:]], "batch": UP}, dataset="csv:/tmp/[red]$x$\x1b[31m学.csv")
    text = printed(found, width, encoding)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for told in (*found.notes, *found.verdict.splitlines()):
        if encoding == "utf-8":
            assert " ".join(told.split()) in words
    assert "\x1b" not in text and "1 diverged" in words


def test_a_figure_in_json_is_strict_and_carries_its_origin():
    found = made({"none": DOWN, "batch": UP})
    content = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert set(content) == {
        "study", "quick", "question", "verdict", "notes", "missing", "arms", "comparisons",
        "claims", "rows", "runs",
    }
    assert content["study"] == "comparison" and content["verdict"] == found.verdict
    run = content["runs"][0]
    assert run["config"]["learning_rate"] == 3 and run["versions"] == {"keras": "3"}
    assert {"status", "seconds", "start", "data", "metrics"} <= set(run)
    assert content["comparisons"][0]["pairs"]["won"] == 6


@pytest.fixture
def folder(tmp_path):
    plan, results = compared({"none": DOWN[:2], "batch": UP[:2]})
    store = Store(tmp_path)
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    for run in results:
        store.add(run)
    return store


@pytest.mark.slow
def test_a_folder_is_reported_without_tensorflow(folder):
    code = (
        "import sys; from bn_keras.report import report; from bn_keras.results import Store; "
        "print(report.write(Store(sys.argv[1])).verdict); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(folder.work_dir)], capture_output=True,
                          text=True, encoding="utf-8")
    assert told.returncode == 0, told.stderr
    found = report.write(folder)
    assert found.verdict in told.stdout
    path = folder.work_dir
    assert json.loads((path / "results.json").read_text())["verdict"] == found.verdict
    assert (path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (path / "results.csv").read_text().startswith("arm,seed,status,metric,value\nnone,0,ok,")


@pytest.mark.parametrize("damage", ["gone", "cut short", "of other settings"])
def test_a_run_that_cannot_be_read_is_named(folder, damage, monkeypatch):
    monkeypatch.setattr(report, "_write_pictures", lambda *_: None)
    path = folder.work_dir / "runs" / "batch" / "seed_1.json"
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        path.write_text(path.read_text()[:100])
    else:
        path.write_text(path.read_text().replace('"steps": 100', '"steps": 101'))
    found = report.write(folder)
    why = found.missing.pop("batch, seed 1")
    assert not found.missing and why.startswith({
        "gone": "not finished", "cut short": f"{path} cannot be read: ",
        "of other settings": f"{path} is of other settings",
    }[damage])
    assert f"1 of 4 runs is missing: batch, seed 1 ({why})" in found.verdict


def test_a_folder_without_a_plan_or_a_run_is_refused(folder, tmp_path_factory):
    empty = Store(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="no work directory of this version.*plan.json"):
        report.write(empty)
    (empty.work_dir / "plan.json").write_bytes((folder.work_dir / "plan.json").read_bytes())
    with pytest.raises(ValueError, match="not one of its 4 runs can be reported .not finished"):
        report.write(empty)
    (empty.work_dir / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan"):
        report.write(empty)


def regression(tmp_path, arms=("tanh none", "tanh batch"), damage=None):
    plan = make_plan("bad_init_regression", {}, seeds=2, arms=list(arms))
    store = Store(tmp_path)
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    for number, run in enumerate(plan.runs):
        metrics = {"validation_accuracy": None, "test_accuracy": None, "validation_commonest": None,
                   "test_loss": 600.0 - 100 * number, "end_saturated_units_layer_1": 0.5}
        if run.seed == 0:
            store.add_frames(run, frames(seed=number))
        if damage is not None and run.seed == 0:
            path = store.work_dir / "runs" / run.arm / "seed_0.npz"
            path.write_bytes(path.read_bytes()[:damage])
        store.add(result(run, None, OK, metrics=metrics,
                         curves={"loss/test": [[0, 9.0], [10, 5.0], [20, 3.0]]}))
    return store


@pytest.mark.slow
def test_a_study_with_frames_writes_its_animation(tmp_path):
    found = report.write(regression(tmp_path))
    names = {path.name for path in tmp_path.glob("animation-*")}
    assert names == {"animation-tanh.gif", "animation-tanh.html"}  # relu has no arm here
    assert [bool(row.frames) for row in found.rows] == [True, False, True, False]
    assert "frames" not in (tmp_path / "results.json").read_text()
    table = printed(found)
    assert "tanh none" in table and "600" in table and "stuck" not in table
    assert "deviation" in table and table.startswith(" ") and "layer" in table.splitlines()[2]


@pytest.mark.parametrize("damage", [1000, 0])
def test_a_folder_without_readable_frames_still_reports(tmp_path, damage):
    found = report.write(regression(tmp_path, damage=damage))
    assert len(found.rows) == 4 and not any(row.frames for row in found.rows)
    assert (tmp_path / "picture.png").exists() and not list(tmp_path.glob("animation-*"))


def test_the_cause_of_an_undecided_claim_is_in_the_table():
    plan = make_plan("bad_init_regression", {}, seeds=5, arms=["relu none"], quick=True)
    found = report.make_report(plan, [
        result(run, None, metrics={"test_loss": 800.0, "end_dead_units_layer_3": 1.0})
        for run in plan.runs
    ])
    dies = next(one for one in found.judged if "dies" in one.claim.text)
    assert (dies.verdict, sentences.seen(dies)) == (
        "not decided", "5 of 5\ncause: not measured")
    assert "cause: not measured" in printed(found.table())
    assert "the claim cannot be decided without it" in found.verdict
    assert any("for the full version and not for this quick one" in note for note in found.notes)


def test_claims_are_judged_with_their_reason(tmp_path):
    plan = make_plan("learning_rates", {}, seeds=5)
    results = [result(run, 0.95 if run.learning_rate < 0.5 or run.normalizer == "batch" else None,
                      OK if run.learning_rate < 0.5 or run.normalizer == "batch" else DIVERGED)
               for run in plan.runs]
    found = report.make_report(plan, results)
    assert found.judged and not found.comparisons
    for one in found.judged:
        assert one.claim.text in found.verdict and one.verdict.upper() in found.verdict
        assert one.effect.seeds == 5
        assert sentences.seen(one).startswith(f"{one.effect.seen} of 5")
        assert ("\ncause: " in sentences.seen(one)) == (one.cause is not None)
    assert "5 of 5 seeds decide (one-sided test" in " ".join(found.notes)
    content = json.loads(found.to_json())
    told = [claim["claim"] for claim in content["claims"]]
    assert told == [one.claim.text for one in found.judged]
    assert content["claims"][0]["effect"]["seeds"] == 5


def test_a_picture_that_fails_does_not_cost_the_numbers(folder, monkeypatch):
    def fails(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr(report, "_write_pictures", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        report.write(folder)
    assert json.loads((folder.work_dir / "results.json").read_text())["rows"]
    assert (folder.work_dir / "results.csv").stat().st_size
