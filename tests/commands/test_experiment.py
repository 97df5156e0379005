"""What is trained, on which data and threads, and what a folder knows of earlier commands."""

import os
import sys

import pytest
import shell

from bn_keras import experiment
from bn_keras import plan as plans
from bn_keras.plan import Plan
from bn_keras.report import report


@pytest.fixture
def csv(tmp_path):
    return shell.write_csv(tmp_path / "data.csv")


def prepared(csv, **settings):
    return experiment.prepare(shell.plan(csv, **settings), csv.parent / "runs")


def names(runs):
    return [(run.arm_name, run.seed) for run in runs]


def known(work):
    return Plan.from_json((work.store.work_dir / "plan.json").read_text())


BOTH = [("none", 0), ("none", 1), ("batch", 0), ("batch", 1)]


def test_what_is_stored_is_not_missing(csv):
    work = prepared(csv)
    assert names(work.missing()) == BOTH
    shell.finish(work, work.plan.runs[1:])
    assert names(work.missing()) == names(prepared(csv).missing()) == BOTH[:1]


def test_a_stored_run_without_its_data_digest_or_with_a_null_is_missing(csv):
    work = shell.finish(prepared(csv))
    path = work.store.work_dir / "runs" / "batch" / "seed_1.json"
    for damage in (path.read_text().replace('"data"', '"date"'),
                   path.read_text().replace('"seconds": 1.5', '"seconds": null')):
        with shell.damaged(path, damage.encode()):
            assert names(prepared(csv).missing()) == [("batch", 1)]
    assert not prepared(csv).missing()


def test_changed_data_are_trained_again_and_what_was_trained_before_is_dropped(csv):
    work = shell.finish(prepared(csv, seeds=3))
    shell.write_csv(csv, value=1)
    work = prepared(csv, seeds=2)
    assert names(work.missing()) == BOTH
    assert any("6 stored runs were trained on other data" in note for note in work.notes)
    assert names(known(work).runs) == BOTH
    with pytest.raises(ValueError, match=r"not one of its 4 runs can be reported \(not finished\)"):
        report.write(work.store)
    shell.finish(work, work.plan.runs[:1])
    assert len(prepared(csv).missing()) == 3, "what is of these data is kept"


def test_commands_for_some_arms_share_a_folder_and_a_report(csv):
    first = shell.finish(prepared(csv, normalizers=["batch"]))
    second = shell.finish(prepared(csv, normalizers=["none"], seeds=1))
    both = prepared(csv)
    assert first.store.work_dir == second.store.work_dir == both.store.work_dir
    assert names(both.missing()) == [("none", 1)]
    third = prepared(csv, normalizers=["none"], seeds=1)
    assert not third.missing() and names(known(third).runs) == BOTH
    results = [first.store.find(run) for run in known(third).runs]
    told = report.make_report(known(third), [result for result in results if result is not None])
    assert [arm.name for arm in told.arms] == ["none", "batch"]
    assert list(told.missing) == ["none, seed 1"]


@pytest.mark.parametrize("content", [b"", b"[]", b'[{"model": "mnist_cnn"}]', b"[" * 100_000])
def test_a_plan_of_another_version_is_written_anew(content, csv):
    work = shell.finish(prepared(csv))
    (work.store.work_dir / "plan.json").write_bytes(content)
    assert not prepared(csv).missing() and names(known(work).runs) == BOTH


def test_a_stack_with_a_missing_run_is_trained_whole_and_only_that_run_is_stored(csv, trained):
    work = prepared(csv, seeds=3)
    shell.finish(work, [run for run in work.plan.runs if names([run]) != [("batch", 1)]])
    kept = {path: path.stat().st_mtime_ns for path in work.store.work_dir.rglob("seed_*.json")}
    assert names(result.config for result in experiment.train(work)) == [("batch", 1)]
    assert trained.last.stacks == [[("batch", 0), ("batch", 1), ("batch", 2)]]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not work.missing() and not list(experiment.train(work))


@pytest.mark.parametrize("stored", ["none", ""], ids=["one arm is stored", "nothing is stored"])
def test_threads_follow_from_the_plan_and_not_from_what_is_missing(
    stored, csv, trained, monkeypatch
):
    """Two arms on eight cores leave four to each, also to one that is left over."""
    work = prepared(csv)
    shell.finish(work, [run for run in work.plan.runs if run.normalizer == stored])
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow")
    list(experiment.train(work))
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "4"


def test_run_trains_and_reports(csv, trained, monkeypatch):
    monkeypatch.setattr(experiment, "report", lambda store: store)
    store = experiment.run(shell.plan(csv), csv.parent / "runs")
    assert sorted(sum(trained.last.stacks, [])) == sorted(BOTH)
    assert len(list(store.work_dir.rglob("seed_*.json"))) == 4


def test_graphs_that_are_trained_at_the_same_time_are_no_more_than_asked_for(csv, monkeypatch):
    monkeypatch.setattr(experiment, "_cores", lambda: 2)
    plan = shell.plan(csv, normalizers=["none", "batch", "keras_batch"])
    assert len(plans.groups(plan.runs)) == 3
    assert [experiment.workers_of(plan, workers) for workers in (None, 1, 3, 9)] == [2, 1, 3, 3]
