"""The store: whole files or none, and only results of the very same settings."""

import csv
import json
import os

import pytest

from bn_keras.config import RunConfig
from bn_keras.results import RunResult, Store, write_atomically


def result(seed=0, normalizer="batch", accuracy=0.5, status="ok", start="a", **changes):
    metrics = {
        "validation_accuracy": accuracy, "test_accuracy": accuracy, "chance": 0.1,
        "steps_to_90_percent": None, "one_at_a_time_accuracy": accuracy,
        "best_validation_accuracy": accuracy,
    }
    curves = {"loss/train": [[10, 0.5], [20, None]], "accuracy/validation": [[20, accuracy]]}
    config = RunConfig(seed=seed, normalizer=normalizer, **changes)
    return RunResult(config, status, 20, 1.5, metrics, curves, start, {"keras": "3"})


def test_a_result_is_found_again_as_it_was(tmp_path):
    store = Store(tmp_path)
    store.add(result())
    assert store.find(RunConfig()) == result()
    assert store.find(RunConfig(seed=1)) is None


def test_a_result_of_other_settings_is_not_taken(tmp_path):
    store = Store(tmp_path)
    store.add(result(steps=7))
    assert store.find(RunConfig()) is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"config": {"steps": 0}}'])
def test_a_broken_file_counts_as_no_result(tmp_path, text):
    store = Store(tmp_path)
    store.add(result())
    path = tmp_path / "runs" / "batch" / "seed_0.json"
    assert path.is_file()
    path.write_text(text)
    assert store.find(RunConfig()) is None


def test_the_report_is_about_the_planned_runs_only(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        store.add(result(seed))
    store.write_plan([RunConfig(seed=2), RunConfig(seed=1), RunConfig(seed=9)])
    assert [found.config.seed for found in store.results()] == [2, 1]


def test_curves_stand_in_the_csv_with_blanks_where_nothing_was_measured(tmp_path):
    Store(tmp_path).add(result())
    with open(tmp_path / "runs" / "batch" / "seed_0.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {"step": "10", "loss_train": "0.5", "accuracy_validation": ""},
        {"step": "20", "loss_train": "", "accuracy_validation": "0.5"},
    ]


def test_a_failing_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_json_holds_no_nan(tmp_path):
    broken = result(accuracy=float("nan"))
    with pytest.raises(ValueError):
        broken.to_json()
    json.loads(result().to_json(), parse_constant=pytest.fail)
