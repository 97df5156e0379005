"""TensorBoard events as TensorBoard reads them, curves in memory, and the terminal."""

import dataclasses
import io

import numpy as np
import pytest
from make import bright_splits, run_config
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from bn_keras import writers
from bn_keras.config import RUN_FIELDS
from bn_keras.results import OK, RunResult, Store
from bn_keras.runner import Runner
from bn_keras.writers.memory import Memory
from bn_keras.writers.tensorboard import TensorBoard, write_comparison
from bn_keras.writers.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def points(events, tag):
    return [[event.step, float(tensor_util.make_ndarray(event.tensor_proto))]
            for event in events.Tensors(tag)]


def result(**changes):
    metrics = {"validation_accuracy": 0.25, "test_accuracy": 0.5, "validation_commonest": 0.3,
               "steps_to_90_percent": None, "validation_loss": 2.0}
    fields = {"config": run_config(learning_rate=0.05), "status": OK, "steps": 8, "seconds": 1.0,
              "metrics": metrics, "curves": {}, "start": "a", "versions": {}, "data": "b"}
    return RunResult(**{**fields, **changes})


@pytest.mark.slow
def test_a_run_s_events_are_its_curves_and_histograms(tmp_path, small_net):
    """Of a stack of two; what an earlier, unfinished try has left is gone."""
    left = tmp_path / "tensorboard" / "batch" / "seed_1" / "left"
    left.parent.mkdir(parents=True)
    left.write_text("")
    configs = [run_config(model=small_net, measure=("histograms",), seed=s) for s in range(2)]
    splits = bright_splits()
    found = Runner(lambda config: splits, Store(tmp_path))(configs)
    assert not left.exists()
    for run, of_run in enumerate(found):
        events = read(tmp_path / "tensorboard" / "batch" / f"seed_{run}")
        for tag, curve in of_run.curves.items():
            np.testing.assert_allclose(points(events, tag), curve, rtol=1e-6)
        tags = set(events.Tags()["tensors"])
        places = {f"dense1_norm/{what}" for what in (
            "input", "output", "gamma", "beta", "moving_mean", "moving_variance")}
        assert {tag for tag in tags if "_norm/" in tag} == places
        for tag in places:
            assert [event.step for event in events.Tensors(tag)] == [4, 8]
        buckets = tensor_util.make_ndarray(events.Tensors("dense1_norm/gamma")[-1].tensor_proto)
        assert buckets[:, 2].sum() == 4, "each run's own units"
        summaries = {tag for tag in tags if tag.startswith("summary/")}
        assert summaries == {
            f"summary/{name}" for name, value in of_run.metrics.items() if value is not None
        }


def test_hparams_name_the_run_s_settings_and_its_results(tmp_path):
    writer = TensorBoard(tmp_path, "batch/seed_0")
    writer.finish(result())
    writer.close()
    events = read(tmp_path)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.group_name or start.hparams
    assert set(start.hparams) == set(RUN_FIELDS)
    assert start.hparams["normalizer"].string_value == "batch"
    assert start.hparams["arm"].string_value == "batch"
    assert start.hparams["seed"].string_value == "0"
    assert start.hparams["learning_rate"].number_value == pytest.approx(0.05)
    assert start.hparams["dropout"].string_value == "None"
    assert points(events, "summary/validation_accuracy") == [[8, 0.25]]
    assert points(events, "summary/test_accuracy") == [[8, 0.5]]
    assert "summary/steps_to_90_percent" not in events.Tags()["tensors"], "never reached"


def test_values_that_are_not_finite_are_left_out_of_events(tmp_path):
    writer = TensorBoard(tmp_path, "run")
    writer.scalars(1, {"loss": 1.0, "other": None})
    writer.histograms(1, {"some": np.array([[1.0, np.inf], [np.nan, 2.0]]),
                          "none": np.full(3, np.nan)})
    writer.close()
    events = read(tmp_path)
    assert points(events, "loss") == [[1, 1.0]] and "other" not in events.Tags()["tensors"]
    buckets = tensor_util.make_ndarray(events.Tensors("some")[0].tensor_proto)
    assert buckets[:, 2].sum() == 2 and (buckets[0, 0], buckets[-1, 1]) == (1, 2)
    assert tensor_util.make_ndarray(events.Tensors("none")[0].tensor_proto)[:, 2].sum() == 0


def test_the_comparison_has_charts_pictures_verdict_and_the_columns_of_hparams(tmp_path):
    import tensorflow as tf

    picture = tf.io.encode_png(np.zeros((2, 3, 3), np.uint8)).numpy()
    bands = {
        "batch": {"loss/train": np.array([[10, 2, 1, 3], [20, 1, 0.5, 4]]),
                  "loss/validation": np.array([[20, 2.0, 1.5, 2.5]]),
                  "gradient/norm": np.array([[10, 7.0, 6.0, 9.0]])},
        "no norm at 0.1": {"loss/train": np.array([[10, 5, 5, 6]])},
    }
    for _ in range(2):  # the second time replaces the first
        write_comparison(
            tmp_path, {"outcomes": picture, "curve:loss/train": picture}, "the verdict", bands,
            ["arm", "seed", "learning_rate"], {"test_loss": "test loss"},
        )
    events = read(tmp_path / "comparison")
    assert events.Tensors("verdict")[0].tensor_proto.string_val == [b"the verdict"]
    for tag in ("verdict", "comparison/outcomes", "comparison/curve:loss/train"):
        assert len(events.Tensors(tag)) == 1
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    assert [(category.title, len(category.chart)) for category in charts.category] == [
        ("loss", 2), ("gradient", 1)
    ]
    series = {chart.title.partition(":")[0]: chart.margin.series[0]
              for category in charts.category for chart in category.chart}
    assert set(series) == set(bands["batch"])
    for arm, of_arm in bands.items():
        of_seeds = read(tmp_path / arm / "over_seeds")
        for curve, band in of_arm.items():
            shown = series[curve]
            for column, tag in enumerate((shown.value, shown.lower, shown.upper), 1):
                assert points(of_seeds, tag) == band[:, [0, column]].tolist()
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == ["arm", "seed", "learning_rate"]
    assert [(metric.name.tag, metric.display_name) for metric in experiment.metric_infos] == [
        ("summary/test_loss", "test loss")
    ]


def test_memory_keeps_scalars_as_curves():
    memory = Memory()
    memory.scalars(2, {"a": 1.0, "b": None})
    memory.histograms(2, {"c": np.zeros(3)})
    memory.scalars(4, {"a": 0.5})
    assert memory.curves == {"a": [[2, 1.0], [4, 0.5]], "b": [[2, None]]}


def test_a_fan_out_hands_everything_to_every_writer():
    class Recorder(writers.Writer):
        """Notes what it is called with."""

        def __init__(self):
            self.calls = []

        def scalars(self, step, values):
            self.calls.append(("scalars", step, values))

        def histograms(self, step, values):
            self.calls.append(("histograms", step, values))

        def finish(self, of_run):
            self.calls.append(("finish", of_run))

        def close(self):
            self.calls.append(("close",))

    recorders = [Recorder(), Recorder()]
    fan = writers.FanOut(recorders)
    fan.scalars(1, {"a": 1.0})
    fan.histograms(2, {"b": 2})
    fan.finish("the result")
    fan.close()
    expected = [("scalars", 1, {"a": 1.0}), ("histograms", 2, {"b": 2}), ("finish", "the result"),
                ("close",)]
    assert [recorder.calls for recorder in recorders] == [expected, expected]


def shown(is_terminal, use):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=150)
    with Terminal(console) as terminal:
        use(terminal)
    return console.file.getvalue()


def follow(terminal):
    bar = terminal.stack("batch/seed_0 [and] 2 more", 40)
    bar.scalars(10, {"loss/train": 0.5, "accuracy/train": None})
    bar.scalars(15, {"loss/validation": 9.0})
    bar.scalars(20, {"loss/train": 0.25, "accuracy/train": 0.875})
    bar.close()
    terminal.stored("batch/seed_0", result())


def test_a_terminal_shows_a_bar_with_steps_loss_and_accuracy():
    text = shown(True, follow)
    for part in ("batch/seed_0 [and] 2 more", "20/40 steps", "steps/s", "loss 0.250",
                 "accuracy 0.875"):
        assert part in text
    assert "9.000" not in text and "ok after" not in text


def test_a_narrow_terminal_has_all_numbers_and_the_whole_name():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Terminal(console) as terminal:
        follow(terminal)
    text = console.file.getvalue()
    for part in ("batch/seed_0", "[and] 2 more", "20/40 steps", "loss 0.250", "accuracy 0.875"):
        assert part in text
    assert "…" not in text


def test_elsewhere_every_stored_run_has_a_line_and_nothing_else_is_said():
    assert shown(False, follow) == (
        "batch/seed_0: ok after 8 steps, validation accuracy 0.250\n"
    )


def test_a_line_says_the_loss_of_a_regression_and_a_dash_of_what_diverged():
    regression = dataclasses.replace(result(), metrics={"validation_loss": 2.0})
    lost = dataclasses.replace(result(), status="diverged", steps=3, metrics={
        "validation_commonest": None, "validation_accuracy": None})
    text = shown(False, lambda terminal: (
        terminal.stored("a", regression), terminal.stored("b", lost)))
    assert text == (
        "a: ok after 8 steps, validation loss 2.000\n"
        "b: diverged after 3 steps, validation accuracy –\n"
    )
