"""The headline: at SGD's rate of 3 the net with BN learns MNIST and the net without does not."""

import dataclasses
import json

import pytest
from make import ROOT
from processes import run

from bn_keras import data, runner
from bn_keras.config import RunConfig
from bn_keras.results import OK, Store


@pytest.mark.slow
def test_the_net_with_bn_learns_and_the_one_without_does_not(tmp_path):
    """One of the six pairs, and fewer images to evaluate; the settings are the headline's own.

    On 500 images, 450 right ones and 100 are 22 standard deviations apart: no chance of sampling.
    """
    status, _, errors = run(
        ROOT / "train.py", f"--logdir={tmp_path}", "--seeds=1", "--validation_size=500",
        "--test_size=500",
    )
    assert (status, errors) == (0, "")
    (path,) = tmp_path.glob("*/results.json")
    content = json.loads(path.read_text())
    accuracies = {"none": [], "batch": []}
    for row in content["rows"]:
        assert row["status"] == OK
        accuracies[row["arm"]].append(row["metrics"]["validation_accuracy"])
        if row["arm"] == "batch":
            assert row["outcome"] == "learned"
            assert row["metrics"]["test_accuracy"] >= 0.9
            assert row["metrics"]["one_at_a_time_accuracy"] >= 0.9
            assert row["metrics"]["validation_accuracy_batch_statistics"] >= 0.9
            assert row["metrics"]["steps_to_90_percent"] <= 60
    assert len(accuracies["none"]) == len(accuracies["batch"]) == 1
    assert min(accuracies["batch"]) >= 0.9, accuracies
    assert max(accuracies["none"]) <= 0.2, accuracies
    (compared,) = content["comparisons"]
    assert (compared["pairs"]["won"], compared["alike"]) == (1, True)
    assert compared["adjusted_p"] is None, "one pair is too few for a p value"


@pytest.mark.slow
def test_a_run_is_the_same_twice_and_another_seed_differs(tmp_path):
    splits = data.load("mnist", train_size=500, validation_size=100, test_size=50)
    train = runner.Runner(lambda config: splits, Store(tmp_path))
    config = RunConfig(
        steps=12, batch_size=16, validation_size=100, log_interval=3, eval_interval=6, measure=(),
    )
    (first,), (other,), (again,) = (
        train([run]) for run in (config, dataclasses.replace(config, seed=1), config)
    )
    assert first.status == OK and first.steps == 12
    assert again.curves == first.curves and again.metrics == first.metrics
    assert again.start == first.start and other.start != first.start
    assert other.curves != first.curves
    assert [step for step, _ in first.curves["loss/train"]] == [3, 6, 9, 12]
    assert len(train._graphs) == 1
