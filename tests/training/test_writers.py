"""TensorBoard events, read back as TensorBoard reads them."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from test_results import result

from bn_keras import data, figures, runner, summaries
from bn_keras.config import RunConfig
from bn_keras.results import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Events of one short run of each arm."""
    folder = tmp_path_factory.mktemp("logs")
    splits = data.load("mnist", train_size=200, validation_size=60, test_size=20)
    run = runner.Runner(splits, Store(folder))
    results = {}
    for arm in ("none", "batch"):
        config = RunConfig(
            normalizer=arm, steps=8, batch_size=16, log_interval=2, eval_interval=4,
            validation_size=60,
        )
        results[arm] = run(config)
    return folder, results


def read(folder, name):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("arm", ["none", "batch"])
def test_scalars_stand_at_their_steps_with_the_values_of_the_curves(logs, arm):
    folder, results = logs
    events = read(folder / "tensorboard" / arm / "seed_0", arm)
    from tensorboard.util import tensor_util

    for tag, steps in (("loss/train", [2, 4, 6, 8]), ("accuracy/train", [2, 4, 6, 8]),
                       ("loss/validation", [4, 8]), ("accuracy/validation", [4, 8]),
                       ("gradient/norm", [2, 4, 6, 8])):
        found = [[event.step, float(tensor_util.make_ndarray(event.tensor_proto))]
                 for event in events.Tensors(tag)]
        assert [step for step, _ in found] == steps
        np.testing.assert_allclose(found, results[arm].curves[tag], rtol=1e-6)


def test_every_normalizer_has_its_histograms(logs):
    folder, _ = logs
    tags = {
        arm: set(read(folder / "tensorboard" / arm / "seed_0", arm).Tags()["tensors"])
        for arm in ("none", "batch")
    }
    for place in ("conv2_norm", "dense1_norm", "dense2_norm"):
        for what in ("input", "output"):
            assert f"{place}/{what}" in tags["none"] & tags["batch"]
        for what in ("gamma", "beta", "moving_mean", "moving_variance"):
            assert f"{place}/{what}" in tags["batch"] - tags["none"]


def test_hparams_name_the_arm_and_its_results(logs):
    folder, results = logs
    events = read(folder / "tensorboard" / "batch" / "seed_0", "batch")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["normalizer"].string_value == "batch"
    assert start.hparams["learning_rate"].number_value == pytest.approx(0.05)
    from tensorboard.util import tensor_util

    (event,) = events.Tensors("summary/final_validation_accuracy")
    value = float(tensor_util.make_ndarray(event.tensor_proto))
    assert value == pytest.approx(results["batch"].metrics["validation_accuracy"])


def test_the_comparison_has_layout_figure_verdict_and_metrics(tmp_path):
    picture = figures.accuracy_over_steps([result()], "title")
    for _ in range(2):  # the second time replaces the first
        summaries.write_comparison(tmp_path / "comparison", picture, "the verdict")
    events = read(tmp_path / "comparison", "comparison")
    assert len(events.Tensors("verdict")) == len(events.Tensors("comparison")) == 1
    assert events.Tensors("verdict")[0].tensor_proto.string_val == [b"the verdict"]
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    titles = [category.title for category in charts.category]
    assert titles == ["accuracy", "loss", "gradient", "statistics"]
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == set(summaries.METRICS)


def test_a_finished_run_writes_exactly_the_announced_metrics(logs):
    folder, results = logs
    tags = set(read(folder / "tensorboard" / "batch" / "seed_0", "batch").Tags()["tensors"])
    written = {tag for tag in tags if tag.startswith("summary/")}
    missing = {"summary/steps_to_90_percent"}  # not reached in 8 steps
    assert results["batch"].metrics["steps_to_90_percent"] is None
    assert written == set(summaries.METRICS) - missing
