"""From settings to results: what a run measures, where it ends, what it refuses."""

import dataclasses
import os
import re
import threading

import keras
import numpy as np
import pytest
from make import bright_splits, number_splits, run_config

from bn_keras import data
from bn_keras.config import ConfigError
from bn_keras.diagnostics.probe import Probe
from bn_keras.nets import build
from bn_keras.registry import PROBES
from bn_keras.results import DIVERGED, OK, Store
from bn_keras.runner import Runner, batch_indices
from bn_keras.writers import Writer


def train(folder, *configs, splits=None, **settings):
    splits = splits or bright_splits()
    return Runner(lambda config: splits, Store(folder), **settings)(configs)


@pytest.mark.slow
def test_a_result_holds_all_that_a_reader_needs(tmp_path, small_net):
    config = run_config(model=small_net)
    splits = bright_splits()
    found, = train(tmp_path, config, splits=splits)
    assert (found.config, found.status, found.steps) == (config, OK, 8)
    assert found.data == splits.digest()
    assert len(found.start) == 12 and found.seconds > 0
    assert {"bn_keras", "tensorflow", "keras", "numpy", "python", "machine"} == set(found.versions)
    assert f"{os.cpu_count()} cores" in found.versions["machine"]
    logged, evaluated = [2, 4, 6, 8], [4, 8]
    steps = {name: [step for step, _ in points] for name, points in found.curves.items()}
    assert steps == {
        "loss/train": logged, "accuracy/train": logged, "gradient/norm": logged,
        "statistics/skipped_batches": logged, "loss/validation": evaluated,
        "accuracy/validation": evaluated,
    }
    again = type(found).from_json(found.to_json())
    assert again == found


@pytest.mark.slow
def test_the_same_settings_give_the_same_numbers(tmp_path, small_net):
    first, = train(tmp_path, run_config(model=small_net))
    second, = train(tmp_path, run_config(model=small_net))
    other, = train(tmp_path, run_config(model=small_net, seed=1))
    assert first.curves == second.curves and first.metrics == second.metrics
    assert first.curves != other.curves


@pytest.mark.slow
def test_intervals_that_do_not_divide_the_steps_end_with_a_point_at_the_last_step(
    tmp_path, small_net
):
    found, = train(tmp_path, run_config(model=small_net, steps=7, log_interval=3, eval_interval=5))
    assert [step for step, _ in found.curves["loss/train"]] == [3, 6, 7]
    assert [step for step, _ in found.curves["loss/validation"]] == [5, 7]


@pytest.mark.slow
def test_a_run_in_mixed_float16_trains_with_a_scaled_loss(tmp_path, small_net):
    """Near the one in float32: same start, losses apart by half precision's digits."""
    half, = train(tmp_path, run_config(model=small_net, dtype_policy="mixed_float16"))
    full, = train(tmp_path, run_config(model=small_net, dtype_policy="float32"))
    assert (half.status, half.start) == (OK, full.start)
    for name in ("loss/train", "gradient/norm", "loss/validation"):
        np.testing.assert_allclose(half.curves[name], full.curves[name], rtol=0.02, err_msg=name)
    assert half.curves["loss/train"] != full.curves["loss/train"]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_training_stops_once_all_runs_have_diverged(tmp_path, runs, monkeypatch, small_net):
    from bn_keras import loop

    calls, step = [], loop.Trainer.train
    monkeypatch.setattr(
        loop.Trainer, "train", lambda self, indices: (calls.append(1), step(self, indices))[1]
    )
    configs = [
        run_config(seed=seed, learning_rate=1e200, steps=400, log_interval=4, eval_interval=8,
                   normalizer="none", model=small_net)
        for seed in range(runs)
    ]
    for found in train(tmp_path, *configs):
        assert found.status == DIVERGED and found.steps < 20
        assert set(found.metrics.values()) == {None}
        assert "test_accuracy" in found.metrics
        assert all(step < found.steps for points in found.curves.values() for step, _ in points)
    assert len(calls) < 6


@pytest.mark.slow
def test_weights_that_the_last_step_has_spoilt_are_measured_without_a_warning(
    tmp_path, small_net
):
    """The loss of each step is that before its update, so the run itself has not diverged."""
    config = run_config(
        learning_rate=1e305, steps=1, log_interval=1, eval_interval=1, normalizer="none",
        model=small_net,
        measure=("histograms", "layers", "units", "penalty", "predicted_classes", "pitfalls"),
    )
    found, = train(tmp_path, config)
    assert found.status == OK and found.metrics["test_loss"] is None


@pytest.mark.slow
@pytest.mark.parametrize("model, runs", [("small_net", 2), ("lone_net", 1), ("bad_init_mlp", 2)])
def test_a_regression_has_losses_and_no_accuracy(tmp_path, small_net, lone_net, model, runs):
    configs = [
        run_config(model=model, loss="squared", dataset="quadratic", pixels="raw", seed=seed,
                   learning_rate=0.01, measure=("one_at_a_time", "penalty"))
        for seed in range(runs)
    ]
    results = train(tmp_path, *configs, splits=number_splits())
    assert len(results) == runs
    for found in results:
        assert found.status == OK and found.metrics["test_loss"] > 0
        assert found.curves["loss/validation"]
        assert not [name for name in (*found.curves, *found.metrics) if "accuracy" in name]
        assert not [name for name in found.metrics if "percent" in name or "commonest" in name]


class Seen(Probe):
    """A probe from outside the package: how often it was asked, and for which run."""

    every = "log"

    def start(self):
        self.asked = 0
        return {"outside/asked": np.zeros(self.nets.runs)}

    def during(self, step, steps):
        self.asked += 1
        return {"outside/asked": self.asked + 100.0 * np.arange(self.nets.runs)}

    def histograms(self, step):
        return {"outside/histogram": np.arange(3.0 * self.nets.runs).reshape(-1, 3)}

    def at_end(self):
        return {"outside": 1.5 + np.arange(self.nets.runs), "outside_never": np.full(
            self.nets.runs, np.nan)}

    def frames(self, run):
        return {"outside": np.full(2, run)}


@pytest.mark.slow
def test_metrics_from_before_the_first_step_are_kept_of_a_diverged_run(tmp_path, small_net):
    config = run_config(
        model=small_net, normalizer="none", learning_rate=1e200, activation="tanh",
        measure=("layers", "no_gradient"),
    )
    found, = train(tmp_path, config)
    fine, = train(tmp_path, dataclasses.replace(config, learning_rate=1e-3))
    assert (found.status, fine.status) == (DIVERGED, OK)
    for name in ("start_saturated_units", "start_std_layer_1", "start_no_gradient"):
        assert found.metrics[name] == fine.metrics[name] is not None
    assert found.metrics["end_saturated_units"] is None
    assert fine.metrics["end_saturated_units"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("method, returned, message", [
    ("at_end", {"outside": [1.0]}, "at_end returned 'outside' of shape (1,); expected shape (2,)"),
    ("at_start", {"outside_start": 1.0}, "returned 'outside_start' of shape (); expected"),
    ("during", {"outside/asked": np.ones((2, 3))}, "'outside/asked' of shape (2, 3); expected"),
    ("histograms", {"any": np.ones((3, 2))}, "'any' of shape (3, 2); expected shape (2, ...)"),
    ("start", None, "start returned None; expected a dict of arrays by name"),
    ("at_end", {"outsid": np.ones(2)},
     "at_end returned an unknown metric 'outsid' (did you mean 'outside'?); expected one that a"),
])
def test_a_probe_that_returns_what_it_should_not_is_named(
    tmp_path, outside, small_net, monkeypatch, method, returned, message
):
    monkeypatch.setattr(Seen, method, lambda *arguments: returned)
    configs = [run_config(model=small_net, measure=(outside,), seed=seed) for seed in range(2)]
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        train(tmp_path, *configs)
    assert str(error.value).startswith("measure='outside': ")


@pytest.fixture
def outside():
    PROBES.register("outside", metrics={
        "outside": ("a number", "", None), "outside_never": ("never a number", "", None),
        "outside/asked": ("times asked", "", None), "outside_start": ("at the start", "", None),
    })(Seen)
    yield "outside"
    del PROBES._registered["outside"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_a_probe_from_outside_the_package_lands_in_curves_metrics_events_and_frames(
    tmp_path, outside, small_net
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    configs = [run_config(model=small_net, measure=(outside,), seed=seed) for seed in range(2)]
    for run, found in enumerate(train(tmp_path, *configs)):
        expected = [[0, 0.0], *([2 * asked, asked + 100.0 * run] for asked in (1, 2, 3, 4))]
        assert found.curves["outside/asked"] == expected
        assert found.metrics["outside"] == 1.5 + run and found.metrics["outside_never"] is None
        folder = tmp_path / "tensorboard" / "batch" / f"seed_{run}"
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        assert [event.step for event in events.Tensors("outside/asked")] == [0, 2, 4, 6, 8]
        assert [event.step for event in events.Tensors("outside/histogram")] == [2, 4, 6, 8]
    # Of every arm the first run's.
    np.testing.assert_array_equal(Store(tmp_path).frames(configs[0])["outside"], [0, 0])
    assert Store(tmp_path).frames(configs[1]) is None


@pytest.mark.slow
def test_frames_are_stored_of_the_first_run_of_every_arm(tmp_path, outside, small_net):
    configs = [
        run_config(model=small_net, measure=(outside,), seed=seed, arm=arm, learning_rate=rate)
        for arm, rate in (("slow", 0.1), ("fast", 0.2)) for seed in (3, 4)
    ]
    train(tmp_path, *configs)
    stored = [Store(tmp_path).frames(config) for config in configs]
    assert [None if frames is None else int(frames["outside"][0]) for frames in stored] == [
        0, None, 2, None
    ]


@pytest.mark.parametrize("measure, words", [
    ("penalti", "unknown probe 'penalti'; known: .*did you mean 'penalty'"),
    ("penalty:all", "Penalty takes no argument; received 'all'"),
    ("pitfalls:never_updatd", "unknown evaluation 'never_updatd'; known: correct, "),
    ("pitfall_curve:never_updatd", "unknown evaluation 'never_updatd'; known: correct, "),
])
def test_what_cannot_be_measured_is_refused_by_name(tmp_path, small_net, measure, words):
    with pytest.raises(ConfigError, match=f"measure='{measure}' with model='.*': {words}"):
        train(tmp_path, run_config(model=small_net, measure=(measure,)))


@pytest.mark.slow
def test_a_run_that_is_stopped_has_no_result(tmp_path, small_net):
    stop = threading.Event()

    class StopsAt(Writer):
        """Pulls the plug while step 4 is shown."""

        closed = False

        def scalars(self, step, values):
            if step == 4:
                stop.set()

        def close(self):
            StopsAt.closed = True

    shown = []

    def show(name, steps):
        shown.append((name, steps))
        return StopsAt()

    assert train(tmp_path, run_config(model=small_net), show=show, stop=stop) is None
    assert shown == [("batch/seed_0", 8)] and StopsAt.closed


@pytest.mark.slow
def test_the_terminal_is_shown_means_over_the_runs_that_still_go(tmp_path, small_net):
    seen = {}

    class Shown(Writer):
        """Keeps what it is shown."""

        def scalars(self, step, values):
            seen[step] = values["loss/train"]

    good = run_config(model=small_net, normalizer="none")
    bad = dataclasses.replace(good, seed=1, learning_rate=1e200)
    titles = []
    found, lost = train(
        tmp_path, good, bad, show=lambda name, steps: (titles.append(name), Shown())[1]
    )
    assert titles == ["none/seed_0 and 1 more"] and lost.status == DIVERGED
    assert seen[8] == found.curves["loss/train"][-1][1]


@pytest.mark.parametrize("model, loss", [("bad_init_mlp", None), ("ioffe_mlp", "squared")])
def test_a_loss_for_numbers_is_refused_for_classes(tmp_path, model, loss):
    """And the other way round; the message names loss, model and dataset."""
    with pytest.raises(ConfigError, match="loss='squared' .* labels are classes; expected"):
        train(tmp_path, run_config(model=model, loss=loss))
    with pytest.raises(ConfigError, match="loss='softmax' .* labels are numbers; expected"):
        train(tmp_path, run_config(), splits=number_splits())


def test_images_that_a_model_shrinks_to_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'conv_bn_relu' cannot be built .* \(4, 4, 1\)"):
        train(tmp_path, run_config(model="conv_bn_relu"))


def test_a_fixed_order_draws_the_same_rows_again_and_again():
    config = run_config(batch_order="fixed", train_size=12)
    batches = batch_indices(config, 12, 20)
    assert batches.shape == (20, 12)
    assert all(batch.tolist() == list(range(12)) for batch in batches)
    shuffled = batch_indices(dataclasses.replace(config, batch_order="shuffled"), 60, 5)
    assert len(np.unique(shuffled)) == 60


def weights(model, name):
    return [weight.numpy() for weight in model.weights if weight.name == name]


@pytest.mark.parametrize("model", ["mnist_cnn", "not_mnist_mlp", "bad_init_mlp"])
def test_a_bias_of_one_s_own_is_where_all_biases_start(model):
    splits = bright_splits(size=8)
    own = build(run_config(model=model, normalizer="none"), splits)
    found = build(run_config(model=model, normalizer="none", bias=0.375), splits)
    assert len(weights(found, "bias")) == len(weights(own, "bias")) >= 2
    assert all((bias == 0.375).all() for bias in weights(found, "bias"))
    start = {"mnist_cnn": 0.1, "not_mnist_mlp": 0.0, "bad_init_mlp": -0.2}[model]
    assert all(np.allclose(bias, start) for bias in weights(own, "bias"))
    zero = build(run_config(model=model, normalizer="none", bias=0.0), splits)
    assert all((bias == 0).all() for bias in weights(zero, "bias"))


@pytest.mark.parametrize("initializer", ["glorot", "he"])
def test_an_initializer_of_one_s_own_is_that_of_the_dense_kernels_alone(initializer):
    """Glorot's uniform ends at sqrt(6 / (in + out)); He's normal has the variance 2 / in."""
    splits = bright_splits(size=8)
    own = build(run_config(model="mnist_cnn"), splits)
    found = build(run_config(model="mnist_cnn", initializer=initializer), splits)
    for one, other in zip(own.layers, found.layers, strict=True):
        if isinstance(one, keras.layers.Conv2D):
            np.testing.assert_array_equal(one.kernel, other.kernel)
    kernel = found.get_layer("dense1").kernel.numpy()
    inputs, outputs = kernel.shape
    limit = np.sqrt(6 / (inputs + outputs))
    if initializer == "glorot":
        assert 0.99 * limit < np.abs(kernel).max() <= limit
    else:
        assert kernel.std() == pytest.approx(np.sqrt(2 / inputs), rel=0.02)
    assert not np.array_equal(kernel, own.get_layer("dense1").kernel)


def test_a_share_of_dropout_of_one_s_own_takes_the_place_of_the_model_s():
    splits = bright_splits(size=8)
    own = build(run_config(model="mnist_cnn"), splits)
    more = build(run_config(model="mnist_cnn", dropout=0.75), splits)
    none = build(run_config(model="mnist_cnn", dropout=0.0), splits)
    assert own.get_layer("dropout").rate == 0.5 and more.get_layer("dropout").rate == 0.75
    assert not [layer for layer in none.layers if isinstance(layer, keras.layers.Dropout)]
    for one, other in zip(weights(own, "kernel"), weights(none, "kernel"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_is_refused_where_a_model_has_no_place_for_it():
    with pytest.raises(
        ConfigError, match="'ioffe_mlp'.*dropout=0.5: ioffe_mlp has no dropout layer; expected 0"
    ):
        build(run_config(dropout=0.5), bright_splits())
    build(run_config(dropout=0.0), bright_splits())


@pytest.mark.parametrize("model, own", [("not_mnist_mlp", 0.0005), ("ioffe_mlp", 0.0)])
@pytest.mark.parametrize("l2", [None, 0.0, 0.25])
def test_a_penalty_of_one_s_own_takes_the_place_of_the_model_s(model, own, l2):
    found = build(run_config(model=model, l2=l2), bright_splits())
    squares = sum(
        (weight.astype(float) ** 2).sum() for name in ("kernel", "bias")
        for weight in weights(found, name)
    )
    expected = (own if l2 is None else l2) * squares
    assert float(sum(found.losses, 0.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_second_curve_ends_where_the_bugs_are_measured(tmp_path, small_net):
    """Validation set and test set are the same here."""
    part = bright_splits().train
    splits = data.Splits(part, part, part, classes=3)
    config = run_config(
        model=small_net, curve_size=60, measure=("pitfalls:never_updated",
                                                 "pitfall_curve:never_updated"),
    )
    found, = train(tmp_path, config, splits=splits)
    curve = found.curves["accuracy/validation_never_updated"]
    assert [step for step, _ in curve] == [4, 8]
    assert curve[-1][1] == pytest.approx(found.metrics["pitfall/never_updated/whole"])
    measured = {name.split("/")[1] for name in found.metrics if name.startswith("pitfall/")}
    assert measured == {"never_updated", "images"}, "more was measured than asked for"
