"""The headline: at learning rate .05 the net with BN learns MNIST and the net without does not."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from bn_keras import data, results, runner
from bn_keras.config import RunConfig
from bn_keras.results import Store


@pytest.mark.slow
def test_bn_learns_and_no_bn_stays_at_chance_on_all_three_seeds(tmp_path):
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, str(root / "train.py"), f"--logdir={tmp_path}"]
    assert subprocess.run(command, capture_output=True, timeout=500).returncode == 0
    (path,) = tmp_path.glob("*/results.json")
    content = json.loads(path.read_text())
    accuracies = {"none": [], "batch": []}
    for run in content["runs"]:
        assert run["steps"] == 250 and run["status"] == "ok"
        accuracies[run["normalizer"]].append(run["validation_accuracy"])
        if run["normalizer"] == "batch":
            assert run["test_accuracy"] >= 0.85 and run["one_at_a_time_accuracy"] >= 0.9
            assert run["validation_accuracy_batch_statistics"] >= 0.85
            assert run["steps_to_90_percent"] <= 150
    assert len(accuracies["none"]) == len(accuracies["batch"]) == 3
    assert min(accuracies["batch"]) >= 0.85, accuracies
    assert max(accuracies["none"]) <= 0.2, accuracies
    assert "batch is better than none" in content["verdict"]


def test_a_run_is_the_same_twice_and_another_seed_differs(tmp_path):
    splits = data.load("mnist", train_size=500, validation_size=100, test_size=50)
    run = runner.Runner(splits, Store(tmp_path))
    config = RunConfig(steps=12, batch_size=16, validation_size=100, log_interval=3)
    first, other, again = run(config), run(dataclasses.replace(config, seed=1)), run(config)
    assert first.status == results.OK and first.steps == 12
    assert again.curves == first.curves and again.metrics == first.metrics
    assert again.start == first.start and other.start != first.start
    assert other.curves != first.curves
    assert [step for step, _ in first.curves["loss/train"]] == [3, 6, 9, 12]
    assert len(run._graphs) == 1
